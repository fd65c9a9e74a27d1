//! virtio-blk (virtio 1.2, section 5.2): its requests, its configuration space, its features.

use std::time::Duration;

use engine::GuestList;
use shards::block::{BlockDevice, BlockError, Geometry};

use crate::ring::{Chain, HEAD};

/// The unit of all positions and sizes, whatever the device's own block is.
const SECTOR: u64 = 512;

/// Bytes of a segment of DISCARD and WRITE_ZEROES: sector (8), sectors (4), flags (4).
const SEGMENT: u64 = 16;

/// Most segments of one DISCARD or WRITE_ZEROES.
const SEGMENTS_MAX: u32 = 64;

/// Most sectors of one segment: 2 GiB.
const SEGMENT_SECTORS_MAX: u32 = 4 << 20;

/// Most data descriptors of a request, as told to the driver: a ring of 128 holds it without an
/// indirect table.
const SEG_MAX: u32 = 126;

const UNMAP: u32 = 1;

/// How long a request that the device has no room for is tried again, before the guest sees an error.
const BUSY_MAX: Duration = Duration::from_secs(10);

/// Between two tries, at first and at most.
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// How a request ended, in its last byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// Bits of virtio's features, of those that a block device has.
pub(crate) mod feature {
    pub(crate) const SEG_MAX: u64 = 1 << 2;
    pub(crate) const RO: u64 = 1 << 5;
    pub(crate) const BLK_SIZE: u64 = 1 << 6;
    pub(crate) const FLUSH: u64 = 1 << 9;
    pub(crate) const TOPOLOGY: u64 = 1 << 10;
    pub(crate) const CONFIG_WCE: u64 = 1 << 11;
    pub(crate) const MQ: u64 = 1 << 12;
    pub(crate) const DISCARD: u64 = 1 << 13;
    pub(crate) const WRITE_ZEROES: u64 = 1 << 14;
    pub(crate) const LOG_ALL: u64 = 1 << 26;
    pub(crate) const INDIRECT_DESC: u64 = 1 << 28;
    pub(crate) const EVENT_IDX: u64 = 1 << 29;
    pub(crate) const PROTOCOL: u64 = 1 << 30;
    pub(crate) const VERSION_1: u64 = 1 << 32;
    pub(crate) const RING_PACKED: u64 = 1 << 34;
}

/// What a device of this geometry offers.
pub(crate) fn features(geometry: &Geometry) -> u64 {
    let mut bits = feature::SEG_MAX
        | feature::BLK_SIZE
        | feature::FLUSH
        | feature::TOPOLOGY
        | feature::CONFIG_WCE
        | feature::MQ
        | feature::LOG_ALL
        | feature::INDIRECT_DESC
        | feature::EVENT_IDX
        | feature::PROTOCOL
        | feature::VERSION_1
        | feature::RING_PACKED;
    if geometry.read_only {
        bits |= feature::RO;
    } else {
        bits |= feature::WRITE_ZEROES;
        if geometry.discard_granularity > 0 {
            bits |= feature::DISCARD;
        }
    }
    bits
}

/// Bytes of the configuration space that have a meaning here; what follows reads as zeros.
pub(crate) const CONFIG_BYTES: usize = 60;

/// Where in it the driver writes whether the device has a write cache.
pub(crate) const WRITEBACK_AT: u32 = 32;

/// ```text
///  0  8  capacity in sectors          32  1  writeback
///  8  4  largest segment (0: any)     34  2  queues
/// 12  4  segments of a request        36  4  sectors, 40  4 segments of a discard, 44  4 its unit
/// 16  4  cylinders, heads, sectors    48  4  sectors, 52  4 segments of a write of zeros
/// 20  4  block                        56  1  whether that may unmap
/// 24  1  log2 of physical by logical
/// 25  1  offset of the first physical
/// 26  2  smallest, 28  4 best I/O in blocks
/// ```
pub(crate) fn config(geometry: &Geometry, queues: u16, writeback: bool) -> [u8; CONFIG_BYTES] {
    let mut space = [0; CONFIG_BYTES];
    let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
    let block = geometry.block_bytes.max(1);
    let sectors = |bytes: u32| (u64::from(bytes) / SECTOR) as u32;
    let physical = (geometry.physical_bytes / block).max(1);
    put(0, &(geometry.bytes / SECTOR).to_le_bytes());
    put(12, &SEG_MAX.to_le_bytes());
    put(20, &geometry.block_bytes.to_le_bytes());
    put(24, &[physical.ilog2() as u8]);
    put(
        26,
        &(physical.min(u32::from(u16::MAX)) as u16).to_le_bytes(),
    );
    put(28, &(geometry.optimal_bytes / block).to_le_bytes());
    put(32, &[u8::from(writeback)]);
    put(34, &queues.to_le_bytes());
    if !geometry.read_only {
        if geometry.discard_granularity > 0 {
            put(36, &SEGMENT_SECTORS_MAX.to_le_bytes());
            put(40, &SEGMENTS_MAX.to_le_bytes());
            put(
                44,
                &sectors(geometry.discard_granularity).max(1).to_le_bytes(),
            );
        }
        put(48, &SEGMENT_SECTORS_MAX.to_le_bytes());
        put(52, &SEGMENTS_MAX.to_le_bytes());
        put(56, &[u8::from(geometry.discard_granularity > 0)]);
    }
    space
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Flush,
    Id,
    Discard,
    WriteZeroes,
    Unknown(u32),
}

