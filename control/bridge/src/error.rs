//! Why a call has no answer of its service, and what a user is told then.

use std::fmt;

use control_kit::api_error::ApiError;
use control_kit::request_id::RequestId;
use engine::ShardId;
use shards::PartitionId;
use tonic::Code;

use crate::context::CallContext;

/// What kind of failure an [`Error`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The tenant has its most calls in flight, or waiting on a shard. Others are served.
    TenantBusy,
    /// All tenants together have the most calls in flight.
    BridgeBusy,
    /// The shard's mailbox, its tasks or the calls between shards are at their most.
    ShardBusy,
    /// The deadline has passed.
    Deadline,
    /// The node drains and takes no new calls.
    Draining,
    /// The shard has ended, or the service has not started there.
    Gone,
}

/// What a call was made to, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Callee {
    Shard(ShardId),
    Owner(PartitionId),
}

impl fmt::Display for Callee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Callee::Shard(shard) => write!(f, "shard {}", shard.0),
            Callee::Owner(partition) => write!(f, "the owner of partition {}", partition.0),
        }
    }
}

/// A call without an answer of its service.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{what}")]
pub struct Error {
    kind: ErrorKind,
    what: String,
    object: String,
    may_have_happened: bool,
    request: RequestId,
}

impl Error {
    pub(crate) fn tenant_busy(context: &CallContext, held: usize) -> Error {
        let what =
            format!("{held} calls of the tenant are in flight, the most that it may have now");
        Error::new(ErrorKind::TenantBusy, context, what, &context.tenant)
    }

    pub(crate) fn bridge_busy(context: &CallContext, held: usize) -> Error {
        let what = format!("{held} calls to the shards are in flight, the most of this node");
        Error::new(ErrorKind::BridgeBusy, context, what, &context.tenant)
    }

    pub(crate) fn shard_busy(context: &CallContext, callee: Callee) -> Error {
        let what = format!("{callee} takes no more calls now: a queue on the way is full");
        Error::new(ErrorKind::ShardBusy, context, what, &callee)
    }

    pub(crate) fn deadline(context: &CallContext, callee: Callee, begun: bool) -> Error {
        let what = if begun {
            format!("no answer of {callee} before the deadline; the call had begun")
        } else {
            format!("the deadline passed before {callee} began the call; nothing happened")
        };
        let error = Error::new(ErrorKind::Deadline, context, what, &callee);
        Error {
            may_have_happened: begun,
            ..error
        }
    }

    pub(crate) fn draining(context: &CallContext) -> Error {
        let what = "the node drains and takes no new calls".to_owned();
        Error::new(ErrorKind::Draining, context, what, &"this node")
    }

    pub(crate) fn gone(context: &CallContext, callee: Callee, begun: bool) -> Error {
        let what = if begun {
            format!("{callee} ended in the middle of the call")
        } else {
            format!("{callee} is gone, or its service has not started; nothing happened")
        };
        let error = Error::new(ErrorKind::Gone, context, what, &callee);
        Error {
            may_have_happened: begun,
            ..error
        }
    }

    /// For services with an admission of their own: its refusal, as the same error that the bridge's
    /// own bound of a tenant gives.
    pub fn of_admission(context: &CallContext, busy: shards::Busy) -> Error {
        let what = format!(
            "{} calls of the tenant wait on a shard, the most that may",
            busy.queued
        );
        Error::new(ErrorKind::TenantBusy, context, what, &context.tenant)
    }

    fn new(
        kind: ErrorKind,
        context: &CallContext,
        what: String,
        object: &impl fmt::Display,
    ) -> Error {
        Error {
            kind,
            what,
            object: object.to_string(),
            may_have_happened: false,
            request: context.request.clone(),
        }
    }

    /// What to match on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the call had begun: it may have happened, in part too. When it had not, it never will.
    pub fn may_have_happened(&self) -> bool {
        self.may_have_happened
    }

    /// gRPC's code, and the code for programs.
    fn codes(&self) -> (Code, &'static str) {
        match self.kind {
            ErrorKind::TenantBusy => (Code::ResourceExhausted, "tenant-busy"),
            ErrorKind::BridgeBusy => (Code::ResourceExhausted, "node-busy"),
            ErrorKind::ShardBusy => (Code::ResourceExhausted, "shard-busy"),
            ErrorKind::Deadline => (Code::DeadlineExceeded, "deadline-exceeded"),
            ErrorKind::Draining => (Code::Unavailable, "draining"),
            ErrorKind::Gone => (Code::Unavailable, "shard-gone"),
        }
    }

    fn next(&self) -> &'static str {
        match self.kind {
            ErrorKind::TenantBusy => {
                "retry after 100 ms, and after twice as long each further time; have fewer requests \
                 in flight at once"
            }
            ErrorKind::BridgeBusy | ErrorKind::ShardBusy => {
                "retry after 100 ms, and after twice as long each further time"
            }
            ErrorKind::Deadline if self.may_have_happened => {
                "look at whether it happened, then retry with a longer deadline"
            }
            ErrorKind::Deadline => "retry with a longer deadline",
            ErrorKind::Draining => "retry at another node, or here when /readyz answers 200 again",
            ErrorKind::Gone if self.may_have_happened => {
                "look at whether it happened when /readyz answers 200 again, then retry"
            }
            ErrorKind::Gone => "retry when /readyz answers 200 again",
        }
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> ApiError {
        let (grpc, code) = error.codes();
        ApiError::new(grpc, code, error.what.clone())
            .object(error.object.clone())
            .next(error.next())
            .request(&error.request)
    }
}

/// Why a call failed: it did not get through, or its service refused.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure<E> {
    /// There is no answer of the service.
    #[error(transparent)]
    Bridge(#[from] Error),
    /// The service's own answer.
    #[error("the service refused: {0}")]
    Service(E),
}

impl<E> Failure<E> {
    /// What a user is told; `service` says it for the service's own errors.
    pub fn into_api_error(self, service: impl FnOnce(E) -> ApiError) -> ApiError {
        match self {
            Failure::Bridge(error) => error.into(),
            Failure::Service(error) => service(error),
        }
    }
}

impl<E: Into<ApiError>> From<Failure<E>> for ApiError {
    fn from(failure: Failure<E>) -> ApiError {
        failure.into_api_error(Into::into)
    }
}
