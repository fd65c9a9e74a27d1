//! Pieces of config files: a value that is wrong is refused with its file, line and column.
//! A TLS block of a config is a [`TlsFiles`](crate::tls::TlsFiles).

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;

/// A value of a config file that is not allowed, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}, line {line}, column {column}: {what}", path.display())]
pub struct Refused {
    path: PathBuf,
    line: usize,
    column: usize,
    what: String,
}

/// The text that spans point into.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The whole file.
    pub text: &'a str,
    /// Its name, for errors.
    pub path: &'a Path,
}

impl Source<'_> {
    /// Refuses a value, saying where it stands.
    ///
    /// # Errors
    /// Always.
    pub fn refuse<T, E: From<Refused>>(&self, span: &Range<usize>, what: &str) -> Result<T, E> {
        let before = &self.text[..span.start.min(self.text.len())];
        let last = before.rsplit('\n').next().unwrap_or_default();
        let refused = Refused {
            path: self.path.to_owned(),
            line: before.matches('\n').count() + 1,
            column: last.chars().count() + 1,
            what: what.to_owned(),
        };
        Err(refused.into())
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
    struct Raw {
        count: Option<Spanned<u32>>,
    }

    #[test]
    fn a_number_out_of_range_is_refused_at_its_place() {
        let text = "\n  count = 9\n";
        let raw: Raw = toml::from_str(text).unwrap();
        let path = Path::new("node.toml");
        let source = Source { text, path };
        let refused = source.number(raw.count, 1, 1..5, "x.count").unwrap_err();
        assert_eq!(
            refused.to_string(),
            "node.toml, line 2, column 11: x.count is 9; allowed: 1 to below 5"
        );
        assert_eq!(source.number(None, 3, 1..5, "x.count"), Ok(3));
    }
}
