//! What went wrong, for people and for programs, and the exit code that goes with it.
//!
//! For people it is cargo's form, `error: ...` and then `help: ...`; for programs one document of the
//! shape that every control service answers with ([`control_kit::api_error`]). The exit codes are a
//! contract: docs/ultractl.md.

use std::fmt::Write as _;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use control_kit::config::Refused;
use serde::Serialize;
use tonic::{Code, Status};

use crate::output::{self, Format};

/// The metadata that a control service puts an error's code into.
const CODE: &str = "uc-error-code";
/// What a control service puts between what happened and what to do about it.
const NEXT: &str = "; next: ";

const ERROR: Style = AnsiColor::Red.on_default().bold();
const HELP: Style = AnsiColor::Cyan.on_default().bold();
const NOTE: Style = AnsiColor::Green.on_default().bold();

/// How the process ends when it did not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// For a reason that none of the others names.
    Failed = 1,
    /// The command line, the environment or the config file is wrong. Nothing was asked of a server.
    Usage = 2,
    /// What was named is not there.
    NotFound = 3,
    /// Nobody answered, or not in time.
    Unavailable = 4,
    /// The state of things, or a limit, does not allow it.
    Refused = 5,
    /// Whoever asks was not recognised, or may not do it.
    Denied = 6,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

impl Exit {
    fn of(code: Code) -> Exit {
        match code {
            Code::NotFound => Exit::NotFound,
            Code::Unavailable | Code::DeadlineExceeded => Exit::Unavailable,
            Code::Unauthenticated | Code::PermissionDenied => Exit::Denied,
            Code::InvalidArgument
            | Code::OutOfRange
            | Code::FailedPrecondition
            | Code::AlreadyExists
            | Code::Aborted
            | Code::ResourceExhausted
            | Code::Unimplemented => Exit::Refused,
            Code::Ok | Code::Cancelled | Code::Unknown | Code::Internal | Code::DataLoss => {
                Exit::Failed
            }
        }
    }
}

/// An error on its way to the user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    #[serde(skip)]
    exit: Exit,
    code: String,
    message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    object: String,
    /// What to do about it; one way a line.
    #[serde(skip_serializing_if = "String::is_empty")]
    next: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
}

impl Failure {
    /// `code` is for programs and stays for ever, as `file-exists`; `message` is for people.
    pub fn new(exit: Exit, code: &str, message: impl Into<String>) -> Failure {
        Failure {
            exit,
            code: code.to_owned(),
            message: message.into(),
            object: String::new(),
            next: String::new(),
            request_id: None,
        }
    }

    /// A command line, an environment or a config file that is wrong.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure::new(Exit::Usage, "usage", message)
    }

    /// What it happened to, as `member node04`.
    pub fn object(mut self, object: impl Into<String>) -> Failure {
        self.object = object.into();
        self
    }

    /// What to do about it.
    pub fn next(mut self, next: impl Into<String>) -> Failure {
        self.next = next.into();
        self
    }

    /// What an error comes to, with all that was said on its way.
    pub fn of(error: &anyhow::Error) -> Failure {
        let message = format!("{error:#}");
        if let Some(known) = error.downcast_ref::<Failure>() {
            return Failure {
                message,
                ..known.clone()
            };
        }
        if error.downcast_ref::<Refused>().is_some() {
            let next = "mend it there, or name another file by --config or ULTRACTL_CONFIG";
            return Failure::new(Exit::Usage, "config", message).next(next);
        }
        Failure::new(Exit::Failed, "failed", message)
    }

    /// The same with another message, made of this one.
    pub fn map_message(mut self, map: impl FnOnce(&str) -> String) -> Failure {
        self.message = map(&self.message);
        self
    }

    /// How the process ends.
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// Says it on stderr.
    pub fn show(&self, format: Format) {
        let said = output::structured(format, &serde_json::json!({ "error": self }));
        match said {
            Some(Ok(document)) => eprint!("{document}"),
            // A failure is strings; should they not be writable as such, then as lines.
            Some(Err(_)) | None => anstream::eprint!("{}", self.text()),
        }
    }

    fn text(&self) -> String {
        let mut text = format!("{ERROR}error{ERROR:#}: {}\n", self.message);
        for way in self.next.lines() {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{HELP}help{HELP:#}: {way}");
        }
        if let Some(id) = &self.request_id {
            let _ = writeln!(text, "{NOTE}note{NOTE:#}: the request was {id}");
        }
        text
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Failure {
        let text = said(&status);
        let (message, next) = text.split_once(NEXT).unwrap_or((&text, ""));
        let header = |name: &str| {
            let value = status.metadata().get(name)?.to_str().ok()?;
            Some(value.to_owned())
        };
        let code = header(CODE).unwrap_or_else(|| kebab(&format!("{:?}", status.code())));
        let exit = if is_unanswered(&status) {
            Exit::Unavailable
        } else {
            Exit::of(status.code())
        };
        let next = match (exit, next) {
            (Exit::Unavailable, "") => {
                "a change may have been made all the same: read it back before trying again"
            }
            (_, next) => next,
        };
        Failure {
            request_id: header(control_kit::request_id::HEADER),
            ..Failure::new(exit, &code, message).next(next)
        }
    }
}

/// Whether nobody answered, or not in time: what was asked may have happened.
pub fn is_unanswered(status: &Status) -> bool {
    let is_late = matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded);
    // A connection that breaks under a call has no code of its own.
    let source = std::error::Error::source(status);
    is_late || source.is_some_and(<dyn std::error::Error>::is::<tonic::transport::Error>)
}

