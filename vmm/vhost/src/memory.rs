//! The guest's memory as the front end told it: regions, each with its place in the guest and its
//! place in the front end's process. A table never changes; a new one takes its place.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use engine::{GuestIov, GuestList, GuestMem, GuestWindow};

/// Most regions of a guest, as told to the front end.
pub(crate) const REGIONS_MAX: usize = 64;

/// A region as the front end tells it.
#[derive(Debug)]
pub(crate) struct RegionSpec {
    /// Where it is in the guest.
    pub(crate) guest: u64,
    /// Where it is in the front end's process.
    pub(crate) user: u64,
    pub(crate) bytes: u64,
    /// Where it begins in the file.
    pub(crate) offset: u64,
    pub(crate) file: OwnedFd,
}

/// A mapped region.
#[derive(Clone)]
struct Region {
    guest: u64,
    user: u64,
    bytes: u64,
    mem: GuestMem,
}

/// An address that is in no region, or a range that leaves its region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes at {addr:#x} are not in the guest's memory")]
pub(crate) struct Outside {
    pub(crate) addr: u64,
    pub(crate) len: u64,
}

/// The guest's memory.
#[derive(Default)]
pub(crate) struct Memory {
    /// By place in the guest; they do not overlap there.
    regions: Vec<Region>,
    /// The region that was used last.
    last: Cell<usize>,
}

impl Memory {
    /// Maps a whole table of at most `bytes_max`.
    ///
    /// # Errors
    /// When there are too many regions or bytes, two overlap, or one cannot be mapped.
    pub(crate) fn map(specs: Vec<RegionSpec>, bytes_max: u64) -> io::Result<Memory> {
        let mut memory = Memory::default();
        for spec in specs {
            memory = memory.with(&spec, bytes_max)?;
        }
        Ok(memory)
    }

    /// A table of one region that is mapped already.
    #[cfg(fuzzing)]
    pub(crate) fn over(guest: u64, user: u64, mem: GuestMem) -> Memory {
        let bytes = mem.len() as u64;
        Memory {
            regions: vec![Region {
                guest,
                user,
                bytes,
                mem,
            }],
            last: Cell::new(0),
        }
    }

    /// This table and one more region.
    ///
    /// # Errors
    /// As [`Memory::map`].
    pub(crate) fn with(&self, spec: &RegionSpec, bytes_max: u64) -> io::Result<Memory> {
        if self.regions.len() == REGIONS_MAX {
            return Err(invalid(format!("more than {REGIONS_MAX} regions")));
        }
        let mapped: u64 = self.regions.iter().map(|region| region.bytes).sum();
        if spec.bytes > bytes_max.saturating_sub(mapped) {
            let what = format!("{spec:?} beside {mapped} bytes; {bytes_max} are allowed in all");
            return Err(invalid(what));
        }
        let ends = [spec.guest, spec.user].map(|start| start.checked_add(spec.bytes));
        let [Some(end), Some(_)] = ends else {
            return Err(invalid(format!("region {spec:?} wraps around")));
        };
        let overlaps = |other: &Region| spec.guest < other.guest + other.bytes && other.guest < end;
        if let Some(other) = self.regions.iter().find(|other| overlaps(other)) {
            let (guest, bytes) = (other.guest, other.bytes);
            let what = format!("region {spec:?} overlaps {bytes} bytes at {guest:#x}");
            return Err(invalid(what));
        }
        let len = usize::try_from(spec.bytes).map_err(|_| invalid("the region is too large"))?;
        let region = Region {
            guest: spec.guest,
            user: spec.user,
            bytes: spec.bytes,
            mem: GuestMem::map(spec.file.as_fd(), spec.offset, len)?,
        };
        let mut regions = self.regions.clone();
        let place = regions.partition_point(|other| other.guest < region.guest);
        regions.insert(place, region);
        Ok(Memory {
            regions,
            last: Cell::new(0),
        })
    }

