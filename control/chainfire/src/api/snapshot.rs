//! A member's whole state as a stream.

use std::sync::Arc;

use chainfire_store::Snapshot;
use etcd_wire::etcdserverpb::SnapshotResponse;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Api, ETCD_VERSION};
use crate::grpc::streams::Answers;

/// What a piece holds, about.
const PIECE_BYTES: usize = 256 << 10;
/// etcd's clients know by the length that a checksum is there: it is 32 past a multiple of this.
const PAGE_BYTES: usize = 512;
/// Pieces that were read and not sent yet.
const PIECES_WAITING_MAX: usize = 4;

impl Api {
    /// The state as of now, in pieces, zeros up to a whole page, and a SHA-256 of all that, as etcd's
    /// clients expect.
    pub fn snapshot(self: &Arc<Api>) -> Answers<SnapshotResponse> {
        let (sender, receiver) = mpsc::channel(PIECES_WAITING_MAX);
        let header = self.current_header();
        let view = self.consensus.view();
        let mut remaining_bytes = view.size_bytes();
        let mut piece = move |blob: bytes::Bytes| {
            remaining_bytes = remaining_bytes.saturating_sub(blob.len() as u64);
            SnapshotResponse {
                header: Some(header),
                remaining_bytes,
                blob,
                version: ETCD_VERSION.into(),
            }
        };
        tokio::task::spawn_blocking(move || {
            let mut digest = Sha256::new();
            let mut length = 0;
            for chunk in Snapshot::new(view, PIECE_BYTES) {
                let chunk: bytes::Bytes = match chunk {
                    Ok(chunk) => chunk,
                    Err(error) => {
                        let failed = Status::internal(format!("etcdserver: {error}"));
                        // A client that left needs no answer.
                        let _ = sender.blocking_send(Err(failed));
                        return;
                    }
                };
                digest.update(&chunk);
                length += chunk.len();
                if sender.blocking_send(Ok(piece(chunk))).is_err() {
                    return;
                }
            }
            let padding = vec![0; length.next_multiple_of(PAGE_BYTES) - length];
            digest.update(&padding);
            if sender.blocking_send(Ok(piece(padding.into()))).is_err() {
                return;
            }
            let sum = digest.finalize().to_vec().into();
            let _ = sender.blocking_send(Ok(piece(sum)));
        });
        Box::pin(ReceiverStream::new(receiver))
    }
}
