//! Scrub: every object of a partition is read and verified, in key order, round after round, at a
//! bounded rate in the maintenance group.
//!
//! Invariants: it reads the disk and no cache; an object is pinned while it is read, so what changes
//! meanwhile is no damage. What is damaged is counted and logged with object, segment and offset; it
//! stays where it is, and a read of it fails.
//!
//! It never repairs and never writes.

use std::cmp::Reverse;
use std::ops::ControlFlow;
use std::rc::{Rc, Weak};
use std::time::Duration;

use engine::SchedGroup;

use super::error::{StoreError, file_of};
use super::fetch::StoredBody;
use super::index::{NamePosition, ObjectEntry};
use super::partition::Inner;
use super::read::record_damaged;
use super::record::{Change, Place, Stored};
use super::scan::Fetch;
use super::types::{BucketId, READ_MAX, Version};
use super::upkeep::open_one;

/// The first round begins after this part of the period: not with every restart at once.
const FIRST_DIVISOR: u32 = 64;
/// How often a read that finds no buffer is tried again.
const TRIES_MAX: u32 = 100;
const TRY_WAIT: Duration = Duration::from_millis(20);

/// Objects whose names are looked up together.
const NAMES_AT_A_TIME: usize = 64;

type Name = (BucketId, Box<str>, Version);

async fn scrub_for_ever(partition: Weak<Inner>, period: Duration) {
    engine::sleep(period / FIRST_DIVISOR).await;
    loop {
        let began = engine::now();
        let mut at = NamePosition::start();
        {
            let Some(inner) = open_one(&partition) else {
                return;
            };
            let (objects, _) = inner.index.borrow().totals();
            inner.counters.scrub_left.set(objects);
        }
        loop {
            let Some(inner) = open_one(&partition) else {
                return;
            };
            match inner.scrub_from(&mut at).await {
                Ok(true) => {}
                Ok(false) => {
                    inner.end_round();
                    break;
                }
                Err(error) => {
                    tracing::error!(
                        partition = inner.id.0, %error,
                        "scrub gives up this round: the index cannot be walked"
                    );
                    break;
                }
            }
        }
        engine::sleep(period.saturating_sub(engine::now().since(began))).await;
    }
}

impl Inner {
    pub(super) fn start_scrub(self: &Rc<Inner>) {
        let Some(period) = self.config.upkeep.scrub_period else {
            return;
        };
        let scrub = scrub_for_ever(Rc::downgrade(self), period);
        match engine::try_spawn_local(SchedGroup::MAINTENANCE, scrub) {
            Ok(task) => task.detach(),
            Err(error) => tracing::error!(
                partition = self.id.0, %error,
                "scrub does not run: too many tasks"
            ),
        }
    }

    fn end_round(&self) {
        let counters = &self.counters;
        counters.scrub_rounds.set(counters.scrub_rounds.get() + 1);
        counters.scrub_left.set(0);
    }

    /// Verifies the next objects from a position on, and moves it behind them; false behind the
    /// last.
    async fn scrub_from(&self, at: &mut NamePosition) -> Result<bool, StoreError> {
        let mut names: Vec<Name> = Vec::new();
        let walked = self.view().walk(at.clone(), Fetch::Cached, |rank, _| {
            let (bucket, key, Reverse(version)) = rank;
            let key = String::from_utf8_lossy(key).into();
            names.push((bucket, key, Version(version)));
            at.pass(rank);
            if names.len() < NAMES_AT_A_TIME {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        });
        walked.await?;
        let more = names.len() == NAMES_AT_A_TIME;
        for name in names {
            let verified = self.scrub_one(&name).await;
            let counters = &self.counters;
            counters.scrub_objects.set(counters.scrub_objects.get() + 1);
            let left = counters.scrub_left.get().saturating_sub(1);
            counters.scrub_left.set(left);
            if let Err(error) = verified {
                self.report_scrub(&name, &error);
            }
        }
        Ok(more)
    }

    async fn scrub_one(&self, name: &Name) -> Result<(), StoreError> {
        let (bucket, key, version) = name;
        let Some(entry) = self.lookup(*bucket, key, *version).await? else {
            return Ok(());
        };
        let _pin = self.pin(&entry);
        self.verify_object(name, &entry).await
    }

    fn report_scrub(&self, (bucket, key, _): &Name, error: &StoreError) {
        let key = &**key;
        match error {
            StoreError::Corrupt {
                what,
                segment,
                offset,
            } => {
                let damaged = &self.counters.scrub_damaged;
                damaged.set(damaged.get() + 1);
                let file = file_of(*segment);
                tracing::error!(
                    partition = self.id.0,
                    bucket = bucket.0,
                    key,
                    file,
                    offset,
                    what,
                    "an object is damaged; restore it from elsewhere"
                );
            }
            error => tracing::warn!(
                partition = self.id.0, bucket = bucket.0, key, %error,
                "an object could not be verified in this round"
            ),
        }
    }

    async fn verify_object(
        &self,
        (bucket, key, _): &Name,
        entry: &ObjectEntry,
    ) -> Result<(), StoreError> {
        let record = self.scrub_record(entry.place).await?;
        let ours = record.bucket == *bucket && record.key == *key;
        match record.change {
            Change::Put { meta, stored } if ours => self.verify_body(meta.size, stored).await,
            Change::UploadComplete { parts, .. } if ours => {
                for part in parts {
                    match self.scrub_record(part.place).await?.change {
                        Change::PartPut { size, stored, .. } if size == part.size => {
                            self.verify_body(size, stored).await?;
                        }
                        _ => return Err(self.wrong_record(part.place)),
                    }
                }
                Ok(())
            }
            _ => Err(self.wrong_record(entry.place)),
        }
    }

    fn wrong_record(&self, place: Place) -> StoreError {
        self.corrupt();
        record_damaged("another record than the index says", place)
    }

    async fn scrub_record(&self, place: Place) -> Result<super::record::Record, StoreError> {
        let mut tries = 0;
        loop {
            match self.read_record(place, 0).await {
                Err(StoreError::Busy) if tries < TRIES_MAX => {
                    tries += 1;
                    engine::sleep(TRY_WAIT).await;
                }
                read => {
                    let (_, record, _) = read?;
                    self.pace(u64::from(place.len)).await;
                    return Ok(record);
                }
            }
        }
    }

    /// Reads a body in extents; one that lies in its record was verified with it.
    async fn verify_body(&self, size: u64, stored: Stored) -> Result<(), StoreError> {
        let Stored::Extents { extents, crcs } = stored else {
            return Ok(());
        };
        let body = StoredBody::new(size, extents, crcs);
        let mut offset = 0;
        let mut tries = 0;
        while offset < size {
            let len = (size - offset).min(READ_MAX as u64);
            match self.fetch_stored(&body, offset, len as usize).await {
                Ok(_) => {
                    offset += len;
                    self.pace(len).await;
                }
                Err(StoreError::Busy) if tries < TRIES_MAX => {
                    tries += 1;
                    engine::sleep(TRY_WAIT).await;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Counts what was read, and waits as long as it may take.
    async fn pace(&self, bytes: u64) {
        let read = &self.counters.scrub_bytes;
        read.set(read.get() + bytes);
        let rate = self.config.upkeep.scrub_bytes_per_s.max(1);
        engine::sleep(Duration::from_nanos(bytes * 1_000_000_000 / rate)).await;
    }
}
