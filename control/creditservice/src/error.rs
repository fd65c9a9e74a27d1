//! The error of the ledger that is kept in a store: what was refused or failed, and what to do next.

use std::error::Error as StdError;

use control_kit::api_error::ApiError;
use tonic::Code;

use crate::explain::Explanation;
use crate::refusal::{Refusal, Refused};

/// What went wrong, to match on.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The ledger's rules do not allow it; [`Error::refusal`] has the reason.
    Refused,
    /// Too many calls wait already; nothing was done.
    Busy,
    /// The store could not be reached, or others changed the same accounts all the time; nothing was done.
    Unavailable,
    /// It may have been done. The same call with the same ids tells, and does it where it was not.
    Unknown,
    /// The store does not take it, as when it is full.
    Store,
    /// What is in the store is no ledger of this format, or contradicts itself.
    Damaged,
}

/// A call on the ledger that failed.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Error {
    kind: ErrorKind,
    what: String,
    refused: Option<Box<Refused>>,
    explanation: Option<Box<Explanation>>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// What to match on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Which operation of the chain was refused, and why.
    pub fn refusal(&self) -> Option<&Refused> {
        self.refused.as_deref()
    }

    /// Why it was refused.
    pub(crate) fn reason(&self) -> Option<&Refusal> {
        self.refused.as_ref().map(|refused| &refused.refusal)
    }

    /// Who holds what was asked for, where a limit was in the way.
    pub fn explanation(&self) -> Option<&Explanation> {
        self.explanation.as_deref()
    }

    /// What to do about it.
    pub fn next(&self) -> String {
        if let Some(explanation) = &self.explanation {
            return explanation.next();
        }
        let next = match (self.kind, &self.refused) {
            (_, Some(refused)) => refused.refusal.next(),
            (ErrorKind::Busy, _) => "try again later, with the same ids",
            (ErrorKind::Unavailable, _) => {
                "check ChainFire's health, and try again with the same ids"
            }
            (ErrorKind::Unknown, _) => {
                "try again with the same ids: what was done is not done twice"
            }
            (ErrorKind::Store, _) => "check ChainFire's alarms and the rights of this client",
            (ErrorKind::Damaged, _) => {
                "stop what writes to the ledger, and restore it from an export or a backup"
            }
            (ErrorKind::Refused, None) => "correct what was asked",
        };
        next.to_owned()
    }

    pub(crate) fn new(kind: ErrorKind, what: impl Into<String>) -> Error {
        Error {
            kind,
            what: what.into(),
            refused: None,
            explanation: None,
            source: None,
        }
    }

    pub(crate) fn caused(
        kind: ErrorKind,
        what: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Error {
        Error {
            source: Some(source.into()),
            ..Error::new(kind, what)
        }
    }

    /// Whether trying again changes nothing.
    pub(crate) fn lasts(&self) -> bool {
        !matches!(self.kind, ErrorKind::Unavailable | ErrorKind::Unknown)
    }

    /// The same, of another kind.
    pub(crate) fn with_kind(mut self, kind: ErrorKind) -> Error {
        self.kind = kind;
        self
    }

    /// The same for one more caller; what is behind it goes into the text.
    pub(crate) fn again(&self) -> Error {
        let what = match &self.source {
            Some(source) => format!("{}: {source}", self.what),
            None => self.what.clone(),
        };
        Error {
            refused: self.refused.clone(),
            ..Error::new(self.kind, what)
        }
    }

    pub(crate) fn explained(mut self, explanation: Explanation) -> Error {
        self.what = explanation.to_string();
        self.explanation = Some(Box::new(explanation));
        self
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Error {
        let kind = match refused.refusal {
            Refusal::Damaged(_) => ErrorKind::Damaged,
            _ => ErrorKind::Refused,
        };
        Error {
            refused: Some(Box::new(refused.clone())),
            ..Error::new(kind, refused.to_string())
        }
    }
}

/// As a user of a service sees it.
impl From<&Error> for ApiError {
    fn from(error: &Error) -> ApiError {
        let (grpc, code) = match (error.kind, &error.refused) {
            (_, Some(refused)) => (grpc_of(&refused.refusal), refused.refusal.code()),
            (ErrorKind::Busy, _) => (Code::ResourceExhausted, "ledger-busy"),
            (ErrorKind::Unavailable, _) => (Code::Unavailable, "ledger-unavailable"),
            (ErrorKind::Unknown, _) => (Code::Unavailable, "ledger-outcome-unknown"),
            (ErrorKind::Store, _) => (Code::Unavailable, "ledger-store-refused"),
            (ErrorKind::Damaged, _) => (Code::DataLoss, "ledger-damaged"),
            (ErrorKind::Refused, None) => (Code::FailedPrecondition, "ledger-refused"),
        };
        let api = ApiError::new(grpc, code, error.to_string()).next(error.next());
        match error.explanation() {
            Some(Explanation { shortage, .. }) => {
                api.object(format!("quota {} of {}", shortage.unit, shortage.owner))
            }
            None => api,
        }
    }
}

fn grpc_of(refusal: &Refusal) -> Code {
    match refusal {
        Refusal::Exceeds(_) => Code::ResourceExhausted,
        Refusal::OtherTransfer(_) | Refusal::OtherAccount(_) => Code::AlreadyExists,
        Refusal::UnknownAccount(_) | Refusal::UnknownTransfer(_) => Code::NotFound,
        Refusal::ZeroAmount(_)
        | Refusal::SameAccount(_)
        | Refusal::OtherUnit { .. }
        | Refusal::Timeout { .. }
        | Refusal::ChainLength(_) => Code::InvalidArgument,
        Refusal::Overflow(_) => Code::OutOfRange,
        Refusal::Damaged(_) => Code::DataLoss,
        Refusal::Closed(_)
        | Refusal::Unsettled { .. }
        | Refusal::NotReserved(_)
        | Refusal::Expired { .. }
        | Refusal::Ended { .. }
        | Refusal::NotDue { .. }
        | Refusal::MoreThanReserved { .. }
        | Refusal::NotPosted { .. }
        | Refusal::MoreThanKept { .. } => Code::FailedPrecondition,
    }
}
