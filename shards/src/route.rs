//! Calls to the shard that owns a partition, while ownership moves.
//!
//! Every shard has its own copy of the placement map and of what it holds. The control layer
//! installs a map in two rounds: in the first each shard lets go of what the map takes from it
//! and waits for the calls that run there; only then, in the second, shards take what the map
//! gives them. So at any time a partition is held by at most one shard, and a call that runs on
//! a partition keeps it where it is.
//!
//! Invariants: versions only grow; a call runs only on the shard that holds its partition; the
//! owner looks before it consumes the closure, so that a call that came to the wrong shard goes
//! back whole and is tried elsewhere; tries are bounded.
//!
//! It never repeats a call that has begun, and never moves a partition's data.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use engine::sync::Notify;
use engine::{CallError, EngineHandle, Nanos, ServiceGroup, ShardId, Sharded};

use crate::placement::{PartitionId, PlacementMap};

/// How often a call is tried before [`RouteError::Moved`].
const TRIES_MAX: u32 = 12;
/// Wait after a try that taught nothing new; doubled each time, so 0.2 s over all tries.
const RETRY_WAIT: Duration = Duration::from_micros(50);
/// Longest wait between two tries of a call that is tried until its deadline.
const RETRY_WAIT_MAX: Duration = Duration::from_millis(64);
/// How long a shard waits for the calls on a partition that it lets go of.
const RELEASE_LIMIT: Duration = Duration::from_secs(10);

/// What a call on a partition knows of its ownership. It is true for as long as the call runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The partition.
    pub partition: PartitionId,
    /// Version of the owner's map when the call began.
    pub version: u64,
}

/// Why a routed call has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// A queue on the way is full. Nothing happened.
    #[error("the owner's queue is full")]
    Busy,
    /// No answer within the deadline. The call may have happened, or may yet.
    #[error("no answer from the owner within the deadline")]
    Deadline,
    /// The owner ended or was not set up, or this shard has no map yet. After a shard's end in
    /// the middle of the call it may have happened.
    #[error("the owner is gone")]
    Gone,
    /// The partition was on the move for all tries, or until the deadline. Nothing happened.
    #[error("the partition is moving to another shard")]
    Moved,
}

impl From<CallError> for RouteError {
    fn from(error: CallError) -> RouteError {
        match error {
            CallError::Busy => RouteError::Busy,
            CallError::Deadline => RouteError::Deadline,
            CallError::Gone => RouteError::Gone,
        }
    }
}

/// Why a map is not in force on all shards. Except after `NoSuchShard`, `Partitions` and `Stale`,
/// installing the same map again goes on where it stopped; until then, partitions that move have
/// no owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InstallError {
    /// The map names a shard that the engine does not have.
    #[error("partition {} is placed on shard {}, of {shards} shards", partition.0, shard.0)]
    NoSuchShard {
        /// The misplaced partition.
        partition: PartitionId,
        /// Where the map puts it.
        shard: ShardId,
        /// Shards of the engine.
        shards: usize,
    },
    /// The number of partitions is fixed when the data is first laid out.
    #[error("the map has {given} partitions, the shards have {expected}")]
    Partitions {
        /// Partitions of the new map.
        given: u16,
        /// Partitions of the map in force.
        expected: u16,
    },
    /// A shard has a newer map, or another one of this version.
    #[error("version {given} came to shard {} at version {current}", shard.0)]
    Stale {
        /// The shard that refused.
        shard: ShardId,
        /// Version of the refused map.
        given: u64,
        /// Version that the shard has.
        current: u64,
    },
    /// Calls still ran on a partition that the shard lets go of, after 10 s.
    #[error("shard {} still works on partition {}", shard.0, partition.0)]
    InUse {
        /// The shard that is to let go.
        shard: ShardId,
        /// One of the partitions in use.
        partition: PartitionId,
    },
    /// A shard did not take the message.
    #[error("shard {} cannot be reached", shard.0)]
    Call {
        /// The shard.
        shard: ShardId,
        /// Why.
        source: CallError,
    },
}

/// Sends calls to the owners of partitions. A handle: cheap to clone, free to send.
pub struct Router<T> {
    values: Sharded<T>,
    seats: Sharded<Seat>,
}

impl<T> Clone for Router<T> {
    fn clone(&self) -> Self {
        Router {
            values: self.values.clone(),
            seats: self.seats.clone(),
        }
    }
}

