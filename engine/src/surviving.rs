//! Memory that outlives the process: a file mapped shared. What was stored is there for whoever maps
//! the file next, also after a kill, as the pages are the kernel's; no store costs a system call. It is
//! not durable: after a restart of the machine the file holds anything.
//!
//! Invariants: the file's space is allocated before it is mapped, so a store needs none where the file
//! system keeps that promise. A file that is cut short under the mapping, or has no space for a page, is
//! an error of that store or copy, and no fault ([`crate::GuestMem`]).

use std::io;
use std::sync::atomic::Ordering;

use crate::guest::{GuestMem, GuestWindow};

/// See the module's head. Made by [`crate::fs::File::map_surviving`].
#[derive(Debug)]
pub struct SurvivingMem {
    mem: GuestMem,
    words: GuestWindow,
}

impl SurvivingMem {
    pub(crate) fn over(mem: GuestMem) -> io::Result<SurvivingMem> {
        let words = mem.window(0, mem.len(), size_of::<u64>())?;
        Ok(SurvivingMem { mem, words })
    }

    /// Bytes mapped.
    pub fn len(&self) -> usize {
        self.mem.len()
    }

    /// Never true: an empty range is not mapped.
    pub fn is_empty(&self) -> bool {
        self.mem.is_empty()
    }

    /// Copies bytes from `offset` on out of the memory, until `into` is full.
    ///
    /// # Errors
    /// `InvalidInput` outside of the memory, `UnexpectedEof` when the file was cut short.
    pub fn copy_out(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.mem.copy_out(offset, into)
    }

    /// Copies bytes into the memory at `offset`. A kill may leave any part of them.
    ///
    /// # Errors
    /// As [`SurvivingMem::copy_out`].
    #[inline]
    pub fn copy_in(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        self.mem.copy_in(offset, from)
    }

    /// The 64 bits at a multiple of eight, in the byte order of this machine.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file was cut short.
    ///
    /// # Panics
    /// Outside of the memory, or where no 64 bits are.
    pub fn load(&self, at: usize) -> io::Result<u64> {
        let value = self.words.u64(at).load(Ordering::Acquire);
        self.mem.whole()?;
        Ok(value)
    }

    /// Stores 64 bits, whole whatever happens, after everything that was stored before.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file was cut short: nothing is kept.
    ///
    /// # Panics
    /// As [`SurvivingMem::load`].
    #[inline]
    pub fn store(&self, at: usize, value: u64) -> io::Result<()> {
        self.words.u64(at).store(value, Ordering::Release);
        self.mem.whole()
    }
}
