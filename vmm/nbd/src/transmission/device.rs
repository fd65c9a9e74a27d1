//! What a device is asked, and what its errors are called.

use std::time::Duration;

use nbd_wire::{Command, NbdError, Request, command_flag};
use shards::block::{BlockDevice, BlockError};

use super::Link;
use crate::memory::Lease;
use crate::stats::add;

/// How long a device that has too much to do is asked again.
const BUSY_MAX: Duration = Duration::from_secs(10);
/// Between two tries, at first and at most.
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// Why a request was not done.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) error: NbdError,
    pub(super) message: String,
    /// Where, when that is known.
    pub(super) offset: Option<u64>,
}

impl Refusal {
    pub(super) fn new(error: NbdError, message: &str) -> Refusal {
        Refusal {
            error,
            message: message.to_owned(),
            offset: None,
        }
    }

    /// A range that a device does not have.
    pub(super) fn of_range(command: Command, error: &BlockError) -> Refusal {
        let writes = matches!(command, Command::Write | Command::WriteZeroes);
        let past = matches!(error, BlockError::OutOfRange { .. });
        let kind = if past && writes {
            NbdError::NO_SPACE
        } else {
            NbdError::INVALID
        };
        Refusal::new(kind, &error.to_string())
    }

    pub(super) fn of_device(error: &BlockError) -> Refusal {
        let kind = match error {
            BlockError::OutOfRange { .. } | BlockError::Misaligned { .. } => NbdError::INVALID,
            BlockError::ReadOnly => NbdError::PERMISSION,
            BlockError::Unsupported => NbdError::UNSUPPORTED,
            BlockError::Full => NbdError::NO_SPACE,
            BlockError::Fenced => NbdError::SHUTDOWN,
            BlockError::Busy => NbdError::NO_MEMORY,
            _ => NbdError::IO,
        };
        let mut message = error.to_string();
        if let BlockError::Io(source) = error {
            message = format!("{message}: {source}");
        }
        Refusal::new(kind, &message)
    }

    pub(super) fn at(self, offset: u64) -> Refusal {
        Refusal {
            offset: Some(offset),
            ..self
        }
    }

    /// Whether it is worth a line in the log, and not the client's own fault.
    pub(super) fn is_the_devices(&self) -> bool {
        ![NbdError::INVALID, NbdError::PERMISSION].contains(&self.error)
    }
}

/// Tries what is [`BlockError::Busy`] again: nothing was done then, and clients take any error for one of
/// the disk's.
pub(super) async fn patiently<T>(
    attempt: impl AsyncFn() -> Result<T, BlockError>,
) -> Result<T, Refusal> {
    let mut pause = PAUSE_MIN;
    let mut end = None;
    loop {
        let done = attempt().await;
        let now = engine::now();
        let again = matches!(done, Err(BlockError::Busy));
        if !again || now >= *end.get_or_insert(now + BUSY_MAX) {
            return done.map_err(|error| Refusal::of_device(&error));
        }
        engine::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

impl<D: BlockDevice> Link<D> {
    pub(super) fn device(&self) -> &D {
        &self.entry.export.device
    }

    /// Does what needs no data: a flush, a trim, zeros.
    pub(super) async fn change(&self, request: Request) -> Result<(), Refusal> {
        let (device, offset, len) = (self.device(), request.offset, u64::from(request.len));
        let durable = request.flags & command_flag::FUA != 0;
        if request.command == Command::Flush {
            return patiently(async || device.flush().await).await;
        }
        if len == 0 {
            return Ok(());
        }
        if request.command == Command::Trim {
            patiently(async || device.discard(offset, len).await).await?;
            if durable {
                patiently(async || device.flush().await).await?;
            }
            return Ok(());
        }
        // All zeros are fast here: a device that has no fast ones says that it does not support them.
        let may_unmap = request.flags & command_flag::NO_HOLE == 0;
        patiently(async || device.write_zeroes(offset, len, may_unmap, durable).await).await
    }

    pub(super) async fn write_piece(
        &self,
        request: &Request,
        offset: u64,
        lease: &Lease,
        len: u32,
    ) -> Result<(), Refusal> {
        let durable = request.flags & command_flag::FUA != 0;
        let device = self.device();
        let wrote = patiently(async || device.write(offset, lease.list(len), durable).await).await;
        wrote.map_err(|refusal| refusal.at(offset))?;
        add(&self.entry.counters.written_bytes, u64::from(len));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_of_a_device_has_a_number_that_clients_know() {
        let range = || BlockError::OutOfRange {
            offset: 1,
            len: 1,
            bytes: 1,
        };
        let odd = BlockError::Misaligned { offset: 1, len: 1 };
        for (error, number) in [
            (range(), NbdError::INVALID),
            (odd, NbdError::INVALID),
            (BlockError::ReadOnly, NbdError::PERMISSION),
            (BlockError::Unsupported, NbdError::UNSUPPORTED),
            (BlockError::Full, NbdError::NO_SPACE),
            (BlockError::Fenced, NbdError::SHUTDOWN),
            (BlockError::Busy, NbdError::NO_MEMORY),
            (BlockError::Io(std::io::Error::other("x")), NbdError::IO),
        ] {
            assert_eq!(Refusal::of_device(&error).error, number, "{error}");
        }
        let past = |command| Refusal::of_range(command, &range()).error;
        assert_eq!(past(Command::Write), NbdError::NO_SPACE);
        assert_eq!(past(Command::Read), NbdError::INVALID);
    }
}
