//! Reads: in one answer where replies are simple, in pieces and holes where they are structured.

use nbd_wire::{Chunk, ChunkKind, NbdError, Request, chunk, command_flag, simple};
use shards::block::BlockDevice;

use super::device::{Refusal, patiently};
use super::{Link, whole_chunk};
use crate::memory::{Lease, PIECE};
use crate::stats::add;
use crate::wire::Broken;

/// Shorter reads are not looked at for holes.
const HOLES_BYTES_MIN: u32 = 64 << 10;

impl<D: BlockDevice> Link<D> {
    pub(super) async fn read(&self, request: Request) -> Result<(), Broken> {
        if !self.structured {
            return self.read_simple(request).await;
        }
        let cookie = request.cookie;
        if request.len == 0 {
            let nothing = whole_chunk(ChunkKind::NONE, cookie, true, &[]);
            return self.wire.send(nothing).await;
        }
        let whole = request.flags & command_flag::DF != 0;
        if whole && request.len > PIECE {
            let too_long = Refusal::new(NbdError::OVERFLOW, "more than 1 MiB in one chunk");
            return self.refuse(cookie, too_long).await;
        }
        let mut at = 0;
        while at < request.len {
            let (offset, left) = (request.offset + u64::from(at), request.len - at);
            let looks = !whole && request.len >= HOLES_BYTES_MIN;
            let sent = match self.next_extent(offset, left, looks).await {
                Ok((len, true)) => self.send_hole(&request, at, len).await?,
                Ok((len, false)) => self.send_data(&request, at, len).await?,
                Err(refusal) => Err(refusal),
            };
            match sent {
                Ok(len) => at += len,
                Err(refusal) => return self.refuse(cookie, refusal.at(offset)).await,
            }
        }
        Ok(())
    }

    /// How far it is alike, and whether that is a hole.
    async fn next_extent(
        &self,
        offset: u64,
        left: u32,
        looks: bool,
    ) -> Result<(u32, bool), Refusal> {
        if !looks {
            return Ok((left, false));
        }
        let device = self.device();
        let extents = patiently(async || device.extents(offset, u64::from(left)).await).await?;
        let Some(first) = extents.first() else {
            return Ok((left, false));
        };
        // A device that says too much is not believed.
        let len = first.bytes.clamp(1, u64::from(left)) as u32;
        Ok((len, first.hole))
    }

    async fn send_hole(
        &self,
        request: &Request,
        at: u32,
        len: u32,
    ) -> Result<Result<u32, Refusal>, Broken> {
        let mut body = (request.offset + u64::from(at)).to_be_bytes().to_vec();
        body.extend(len.to_be_bytes());
        let done = at + len == request.len;
        let hole = whole_chunk(ChunkKind::HOLE, request.cookie, done, &body);
        self.wire.send(hole).await?;
        Ok(Ok(len))
    }

    /// Sends data, up to a piece of it.
    async fn send_data(
        &self,
        request: &Request,
        at: u32,
        len: u32,
    ) -> Result<Result<u32, Refusal>, Broken> {
        let len = len.min(PIECE);
        let offset = request.offset + u64::from(at);
        let lease = self.memory.lease(len).await.map_err(|_| Broken)?;
        if let Err(refusal) = self.read_piece(offset, &lease, len).await {
            return Ok(Err(refusal));
        }
        let head = Chunk {
            done: at + len == request.len,
            kind: ChunkKind::DATA,
            cookie: request.cookie,
            len: len + 8,
        };
        let mut head = chunk(&head).to_vec();
        head.extend(offset.to_be_bytes());
        let turn = self.wire.turn().await?;
        turn.send(head, Some((&lease, len))).await?;
        Ok(Ok(len))
    }

    async fn read_piece(&self, offset: u64, lease: &Lease, len: u32) -> Result<(), Refusal> {
        let device = self.device();
        patiently(async || device.read(offset, lease.list(len)).await).await?;
        add(&self.entry.counters.read_bytes, u64::from(len));
        Ok(())
    }

    /// The head says that all is well, so an error that comes later can only break the wire.
    async fn read_simple(&self, request: Request) -> Result<(), Broken> {
        let Request { cookie, len, .. } = request;
        if len == 0 {
            return self.answer(cookie, Ok(())).await;
        }
        let first = len.min(PIECE);
        // All pieces go through it: whoever has the turn must not wait for another.
        let lease = self.memory.lease(first).await.map_err(|_| Broken)?;
        if let Err(refusal) = self.read_piece(request.offset, &lease, first).await {
            return self.refuse(cookie, refusal).await;
        }
        let turn = self.wire.turn().await?;
        let head = simple(None, cookie).to_vec();
        turn.send(head, Some((&lease, first))).await?;
        let mut at = first;
        while at < len {
            let piece = (len - at).min(PIECE);
            let offset = request.offset + u64::from(at);
            if let Err(refusal) = self.read_piece(offset, &lease, piece).await {
                let (export, error) = (self.entry.export.name.as_str(), &refusal.message);
                tracing::warn!(export, %error, offset, "a read failed in the middle");
                add(&self.entry.counters.errors, 1);
                self.wire.end();
                return Err(Broken);
            }
            turn.send(Vec::new(), Some((&lease, piece))).await?;
            at += piece;
        }
        Ok(())
    }
}
