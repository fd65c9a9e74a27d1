//! What a volume may hold, sector by sector.

/// A write of a sector: its stamp, when it began, and when it had returned.
#[derive(Clone, Copy, Debug)]
struct Write {
    stamp: u64,
    began: u64,
    ended: Option<u64>,
}

/// The writes of each sector since the newest that is certainly durable, which is the first.
#[derive(Clone, Debug, Default)]
pub(super) struct Image {
    sectors: Vec<Vec<Write>>,
}

const SETTLED: u64 = 0;

fn settled(stamp: u64) -> Write {
    Write {
        stamp,
        began: SETTLED,
        ended: Some(SETTLED),
    }
}

impl Image {
    pub(super) fn of(may: Vec<Vec<u64>>) -> Image {
        let of = |may: Vec<u64>| may.into_iter().map(settled).collect();
        Image {
            sectors: may.into_iter().map(of).collect(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.sectors.len()
    }

    pub(super) fn begin(&mut self, first: usize, count: usize, stamp: u64, began: u64) {
        for sector in &mut self.sectors[first..first + count] {
            sector.push(Write {
                stamp,
                began,
                ended: None,
            });
        }
    }

    /// The write that was begun last in each of the sectors has returned.
    pub(super) fn end(&mut self, first: usize, count: usize, ended: u64) {
        for sector in &mut self.sectors[first..first + count] {
            let last = sector.last_mut().expect("a write that was begun");
            last.ended = Some(ended);
        }
    }

    /// A flush that began then has returned.
    pub(super) fn flushed(&mut self, began: u64) {
        for sector in &mut self.sectors {
            let before = |write: &Write| write.ended.is_some_and(|ended| ended <= began);
            let newest = sector.iter().rposition(before).unwrap_or(0);
            sector.drain(..newest);
        }
    }

    /// The newest write of each of the sectors is durable.
    pub(super) fn flushed_range(&mut self, first: usize, count: usize) {
        for sector in &mut self.sectors[first..first + count] {
            let newest = sector.len() - 1;
            sector.drain(..newest);
        }
    }

    /// What a sector holds, when no write of it is in progress.
    pub(super) fn now(&self, sector: usize) -> u64 {
        let last = self.sectors[sector]
            .last()
            .expect("a sector holds something");
        assert!(last.ended.is_some(), "sector {sector} is being written");
        last.stamp
    }

    /// What a snapshot may hold that was asked for at `asked`, and has not returned.
    pub(super) fn snapshot(&self, asked: u64) -> Vec<Vec<u64>> {
        let of = |sector: &Vec<Write>| {
            let before = |write: &Write| write.ended.is_some_and(|ended| ended <= asked);
            let newest = sector.iter().rposition(before).unwrap_or(0);
            sector[newest..].iter().map(|write| write.stamp).collect()
        };
        self.sectors.iter().map(of).collect()
    }

    /// Writes that began past `asked` may be in a snapshot that has not returned.
    pub(super) fn add_to(&self, snapshot: &mut [Vec<u64>], asked: u64) {
        for (may, sector) in snapshot.iter_mut().zip(&self.sectors) {
            let later = sector.iter().filter(|write| write.began > asked);
            may.extend(later.map(|write| write.stamp));
        }
    }

    /// It may hold this instead, and does when it has as many sectors now.
    pub(super) fn or(&mut self, may: &[Vec<u64>], now: usize) {
        if now == may.len() && now > self.len() {
            let more = may[self.len()..].to_vec();
            self.sectors.extend(Image::of(more).sectors);
        }
        for (sector, may) in self.sectors.iter_mut().zip(may) {
            sector.extend(may.iter().map(|stamp| settled(*stamp)));
        }
    }

    pub(super) fn resize(&mut self, sectors: usize) {
        self.sectors.resize(sectors, vec![settled(0)]);
    }

    /// What it may hold when the process was killed: all that had returned, and of what had not, any.
    pub(super) fn acknowledged(&self) -> Image {
        let mut image = self.clone();
        image.flushed(u64::MAX);
        image
    }

    /// After a kill it holds this, and until that is flushed a power cut may bring back what it held
    /// before, or what was in progress: that may lie in a block that was emptied since the last flush.
    pub(super) fn survive(&mut self, seen: &[u64], now: u64) {
        self.resize(seen.len());
        for (sector, seen) in self.sectors.iter_mut().zip(seen) {
            sector.push(Write {
                stamp: *seen,
                began: now,
                ended: Some(now),
            });
        }
    }

    /// After a crash it holds this, whatever was in progress; also of the other length, if it was being
    /// resized to that.
    pub(super) fn settle(&mut self, seen: &[u64], resized: Option<usize>, seed: u64) {
        if seen.len() != self.len() {
            assert_eq!(Some(seen.len()), resized, "seed {seed}: another size");
            self.resize(seen.len());
        }
        for (at, (sector, seen)) in self.sectors.iter_mut().zip(seen).enumerate() {
            assert!(
                sector.iter().any(|write| write.stamp == *seen),
                "seed {seed}: sector {at} holds {seen}, not {sector:?}"
            );
            *sector = vec![settled(*seen)];
        }
    }
}
