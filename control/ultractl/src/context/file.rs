//! The file of contexts, as it is read and as it is changed.
//!
//! ```toml
//! current = "lab"
//!
//! [contexts.lab.chainfire]
//! endpoints = ["https://10.0.0.1:2379", "https://10.0.0.2:2379"]
//! user = "root:secret"        # or token = "..."; neither, where nobody is asked
//! tls = { cert = "me.crt", key = "me.key", ca = "lab.crt" }
//!
//! [contexts.lab.api]
//! endpoints = ["http://10.0.0.1:9001"]
//! token = "..."
//! ```
//!
//! What is read is checked whole, also the contexts that nobody asks for, and a key that is unknown is an
//! error at its line and column. Certificates are named from the file's directory. A file with a password
//! or a token is readable by its owner alone, or it is not read. A change is written beside the file and
//! moved there: whoever reads sees the old text or the new one. Comments stay.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Write as _};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use control_kit::config::{Layers, Refused, Source};
use control_kit::tls::TlsFiles;
use serde::Deserialize;
use toml::Spanned;
use toml_edit::DocumentMut;

use crate::failure::{Exit, Failure};

const NAME_LENGTH_MAX: usize = 64;
/// Who else may read the file, as bits of its mode.
const OTHERS: u32 = 0o077;

/// How a service is reached, and as whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// URLs; the first that answers is asked.
    pub endpoints: Vec<String>,
    /// As whom.
    pub login: Login,
    /// The certificates of both sides.
    pub tls: Option<TlsFiles>,
}

/// As whom a service is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Login {
    /// As nobody, or as whom a certificate names.
    #[default]
    None,
    /// A user's name and password.
    User(String, String),
    /// What a service has given out before.
    Token(String),
}

impl Login {
    /// A user as it is written, `NAME:PASSWORD`.
    pub fn user(text: &str) -> Option<Login> {
        let (name, password) = text.split_once(':')?;
        (!name.is_empty()).then(|| Login::User(name.into(), password.into()))
    }
}

/// What a context says, service by service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    pub api: Option<Target>,
    pub chainfire: Option<Target>,
}

