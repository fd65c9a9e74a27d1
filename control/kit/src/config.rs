//! Config in layers: a file, the environment over it, the command line over both. A value that is wrong, or
//! a key that nobody knows, is refused with its file, line and column, or with the variable's name.
//!
//! A variable is a prefix and the key, with `__` for the dots: with `ULTRACLOUD_`, `shards.count` is
//! `ULTRACLOUD_SHARDS__COUNT`. Its value is TOML, or else text as it stands. A variable without `__` is no
//! key. A TLS block of a config is a [`TlsFiles`](crate::tls::TlsFiles).

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer};

/// A value of a config that is not allowed, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {what}")]
pub struct Refused {
    place: Place,
    what: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    File {
        path: PathBuf,
        line: usize,
        column: usize,
    },
    Variable(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File { path, line, column } => {
                write!(f, "{}, line {line}, column {column}", path.display())
            }
            Place::Variable(name) => write!(f, "environment variable {name}"),
        }
    }
}

/// A file's text, and what the environment lays over it.
#[derive(Clone, Debug)]
pub struct Layers {
    file: String,
    path: PathBuf,
    variables: Vec<Variable>,
}

/// A variable as a document of one key, behind as much blank space as stands before it in all: so a span
/// tells which text it points into.
#[derive(Clone, Debug)]
struct Variable {
    name: String,
    document: String,
    starts: usize,
}

impl Layers {
    /// The file's text, and the variables of an environment that begin with a prefix.
    pub fn new(
        text: impl Into<String>,
        path: impl Into<PathBuf>,
        prefix: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Layers {
        let file = text.into();
        let mut starts = file.len() + 1;
        let mut named: Vec<(String, String)> = environment.into_iter().collect();
        named.sort();
        let mut variables = Vec::new();
        for (name, value) in named {
            let key = name.strip_prefix(prefix).filter(|key| key.contains("__"));
            let Some(key) = key else { continue };
            let dotted = key.to_ascii_lowercase().replace("__", ".");
            let plain = format!("{dotted} = {value}");
            let text = if DeTable::parse(&plain).is_ok() {
                plain
            } else {
                format!("{dotted} = {}", toml::Value::String(value))
            };
            let document = " ".repeat(starts) + &text;
            let ends = document.len() + 1;
            variables.push(Variable {
                name,
                document,
                starts,
            });
            starts = ends;
        }
        Layers {
            file,
            path: path.into(),
            variables,
        }
    }

    /// What spans of the values point into.
    pub fn source(&self) -> Source<'_> {
        Source { layers: self }
    }

    /// All layers as one value; what is in the environment wins over the file.
    ///
    /// # Errors
    /// When a text is no TOML, a key is not known, or a value is of another type.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Refused> {
        let source = self.source();
        let unreadable = |error: toml::de::Error| {
            let span = error.span().unwrap_or_default();
            source.refused(&span, error.message())
        };
        let mut all = DeTable::parse(&self.file).map_err(unreadable)?;
        for variable in &self.variables {
            let table = DeTable::parse(&variable.document).map_err(unreadable)?;
            lay_over(all.get_mut(), table.into_inner());
        }
        T::deserialize(Deserializer::from(all)).map_err(unreadable)
    }
}

fn lay_over<'a>(below: &mut DeTable<'a>, above: DeTable<'a>) {
    for (key, value) in above {
        match (below.get_mut(&key).map(Spanned::get_mut), value) {
            (Some(DeValue::Table(below)), value) if value.get_ref().is_table() => {
                if let DeValue::Table(above) = value.into_inner() {
                    lay_over(below, above);
                }
            }
            (_, value) => {
                // The key's own span has to be the newer one, too.
                below.remove(&key);
                below.insert(key, value);
            }
        }
    }
}

/// The text that spans point into.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    layers: &'a Layers,
}