impl<T> fmt::Debug for Router<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router")
            .field("values", &self.values)
            .finish_non_exhaustive()
    }
}

/// How one try ended.
enum Outcome<R, F> {
    Done(R),
    /// The closure goes back unused, with what the asked shard knows.
    Elsewhere(F, Known),
}

/// How long a call is tried while its partition moves.
enum Patience {
    /// This many tries more.
    Tries(u32),
    /// Until this time, and once at least.
    Until(Nanos),
    /// No more.
    Spent,
}

impl Patience {
    /// Whether another try may follow the one that is taken now; `None` when none may be taken.
    fn next_try(&mut self) -> Option<bool> {
        let (next, more) = match *self {
            Patience::Spent => return None,
            Patience::Tries(left) if left > 1 => (Patience::Tries(left - 1), true),
            Patience::Until(deadline) if engine::now() < deadline => {
                (Patience::Until(deadline), true)
            }
            Patience::Tries(_) | Patience::Until(_) => (Patience::Spent, false),
        };
        *self = next;
        Some(more)
    }
}

/// Who owns a partition, as of a version.
#[derive(Clone, Copy)]
struct Known {
    version: u64,
    owner: ShardId,
}

impl<T: 'static> Router<T> {
    /// A router over values that services put in place. It knows no owners before the first
    /// [`Router::install`].
    pub fn new(values: &Sharded<T>) -> Router<T> {
        Router {
            values: values.clone(),
            seats: Sharded::new(values.engine()),
        }
    }

    /// The values that calls run on.
    pub fn values(&self) -> &Sharded<T> {
        &self.values
    }

    /// The map of this shard, once one is installed.
    pub fn map(&self) -> Option<Rc<PlacementMap>> {
        Some(self.seats.try_local()?.map())
    }

    /// Runs `f` on the owner of a partition and awaits its answer; on this shard itself when it is
    /// the owner, with no message. Dropping the future does not stop a call on another shard.
    ///
    /// # Errors
    /// As [`RouteError`] says.
    ///
    /// # Panics
    /// When the map has no such partition. As [`Sharded::invoke_on`] when the group's level is not
    /// above the caller's.
    pub async fn call<R, F, Fut>(
        &self,
        partition: PartitionId,
        group: ServiceGroup,
        f: F,
    ) -> Result<R, RouteError>
    where
        R: Send + 'static,
        F: FnOnce(Rc<T>, Stamp) -> Fut + Send + 'static,
        Fut: Future<Output = R> + 'static,
    {
        self.route(partition, group, Patience::Tries(TRIES_MAX), f)
            .await
    }

    /// As [`Router::call`], tried for as long as the partition moves, until a deadline of its own
    /// clock: for callers that can wait out a whole move. The deadline ends the tries, not a call
    /// that has begun.
    ///
    /// # Errors
    /// As [`Router::call`].
    ///
    /// # Panics
    /// As [`Router::call`].
    pub async fn call_until<R, F, Fut>(
        &self,
        partition: PartitionId,
        group: ServiceGroup,
        deadline: Nanos,
        f: F,
    ) -> Result<R, RouteError>
    where
        R: Send + 'static,
        F: FnOnce(Rc<T>, Stamp) -> Fut + Send + 'static,
        Fut: Future<Output = R> + 'static,
    {
        self.route(partition, group, Patience::Until(deadline), f)
            .await
    }

    async fn route<R, F, Fut>(
        &self,
        partition: PartitionId,
        group: ServiceGroup,
        mut patience: Patience,
        f: F,
    ) -> Result<R, RouteError>
    where
        R: Send + 'static,
        F: FnOnce(Rc<T>, Stamp) -> Fut + Send + 'static,
        Fut: Future<Output = R> + 'static,
    {
        let mut f = f;
        let mut target = self.known(partition)?;
        let mut wait = RETRY_WAIT;
        while let Some(tries_left) = patience.next_try() {
            let outcome = if target.owner == engine::shard_id() {
                self.call_here(partition, f).await?
            } else {
                self.call_there(target.owner, partition, group, f).await?
            };
            let told = match outcome {
                Outcome::Done(answer) => return Ok(answer),
                Outcome::Elsewhere(back, told) => {
                    f = back;
                    told
                }
            };
            if told.version <= target.version && tries_left {
                // That shard has yet to hear of the move, or to take the partition.
                engine::sleep(wait).await;
                wait = (wait * 2).min(RETRY_WAIT_MAX);
            }
            for known in [told, self.known(partition)?] {
                if known.version > target.version {
                    target = known;
                }
            }
        }
        Err(RouteError::Moved)
    }

    fn known(&self, partition: PartitionId) -> Result<Known, RouteError> {
        let seat = self.seats.try_local().ok_or(RouteError::Gone)?;
        Ok(seat.known(partition))
    }

    async fn call_here<R, F, Fut>(
        &self,
        partition: PartitionId,
        f: F,
    ) -> Result<Outcome<R, F>, RouteError>
    where
        F: FnOnce(Rc<T>, Stamp) -> Fut,
        Fut: Future<Output = R>,
    {
        let value = self.values.try_local().ok_or(RouteError::Gone)?;
        let seat = self.seats.try_local().ok_or(RouteError::Gone)?;
        Ok(run(&seat, value, partition, f).await)
    }

    async fn call_there<R, F, Fut>(
        &self,
        owner: ShardId,
        partition: PartitionId,
        group: ServiceGroup,
        f: F,
    ) -> Result<Outcome<R, F>, RouteError>
    where
        R: Send + 'static,
        F: FnOnce(Rc<T>, Stamp) -> Fut + Send + 'static,
        Fut: Future<Output = R> + 'static,
    {
        let seats = self.seats.clone();
        let call = self
            .values
            .invoke_on(owner, group, move |value| async move {
                match seats.try_local() {
                    Some(seat) => run(&seat, value, partition, f).await,
                    None => Outcome::Elsewhere(f, Known { version: 0, owner }),
                }
            });
        Ok(call.await?)
    }

    /// Brings a map to all shards: [`Router::release`], then [`Router::take`]. Called by the
    /// control layer, from any thread, for one map after another. Not from a routed call: that
    /// would wait for itself.
    ///
    /// # Errors
    /// As [`InstallError`] says.
    pub async fn install(&self, map: PlacementMap) -> Result<(), InstallError> {
        self.release(&map).await?;
        self.take(&map).await
    }

    /// The first round: every shard stops new calls on what the map takes from it and waits for
    /// those that run. After it, what moves has no owner, and can be closed and opened elsewhere.
    ///
    /// # Errors
    /// As [`InstallError`] says.
    pub async fn release(&self, map: &PlacementMap) -> Result<(), InstallError> {
        let engine = self.values.engine();
        let shards = engine.shards();
        if let Some((partition, shard)) = map.owners().find(|(_, s)| s.index() >= shards) {
            return Err(InstallError::NoSuchShard {
                partition,
                shard,
                shards,
            });
        }
        for shard in engine.shard_ids() {
            let (seats, map) = (self.seats.clone(), map.clone());
            on_shard(engine, shard, move || async move {
                release_here(&seats, map).await
            })
            .await?;
        }
        Ok(())
    }

    /// The second round: every shard holds what the map gives it.
    ///
    /// # Errors
    /// As [`InstallError`] says; `Stale` also when the map was not released before.
    pub async fn take(&self, map: &PlacementMap) -> Result<(), InstallError> {
        let engine = self.values.engine();
        let version = map.version();
        for shard in engine.shard_ids() {
            let seats = self.seats.clone();
            on_shard(engine, shard, move || async move {
                let stale = |current| InstallError::Stale {
                    shard,
                    given: version,
                    current,
                };
                let seat = seats.try_local().ok_or(stale(0))?;
                seat.take(version).map_err(stale)
            })
            .await?;
        }
        Ok(())
    }
}

