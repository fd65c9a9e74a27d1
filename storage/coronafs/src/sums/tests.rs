//! Sectors of checksums, and the law of places: what a restart may find is not written.

use engine::Rng;

use super::places::{Places, Recorded};
use super::*;
use crate::map::{Piece, ZEROS};

fn sums(of: &[(u32, u32)]) -> BlockSums {
    let mut sums = BlockSums::default();
    for (block, sum) in of {
        sums.set(*block, *sum);
    }
    sums
}

fn sector() -> Sector {
    let mut sector = Sector::default();
    sector[0] = sums(&[(0, 0), (15, 7)]);
    sector[6] = sums(&[(3, 0xFFFF_FFFF)]);
    sector
}

fn bytes_of(sector: &Sector) -> [u8; SECTOR_BYTES] {
    let mut bytes = [0; SECTOR_BYTES];
    put_sector(&mut bytes, 3, 9, sector);
    bytes
}

#[test]
fn a_sector_is_read_as_written_in_its_place_alone() {
    let bytes = bytes_of(&sector());
    assert_eq!(take_sector(&bytes, 3, 9), Ok(sector()));
    assert_eq!(take_sector(&[0; SECTOR_BYTES], 3, 9), Ok(Sector::default()));
    assert!(take_sector(&bytes, 3, 8).is_err());
    assert!(take_sector(&bytes, 4, 9).is_err());
    for at in 0..SECTOR_BYTES {
        let mut damaged = bytes;
        damaged[at] ^= 1;
        assert!(take_sector(&damaged, 3, 9).is_err(), "byte {at}");
        assert!(take_sector(&bytes[..at], 3, 9).is_err() || at == 0);
    }
}

#[test]
fn a_sector_has_the_bytes_of_its_format() {
    let bytes = bytes_of(&sector());
    assert_eq!(&bytes[4..16], b"UCs1\x03\0\0\0\x09\0\0\0");
    assert_eq!(bytes[16..18], [0x01, 0x80]);
    assert_eq!(bytes[28..32], [0x08, 0, 0, 0]);
    assert_eq!(bytes[32 + 15 * 4..][..4], [7, 0, 0, 0]);
    assert_eq!(bytes[32 + (6 * 16 + 3) * 4..][..4], [0xFF; 4]);
    let crc = crc_fast::crc32_iscsi(&bytes[4..]);
    assert_eq!(bytes[..4], crc.to_le_bytes());
}

#[test]
fn checksums_of_blocks_are_kept_for_the_blocks_that_have_one() {
    let mut all = sums(&[(1, 10), (4, 40)]);
    all.renew(&sums(&[(4, 41), (9, 90)]));
    assert_eq!(all, sums(&[(1, 10), (4, 41), (9, 90)]));
    assert_eq!(all.only(0x210), sums(&[(4, 41), (9, 90)]));
    assert_eq!((all.get(4), all.get(5)), (Some(41), None));
    let mut out = Writer::default();
    all.put(&mut out);
    let mut from = Reader::new(&out.bytes);
    assert_eq!(BlockSums::take(&mut from), Ok(all));
    assert_eq!(from.left(), 0);
    let short = &out.bytes[..out.bytes.len() - 1];
    assert!(BlockSums::take(&mut Reader::new(short)).is_err());
}

/// A slot, and what a restart could find of it: the newest checkpoint, and the records behind it.
struct Slot {
    places: Places,
    pieces: Vec<Piece>,
    dirty: bool,
    /// What the newest checkpoint has.
    base: Vec<Piece>,
    /// Checkpoints whose map is taken and which are not written, with the records of then.
    images: Vec<(Vec<Piece>, usize)>,
    /// Durable records, and how many of them the base has.
    records: Vec<Vec<Piece>>,
    passed: usize,
    begun: Option<(Recorded, u64, Vec<Piece>)>,
    next: u32,
}

fn touch(pieces: &[Piece], cluster: u32, mask: u16) -> bool {
    let in_it = |piece: &Piece| piece.cluster == cluster && piece.mask & mask != 0;
    pieces.iter().any(in_it)
}

impl Slot {
    /// Everything that a power cut or a kill at this moment leaves.
    fn may_be_found(&self) -> Vec<&Vec<Piece>> {
        let behind = &self.records[self.passed..];
        let mut found = vec![behind.last().unwrap_or(&self.base), &self.pieces];
        // The record that is on its way may be there already, or a checkpoint.
        found.extend(self.begun.as_ref().map(|(_, _, pieces)| pieces));
        for (image, passed) in &self.images {
            found.push(self.records[*passed..].last().unwrap_or(image));
        }
        found
    }