impl Kind {
    fn of(code: u32) -> Kind {
        match code {
            0 => Kind::Read,
            1 => Kind::Write,
            4 => Kind::Flush,
            8 => Kind::Id,
            11 => Kind::Discard,
            13 => Kind::WriteZeroes,
            code => Kind::Unknown(code),
        }
    }
}

/// The head of a request whose frame holds: type (4 bytes), reserved (4), sector (8).
#[derive(Clone, Copy)]
pub(crate) struct Head {
    pub(crate) kind: Kind,
    pub(crate) sector: u64,
}

/// A request.
pub(crate) struct Request {
    pub(crate) kind: Kind,
    sector: u64,
    /// What the device reads from, or writes to.
    data: GuestList,
    /// Bytes that may be written before the status, whether the kind of request has use for them or not.
    pub(crate) room: u64,
}

/// A chain that is no request: there is no head, or no place for the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{readable} bytes to read and {writable} to write are no request")]
pub(crate) struct NoRequest {
    readable: u64,
    writable: u64,
}

impl Head {
    /// Reads the head.
    #[inline]
    pub(crate) fn parse(chain: &Chain) -> Result<Head, NoRequest> {
        if chain.head_bytes < HEAD || chain.status.is_empty() {
            return Err(NoRequest {
                readable: chain.head_bytes as u64 + chain.readable.len(),
                writable: chain.writable.len() + chain.status.len(),
            });
        }
        let head = u128::from_le_bytes(chain.head);
        Ok(Head {
            kind: Kind::of(head as u32),
            sector: (head >> 64) as u64,
        })
    }

    /// Does a read that the device can do at once. None when it cannot, and for anything else: nothing was
    /// done then.
    #[inline]
    pub(crate) fn read_now<D: BlockDevice>(
        self,
        device: &D,
        into: &GuestList,
    ) -> Option<Result<Done, BlockError>> {
        if self.kind != Kind::Read || into.is_empty() {
            return None;
        }
        let read = device.read_now(self.sector.checked_mul(SECTOR)?, into)?;
        // At most the largest chain, which is far below 4 GiB.
        let written = into.len() as u32;
        Some(read.map(|()| Done {
            status: Status::Ok,
            written,
        }))
    }
}

impl Request {
    /// Takes the request of a chain with this head.
    pub(crate) fn take(head: Head, chain: &mut Chain) -> Request {
        let Head { kind, sector } = head;
        let room = chain.writable.len();
        let data = if matches!(kind, Kind::Read | Kind::Id) {
            &mut chain.writable
        } else {
            &mut chain.readable
        };
        Request {
            kind,
            sector,
            data: std::mem::take(data),
            room,
        }
    }

    /// Bytes of data that it moves.
    pub(crate) fn bytes(&self) -> u64 {
        self.data.len()
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) status: Status,
    /// Bytes that were written into the guest, without the status.
    pub(crate) written: u32,
}

impl Done {
    const OK: Done = Done {
        status: Status::Ok,
        written: 0,
    };
}

impl From<Status> for Done {
    fn from(status: Status) -> Done {
        Done { status, written: 0 }
    }
}

/// The status of a request that the device refused.
pub(crate) fn status_of(error: &BlockError) -> Status {
    match error {
        BlockError::Unsupported => Status::Unsupported,
        _ => Status::IoError,
    }
}

/// Does what a request asks for. `durable` says that the driver counts on every write being durable
/// when it is answered, because it knows of no cache or has switched it off.
async fn execute<D: BlockDevice>(
    device: &D,
    kind: Kind,
    sector: u64,
    data: GuestList,
    durable: bool,
) -> Result<Done, BlockError> {
    let len = data.len();
    let offset = sector.checked_mul(SECTOR);
    let offset = offset.ok_or(BlockError::Misaligned {
        offset: u64::MAX,
        len,
    });
    match kind {
        Kind::Read if len > 0 => {
            let offset = offset?;
            device.geometry().check(offset, len, false)?;
            device.read(offset, data).await?;
            // At most the largest chain, which is far below 4 GiB.
            let written = len as u32;
            return Ok(Done {
                status: Status::Ok,
                written,
            });
        }
        Kind::Write if len > 0 => {
            let offset = offset?;
            device.geometry().check(offset, len, true)?;
            device.write(offset, data, durable).await?;
        }
        Kind::Read | Kind::Write => {}
        Kind::Flush => device.flush().await?,
        Kind::Id => {
            let serial = device.geometry().serial;
            let taken = data.len().min(serial.len() as u64) as usize;
            data.copy_in(0, &serial[..taken])?;
            return Ok(Done {
                status: Status::Ok,
                written: taken as u32,
            });
        }
        Kind::Discard | Kind::WriteZeroes => {
            return segments(device, kind, &data, durable).await;
        }
        Kind::Unknown(_) => return Ok(Status::Unsupported.into()),
    }
    Ok(Done::OK)
}

