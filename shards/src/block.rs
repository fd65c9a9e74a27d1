//! What a block device is to those who export it. The volumes of CoronaFS implement [`BlockDevice`];
//! the front ends (vhost-user, NBD) are written against it, and neither knows the other.
//!
//! Invariants, which an implementation owes and a front end relies on:
//! - A write that has returned is seen by every later read; of writes in flight together to the
//!   same blocks, each block holds one of them whole.
//! - What was written before a [`flush`](BlockDevice::flush) began, or with `durable`, survives a
//!   crash once that has returned. What was not may be lost, block by block, and is never torn
//!   inside of a block.
//! - A future that is dropped before it returns may or may not have had its effect.
//! - Offsets and lengths are in bytes. What is not a whole number of blocks inside of the device is
//!   refused, and so is any change of a device that is read-only: nothing is clipped.

use std::future::Future;
use std::io;

use engine::GuestList;

/// The size and shape of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size; a multiple of `block_bytes`.
    pub bytes: u64,
    /// The unit of every offset and length; a power of two, 512 at least.
    pub block_bytes: u32,
    /// Writes of this size and alignment move nothing else; a multiple of `block_bytes`.
    pub physical_bytes: u32,
    /// The size of I/O that suits best, 0 when there is none.
    pub optimal_bytes: u32,
    /// Discards of this size and alignment free space; 0 when discarding is not supported.
    pub discard_granularity: u32,
    /// Whether every change is refused.
    pub read_only: bool,
    /// What the device calls itself, padded with zeros.
    pub serial: [u8; 20],
}

impl Geometry {
    /// Checks a range that is to be read or, when `changes` says so, changed.
    ///
    /// # Errors
    /// [`BlockError::ReadOnly`], [`BlockError::Misaligned`] or [`BlockError::OutOfRange`].
    pub fn check(&self, offset: u64, len: u64, changes: bool) -> Result<(), BlockError> {
        if changes && self.read_only {
            return Err(BlockError::ReadOnly);
        }
        let unit = u64::from(self.block_bytes);
        if !offset.is_multiple_of(unit) || !len.is_multiple_of(unit) {
            return Err(BlockError::Misaligned { offset, len });
        }
        match offset.checked_add(len) {
            Some(end) if end <= self.bytes => Ok(()),
            _ => Err(BlockError::OutOfRange {
                offset,
                len,
                bytes: self.bytes,
            }),
        }
    }
}

/// Most extents that [`BlockDevice::extents`] answers at once.
pub const EXTENTS_MAX: usize = 1024;

/// A part of a device that is alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Number of bytes; whole blocks, at least one.
    pub bytes: u64,
    /// Whether nothing is allocated for it: then it reads as zeros.
    pub hole: bool,
}

