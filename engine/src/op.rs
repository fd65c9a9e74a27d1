//! Futures over operations: they own their buffers while they are polled and leave them to the
//! slot table when they are dropped early.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use crate::backend::{Op, SlotId, Span};
use crate::buf::{IoBuf, IoBufMut};
use crate::shard::ShardCore;
use crate::slots::{Item, Outcome};

/// What a completed operation may leave behind when nobody reads its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leaves {
    Nothing,
    /// A new handle that must be closed (accept).
    Handle,
    /// A buffer of the receive ring.
    RingBuffer,
    /// Nothing: the operation closes a handle.
    Closed,
    /// Nothing: the operation is on an eventfd.
    Event,
}

/// One operation with one outcome. Dropping it cancels the operation, which may still happen.
pub(crate) struct OpFuture<B: 'static> {
    shard: Rc<ShardCore>,
    slot: Option<SlotId>,
    /// The result, when there was one at once.
    answer: Option<i32>,
    buf: Option<B>,
    leaves: Leaves,
}

impl<B: 'static> OpFuture<B> {
    /// Starts the operation that `build` describes over memory owned by `buf`.
    pub(crate) fn start(
        shard: &Rc<ShardCore>,
        mut buf: B,
        leaves: Leaves,
        build: impl FnOnce(&mut B, &ShardCore) -> Op,
    ) -> OpFuture<B> {
        let op = build(&mut buf, shard);
        let answer = shard.run_now(&op);
        let (slot, answer) = match answer {
            Some(_) => (None, answer),
            None => match shard.submit(op, false, leaves) {
                Some(slot) => (Some(slot), None),
                None => (None, Some(NOT_STARTED)),
            },
        };
        OpFuture {
            shard: Rc::clone(shard),
            slot,
            answer,
            buf: Some(buf),
            leaves,
        }
    }
}

impl<B: 'static> Unpin for OpFuture<B> {}

impl<B: 'static> Future for OpFuture<B> {
    type Output = (Outcome, B);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let outcome = match (self.slot, self.answer) {
            (_, Some(result)) => Outcome {
                result,
                sync: 0,
                buffer: None,
            },
            (Some(slot), None) => match self.shard.poll_slot(slot, cx.waker()) {
                Some(outcome) => outcome,
                None => return Poll::Pending,
            },
            (None, None) => unreachable!("polled after it was ready"),
        };
        self.slot = None;
        self.answer = None;
        let buf = self
            .buf
            .take()
            .expect("the buffer leaves with the one ready poll");
        Poll::Ready((outcome, buf))
    }
}

impl<B: 'static> Drop for OpFuture<B> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            let keep = self
                .buf
                .take()
                .map(|buf| Box::new(buf) as Box<dyn std::any::Any>);
            self.shard.abandon(slot, keep, self.leaves);
        }
    }
}

/// A multishot operation.
pub(crate) struct MultiOp {
    shard: Rc<ShardCore>,
    slot: Option<SlotId>,
    leaves: Leaves,
}

impl MultiOp {
    /// `None` when the shard has no slot left.
    pub(crate) fn start(shard: &Rc<ShardCore>, leaves: Leaves, op: Op) -> Option<MultiOp> {
        let slot = shard.submit(op, true, leaves)?;
        Some(MultiOp {
            shard: Rc::clone(shard),
            slot: Some(slot),
            leaves,
        })
    }

    /// The next item, or `None` when the operation has ended and must be started again.
    pub(crate) async fn next(&mut self) -> Option<Item> {
        std::future::poll_fn(|cx| {
            let Some(slot) = self.slot else {
                return Poll::Ready(None);
            };
            match self.shard.poll_item(slot, cx.waker()) {
                Poll::Ready(None) => {
                    self.slot = None;
                    Poll::Ready(None)
                }
                item => item,
            }
        })
        .await
    }
}

impl Drop for MultiOp {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.shard.abandon(slot, None, self.leaves);
        }
    }
}

/// The span of a buffer's content, to be read by the operation.
pub(crate) fn source_span<B: IoBuf>(buf: &B, shard: &ShardCore) -> Span {
    Span {
        ptr: buf.as_ptr().cast_mut(),
        len: clamp(buf.len()),
        fixed: shard.fixed(buf.registration()),
    }
}

/// The span of a buffer's capacity, to be filled by the operation.
pub(crate) fn target_span<B: IoBufMut>(buf: &mut B, shard: &ShardCore) -> Span {
    Span {
        len: clamp(buf.capacity()),
        fixed: shard.fixed(buf.registration()),
        ptr: buf.as_mut_ptr(),
    }
}

fn clamp(len: usize) -> u32 {
    const IO_MAX: usize = 0x7FFF_F000;
    len.min(IO_MAX) as u32
}

/// The result of an operation that found no slot: nothing happened. No errno of the kernel's.
const NOT_STARTED: i32 = i32::MIN;

/// A result in the kernel's form as an `io::Result`. `ResourceBusy` without an errno means that the
/// operation was not started.
pub(crate) fn check(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| match result {
        NOT_STARTED => io::Error::new(
            io::ErrorKind::ResourceBusy,
            "the shard's table of operations is full",
        ),
        errno => io::Error::from_raw_os_error(-errno),
    })
}
