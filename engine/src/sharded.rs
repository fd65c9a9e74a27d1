//! One value a shard, and calls between shards.
//!
//! A call goes through a [`ServiceGroup`], which bounds how many calls one shard may have in
//! flight and gives the group a level. A task that runs on behalf of a call may itself call only
//! groups of a higher level, so waits form a DAG and full queues cannot deadlock.

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::rc::Rc;
use std::time::Duration;

use futures_channel::oneshot;

use crate::engine::{EngineHandle, Message};
use crate::error::CallError;
use crate::sched::SchedGroup;
use crate::shard::{ShardCore, ShardId, current};
use crate::task::TaskInfo;

/// Bounds and level of a kind of cross-shard call; declared by
/// [`crate::EngineConfig::add_service`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceGroup {
    pub(crate) index: u16,
    pub(crate) name: &'static str,
    pub(crate) level: u8,
    pub(crate) in_flight_max: u32,
    pub(crate) deadline: Duration,
    pub(crate) sched: SchedGroup,
}

impl ServiceGroup {
    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The same group, its calls running in another scheduling group on the callee.
    pub fn in_group(self, sched: SchedGroup) -> ServiceGroup {
        ServiceGroup { sched, ..self }
    }
}

/// One `T` on each shard. A handle on all of them: cheap to clone, free to send.
pub struct Sharded<T> {
    index: usize,
    engine: EngineHandle,
    marker: PhantomData<fn() -> T>,
}

impl<T> Clone for Sharded<T> {
    fn clone(&self) -> Self {
        Sharded {
            index: self.index,
            engine: self.engine.clone(),
            marker: PhantomData,
        }
    }
}

impl<T> fmt::Debug for Sharded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sharded")
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}

impl<T: 'static> Sharded<T> {
    /// Reserves a place on every shard of the engine; [`Sharded::set_local`] fills it.
    pub fn new(engine: &EngineHandle) -> Sharded<T> {
        Sharded {
            index: engine.mesh.reserve_sharded(),
            engine: engine.clone(),
            marker: PhantomData,
        }
    }

    /// Puts this shard's value in place, from a task on it.
    pub fn set_local(&self, value: Rc<T>) {
        current().set_local(self.index, value);
    }

    /// This shard's value.
    ///
    /// # Panics
    /// Before [`Sharded::set_local`] ran on this shard.
    pub fn local(&self) -> Rc<T> {
        self.try_local()
            .expect("the shard's value is set before it is used")
    }

    /// This shard's value, when it is set.
    pub fn try_local(&self) -> Option<Rc<T>> {
        let value = current().local(self.index)?;
        Some(value.downcast::<T>().expect("an index belongs to one type"))
    }

    /// The engine the shards belong to.
    pub fn engine(&self) -> &EngineHandle {
        &self.engine
    }

    /// Number of shards.
    pub fn shards(&self) -> usize {
        self.engine.shards()
    }

    /// Runs `f` on a shard's value and awaits its answer. On the caller's own shard this is a
    /// plain call. Dropping the future does not stop the call.
    ///
    /// # Errors
    /// [`CallError::Busy`]: nothing happened. [`CallError::Deadline`]: it may have happened, or
    /// may yet. [`CallError::Gone`]: the shard ended.
    ///
    /// # Panics
    /// When the calling task already works for a group of this level or a higher one: that is a
    /// possible deadlock, and a bug.
    pub async fn invoke_on<R, F, Fut>(
        &self,
        shard: ShardId,
        group: ServiceGroup,
        f: F,
    ) -> Result<R, CallError>
    where
        R: Send + 'static,
        F: FnOnce(Rc<T>) -> Fut + Send + 'static,
        Fut: Future<Output = R> + 'static,
    {
        let core = current();
        if core.id() == shard {
            return Ok(f(self.local()).await);
        }
        let level = core.level();
        assert!(
            group.level > level,
            "a call of level {level} may only call higher levels, not {} of level {}",
            group.name,
            group.level
        );
        let permit = Permit::acquire(&core, group)?;
        let (answer, answered) = oneshot::channel();
        let (sharded, flow) = (self.clone(), core.flow());
        let message: Message = Box::new(move |core| {
            let info = TaskInfo {
                group: group.sched,
                level: group.level,
                flow,
            };
            if !core.has_room() {
                let _ = answer.send(Err(CallError::Busy));
                return;
            }
            let body = async move {
                let Some(value) = sharded.try_local() else {
                    return;
                };
                // The caller may have given up; its call still ran.
                let _ = answer.send(Ok(f(value).await));
            };
            if let Ok(task) = core.try_spawn(info, body) {
                task.detach();
            }
        });
        core.mesh().send(&core, shard, message)?;
        let answer = crate::timeout(group.deadline, answered).await;
        drop(permit);
        match answer {
            Some(Ok(answer)) => answer,
            Some(Err(_)) => Err(CallError::Gone),
            None => Err(CallError::Deadline),
        }
    }
}

/// One call in flight.
struct Permit {
    core: Rc<ShardCore>,
    index: u16,
}

impl Permit {
    fn acquire(core: &Rc<ShardCore>, group: ServiceGroup) -> Result<Permit, CallError> {
        let calls = core.service_calls(group.index);
        if calls.get() >= group.in_flight_max {
            return Err(CallError::Busy);
        }
        calls.set(calls.get() + 1);
        add(core.replies_due(), 1);
        Ok(Permit {
            core: Rc::clone(core),
            index: group.index,
        })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let calls = self.core.service_calls(self.index);
        calls.set(calls.get() - 1);
        let due = self.core.replies_due();
        due.set(due.get() - 1);
    }
}

fn add(cell: &Cell<u32>, n: u32) {
    cell.set(cell.get() + n);
}