    fn write(&mut self, blocks: u16) {
        let clusters: Vec<u32> = self.pieces.iter().map(|piece| piece.cluster).collect();
        let mut left = blocks;
        let mut targets = Vec::new();
        for cluster in clusters {
            let mask = left & self.places.writable(7, &self.pieces, cluster);
            left &= !mask;
            targets.push((cluster, mask));
        }
        targets.push((self.next, left));
        self.next += 1;
        let old = self.pieces.clone();
        for (cluster, mask) in targets.into_iter().filter(|(_, mask)| *mask != 0) {
            for found in self.may_be_found() {
                assert!(
                    !touch(found, cluster, mask),
                    "{found:?} has {cluster} {mask:x}"
                );
            }
            self.pieces.iter_mut().for_each(|piece| piece.mask &= !mask);
            match self
                .pieces
                .iter_mut()
                .find(|piece| piece.cluster == cluster)
            {
                Some(piece) => piece.mask |= mask,
                None => self.pieces.push(Piece { cluster, mask }),
            }
        }
        self.pieces.retain(|piece| piece.mask != 0);
        self.places.change(7, &old, &BlockSums::NONE);
        self.dirty = true;
    }

    fn step(&mut self, rng: &mut Rng) {
        match (rng.below(8), self.begun.take()) {
            (0, None) if self.dirty => {
                let recorded = self.places.record(7, &self.pieces);
                self.dirty = false;
                self.begun = Some((recorded, self.places.taken(), self.pieces.clone()));
            }
            (0 | 1, Some((recorded, taken, pieces))) => {
                self.records.push(pieces);
                self.places.recorded(&recorded, taken, self.dirty);
            }
            (2, Some((recorded, _, pieces))) if rng.below(4) == 0 => {
                // Whether it became durable or not: the next one says the same, and more.
                if rng.below(2) == 0 {
                    self.records.push(pieces);
                }
                self.places.not_recorded(&recorded);
                self.dirty = true;
            }
            (3, begun) => {
                self.begun = begun;
                self.places.take(|_| self.pieces.clone());
                self.images.push((self.pieces.clone(), self.records.len()));
            }
            (4, begun) => {
                self.begun = begun;
                if !self.images.is_empty() {
                    (self.base, self.passed) = self.images.remove(0);
                    // One at a time is written.
                    self.images.clear();
                }
            }
            (_, begun) => {
                self.begun = begun;
                self.write(rng.next_u64() as u16 & rng.next_u64() as u16);
            }
        }
    }
}

#[test]
fn no_write_takes_a_place_that_a_restart_may_find() {
    let mut clusters = 0;
    for seed in 0..64 {
        let mut rng = Rng::new(seed);
        let mut slot = Slot {
            places: Places::default(),
            pieces: Vec::new(),
            dirty: false,
            base: Vec::new(),
            images: Vec::new(),
            records: Vec::new(),
            passed: 0,
            begun: None,
            next: 0,
        };
        for _ in 0..400 {
            slot.step(&mut rng);
        }
        clusters = clusters.max(slot.pieces.len());
    }
    assert!((2..=16).contains(&clusters), "{clusters} pieces at most");
}

#[test]
fn a_record_says_the_checksums_of_what_was_written_until_one_is_durable() {
    let mut places = Places::default();
    let pieces = [Piece {
        cluster: 1,
        mask: 0b111,
    }];
    places.change(0, &[], &sums(&[(0, 1), (1, 2), (5, 3)]));
    let first = places.record(0, &pieces);
    // Block 5 was freed again.
    assert_eq!(*first.sums(), sums(&[(0, 1), (1, 2)]));
    places.change(0, &pieces, &sums(&[(1, 9)]));
    places.not_recorded(&first);
    let second = places.record(0, &pieces);
    assert_eq!(*second.sums(), sums(&[(0, 1), (1, 9)]));
    places.recorded(&second, places.taken(), false);
    places.change(0, &pieces, &sums(&[(2, 4)]));
    assert_eq!(*places.record(0, &pieces).sums(), sums(&[(2, 4)]));
}

#[test]
fn a_record_says_no_checksum_of_what_is_zeros_by_then() {
    let mut places = Places::default();
    let written = [Piece {
        cluster: 4,
        mask: 0b11,
    }];
    places.change(9, &[], &sums(&[(0, 5), (1, 6)]));
    places.change(9, &written, &BlockSums::NONE);
    let kept = Piece {
        cluster: 4,
        mask: 0b01,
    };
    let zeros = Piece {
        cluster: ZEROS,
        mask: 0b10,
    };
    let record = places.record(9, &[kept, zeros]);
    assert_eq!(*record.sums(), sums(&[(0, 5)]));
}
