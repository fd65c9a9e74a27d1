//! The types that Raft is instantiated with, and their short names.
//!
//! Everything but the runtime is fixed: the log, the codec and the membership rules do not depend
//! on it. Terms are Raft's own (one leader a term), so a log position is a term and an index.

use std::cmp::Ordering;
use std::fmt;
use std::marker::PhantomData;

use bytes::Bytes;
use openraft::RaftTypeConfig;
use openraft::async_runtime::AsyncRuntime;
use openraft::impls::leader_id_std;
use openraft::impls::{BoxedErrorSource, InlineBatch, ProgressResponder};

/// A member's identity; never given to another member.
pub type NodeId = u64;
/// A term of Raft.
pub type Term = u64;
/// Who may lead in a term.
pub type LeaderId = leader_id_std::LeaderId<Term, NodeId>;
/// The part of a leader's identity that log entries carry: its term.
pub type CommittedLeaderId = <LeaderId as openraft::vote::RaftLeaderId>::Committed;
/// A position in the log: term and index.
pub type LogId = openraft::LogId<CommittedLeaderId>;
/// A vote: the term, for whom, and whether a quorum granted it.
pub type Vote = openraft::Vote<LeaderId>;
/// What a log entry carries.
pub type Payload = openraft::EntryPayload<Proposal, NodeId, Member>;
/// A log entry.
pub type Entry = openraft::Entry<CommittedLeaderId, Payload>;
/// Voters (two sets while a joint change is under way) and all members.
pub type Membership = openraft::Membership<NodeId, Member>;
/// A membership and the log position it was written at.
pub type StoredMembership = openraft::StoredMembership<CommittedLeaderId, NodeId, Member>;
/// What a snapshot contains: up to which position, and the membership there.
pub type SnapshotMeta = openraft::SnapshotMeta<CommittedLeaderId, NodeId, Member>;

/// What the cluster knows of a member, replicated with the membership itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Member {
    /// The member's name, for people.
    pub name: String,
    /// Where other members reach it.
    pub peer_urls: Vec<String>,
    /// Where clients reach it.
    pub client_urls: Vec<String>,
    /// A learner that becomes a voter once it has caught up.
    pub becomes_voter: bool,
}

/// Names one proposal of one run of one member, so that the proposer finds its own outcome when the
/// entry is applied on its own state machine, whichever member led.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId {
    /// Who proposed.
    pub node: NodeId,
    /// Which run of it: counted in its log at each start.
    pub boot: u64,
    /// The proposal's number in that run.
    pub number: u64,
}

/// A command on its way through the log, encoded once by the proposer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// Whose it is.
    pub request: RequestId,
    /// The encoded command; the state machine alone looks inside.
    pub command: Bytes,
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RequestId { node, boot, number } = self.request;
        write!(f, "{node}.{boot}.{number} ({} bytes)", self.command.len())
    }
}

/// Raft over the runtime `R`.
pub struct TypeConfig<R>(PhantomData<fn() -> R>);

impl<R> fmt::Debug for TypeConfig<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TypeConfig")
    }
}

impl<R> Clone for TypeConfig<R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R> Copy for TypeConfig<R> {}

impl<R> Default for TypeConfig<R> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<R> PartialEq for TypeConfig<R> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl<R> Eq for TypeConfig<R> {}

impl<R> PartialOrd for TypeConfig<R> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<R> Ord for TypeConfig<R> {
    fn cmp(&self, _: &Self) -> Ordering {
        Ordering::Equal
    }
}

impl<R: AsyncRuntime + 'static> RaftTypeConfig for TypeConfig<R> {
    type D = Proposal;
    type R = ();
    type NodeId = NodeId;
    type Node = Member;
    type Term = Term;
    type LeaderId = LeaderId;
    type Vote = Vote;
    type Payload = Payload;
    type Entry = Entry;
    type AsyncRuntime = R;
    type Responder<T>
        = ProgressResponder<Self, T>
    where
        T: openraft::OptionalSend + 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: openraft::OptionalSend + 'static;
    type ErrorSource = BoxedErrorSource;
}
