//! A disk in memory that can lose power and fail.
//!
//! What a flush covered survives. Of what was written since, each sector of 512 bytes survives or
//! does not, by the seed; a change of the length may be lost, too.

use std::io;
use std::sync::{Arc, Mutex};

use chainfire_store::StorageBackend;

const SECTOR: usize = 512;

#[derive(Debug, Default)]
struct Inner {
    flushed: Vec<u8>,
    current: Vec<u8>,
    /// Sectors written since the flush.
    dirty: Vec<usize>,
    /// Writes and flushes that still work; without a number, all.
    budget: Option<u64>,
}

#[derive(Debug, Clone, Default)]
pub struct Disk(Arc<Mutex<Inner>>);

impl Disk {
    /// A disk with these bytes, flushed.
    pub fn holding(bytes: &[u8]) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            flushed: bytes.to_vec(),
            current: bytes.to_vec(),
            ..Inner::default()
        })))
    }

    /// What a loss of power leaves. The old handle goes on, on its own.
    pub fn after_power_loss(&self, seed: u64) -> Self {
        let inner = self.0.lock().unwrap();
        let mut random = seed | 1;
        let mut image = inner.flushed.clone();
        if inner.current.len() > image.len() {
            image.resize(inner.current.len(), 0);
        }
        for &sector in &inner.dirty {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let from = sector * SECTOR;
            let to = (from + SECTOR).min(inner.current.len());
            if random.is_multiple_of(2) && from < to {
                image[from..to].copy_from_slice(&inner.current[from..to]);
            }
        }
        Self::holding(&image)
    }

    /// Lets so many writes and flushes pass, then fails every one.
    pub fn fail_after(&self, operations: u64) {
        self.0.lock().unwrap().budget = Some(operations);
    }

    fn spend(inner: &mut Inner) -> io::Result<()> {
        match &mut inner.budget {
            Some(0) => Err(io::Error::other("the disk fails")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let inner = self.0.lock().unwrap();
        let from = offset as usize;
        let bytes = inner.current.get(from..from + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        Self::spend(&mut inner)?;
        inner.current.resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        Self::spend(&mut inner)?;
        let inner = &mut *inner;
        inner.flushed.resize(inner.current.len(), 0);
        for sector in inner.dirty.drain(..) {
            let from = sector * SECTOR;
            let to = (from + SECTOR).min(inner.current.len());
            if from < to {
                inner.flushed[from..to].copy_from_slice(&inner.current[from..to]);
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        Self::spend(&mut inner)?;
        let from = offset as usize;
        let to = from + data.len();
        let there = inner.current.get_mut(from..to);
        there
            .ok_or(io::ErrorKind::UnexpectedEof)?
            .copy_from_slice(data);
        inner.dirty.extend(from / SECTOR..to.div_ceil(SECTOR));
        Ok(())
    }
}
