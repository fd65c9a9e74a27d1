//! A member's whole state as a stream: the database file that etcd would send, which etcd's own tools
//! read and restore.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use chainfire_store::{EtcdCluster, EtcdFile, View};
use etcd_wire::etcdserverpb::{ResponseHeader, SnapshotResponse};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Api, CLUSTER_VERSION, ETCD_VERSION};
use crate::consensus::Member;
use crate::grpc::streams::Answers;

/// What a piece holds, at least, unless it is the last.
const PIECE_BYTES: usize = 256 << 10;
/// Pieces that were read and not sent yet.
const PIECES_WAITING_MAX: usize = 4;

/// A member as etcd's file has it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MemberRecord<'a> {
    id: u64,
    #[serde(rename = "peerURLs")]
    peer_urls: &'a [String],
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    is_learner: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(rename = "clientURLs", skip_serializing_if = "<[String]>::is_empty")]
    client_urls: &'a [String],
}

/// The pieces of a file, as they are sent.
struct Pieces {
    header: ResponseHeader,
    remaining_bytes: u64,
    waiting: BytesMut,
    digest: Sha256,
    sender: mpsc::Sender<Result<SnapshotResponse, Status>>,
}

impl Api {
    /// The state as of now, in pieces, and at the end a SHA-256 of all that, as etcd's clients expect.
    pub fn snapshot(self: &Arc<Api>) -> Answers<SnapshotResponse> {
        let (sender, receiver) = mpsc::channel(PIECES_WAITING_MAX);
        let view = self.consensus.view();
        let pieces = Pieces {
            header: self.header(view.revision()),
            remaining_bytes: 0,
            waiting: BytesMut::new(),
            digest: Sha256::new(),
            sender,
        };
        let cluster = EtcdCluster {
            version: CLUSTER_VERSION.into(),
            members: self
                .consensus
                .standing()
                .members
                .iter()
                .map(record)
                .collect(),
        };
        tokio::task::spawn_blocking(move || pieces.send_all(view, cluster));
        Box::pin(ReceiverStream::new(receiver))
    }
}

fn record(member: &Member) -> (String, String) {
    let record = MemberRecord {
        id: member.id,
        peer_urls: &member.peer_urls,
        is_learner: member.is_learner,
        name: &member.name,
        client_urls: &member.client_urls,
    };
    let json = serde_json::to_string(&record).expect("names, numbers and lists are JSON");
    (format!("{:x}", member.id), json)
}

impl Pieces {
    fn send_all(mut self, view: Arc<View>, cluster: EtcdCluster) {
        let sent = EtcdFile::plan(view, cluster).and_then(|file| {
            self.remaining_bytes = file.bytes();
            file.write(|page| self.take(page))
        });
        if let Err(error) = sent {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "a snapshot failed"
            );
            let failed = Status::internal(format!("etcdserver: {error}"));
            // A client that left needs no answer.
            let _ = self.sender.blocking_send(Err(failed));
            return;
        }
        if self.send_waiting().is_continue() {
            let sum = Bytes::from(self.digest.clone().finalize().to_vec());
            // The same.
            let _ = self.send(sum);
        }
    }

    fn take(&mut self, page: &[u8]) -> ControlFlow<()> {
        self.digest.update(page);
        self.waiting.extend_from_slice(page);
        if self.waiting.len() < PIECE_BYTES {
            return ControlFlow::Continue(());
        }
        self.send_waiting()
    }

    fn send_waiting(&mut self) -> ControlFlow<()> {
        let piece = self.waiting.split().freeze();
        self.remaining_bytes -= piece.len() as u64;
        self.send(piece)
    }

    /// Breaks once nobody takes any more.
    fn send(&self, blob: Bytes) -> ControlFlow<()> {
        let response = SnapshotResponse {
            header: Some(self.header),
            remaining_bytes: self.remaining_bytes,
            blob,
            version: ETCD_VERSION.into(),
        };
        match self.sender.blocking_send(Ok(response)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }
}
