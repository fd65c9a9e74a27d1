//! What a user is told when something fails.

use control_kit::api_error::ApiError;
use engine::CallError;
use tonic::Code;

use crate::spec::{BalancerKey, Fault};

/// A document with faults: one a line, each with its path.
pub fn faulty(faults: &[Fault]) -> ApiError {
    let lines: Vec<String> = faults
        .iter()
        .map(|fault| format!("{}: {}", fault.path, fault.what))
        .collect();
    ApiError::new(Code::InvalidArgument, "invalid-document", lines.join("\n"))
        .next("mend the document; nothing was changed, and what runs goes on")
}

/// There is no such balancer, as far as the caller may know.
pub fn no_such_balancer(key: &BalancerKey) -> ApiError {
    let what = "there is no such load balancer";
    ApiError::new(Code::NotFound, "no-such-load-balancer", what)
        .object(key.to_string())
        .next("list the load balancers")
}

/// Only root, or only the owner and root.
pub fn denied(object: String, who: &str) -> ApiError {
    let what = format!("only {who} may do this");
    ApiError::new(Code::PermissionDenied, "access-denied", what)
        .object(object)
        .next("leave the owner out for your own load balancers, or ask as root")
}

/// What was asked makes no sense.
pub fn invalid(object: &str, what: impl Into<String>, next: &str) -> ApiError {
    ApiError::new(Code::InvalidArgument, "invalid-request", what)
        .object(object)
        .next(next)
}

/// The file could not be written.
pub fn not_kept(error: &std::io::Error) -> ApiError {
    tracing::error!(%error, "the load balancers cannot be written");
    let what = format!("the load balancers cannot be written: {error}");
    ApiError::new(Code::Internal, "not-kept", what)
        .object("balancers.json")
        .next("check the disk of the node's data directory; nothing was changed")
}

/// The tables did not follow.
pub fn not_applied(generation: u32, error: Option<String>) -> ApiError {
    let why = error.unwrap_or_else(|| "it takes longer than the call may".to_owned());
    let what = format!("generation {generation} is kept, and not in the tables yet: {why}");
    ApiError::new(Code::Unavailable, "not-applied", what)
        .object("the program's tables")
        .next("see `ultractl lb status`; the node goes on trying")
}

/// The tables' owner does not answer.
pub fn unreachable(error: CallError) -> ApiError {
    let what = format!("the tables cannot be read: {error}");
    ApiError::new(Code::Unavailable, "shard-busy", what)
        .object("shard 0")
        .next("retry in a moment")
}
