//! Proposals: written by the leader, answered by the member that was asked.
//!
//! Each proposal names its proposer, and the outcome is taken from the proposer's own state
//! machine. So a member that forwards to the leader needs no outcome over the wire, and whoever got
//! an answer reads its own write from that member.

use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::AsyncRuntime;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::ClientWriteError;
use openraft::impls::ProgressResponder;
use openraft::raft::ClientWriteResult;
use tokio::sync::{mpsc, oneshot};

use crate::env::Environment;
use crate::error::{Error, ErrorKind, Result};
use crate::machine::StateMachine;
use crate::node::{Inner, InstantOf, Node, fatal, gather};
use crate::rpc::{self, Method};
use crate::transport::{Transport, TransportError};
use crate::types::{CommittedLeaderId, LogId, NodeId, Proposal, RequestId, Term, TypeConfig};

/// The longest command; what is longer is refused before it meets the log.
pub const COMMAND_BYTES_MAX: usize = 16 << 20;

/// Between two tries to find the leader.
const RETRY: Duration = Duration::from_millis(25);

/// Proposals that may wait for the log.
pub(crate) const WAITING_MAX: usize = 16_384;

/// A proposal, and where to say what became of it.
pub(crate) type Handed<R> = (
    Proposal,
    ProgressResponder<TypeConfig<R>, ClientWriteResult<TypeConfig<R>>>,
);

/// Whether the leader has taken a proposal.
enum Taken {
    /// It is in the log, or may be.
    Maybe,
    /// It certainly is not.
    No,
}

fn check_len(command: &Bytes) -> Result<()> {
    if command.len() <= COMMAND_BYTES_MAX {
        return Ok(());
    }
    let len = command.len();
    let what = format!("a command of {len} bytes, at most {COMMAND_BYTES_MAX} are taken");
    Err(Error::new(ErrorKind::Invalid, what))
}

fn timed_out() -> Error {
    Error::new(
        ErrorKind::Timeout,
        "no outcome in time; the proposal may still take effect",
    )
}

fn stopped_meanwhile() -> Error {
    Error::new(ErrorKind::Unknown, "the member stopped meanwhile")
}

impl<E: Environment, T: Transport, S: StateMachine> Node<E, T, S> {
    /// Writes `command` to the log and answers with its outcome, once this member has applied it.
    /// Not safe to cancel: a proposal that was dropped may still take effect.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`], [`ErrorKind::Invalid`]: nothing was written. [`ErrorKind::Timeout`] and
    /// [`ErrorKind::Unknown`]: it may have been. Never retried once it may be in the log.
    pub async fn propose(&self, command: Bytes) -> Result<S::Outcome> {
        let proposal = self.proposal(command)?;
        let (_registered, outcome) = self.inner.waiting.register(proposal.request);
        let deadline = self.deadline();
        loop {
            match self.hand_over(&proposal, deadline).await? {
                Taken::Maybe => return self.outcome(outcome, deadline).await,
                Taken::No => self.pause(deadline).await?,
            }
        }
    }

    /// As [`Node::propose`], but only as the leader of `term`: for what no other leader may be made
    /// to do. Never handed to another member.
    ///
    /// # Errors
    /// As [`Node::propose`]; [`ErrorKind::NotLeader`]: nothing was written.
    pub async fn propose_leading(&self, term: Term, command: Bytes) -> Result<S::Outcome> {
        let proposal = self.proposal(command)?;
        let (_registered, outcome) = self.inner.waiting.register(proposal.request);
        let deadline = self.deadline();
        self.check_running()?;
        let (responder, written) = ProgressResponder::complete_only();
        let write = self.inner.raft.write(proposal).responder(responder);
        let write = write.with_leader(CommittedLeaderId::new(term));
        write.await.map_err(fatal)?;
        match E::Runtime::timeout_at(deadline, written).await {
            Ok(Ok(Ok(_))) => self.outcome(outcome, deadline).await,
            Ok(Ok(Err(error))) => Err(write_error(error)),
            Ok(Err(_)) => Err(stopped_meanwhile()),
            Err(_) => Err(timed_out()),
        }
    }

    /// A command with its name in the log.
    fn proposal(&self, command: Bytes) -> Result<Proposal> {
        check_len(&command)?;
        let request = RequestId {
            node: self.id(),
            boot: u64::from(self.inner.wal.boot()),
            number: self.inner.next_request.fetch_add(1, Ordering::Relaxed),
        };
        Ok(Proposal { request, command })
    }