/// DISCARD and WRITE_ZEROES: all segments are checked before the first is done.
async fn segments<D: BlockDevice>(
    device: &D,
    kind: Kind,
    data: &GuestList,
    durable: bool,
) -> Result<Done, BlockError> {
    let count = data.len() / SEGMENT;
    if !data.len().is_multiple_of(SEGMENT) || count > u64::from(SEGMENTS_MAX) {
        return Ok(Status::IoError.into());
    }
    let geometry = device.geometry();
    let mut ranges = Vec::with_capacity(count as usize);
    for place in 0..count {
        let mut bytes = [0; SEGMENT as usize];
        data.copy_out(place * SEGMENT, &mut bytes)?;
        let bytes = u128::from_le_bytes(bytes);
        let (sector, sectors) = (bytes as u64, (bytes >> 64) as u32);
        let flags = (bytes >> 96) as u32;
        let allowed = if kind == Kind::Discard { 0 } else { UNMAP };
        if flags & !allowed != 0 {
            return Ok(Status::Unsupported.into());
        }
        let offset = sector.checked_mul(SECTOR);
        let (Some(offset), true) = (offset, sectors <= SEGMENT_SECTORS_MAX) else {
            return Ok(Status::IoError.into());
        };
        let len = u64::from(sectors) * SECTOR;
        geometry.check(offset, len, true)?;
        ranges.push((offset, len, flags & UNMAP != 0));
    }
    for (offset, len, may_unmap) in ranges {
        if len == 0 {
            continue;
        }
        if kind == Kind::Discard {
            device.discard(offset, len).await?;
        } else {
            device.write_zeroes(offset, len, may_unmap, durable).await?;
        }
    }
    Ok(Done::OK)
}

/// Tries what is [`BlockError::Busy`] again: nothing was done then, and a guest takes any error for
/// one of its disk's.
async fn patiently<T>(
    patience: Duration,
    attempt: impl AsyncFn() -> Result<T, BlockError>,
) -> Result<T, BlockError> {
    let mut pause = PAUSE_MIN;
    let mut end = None;
    loop {
        let done = attempt().await;
        if !matches!(done, Err(BlockError::Busy)) {
            return done;
        }
        let now = engine::now();
        if now >= *end.get_or_insert(now + patience) {
            return done;
        }
        engine::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

impl Request {
    /// Starts it on a device. What fails is told to `failed`, once.
    pub(crate) async fn run<D: BlockDevice>(
        self,
        device: &D,
        durable: bool,
        failed: impl FnOnce(Kind, u64, &BlockError),
    ) -> Done {
        let Request {
            kind, sector, data, ..
        } = self;
        let attempt = async || execute(device, kind, sector, data.clone(), durable).await;
        match patiently(BUSY_MAX, attempt).await {
            Ok(done) => done,
            Err(error) => {
                failed(kind, sector, &error);
                status_of(&error).into()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use engine::{Engine, EngineConfig, ShardId};

    use super::*;

    /// Busy so often, then done: the tries that were made, and what came of them.
    fn tries(patience: Duration, busy: u32) -> (u32, Result<(), BlockError>) {
        let engine = Engine::start(EngineConfig::unpinned(1)).expect("an engine");
        let tried = engine.handle().call_blocking(ShardId(0), move |_| {
            Box::pin(async move {
                let count = Cell::new(0);
                let attempt = async || {
                    count.set(count.get() + 1);
                    if count.get() <= busy {
                        return Err(BlockError::Busy);
                    }
                    Ok(())
                };
                let done = patiently(patience, attempt).await;
                (count.get(), done)
            })
        });
        engine.shutdown().expect("it ends");
        tried.expect("it ran")
    }

    #[test]
    fn a_busy_device_is_tried_again_until_it_has_room() {
        assert!(matches!(tries(Duration::from_mins(1), 0), (1, Ok(()))));
        assert!(matches!(tries(Duration::from_mins(1), 4), (5, Ok(()))));
    }

    #[test]
    fn a_device_that_stays_busy_is_an_error_in_the_end() {
        let (count, done) = tries(Duration::from_millis(5), u32::MAX);
        assert!(count > 1 && matches!(done, Err(BlockError::Busy)));
        let none = tries(Duration::ZERO, u32::MAX);
        assert!(matches!(none, (1, Err(BlockError::Busy))));
    }
}
