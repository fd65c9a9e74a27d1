//! Linearizable reads: one question to the cluster for all reads that wait.
//!
//! A read may begin once this member has applied everything that was committed when it asked. The
//! leader answers with that position after a quorum has confirmed that it still leads (no clock is
//! trusted); any other member asks the leader.

use std::sync::Weak;

use bytes::Bytes;
use openraft::ReadPolicy;
use openraft::async_runtime::AsyncRuntime;
use openraft::errors::{LinearizableReadError, RaftError};
use tokio::sync::{mpsc, oneshot};

use crate::env::Environment;
use crate::error::{Error, ErrorKind, Result};
use crate::machine::StateMachine;
use crate::node::{Inner, InstantOf, Node, fatal};
use crate::rpc::{self, Method};
use crate::transport::Transport;
use crate::types::LogId;

/// Reads that may wait for one question.
pub(crate) const WAITERS_MAX: usize = 16_384;

/// A read that waits: told success, or the kind and text of the failure.
pub(crate) type Waiter = oneshot::Sender<std::result::Result<(), (ErrorKind, String)>>;

impl<E: Environment, T: Transport, S: StateMachine> Node<E, T, S> {
    /// Returns once reads of [`Node::reader`] are linearizable: they see all that was acknowledged
    /// anywhere before this was called. Safe to cancel.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] or [`ErrorKind::Timeout`] where no leader can answer in time.
    pub async fn read_barrier(&self) -> Result<()> {
        let stopped = || Error::new(ErrorKind::Stopped, "the member has stopped");
        let (sender, receiver) = oneshot::channel();
        self.inner.reads.send(sender).await.map_err(|_| stopped())?;
        let answer = receiver.await.map_err(|_| stopped())?;
        answer.map_err(|(kind, what)| Error::new(kind, what))
    }

    async fn barrier_round(&self) -> Result<()> {
        let deadline = self.deadline();
        loop {
            let found = E::Runtime::timeout_at(deadline, self.read_position(deadline)).await;
            let Ok(found) = found else {
                return Err(Error::new(
                    ErrorKind::Timeout,
                    "no quorum confirmed the leader",
                ));
            };
            match found {
                Ok(position) => {
                    let index = position.map_or(0, |id| id.index());
                    return self.applied(index, deadline).await;
                }
                Err(error) if retryable(error.kind()) => self.pause(deadline).await?,
                Err(error) => return Err(error),
            }
        }
    }

    async fn read_position(&self, deadline: InstantOf<E>) -> Result<Option<LogId>> {
        self.check_running()?;
        let Some(leader) = self.leader() else {
            return Err(Error::new(ErrorKind::Unavailable, "no leader is known"));
        };
        if leader == self.id() {
            return self.lead_read().await.map(Some);
        }
        let answer = self
            .ask(leader, Method::ReadIndex, Bytes::new(), deadline)
            .await?;
        rpc::decode_position(&answer)
            .map_err(|error| Error::caused(ErrorKind::Unknown, "the leader's answer", error))
    }

    /// The position a read must see, as the leader.
    pub(crate) async fn lead_read(&self) -> Result<LogId> {
        match self.inner.raft.get_read_log_id(ReadPolicy::ReadIndex).await {
            Ok((read, _)) => Ok(*read.log_id()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(to))) => {
                let what = "this member does not lead";
                Err(Error::new(ErrorKind::NotLeader(to.leader_id), what))
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(error))) => {
                let what = "no quorum confirmed the leader";
                Err(Error::caused(ErrorKind::Unavailable, what, error))
            }
            Err(RaftError::Fatal(error)) => Err(fatal(error)),
        }
    }
}

fn retryable(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::NotLeader(_) | ErrorKind::Unavailable | ErrorKind::Unknown
    )
}

/// Asks once for all reads that wait, again and again, until the member stops.
/// The queue ends with the last handle on the member, so this holds none while it waits.
pub(crate) async fn serve<E: Environment, T: Transport, S: StateMachine>(
    node: Weak<Inner<E, T, S>>,
    mut queue: mpsc::Receiver<Waiter>,
) {
    let mut waiters = Vec::new();
    while let Some(first) = queue.recv().await {
        waiters.push(first);
        while let Ok(waiter) = queue.try_recv() {
            waiters.push(waiter);
        }
        let Some(inner) = node.upgrade() else { return };
        let node = Node { inner };
        let answer = node
            .barrier_round()
            .await
            .map_err(|error| (error.kind(), error.to_string()));
        for waiter in waiters.drain(..) {
            // A read that was cancelled needs no answer.
            let _ = waiter.send(answer.clone());
        }
    }
}