    async fn outcome(
        &self,
        outcome: oneshot::Receiver<S::Outcome>,
        deadline: InstantOf<E>,
    ) -> Result<S::Outcome> {
        match E::Runtime::timeout_at(deadline, outcome).await {
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(_)) => Err(stopped_meanwhile()),
            Err(_) => Err(timed_out()),
        }
    }

    /// Waits a moment before the leader is looked for again.
    pub(crate) async fn pause(&self, deadline: InstantOf<E>) -> Result<()> {
        self.check_running()?;
        if <InstantOf<E> as openraft::Instant>::now() + RETRY >= deadline {
            let what = match self.leader() {
                Some(leader) => format!("the leader {leader:x} cannot be reached"),
                None => "no leader is known; a quorum of voters must answer".to_owned(),
            };
            return Err(Error::new(ErrorKind::Unavailable, what));
        }
        E::Runtime::sleep(RETRY).await;
        Ok(())
    }

    async fn hand_over(&self, proposal: &Proposal, deadline: InstantOf<E>) -> Result<Taken> {
        self.check_running()?;
        let Some(leader) = self.leader() else {
            return Ok(Taken::No);
        };
        if leader == self.id() {
            let written = E::Runtime::timeout_at(deadline, self.write(proposal.clone())).await;
            return match written {
                Ok(Ok(_)) => Ok(Taken::Maybe),
                Ok(Err(error)) if matches!(error.kind(), ErrorKind::NotLeader(_)) => Ok(Taken::No),
                Ok(Err(error)) => Err(error),
                Err(_) => Err(timed_out()),
            };
        }
        let body = rpc::encode_proposal(proposal);
        match self.ask(leader, Method::Propose, body, deadline).await {
            Ok(_) => Ok(Taken::Maybe),
            Err(error) => match error.kind() {
                ErrorKind::NotLeader(_) | ErrorKind::Unavailable => Ok(Taken::No),
                // The answer is lost, not always the proposal: its outcome may still come.
                ErrorKind::Timeout | ErrorKind::Unknown => Ok(Taken::Maybe),
                _ => Err(error),
            },
        }
    }

    /// Writes a proposal as the leader; returns when it has been applied here.
    pub(crate) async fn write(&self, proposal: Proposal) -> Result<LogId> {
        check_len(&proposal.command)?;
        let (responder, written) = ProgressResponder::complete_only();
        // Where the member has stopped, the responder is gone.
        let _ = self.inner.proposals.send((proposal, responder)).await;
        match written.await {
            Ok(Ok(response)) => Ok(response.log_id),
            Ok(Err(error)) => Err(write_error(error)),
            Err(_) => {
                self.check_running()?;
                Err(stopped_meanwhile())
            }
        }
    }

    /// Asks another member for something that only a leader does.
    pub(crate) async fn ask(
        &self,
        leader: NodeId,
        method: Method,
        body: Bytes,
        deadline: InstantOf<E>,
    ) -> Result<Bytes> {
        let left = deadline - <InstantOf<E> as openraft::Instant>::now();
        let member = self.member(leader);
        match self
            .inner
            .transport
            .call(leader, &member, method, body, left)
            .await
        {
            Ok(answer) => rpc::decode_reply(answer),
            Err(error @ TransportError::Unreachable(_)) => {
                let what = format!("the leader {leader:x}");
                Err(Error::caused(ErrorKind::Unavailable, what, error))
            }
            Err(error) => {
                let what = format!("the answer of the leader {leader:x}");
                Err(Error::caused(ErrorKind::Unknown, what, error))
            }
        }
    }

    /// Waits until this member has applied the entry at `index`.
    pub(crate) async fn applied(&self, index: u64, deadline: InstantOf<E>) -> Result<()> {
        let mut applied = self.inner.applied.clone();
        let reached = applied.wait_until(|at| at.is_some_and(|id| id.index() >= index));
        match E::Runtime::timeout_at(deadline, reached).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Error::new(ErrorKind::Stopped, "the member has stopped")),
            Err(_) => {
                let what = format!("entry {index} is not applied here yet");
                Err(Error::new(ErrorKind::Timeout, what))
            }
        }
    }
}

/// Why a leader did not write, as this crate's error.
pub(crate) fn write_error<R: AsyncRuntime + 'static>(
    error: ClientWriteError<TypeConfig<R>>,
) -> Error {
    match error {
        ClientWriteError::ForwardToLeader(to) => {
            let what = "this member does not lead";
            Error::new(ErrorKind::NotLeader(to.leader_id), what)
        }
        ClientWriteError::LogEntryDiscarded(_) => {
            let what = "leadership changed meanwhile; the entry may or may not take effect";
            Error::new(ErrorKind::Unknown, what)
        }
        ClientWriteError::ChangeMembershipError(error) => {
            Error::caused(ErrorKind::Refused, format!("membership: {error}"), error)
        }
        ClientWriteError::PreconditionFailed(error) => {
            let what = "the membership or the leader changed meanwhile; look and try again";
            Error::caused(ErrorKind::Refused, what, error)
        }
    }
}

/// Hands proposals to Raft, those that come together at once: Raft writes what it finds in its queue as
/// one append. The queue ends with the last handle on the member, so this holds none while it waits.
pub(crate) async fn serve<E: Environment, T: Transport, S: StateMachine>(
    node: Weak<Inner<E, T, S>>,
    mut queue: mpsc::Receiver<Handed<E::Runtime>>,
) {
    let mut gathered = Vec::new();
    while gather(&mut queue, &mut gathered).await {
        let Some(inner) = node.upgrade() else { return };
        for (proposal, responder) in gathered.drain(..) {
            // Where Raft has ended, the responder says so.
            let _ = inner.raft.write(proposal).responder(responder).await;
        }
    }
}