    /// This table without a region.
    ///
    /// # Errors
    /// When there is no such region.
    pub(crate) fn without(&self, guest: u64, user: u64, bytes: u64) -> io::Result<Memory> {
        let named =
            |region: &Region| (region.guest, region.user, region.bytes) == (guest, user, bytes);
        let place = self.regions.iter().position(named);
        let place = place
            .ok_or_else(|| invalid(format!("there is no region of {bytes} bytes at {guest:#x}")))?;
        let mut regions = self.regions.clone();
        regions.remove(place);
        Ok(Memory {
            regions,
            last: Cell::new(0),
        })
    }

    fn find(&self, addr: u64) -> Option<&Region> {
        let holds = |region: &&Region| addr.wrapping_sub(region.guest) < region.bytes;
        if let Some(region) = self.regions.get(self.last.get()).filter(holds) {
            return Some(region);
        }
        let place = self.regions.partition_point(|region| region.guest <= addr);
        let place = place.checked_sub(1)?;
        self.last.set(place);
        self.regions.get(place).filter(holds)
    }

    /// Adds a range of the guest to a list. It may go on in the next region.
    ///
    /// # Errors
    /// [`Outside`], also when the list holds too many ranges.
    #[inline]
    pub(crate) fn push(&self, list: &mut GuestList, addr: u64, len: u32) -> Result<(), Outside> {
        self.walk(addr, len.into(), |region, offset, len| {
            let len = len as u32;
            list.push(&region.mem, GuestIov { offset, len })
        })
    }

    /// Copies bytes of the guest out. They may go on in the next region.
    ///
    /// # Errors
    /// [`Outside`], also when the memory was cut short.
    #[inline]
    pub(crate) fn copy_out(&self, addr: u64, into: &mut [u8]) -> Result<(), Outside> {
        let mut left = into;
        self.walk(addr, left.len() as u64, |region, offset, len| {
            let (part, rest) = std::mem::take(&mut left).split_at_mut(len as usize);
            left = rest;
            region.mem.copy_out(offset, part)
        })
    }

    /// Shows the parts of a range, region by region: where in it one begins, and how long it is.
    #[inline]
    fn walk(
        &self,
        addr: u64,
        len: u64,
        mut part: impl FnMut(&Region, u64, u64) -> io::Result<()>,
    ) -> Result<(), Outside> {
        let outside = Outside { addr, len };
        let (mut addr, mut left) = (addr, len);
        while left > 0 {
            let region = self.find(addr).ok_or(outside)?;
            let offset = addr - region.guest;
            let len = left.min(region.bytes - offset);
            part(region, offset, len).map_err(|_| outside)?;
            addr = addr.checked_add(len).ok_or(outside)?;
            left -= len;
        }
        Ok(())
    }

    /// Where in the guest an address of the front end's process is.
    ///
    /// # Errors
    /// [`Outside`].
    pub(crate) fn guest_of(&self, user: u64) -> Result<u64, Outside> {
        let holds = |region: &&Region| user.wrapping_sub(region.user) < region.bytes;
        let region = self.regions.iter().find(holds);
        let outside = Outside { addr: user, len: 1 };
        region
            .map(|region| region.guest + (user - region.user))
            .ok_or(outside)
    }

    /// A range of one region, named by its place in the guest.
    ///
    /// # Errors
    /// [`Outside`].
    pub(crate) fn window(&self, addr: u64, len: usize) -> Result<GuestWindow, Outside> {
        let outside = Outside {
            addr,
            len: len as u64,
        };
        let region = self.find(addr).ok_or(outside)?;
        let window = region.mem.window(addr - region.guest, len, 1);
        window.map_err(|_| outside)
    }

    /// A range of one region, named by its place in the front end's process.
    ///
    /// # Errors
    /// [`Outside`], also when it is not aligned.
    pub(crate) fn user_window(
        &self,
        addr: u64,
        len: usize,
        align: usize,
    ) -> Result<GuestWindow, Outside> {
        let outside = Outside {
            addr,
            len: len as u64,
        };
        let holds = |region: &&Region| addr.wrapping_sub(region.user) < region.bytes;
        let region = self.regions.iter().find(holds).ok_or(outside)?;
        let window = region.mem.window(addr - region.user, len, align);
        window.map_err(|_| outside)
    }
}

fn invalid(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why.into())
}
