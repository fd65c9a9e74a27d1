//! Linearizable reads: one question to the cluster for all reads that wait.
//!
//! A read may begin once this member has applied everything that was committed when it asked. The
//! leader answers with that position after a quorum has confirmed that it still leads (no clock is
//! trusted); any other member asks the leader.

use bytes::Bytes;
use openraft::ReadPolicy;
use openraft::async_runtime::AsyncRuntime;
use openraft::errors::{LinearizableReadError, RaftError};

use crate::env::Environment;
use crate::error::{Error, ErrorKind, Result};
use crate::machine::StateMachine;
use crate::node::{InstantOf, Node, fatal};
use crate::rpc::{self, Method};
use crate::transport::Transport;
use crate::types::LogId;

impl<E: Environment, T: Transport, S: StateMachine> Node<E, T, S> {
    /// Returns once reads of [`Node::reader`] are linearizable: they see all that was acknowledged
    /// anywhere before this was called. Safe to cancel.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] or [`ErrorKind::Timeout`] where no leader can answer in time.
    pub async fn read_barrier(&self) -> Result<()> {
        self.inner.reads.wait().await
    }

    pub(crate) async fn barrier_round(self) -> Result<()> {
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

    /// The position a read must see, as the leader: one confirmation for all members that ask.
    pub(crate) async fn lead_read(&self) -> Result<LogId> {
        self.inner.confirmations.wait().await
    }

    pub(crate) async fn confirm_lead(self) -> Result<LogId> {
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