/// Why a device did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlockError {
    /// The range is not inside of the device.
    #[error("{len} bytes at {offset} are past the device's {bytes}")]
    OutOfRange {
        /// First byte asked for.
        offset: u64,
        /// Number of bytes.
        len: u64,
        /// Size of the device.
        bytes: u64,
    },
    /// The range is not a whole number of blocks.
    #[error("{len} bytes at {offset} are no whole number of blocks")]
    Misaligned {
        /// First byte asked for.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
    /// The device does not change.
    #[error("the device is read-only")]
    ReadOnly,
    /// The device has no such operation.
    #[error("the device does not support this")]
    Unsupported,
    /// The space behind a thin device, or its owner's share, is used up.
    #[error("no space is left behind the device")]
    Full,
    /// Another has attached the device since: this one may not write any more.
    #[error("the device was attached elsewhere since")]
    Fenced,
    /// Too much waits already; nothing was done and it may be tried again.
    #[error("the device has too much to do")]
    Busy,
    /// The disk, or the memory that the transfer names, failed.
    #[error("the device failed")]
    Io(#[source] io::Error),
}

impl From<io::Error> for BlockError {
    fn from(error: io::Error) -> BlockError {
        match error.kind() {
            io::ErrorKind::ResourceBusy => BlockError::Busy,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => BlockError::Full,
            _ => BlockError::Io(error),
        }
    }
}

/// A device of blocks on this shard. See the module's head for what it owes.
pub trait BlockDevice: 'static {
    /// Size and shape now.
    fn geometry(&self) -> Geometry;

    /// Fills all of `into` from `offset` on.
    fn read(&self, offset: u64, into: GuestList) -> impl Future<Output = Result<(), BlockError>>;

    /// Reads at once what needs no wait, as the future of [`read`](BlockDevice::read) would. None when it has
    /// to wait, or the range is refused: nothing was done, and `read` does it, or says why not.
    fn read_now(&self, _offset: u64, _into: &GuestList) -> Option<Result<(), BlockError>> {
        None
    }

    /// Writes all of `from` at `offset`; when `durable`, as if a flush of it alone followed.
    fn write(
        &self,
        offset: u64,
        from: GuestList,
        durable: bool,
    ) -> impl Future<Output = Result<(), BlockError>>;

    /// Makes all writes durable that returned before.
    fn flush(&self) -> impl Future<Output = Result<(), BlockError>>;

    /// Says that nobody needs a range any more: its content is undefined from now on, block by block,
    /// but never another device's.
    fn discard(&self, offset: u64, len: u64) -> impl Future<Output = Result<(), BlockError>>;

    /// Makes a range read as zeros; its space may be freed when `may_unmap`.
    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        may_unmap: bool,
        durable: bool,
    ) -> impl Future<Output = Result<(), BlockError>>;

    /// What is allocated from `offset` on: extents without a gap, in order, at least one and at most
    /// [`EXTENTS_MAX`], which end at `offset + len` or before. A hole was one at some time during the
    /// call; what is not said to be one may still be all zeros.
    fn extents(
        &self,
        offset: u64,
        len: u64,
    ) -> impl Future<Output = Result<Vec<Extent>, BlockError>> {
        let checked = self.geometry().check(offset, len, false);
        std::future::ready(checked.map(|()| {
            vec![Extent {
                bytes: len,
                hole: false,
            }]
        }))
    }

    /// Returns when the geometry has changed since the call, as after a resize.
    fn changed(&self) -> impl Future<Output = ()>;

    /// Somebody waits for all requests in progress to end: those that the device holds back, as for a
    /// limit, begin now. A device that holds none back has nothing to do.
    fn hurry(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry() -> Geometry {
        Geometry {
            bytes: 1 << 20,
            block_bytes: 512,
            physical_bytes: 4096,
            optimal_bytes: 0,
            discard_granularity: 0,
            read_only: false,
            serial: [0; 20],
        }
    }

    #[test]
    fn whole_blocks_inside_of_the_device_are_allowed() {
        for (offset, len) in [(0, 512), (0, 1 << 20), ((1 << 20) - 512, 512), (1 << 20, 0)] {
            geometry().check(offset, len, true).expect("inside");
        }
    }

    #[test]
    fn anything_else_is_refused_by_name() {
        let refused = |offset, len| geometry().check(offset, len, true).expect_err("refused");
        for (offset, len) in [(0, 511), (1, 512), (u64::MAX, 512)] {
            let misaligned = matches!(refused(offset, len), BlockError::Misaligned { .. });
            assert!(misaligned, "{offset} {len}");
        }
        for (offset, len) in [(1 << 20, 512), (512, 1 << 20), (u64::MAX - 511, 512)] {
            let outside = matches!(refused(offset, len), BlockError::OutOfRange { .. });
            assert!(outside, "{offset} {len}");
        }
        let frozen = Geometry {
            read_only: true,
            ..geometry()
        };
        let change = frozen.check(0, 512, true);
        assert!(matches!(change, Err(BlockError::ReadOnly)));
        frozen.check(0, 512, false).expect("reads are allowed");
    }

    #[test]
    fn errors_of_files_keep_their_meaning() {
        let of = |kind: io::ErrorKind| BlockError::from(io::Error::from(kind));
        assert!(matches!(of(io::ErrorKind::ResourceBusy), BlockError::Busy));
        assert!(matches!(of(io::ErrorKind::StorageFull), BlockError::Full));
        assert!(matches!(of(io::ErrorKind::Other), BlockError::Io(_)));
    }
}