async fn run<T, R, F, Fut>(
    seat: &Rc<Seat>,
    value: Rc<T>,
    partition: PartitionId,
    f: F,
) -> Outcome<R, F>
where
    F: FnOnce(Rc<T>, Stamp) -> Fut,
    Fut: Future<Output = R>,
{
    match seat.enter(partition) {
        Ok(running) => {
            let answer = f(value, running.stamp).await;
            drop(running);
            Outcome::Done(answer)
        }
        Err(known) => Outcome::Elsewhere(f, known),
    }
}

async fn on_shard<F, Fut>(engine: &EngineHandle, shard: ShardId, f: F) -> Result<(), InstallError>
where
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = Result<(), InstallError>> + 'static,
{
    let done = engine.call(shard, move |_| Box::pin(f())).await;
    done.map_err(|source| InstallError::Call { shard, source })?
}

async fn release_here(seats: &Sharded<Seat>, map: PlacementMap) -> Result<(), InstallError> {
    let seat = seats.try_local().unwrap_or_else(|| {
        let seat = Rc::new(Seat::new(engine::shard_id(), map.clone()));
        seats.set_local(Rc::clone(&seat));
        seat
    });
    seat.release(map)?;
    if engine::timeout(RELEASE_LIMIT, seat.released())
        .await
        .is_some()
    {
        return Ok(());
    }
    match seat.in_use() {
        Some(partition) => Err(InstallError::InUse {
            shard: seat.shard,
            partition,
        }),
        None => Ok(()),
    }
}

