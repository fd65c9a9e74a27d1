//! The one error of this crate.

use std::fmt;

/// What went wrong, with what it was about.
#[derive(Debug)]
pub struct Error {
    /// To match on.
    pub kind: ErrorKind,
    /// What was being done, to which object.
    context: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Kinds of [`Error`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The program's object is missing or is not one.
    Object,
    /// The kernel refused the program, a map or an attachment.
    Kernel,
    /// Pinned maps are of another layout or size.
    Pinned,
    /// What is desired contradicts itself or is past a limit; nothing was changed.
    Desired,
    /// The tables are full.
    Full,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self {
            kind,
            context: context.into(),
            source: None,
        }
    }

    pub(crate) fn with(
        kind: ErrorKind,
        context: impl Into<String>,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self {
            kind,
            context: context.into(),
            source: Some(Box::new(source)),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn std::error::Error + 'static))
    }
}

/// What this crate's functions give.
pub type Result<T> = std::result::Result<T, Error>;

/// An error with what caused it, in one line.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