/// A file that was read.
#[derive(Debug, PartialEq, Eq)]
pub struct File {
    /// Where it is, or will be.
    pub path: PathBuf,
    /// The context that counts when none is asked for.
    pub current: Option<String>,
    /// By name.
    pub contexts: BTreeMap<String, Context>,
    text: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    current: Option<Spanned<String>>,
    #[serde(default)]
    contexts: BTreeMap<Spanned<String>, RawContext>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawContext {
    api: Option<Spanned<RawTarget>>,
    chainfire: Option<Spanned<RawTarget>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTarget {
    endpoints: Spanned<Vec<String>>,
    user: Option<Spanned<String>>,
    token: Option<Spanned<String>>,
    tls: Option<TlsFiles>,
}

impl File {
    /// Reads a file; one that is not there is empty.
    pub fn read(path: &Path) -> Result<File> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        let file = File::parse(path, text)?;
        if file.has_secrets() {
            let mode = fs::metadata(path)?.permissions().mode();
            if mode & OTHERS != 0 {
                let what = "holds a password or a token and others may read it";
                let path = path.display();
                let failure = Failure::new(Exit::Usage, "config", format!("{path} {what}"));
                return Err(failure.next(format!("chmod 600 {path}")).into());
            }
        }
        Ok(file)
    }

    fn parse(path: &Path, text: String) -> Result<File> {
        // No variable lies over the file: those that there are win over what a context says.
        let layers = Layers::new(&text, path, "", []);
        let raw: RawFile = layers.read()?;
        let source = layers.source();
        let mut contexts = BTreeMap::new();
        for (name, raw) in raw.contexts {
            if !is_name(name.get_ref()) {
                return source.refuse(&name.span(), NAME_RULE);
            }
            let target = |raw| target(raw, path, source);
            if let Some(user) = raw.api.as_ref().and_then(|api| api.get_ref().user.as_ref()) {
                return source.refuse(&user.span(), API_TAKES_TOKENS);
            }
            let context = Context {
                api: raw.api.map(target).transpose()?,
                chainfire: raw.chainfire.map(target).transpose()?,
            };
            contexts.insert(name.into_inner(), context);
        }
        if let Some(current) = &raw.current
            && !contexts.contains_key(current.get_ref())
        {
            let what = format!("there is no context {}", current.get_ref());
            return source.refuse(&current.span(), &what);
        }
        Ok(File {
            path: path.to_owned(),
            current: raw.current.map(Spanned::into_inner),
            contexts,
            text,
        })
    }

    fn has_secrets(&self) -> bool {
        let of = |one: &Context| [one.api.clone(), one.chainfire.clone()];
        let mut targets = self.contexts.values().flat_map(of).flatten();
        targets.any(|target| target.login != Login::None)
    }

    /// Changes the file. What comes of it is checked before it is written.
    pub fn change(self, edit: impl FnOnce(&mut DocumentMut)) -> Result<File> {
        let mut document: DocumentMut = self.text.parse().context("the file was read as TOML")?;
        edit(&mut document);
        let changed = File::parse(&self.path, document.to_string())?;
        changed.write()?;
        Ok(changed)
    }

    fn write(&self) -> Result<()> {
        // A link stays a link, to a file that is replaced.
        let path = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let dir = path.parent().unwrap_or(Path::new("/"));
        let cannot = || format!("cannot write {}", path.display());
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(dir).with_context(cannot)?;
        // Made for its owner alone.
        let mut beside = tempfile::NamedTempFile::new_in(dir).with_context(cannot)?;
        beside
            .write_all(self.text.as_bytes())
            .with_context(cannot)?;
        beside.as_file().sync_all().with_context(cannot)?;
        beside.persist(&path).with_context(cannot)?;
        fs::File::open(dir)?.sync_all().with_context(cannot)
    }
}

/// What the API's services do not ask for.
pub const API_TAKES_TOKENS: &str = "the api is asked with a token, not as user and password";

const NAME_RULE: &str = "a context's name has 1 to 64 characters out of a-z, A-Z, 0-9 and -_.";

/// Whether a text can name a context.
pub fn is_name(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    (1..=NAME_LENGTH_MAX).contains(&text.len()) && text.bytes().all(plain)
}

/// The refusal of a text that cannot.
pub fn not_a_name(text: &str) -> Failure {
    Failure::usage(format!("{text:?} cannot name a context")).next(NAME_RULE)
}

/// Whether a service can be reached there.
pub fn check(endpoints: &[String], has_tls: bool) -> Result<(), &'static str> {
    let is_url = |url: &String| url.starts_with("http://") || url.starts_with("https://");
    if endpoints.is_empty() || !endpoints.iter().all(is_url) {
        return Err("endpoints are URLs, http://HOST:PORT or https://HOST:PORT, one at least");
    }
    if !has_tls && endpoints.iter().any(|url| url.starts_with("https://")) {
        return Err("https needs certificates: cert, key and the authority's");
    }
    Ok(())
}

fn target(raw: Spanned<RawTarget>, path: &Path, source: Source<'_>) -> Result<Target> {
    let whole = raw.span();
    let raw = raw.into_inner();
    if let Err(what) = check(raw.endpoints.get_ref(), raw.tls.is_some()) {
        return source.refuse(&raw.endpoints.span(), what);
    }
    let login = match (&raw.user, &raw.token) {
        (None, None) => Login::None,
        (Some(_), Some(token)) => {
            return source.refuse(&token.span(), "either user or token, not both");
        }
        (Some(user), None) => match Login::user(user.get_ref()) {
            Some(login) => login,
            None => return source.refuse(&user.span(), "user is NAME:PASSWORD"),
        },
        (None, Some(token)) => Login::Token(token.get_ref().clone()),
    };
    let dir = path.parent().unwrap_or(Path::new("/"));
    let tls = raw.tls.map(|files| TlsFiles {
        cert: dir.join(files.cert),
        key: dir.join(files.key),
        ca: files.ca.map(|ca| dir.join(ca)),
    });
    if let Some(TlsFiles { ca: None, .. }) = tls {
        return refuse_without_ca(source, &whole);
    }
    Ok(Target {
        endpoints: raw.endpoints.into_inner(),
        login,
        tls,
    })
}

