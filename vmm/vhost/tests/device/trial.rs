//! A device without content that counts, and takes as long for writes as a test wants.

use std::cell::Cell;

use engine::GuestList;
use engine::sync::Notify;
use shards::block::{BlockDevice, BlockError, Geometry};
use vhost_blk::devices::NullDevice;

/// How long writes take.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    None,
    /// Until the gate is opened; the first after that are refused, as the device is busy.
    Gate,
    /// Until they are hurried.
    Hurry,
}

/// See the module's head.
pub struct Trial {
    null: NullDevice,
    patience: Patience,
    gone_on: Notify,
    is_open: Cell<bool>,
    refused: Cell<u32>,
    durable: Cell<u64>,
    flushes: Cell<u64>,
}

impl Trial {
    pub fn new(bytes: u64, patience: Patience) -> Trial {
        Trial {
            null: NullDevice::new(bytes),
            patience,
            gone_on: Notify::default(),
            is_open: Cell::new(false),
            refused: Cell::new(0),
            durable: Cell::new(0),
            flushes: Cell::new(0),
        }
    }

    pub fn open_gate(&self) {
        self.is_open.set(true);
        self.gone_on.notify_all();
    }

    /// Writes that were to be durable, and flushes.
    pub fn counts(&self) -> (u64, u64) {
        (self.durable.get(), self.flushes.get())
    }

    async fn pass(&self) -> Result<(), BlockError> {
        const REFUSED: u32 = 4;
        match self.patience {
            Patience::None => return Ok(()),
            Patience::Hurry => self.gone_on.notified().await,
            Patience::Gate => {
                while !self.is_open.get() {
                    self.gone_on.notified().await;
                }
            }
        }
        if self.refused.get() < REFUSED {
            self.refused.set(self.refused.get() + 1);
            return Err(BlockError::Busy);
        }
        Ok(())
    }
}

impl BlockDevice for Trial {
    fn geometry(&self) -> Geometry {
        self.null.geometry()
    }

    async fn read(&self, offset: u64, into: GuestList) -> Result<(), BlockError> {
        self.null.read(offset, into).await
    }

    async fn write(&self, offset: u64, from: GuestList, durable: bool) -> Result<(), BlockError> {
        self.pass().await?;
        self.durable.set(self.durable.get() + u64::from(durable));
        self.null.write(offset, from, durable).await
    }

    async fn flush(&self) -> Result<(), BlockError> {
        self.flushes.set(self.flushes.get() + 1);
        self.null.flush().await
    }

    async fn discard(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        self.null.discard(offset, len).await
    }

    async fn write_zeroes(&self, at: u64, len: u64, a: bool, b: bool) -> Result<(), BlockError> {
        self.null.write_zeroes(at, len, a, b).await
    }

    async fn changed(&self) {
        self.null.changed().await;
    }

    fn hurry(&self) {
        if self.patience == Patience::Hurry {
            self.gone_on.notify_all();
        }
    }
}