/// What a server said, without gRPC's own words; what kept it from saying anything, to its first cause.
pub fn said(status: &Status) -> String {
    let mut text = match status.message() {
        "" => format!("{:?}", status.code()),
        message => message.to_owned(),
    };
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

/// `NotFound` as `not-found`.
fn kebab(camel: &str) -> String {
    let mut kebab = String::new();
    for (place, letter) in camel.char_indices() {
        if place > 0 && letter.is_uppercase() {
            kebab.push('-');
        }
        kebab.extend(letter.to_lowercase());
    }
    kebab
}

/// What clap found wrong with a command line.
pub fn of_usage(error: &clap::Error) -> Failure {
    let text = error.render().to_string();
    let mut message = String::new();
    let mut ways = Vec::new();
    for paragraph in text.split("\n\n") {
        if let Some(what) = paragraph.strip_prefix("error: ") {
            let lines: Vec<&str> = what.lines().map(str::trim).collect();
            lines.join(" ").trim_end().clone_into(&mut message);
        }
        for line in paragraph.lines().map(str::trim) {
            if let Some(tip) = line.strip_prefix("tip: ") {
                ways.push(tip.to_owned());
            } else if let Some(usage) = line.strip_prefix("Usage: ") {
                ways.push(format!("usage: {usage}"));
            }
        }
    }
    if message.is_empty() {
        // The help itself, which clap shows where a subcommand is missing.
        "a subcommand is missing".clone_into(&mut message);
    }
    ways.push("for more information, try `--help`".to_owned());
    Failure::usage(message).next(ways.join("\n"))
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    fn plain(failure: &Failure) -> String {
        anstream::adapter::strip_str(&failure.text()).to_string()
    }

    #[test]
    fn a_servers_refusal_keeps_its_code_its_advice_and_its_request() {
        let mut status = Status::failed_precondition("no vote; member 7; next: wait for member 6");
        let metadata = status.metadata_mut();
        metadata.insert(CODE, "change-under-way".parse().unwrap());
        metadata.insert("x-request-id", "5e-1".parse().unwrap());
        let failure = Failure::from(status);
        assert_eq!(failure.exit(), Exit::Refused);
        assert_eq!(
            plain(&failure),
            "error: no vote; member 7\nhelp: wait for member 6\nnote: the request was 5e-1\n"
        );
        let document = serde_json::to_value(&failure).unwrap();
        assert_eq!(document["code"], "change-under-way");
        assert_eq!(document["request_id"], "5e-1");
    }

    #[test]
    fn what_was_said_on_the_way_is_kept_with_the_exit_code() {
        let root = Failure::new(Exit::NotFound, "no-member", "no member x").object("member x");
        let error = Err::<(), _>(root).context("cannot promote").unwrap_err();
        let failure = Failure::of(&error);
        assert_eq!(failure.exit(), Exit::NotFound);
        assert_eq!(plain(&failure), "error: cannot promote: no member x\n");
        let other = Failure::of(&anyhow::anyhow!("why"));
        assert_eq!(
            (other.exit(), other.code.as_str()),
            (Exit::Failed, "failed")
        );
    }

    #[test]
    fn silence_is_unavailable_and_warns_of_a_change_made_all_the_same() {
        let failure = Failure::from(Status::deadline_exceeded("late"));
        assert_eq!(failure.exit(), Exit::Unavailable);
        assert_eq!(failure.code, "deadline-exceeded");
        assert!(failure.next.contains("read it back"), "{}", failure.next);
    }
}