impl Source<'_> {
    /// Refuses a value, saying where it stands.
    ///
    /// # Errors
    /// Always.
    pub fn refuse<T, E: From<Refused>>(&self, span: &Range<usize>, what: &str) -> Result<T, E> {
        Err(self.refused(span, what).into())
    }

    fn refused(self, span: &Range<usize>, what: &str) -> Refused {
        let Layers {
            file,
            path,
            variables,
        } = self.layers;
        let mut later = variables.iter().rev();
        let variable = later.find(|variable| variable.starts <= span.start);
        let in_file = || {
            let before = file.get(..span.start).unwrap_or(file);
            let last = before.rsplit('\n').next().unwrap_or_default();
            Place::File {
                path: path.clone(),
                line: before.matches('\n').count() + 1,
                column: last.chars().count() + 1,
            }
        };
        let place = variable.map_or_else(in_file, |one| Place::Variable(one.name.clone()));
        Refused {
            place,
            what: what.trim_end().to_owned(),
        }
    }

    /// The value, or the default, if it lies in the range.
    ///
    /// # Errors
    /// When it lies outside.
    pub fn number<T>(
        &self,
        raw: Option<Spanned<T>>,
        default: T,
        allowed: Range<T>,
        key: &str,
    ) -> Result<T, Refused>
    where
        T: PartialOrd + Copy + fmt::Display,
    {
        let Some(raw) = raw else { return Ok(default) };
        let value = *raw.get_ref();
        if allowed.contains(&value) {
            return Ok(value);
        }
        let Range { start, end } = allowed;
        self.refuse(
            &raw.span(),
            &format!("{key} is {value}; allowed: {start} to below {end}"),
        )
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Raw {
        shards: Option<Shards>,
        admin: Option<Admin>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Shards {
        count: Option<Spanned<u32>>,
        pool: Option<u32>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Admin {
        listen: Option<String>,
    }

    fn layers(text: &str, environment: &[(&str, &str)]) -> Layers {
        let owned = environment
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Layers::new(text, "node.toml", "ULTRACLOUD_", owned)
    }

    #[test]
    fn a_number_out_of_range_is_refused_at_its_place() {
        let layers = layers("\n[shards]\n  count = 9\n", &[]);
        let raw: Raw = layers.read().unwrap();
        let (source, count) = (layers.source(), raw.shards.unwrap().count);
        let refused = source.number(count, 1, 1..5, "shards.count").unwrap_err();
        assert_eq!(
            refused.to_string(),
            "node.toml, line 3, column 11: shards.count is 9; allowed: 1 to below 5"
        );
        assert_eq!(source.number(None, 3, 1..5, "shards.count"), Ok(3));
    }

    #[test]
    fn the_environment_lies_over_the_file() {
        let environment = [
            ("ULTRACLOUD_SHARDS__COUNT", "4"),
            ("ULTRACLOUD_ADMIN__LISTEN", "[::1]:1"),
            ("ULTRACLOUD_BIN", "no key"),
            ("OTHER__THING", "1"),
        ];
        let layers = layers("[shards]\ncount = 9\npool = 7\n", &environment);
        let raw: Raw = layers.read().unwrap();
        let shards = raw.shards.unwrap();
        assert_eq!(shards.count.unwrap().into_inner(), 4);
        assert_eq!(shards.pool, Some(7));
        assert_eq!(raw.admin.unwrap().listen.as_deref(), Some("[::1]:1"));
    }

    #[test]
    fn what_is_wrong_in_the_environment_names_the_variable() {
        for (name, value, said) in [
            ("ULTRACLOUD_SHARDS__CUONT", "1", "cuont"),
            ("ULTRACLOUD_SHARDS__COUNT", "many", "many"),
            ("ULTRACLOUD_NOTHING__AT_ALL", "1", "nothing"),
        ] {
            let layers = layers("[shards]\npool = 7\n", &[(name, value)]);
            let error = layers.read::<Raw>().unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("environment variable {name}: ")),
                "{error}"
            );
            assert!(error.contains(said), "{error}");
        }
        let layers = layers(
            "",
            &[
                ("ULTRACLOUD_SHARDS__COUNT", "99"),
                ("ULTRACLOUD_SHARDS__POOL", "1"),
            ],
        );
        let raw: Raw = layers.read().unwrap();
        let count = raw.shards.unwrap().count;
        let refused = layers
            .source()
            .number(count, 1, 1..5, "shards.count")
            .unwrap_err();
        let said = refused.to_string();
        assert!(
            said.starts_with("environment variable ULTRACLOUD_SHARDS__COUNT: "),
            "{said}"
        );
    }

    #[test]
    fn what_is_wrong_in_the_file_names_its_line_and_column() {
        let error = layers("[shards]\ncuont = 1\n", &[])
            .read::<Raw>()
            .unwrap_err();
        let said = error.to_string();
        assert!(said.starts_with("node.toml, line 2, column 1: "), "{said}");
        let error = layers("nonsense", &[]).read::<Raw>().unwrap_err();
        assert!(
            error.to_string().starts_with("node.toml, line 1"),
            "{error}"
        );
    }
}
