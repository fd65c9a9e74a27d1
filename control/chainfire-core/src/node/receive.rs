//! What other members ask of this one.

use std::io;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use openraft::errors::RaftError;
use openraft::storage::Snapshot;

use crate::codec::DecodeError;
use crate::disk::{Disk, DiskFile};
use crate::env::Environment;
use crate::error::{Error, ErrorKind, Result};
use crate::machine::{SnapshotData, StateMachine};
use crate::membership::decode_change;
use crate::node::{Node, fatal, storage};
use crate::rpc::{self, Method};
use crate::transport::Transport;

const INCOMING_PREFIX: &str = "incoming-";

fn undecodable(error: DecodeError) -> Error {
    Error::caused(ErrorKind::Invalid, "another member's request", error)
}

impl<E: Environment, T: Transport, S: StateMachine> Node<E, T, S> {
    /// Answers a [`Transport::call`] of another member.
    ///
    /// # Errors
    /// A request that cannot be read, or a member that has stopped. What only a leader does
    /// answers with its error inside the bytes.
    pub async fn receive(&self, method: Method, body: Bytes) -> Result<Bytes> {
        let raft = &self.inner.raft;
        match method {
            Method::Vote => {
                let request = rpc::decode_vote_request(body).map_err(undecodable)?;
                let answer = raft.vote(request).await.map_err(RaftError::unwrap_fatal);
                Ok(rpc::encode_vote_response(&answer.map_err(fatal)?))
            }
            Method::PreVote => {
                let request = rpc::decode_vote_request(body).map_err(undecodable)?;
                let answer = raft
                    .pre_vote(request)
                    .await
                    .map_err(RaftError::unwrap_fatal);
                Ok(rpc::encode_vote_response(&answer.map_err(fatal)?))
            }
            Method::AppendEntries => {
                let request = rpc::decode_append_request(body).map_err(undecodable)?;
                let answer = raft
                    .append_entries(request)
                    .await
                    .map_err(RaftError::unwrap_fatal);
                Ok(rpc::encode_append_response(&answer.map_err(fatal)?))
            }
            Method::TimeoutNow => {
                let request = rpc::decode_transfer(body).map_err(undecodable)?;
                if let Err(error) = raft.handle_transfer_leader(request).await.map_err(fatal)? {
                    tracing::info!(%error, "a transfer of leadership was not taken");
                }
                Ok(Bytes::new())
            }
            Method::Propose => {
                let proposal = rpc::decode_proposal(body).map_err(undecodable)?;
                let written = self.write(proposal).await;
                Ok(rpc::encode_reply(
                    written.map(|at| rpc::encode_position(Some(at))),
                ))
            }
            Method::ReadIndex => {
                let read = self.lead_read().await;
                Ok(rpc::encode_reply(
                    read.map(|at| rpc::encode_position(Some(at))),
                ))
            }
            Method::Change => {
                let change = decode_change(body).map_err(undecodable)?;
                let changed = self.lead_change(&change).await;
                Ok(rpc::encode_reply(changed.map(|()| Bytes::new())))
            }
        }
    }

    /// Answers a [`Transport::send_snapshot`] of another member: gathers the chunks on the disk,
    /// then replaces the state.
    ///
    /// # Errors
    /// Chunks that break off or a disk that fails: the state is as before.
    pub async fn receive_snapshot(
        &self,
        head: Bytes,
        chunks: impl Stream<Item = io::Result<Bytes>> + Send,
    ) -> Result<Bytes> {
        let (vote, meta) = rpc::decode_snapshot_head(head).map_err(undecodable)?;
        let number = self.inner.next_incoming.fetch_add(1, Ordering::Relaxed);
        let name = format!("{INCOMING_PREFIX}{number}");
        let disk = self.inner.environment.log_disk();
        let file = disk
            .create(&name)
            .map_err(storage("gathering a snapshot"))?;
        let incoming = Incoming {
            disk,
            name,
            file,
            at: 0,
        };
        let incoming = self.gather(incoming, chunks).await?;
        let snapshot = SnapshotData::new(Box::new(IncomingChunks { at: 0, incoming }));
        let installed = self
            .inner
            .raft
            .install_full_snapshot(vote, Snapshot { meta, snapshot })
            .await;
        Ok(rpc::encode_vote(installed.map_err(fatal)?.vote))
    }

    async fn gather(
        &self,
        mut incoming: Incoming<E::Disk>,
        chunks: impl Stream<Item = io::Result<Bytes>> + Send,
    ) -> Result<Incoming<E::Disk>> {
        let mut chunks = std::pin::pin!(chunks);
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| {
                Error::caused(ErrorKind::Invalid, "a snapshot broke off", error)
            })?;
            let gather = move || incoming.push(&chunk).map(|()| incoming);
            incoming = self
                .inner
                .environment
                .blocking(gather)
                .await
                .map_err(storage("gathering a snapshot"))?;
        }
        Ok(incoming)
    }
}

/// A snapshot on its way in: each chunk behind its length. The file goes with it.
struct Incoming<D: Disk> {
    disk: D,
    name: String,
    file: D::File,
    at: u64,
}

impl<D: Disk> Incoming<D> {
    fn push(&mut self, chunk: &Bytes) -> io::Result<()> {
        let len = u32::try_from(chunk.len()).map_err(io::Error::other)?;
        self.file.write_at(self.at, &len.to_le_bytes())?;
        self.file.write_at(self.at + 4, chunk)?;
        self.at += 4 + u64::from(len);
        Ok(())
    }
}

impl<D: Disk> Drop for Incoming<D> {
    fn drop(&mut self) {
        if let Err(error) = self.disk.remove(&self.name) {
            tracing::warn!(%error, "a gathered snapshot stays until the next start");
        }
    }
}

struct IncomingChunks<D: Disk> {
    incoming: Incoming<D>,
    at: u64,
}

impl<D: Disk> IncomingChunks<D> {
    fn read(&mut self) -> io::Result<Bytes> {
        let mut len = [0; 4];
        self.incoming.file.read_at(self.at, &mut len)?;
        let mut chunk = vec![0; u32::from_le_bytes(len) as usize];
        self.incoming.file.read_at(self.at + 4, &mut chunk)?;
        self.at += 4 + chunk.len() as u64;
        Ok(chunk.into())
    }
}

impl<D: Disk> Iterator for IncomingChunks<D> {
    type Item = io::Result<Bytes>;

    fn next(&mut self) -> Option<io::Result<Bytes>> {
        (self.at < self.incoming.at).then(|| self.read())
    }
}

/// Removes what an earlier run was gathering when it ended.
pub(crate) fn remove_leftovers<D: Disk>(disk: &D) -> Result<()> {
    let names = disk
        .list()
        .map_err(storage("listing the log's directory"))?;
    for name in names
        .iter()
        .filter(|name| name.starts_with(INCOMING_PREFIX))
    {
        disk.remove(name)
            .map_err(storage("removing an unfinished snapshot"))?;
    }
    Ok(())
}