fn refuse_without_ca<T>(source: Source<'_>, place: &Range<usize>) -> Result<T> {
    let refused: Result<T, Refused> = source.refuse(place, "tls without ca trusts nobody: add ca");
    Ok(refused?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"# Whose: mine.
current = "lab"

[contexts.lab.chainfire]
endpoints = ["https://10.0.0.1:2379"]
user = "root:a:b"
tls = { cert = "me.crt", key = "/keys/me.key", ca = "lab.crt" }

[contexts.plain.chainfire]
endpoints = ["http://127.0.0.1:2379"] # alone
"#;

    fn parse(text: &str) -> Result<File> {
        File::parse(Path::new("/config/contexts.toml"), text.to_owned())
    }

    #[test]
    fn a_file_is_read_with_its_certificates_beside_it() {
        let file = parse(GOOD).unwrap();
        assert_eq!(file.current.as_deref(), Some("lab"));
        let lab = file.contexts["lab"].chainfire.as_ref().unwrap();
        assert_eq!(lab.login, Login::User("root".into(), "a:b".into()));
        let tls = lab.tls.as_ref().unwrap();
        assert_eq!(tls.cert, Path::new("/config/me.crt"));
        assert_eq!(tls.key, Path::new("/keys/me.key"));
        assert!(parse("").unwrap().contexts.is_empty());
    }

    #[test]
    fn what_is_wrong_is_refused_at_its_line_and_column() {
        let block = "[contexts.a.chainfire]\n";
        for (text, place, what) in [
            ("curent = \"a\"", "line 1, column 1", "unknown field"),
            ("current = \"a\"", "line 1, column 11", "no context a"),
            ("[contexts.\"a b\"]", "line 1, column 11", "name has"),
            (
                "[contexts.a]\n  chainfir = {}",
                "line 2, column 3",
                "unknown field",
            ),
            (
                &format!("{block}endpoints = []"),
                "line 2, column 13",
                "one at least",
            ),
            (
                &format!("{block}endpoints = [\"a:1\"]"),
                "line 2, column 13",
                "URLs",
            ),
            (
                &format!("{block}endpoints = [\"https://a\"]"),
                "line 2, column 13",
                "needs certificates",
            ),
            (
                &format!("{block}endpoints = [\"http://a\"]\nuser = \"a\""),
                "line 3, column 8",
                "NAME:PASSWORD",
            ),
            (
                &format!("{block}endpoints = [\"http://a\"]\nuser = \"a:b\"\ntoken = \"c\""),
                "line 4, column 9",
                "not both",
            ),
            (
                &format!(
                    "{block}endpoints = [\"http://a\"]\ntls = {{ cert = \"a\", key = \"b\", cs = \"c\" }}"
                ),
                "line 3, column 32",
                "unknown field",
            ),
            (
                "[contexts.a.api]\nendpoints = [\"http://a\"]\nuser = \"a:b\"",
                "line 3, column 8",
                "with a token",
            ),
            ("current = ", "line 1, column 11", ""),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with("/config/contexts.toml, "), "{error}");
            assert!(
                error.contains(place) && error.contains(what),
                "{text}\n{error}"
            );
        }
    }

    #[test]
    fn a_change_keeps_comments_and_is_for_the_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/contexts.toml");
        let empty = File::read(&path).unwrap();
        assert!(empty.contexts.is_empty());
        let whole = |document: &mut DocumentMut| *document = GOOD.parse().unwrap();
        empty.change(whole).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let file = File::read(&path).unwrap();
        let file = file
            .change(|document| document["current"] = toml_edit::value("plain"))
            .unwrap();
        assert_eq!(file.current.as_deref(), Some("plain"));
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(
            text,
            GOOD.replace("current = \"lab\"", "current = \"plain\"")
        );
        // What would not be read again is not written.
        let wrong = |document: &mut DocumentMut| document["current"] = toml_edit::value("gone");
        file.change(wrong).unwrap_err();
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }

    #[test]
    fn a_secret_that_others_may_read_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("contexts.toml");
        let open = |text: &str| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
            File::read(&path)
        };
        let error = open(GOOD).unwrap_err();
        assert!(error.to_string().contains("others may read it"), "{error}");
        open(&GOOD.replace("user = ", "# ")).unwrap();
    }
}
