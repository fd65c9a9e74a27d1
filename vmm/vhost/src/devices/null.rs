//! A device without content: what a request costs when the device costs nothing.

use engine::GuestList;
use shards::block::{BlockDevice, BlockError, Geometry};

/// Forgets what is written; reads leave the guest's memory as it is.
pub struct NullDevice {
    geometry: Geometry,
}

impl NullDevice {
    /// A device of `bytes`, which are whole blocks of 512.
    pub fn new(bytes: u64) -> NullDevice {
        NullDevice {
            geometry: Geometry {
                bytes: bytes - bytes % 512,
                block_bytes: 512,
                physical_bytes: 512,
                optimal_bytes: 0,
                discard_granularity: 512,
                read_only: false,
                serial: super::serial("null"),
            },
        }
    }
}

impl BlockDevice for NullDevice {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    async fn read(&self, _offset: u64, _into: GuestList) -> Result<(), BlockError> {
        Ok(())
    }

    fn read_now(&self, offset: u64, into: &GuestList) -> Option<Result<(), BlockError>> {
        self.geometry.check(offset, into.len(), false).ok()?;
        Some(Ok(()))
    }

    async fn write(
        &self,
        _offset: u64,
        _from: GuestList,
        _durable: bool,
    ) -> Result<(), BlockError> {
        Ok(())
    }

    async fn flush(&self) -> Result<(), BlockError> {
        Ok(())
    }

    async fn discard(&self, _offset: u64, _len: u64) -> Result<(), BlockError> {
        Ok(())
    }

    async fn write_zeroes(
        &self,
        _offset: u64,
        _len: u64,
        _may_unmap: bool,
        _durable: bool,
    ) -> Result<(), BlockError> {
        Ok(())
    }

    async fn changed(&self) {
        std::future::pending::<()>().await;
    }
}