/// What one shard knows of placement, and what it holds.
struct Seat {
    shard: ShardId,
    state: RefCell<SeatState>,
    /// Told when the last call on a partition that is not held ends.
    ended: Notify,
}

struct SeatState {
    map: Rc<PlacementMap>,
    /// By partition: whether calls may begin here. Only the second round of an install sets one.
    held: Vec<bool>,
    /// By partition: calls that run here.
    running: Vec<u32>,
}

impl Seat {
    fn new(shard: ShardId, map: PlacementMap) -> Seat {
        let partitions = usize::from(map.partitions());
        let state = SeatState {
            map: Rc::new(map),
            held: vec![false; partitions],
            running: vec![0; partitions],
        };
        Seat {
            shard,
            state: RefCell::new(state),
            ended: Notify::default(),
        }
    }

    fn map(&self) -> Rc<PlacementMap> {
        Rc::clone(&self.state.borrow().map)
    }

    fn known(&self, partition: PartitionId) -> Known {
        let state = self.state.borrow();
        Known {
            version: state.map.version(),
            owner: state.map.shard_of(partition),
        }
    }

    fn enter(self: &Rc<Self>, partition: PartitionId) -> Result<Running, Known> {
        let known = self.known(partition);
        let mut state = self.state.borrow_mut();
        if !state.held[partition.index()] {
            return Err(known);
        }
        state.running[partition.index()] += 1;
        let stamp = Stamp {
            partition,
            version: known.version,
        };
        Ok(Running {
            seat: Rc::clone(self),
            stamp,
        })
    }

    fn release(&self, map: PlacementMap) -> Result<(), InstallError> {
        let mut state = self.state.borrow_mut();
        let (given, expected) = (map.partitions(), state.map.partitions());
        if given != expected {
            return Err(InstallError::Partitions { given, expected });
        }
        let current = state.map.version();
        let known = map.version() == current && map == *state.map;
        if map.version() <= current && !known {
            return Err(InstallError::Stale {
                shard: self.shard,
                given: map.version(),
                current,
            });
        }
        for (partition, owner) in map.owners() {
            state.held[partition.index()] &= owner == self.shard;
        }
        state.map = Rc::new(map);
        Ok(())
    }

    /// A partition that is not held and still has calls running.
    fn in_use(&self) -> Option<PartitionId> {
        let state = self.state.borrow();
        let mut both = state.held.iter().zip(&state.running);
        let found = both.position(|(held, running)| !held && *running > 0)?;
        Some(PartitionId(found as u16))
    }

    async fn released(&self) {
        loop {
            let ended = self.ended.notified();
            if self.in_use().is_none() {
                return;
            }
            ended.await;
        }
    }

    /// # Errors
    /// The version that this shard has, when it is another one.
    fn take(&self, version: u64) -> Result<(), u64> {
        let mut state = self.state.borrow_mut();
        if state.map.version() != version {
            return Err(state.map.version());
        }
        state.held = state
            .map
            .owners()
            .map(|(_, owner)| owner == self.shard)
            .collect();
        Ok(())
    }
}

/// A call that runs on a partition of this shard.
struct Running {
    seat: Rc<Seat>,
    stamp: Stamp,
}

impl Drop for Running {
    fn drop(&mut self) {
        let index = self.stamp.partition.index();
        let last_of_released = {
            let mut state = self.seat.state.borrow_mut();
            state.running[index] -= 1;
            state.running[index] == 0 && !state.held[index]
        };
        if last_of_released {
            self.seat.ended.notify_all();
        }
    }
}

#[cfg(test)]
mod tests;
