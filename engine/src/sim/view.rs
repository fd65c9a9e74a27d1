//! A test's hand on a node's disk: what is on it, and what breaks next.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::NodeId;
use super::disk::Disk;
use super::world::World;

/// A node's disk, seen from outside of the simulation. Looking costs no virtual time.
#[derive(Clone)]
pub struct SimDisk {
    world: Rc<RefCell<World>>,
    node: NodeId,
}

impl SimDisk {
    pub(super) fn new(world: &Rc<RefCell<World>>, node: NodeId) -> SimDisk {
        SimDisk {
            world: Rc::clone(world),
            node,
        }
    }

    fn with<R>(&self, look: impl FnOnce(&mut Disk) -> R) -> R {
        look(&mut self.world.borrow_mut().node(self.node).disk)
    }

    /// The next sync of a file or directory, or flush of a write with dsync, answers EIO; calls add
    /// up.
    pub fn fail_next_sync(&self) {
        self.with(|disk| disk.ordered.syncs += 1);
    }

    /// The next read answers EIO; calls add up.
    pub fn fail_next_read(&self) {
        self.with(|disk| disk.ordered.reads += 1);
    }

    /// The next write answers EIO, some of its sectors written; calls add up.
    pub fn fail_next_write(&self) {
        self.with(|disk| disk.ordered.writes += 1);
    }

    /// Sets the disk's size: what needs more answers ENOSPC.
    pub fn set_capacity(&self, bytes: u64) {
        self.with(|disk| disk.set_capacity(bytes));
    }

    /// Bytes of space that files take, also those without a name that are open.
    pub fn used_bytes(&self) -> u64 {
        self.with(|disk| disk.used())
    }

    /// Multiplies all latencies of the disk; at least 1.
    pub fn set_slow_factor(&self, factor: u32) {
        self.with(|disk| disk.slow_factor = u64::from(factor.max(1)));
    }

    /// Flips one bit, drawn from the seed, of a file's byte.
    ///
    /// # Panics
    /// When there is no such byte.
    pub fn flip_bit(&self, path: impl AsRef<Path>, offset: u64) {
        let path = path.as_ref();
        let bit = self.world.borrow_mut().rng.below(8) as u8;
        let flipped = self.with(|disk| disk.flip_bit(path, offset, bit));
        assert!(
            flipped.is_ok(),
            "{} has no byte {offset}: {flipped:?}",
            path.display()
        );
    }

    /// A file's visible bytes; `None` when there is no such file.
    pub fn read_file(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        self.with(|disk| {
            let inode = disk.lookup(path.as_ref()).ok()?;
            Some(disk.read(inode, 0, u64::MAX))
        })
    }

    /// Every file's path and length, in path order.
    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        self.with(|disk| disk.files())
    }
}
