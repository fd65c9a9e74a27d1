//! The disk's laws under random steps, beside a model that knows for each sector every value it
//! may have after a crash.

use std::path::Path;

use super::super::disk::{Disk, Inode, SECTOR};
use crate::rng::Rng;

const SECTORS: u64 = 12;

/// A value that was written to a sector.
#[derive(Clone, Copy)]
struct Written {
    seq: u64,
    value: u8,
    /// A sync failed over it.
    doomed: bool,
}

/// Per sector, what a crash may leave, oldest first. The first is the durable value.
struct Model {
    sectors: Vec<Vec<Written>>,
}

impl Model {
    fn new() -> Model {
        let zeros = Written {
            seq: 0,
            value: 0,
            doomed: false,
        };
        Model {
            sectors: vec![vec![zeros]; SECTORS as usize],
        }
    }

    fn write(&mut self, seq: u64, from: u64, to: u64, value: u8) {
        for sector in &mut self.sectors[from as usize..to as usize] {
            sector.push(Written {
                seq,
                value,
                doomed: false,
            });
        }
    }

    /// What a sync up to `upto` leaves possible: its newest value that no sync failed over, and
    /// later ones. Without such a value nothing is ruled out.
    fn sync(&mut self, upto: u64) {
        for sector in &mut self.sectors {
            if let Some(newest) = sector.iter().rposition(|w| w.seq <= upto && !w.doomed) {
                sector.drain(..newest);
            }
        }
    }

    fn fail_sync(&mut self, upto: u64) {
        for written in self.sectors.iter_mut().flatten().filter(|w| w.seq <= upto) {
            written.doomed = true;
        }
    }

    fn check_visible(&self, bytes: &[u8], seed: u64) {
        for (number, sector) in self.sectors.iter().enumerate() {
            let seen = bytes.get(number * SECTOR as usize).copied().unwrap_or(0);
            let newest = sector.last().map(|w| w.value);
            assert_eq!(
                Some(seen),
                newest,
                "seed {seed}: sector {number} shows an old value"
            );
        }
    }

    /// Checks what a crash left and takes it as the new durable state.
    fn crash(&mut self, bytes: &[u8], seed: u64) {
        for (number, sector) in self.sectors.iter_mut().enumerate() {
            let start = number * SECTOR as usize;
            let end = bytes.len().min(start + SECTOR as usize);
            let left = bytes.get(start..end).unwrap_or_default();
            let value = left.first().copied().unwrap_or(0);
            assert!(
                left.iter().all(|b| *b == value),
                "seed {seed}: torn inside sector {number}"
            );
            let allowed: Vec<u8> = sector.iter().map(|w| w.value).collect();
            assert!(
                allowed.contains(&value),
                "seed {seed}: sector {number} is {value}, allowed {allowed:?}"
            );
            *sector = vec![Written {
                seq: 0,
                value,
                doomed: false,
            }];
        }
    }
}

struct Run {
    disk: Disk,
    model: Model,
    rng: Rng,
    inode: Inode,
    /// The point that a sync in flight has to reach.
    syncing: Option<u64>,
    next_value: u8,
}

impl Run {
    fn step(&mut self, seed: u64) {
        match self.rng.below(12) {
            0..=5 => {
                let from = self.rng.below(SECTORS);
                let to = from + 1 + self.rng.below(SECTORS - from);
                self.next_value = self.next_value % 250 + 1;
                let bytes = vec![self.next_value; ((to - from) * SECTOR) as usize];
                self.disk
                    .write(self.inode, from * SECTOR, &bytes, || true)
                    .unwrap();
                self.model.write(self.disk.seq(), from, to, self.next_value);
            }
            6..=7 if self.syncing.is_none() => {
                self.disk.begin_sync(self.inode);
                self.syncing = Some(self.disk.seq());
            }
            6..=8 => {
                let Some(upto) = self.syncing.take() else {
                    return;
                };
                self.disk.end_sync(self.inode);
                if self.rng.once_in(4) {
                    self.disk.fail_sync(self.inode, upto, &mut self.rng);
                    self.model.fail_sync(upto);
                } else {
                    self.disk.sync(self.inode, upto);
                    self.model.sync(upto);
                }
            }
            9 => {
                let (from, value) = (self.rng.below(SECTORS), 251);
                let bytes = [value; SECTOR as usize];
                self.disk
                    .write(self.inode, from * SECTOR, &bytes, || true)
                    .unwrap();
                self.disk.sync_range(self.inode, from * SECTOR, SECTOR);
                let durable = Written {
                    seq: self.disk.seq(),
                    value,
                    doomed: false,
                };
                self.model.sectors[from as usize] = vec![durable];
            }
            10 => {
                let (from, upto) = (self.rng.below(SECTORS), self.disk.len(self.inode));
                self.disk.punch(self.inode, from * SECTOR, SECTOR).unwrap();
                if from * SECTOR < upto {
                    self.model.write(self.disk.seq(), from, from + 1, 0);
                }
            }
            _ if self.rng.once_in(3) => {
                self.disk.crash(&mut self.rng);
                self.syncing = None;
                let bytes = self.disk.read(self.inode, 0, u64::MAX);
                self.model.crash(&bytes, seed);
            }
            _ => {}
        }
        self.model
            .check_visible(&self.disk.read(self.inode, 0, u64::MAX), seed);
    }
}

#[test]
fn a_crash_leaves_only_values_that_the_fault_model_allows() {
    for seed in 0..300 {
        let mut disk = Disk::new();
        let inode = disk.open(Path::new("/f"), true, false).unwrap();
        disk.sync_dir(Path::new("/"), u64::MAX).unwrap();
        let (rng, model) = (Rng::new(seed), Model::new());
        let mut run = Run {
            disk,
            model,
            rng,
            inode,
            syncing: None,
            next_value: 0,
        };
        for _ in 0..200 {
            run.step(seed);
        }
    }
}
