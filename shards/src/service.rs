//! The contract between a service that runs on every shard and the node that drives it.
//!
//! A service is one value a shard, driven through [`Phase`]s by its [`Lifecycle`]. All shards
//! end one phase before any begins the next, so a service that serves may call its peers on every
//! shard. The phase is the control layer's, kept outside of the shards; shards only get the calls.
//!
//! It never restarts a service: one that stopped is replaced by a new one.

use std::error::Error;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::Poll;
use std::time::Duration;

use engine::{CallError, EngineHandle, LocalFut, ShardId, Sharded};

/// How long shards that serve already get to drain when another one failed to.
const FAILED_DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// What runs on every shard.
///
/// Order: a factory makes the value (without I/O), then `start`, `recover`, `serve`, `drain` are
/// each called at most once, in this order, and never before the former returned. `metrics` may
/// come at any time. `drain` is also called on a service whose `serve` failed, or was not called
/// because it failed on another shard.
///
/// Cancellation: the futures are not dropped before they end, but by the engine's own end, and
/// `drain` by its deadline. What `serve` left running is then dropped with the engine's tasks.
///
/// Failure: an error ends the service on all shards. A service that can go on with less says so
/// by its metrics, not by an error.
pub trait Service: Sized + 'static {
    /// Why a phase failed; it names the object.
    type Error: Error + Send + Sync + 'static;
    /// A copy of one shard's counters, to be summed by the reader.
    type Metrics: Send + 'static;

    /// Opens what the service needs: directories, files, memory. Reads no data.
    fn start(self: Rc<Self>) -> impl Future<Output = Result<(), Self::Error>>;

    /// Brings the shard's state back from disk. Takes no work yet, calls no other shard.
    fn recover(self: Rc<Self>) -> impl Future<Output = Result<(), Self::Error>>;

    /// Begins to take work, by tasks that it starts, and returns. All shards have recovered.
    fn serve(self: Rc<Self>) -> impl Future<Output = Result<(), Self::Error>>;

    /// Stops taking work, finishes what was taken, and makes the next start quick. Peers drain at
    /// the same time: calls among shards are still answered until the engine ends.
    fn drain(self: Rc<Self>) -> impl Future<Output = Result<(), Self::Error>>;

    /// This shard's counters.
    fn metrics(&self) -> Self::Metrics;
}

/// Where a service is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Phase {
    /// Values are made and open what they need. The first phase.
    Starting,
    /// State comes back from disk.
    Recovering,
    /// Work is taken on all shards.
    Serving,
    /// No new work; taken work is finished.
    Draining,
    /// The end.
    Stopped,
}

impl Phase {
    const ALL: [Phase; 5] = [
        Phase::Starting,
        Phase::Recovering,
        Phase::Serving,
        Phase::Draining,
        Phase::Stopped,
    ];

    /// Whether a service may go from this phase to another: forward by one, to Stopped when it
    /// fails before any shard serves, and from Recovering to Draining when only some shards could
    /// serve.
    pub fn may_become(self, next: Phase) -> bool {
        use Phase::{Draining, Recovering, Serving, Starting, Stopped};
        matches!(
            (self, next),
            (Starting, Recovering | Stopped)
                | (Recovering, Serving | Draining | Stopped)
                | (Serving, Draining)
                | (Draining, Stopped)
        )
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Starting => "starting",
            Phase::Recovering => "recovering",
            Phase::Serving => "serving",
            Phase::Draining => "draining",
            Phase::Stopped => "stopped",
        })
    }
}

/// What kind of failure a [`LifecycleError`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LifecycleErrorKind {
    /// The service is not in a phase from which that can be done. Nothing happened.
    Illegal,
    /// The service failed on a shard.
    Failed,
    /// A shard ended, or did not take the call.
    Unreachable,
    /// A shard had not drained at its deadline.
    Deadline,
}

/// A service did not reach its next phase.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.text())]
pub struct LifecycleError {
    kind: LifecycleErrorKind,
    from: Phase,
    to: Phase,
    shard: Option<ShardId>,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl LifecycleError {
    /// What kind of failure it is.
    pub fn kind(&self) -> LifecycleErrorKind {
        self.kind
    }

    /// The shard that failed, unless the failure is of the whole.
    pub fn shard(&self) -> Option<ShardId> {
        self.shard
    }

    /// The phase it was in.
    pub fn phase(&self) -> Phase {
        self.from
    }

    fn text(&self) -> String {
        let shard = self
            .shard
            .map_or_else(|| "the service".into(), |s| format!("shard {}", s.0));
        let (from, to) = (self.from, self.to);
        match self.kind {
            LifecycleErrorKind::Illegal => format!("{shard} is {from} and cannot become {to}"),
            LifecycleErrorKind::Failed => format!("{shard} failed between {from} and {to}"),
            LifecycleErrorKind::Unreachable => format!("{shard} cannot be reached while {from}"),
            LifecycleErrorKind::Deadline => format!("{shard} was still {from} at its deadline"),
        }
    }
}

/// The phase as others see it: cheap to clone, readable from any thread.
#[derive(Clone, Debug)]
pub struct Readiness {
    phase: Arc<AtomicU8>,
}

impl Readiness {
    /// The phase that all shards have reached.
    pub fn phase(&self) -> Phase {
        Phase::ALL[usize::from(self.phase.load(Ordering::Acquire))]
    }

    /// Whether all shards serve.
    pub fn is_ready(&self) -> bool {
        self.phase() == Phase::Serving
    }

    /// Goes on to `to`, if that is legal.
    fn advance(&self, to: Phase) -> Result<(), LifecycleError> {
        let step = self
            .phase
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| {
                Phase::ALL[usize::from(now)]
                    .may_become(to)
                    .then_some(to as u8)
            });
        step.map(|_| ()).map_err(|now| LifecycleError {
            kind: LifecycleErrorKind::Illegal,
            from: Phase::ALL[usize::from(now)],
            to,
            shard: None,
            source: None,
        })
    }
}

/// Drives one service on all shards of an engine. Used by the control layer, from any thread.
pub struct Lifecycle<S> {
    values: Sharded<S>,
    readiness: Readiness,
}

impl<S> fmt::Debug for Lifecycle<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lifecycle")
            .field("phase", &self.readiness.phase())
            .finish_non_exhaustive()
    }
}

type Step<S> = fn(Rc<S>) -> LocalFut<Result<(), <S as Service>::Error>>;

impl<S: Service> Lifecycle<S> {
    /// A service that has not started. [`Lifecycle::values`] and [`Lifecycle::readiness`] can be
    /// handed out already.
    pub fn new(engine: &EngineHandle) -> Lifecycle<S> {
        let phase = Arc::new(AtomicU8::new(Phase::Starting as u8));
        Lifecycle {
            values: Sharded::new(engine),
            readiness: Readiness { phase },
        }
    }

    /// [`Lifecycle::new`], then [`Lifecycle::start`].
    ///
    /// # Errors
    /// As [`Lifecycle::start`].
    pub async fn start_all<F>(
        engine: &EngineHandle,
        factory: F,
    ) -> Result<Lifecycle<S>, LifecycleError>
    where
        F: Fn(ShardId) -> Rc<S> + Clone + Send + 'static,
    {
        let mut lifecycle = Lifecycle::new(engine);
        lifecycle.start(factory).await?;
        Ok(lifecycle)
    }

    /// The service's values, for routers and calls; set on a shard once the factory ran there.
    pub fn values(&self) -> &Sharded<S> {
        &self.values
    }

    /// The phase, for those who ask whether the node is ready.
    pub fn readiness(&self) -> Readiness {
        self.readiness.clone()
    }

    /// Makes a value on each shard and brings all to Serving. It takes as long as recovery does;
    /// when the future is dropped, shards finish the step they are in and the service stays in
    /// its phase.
    ///
    /// # Errors
    /// The first shard's failure. The service is Stopped then, on all shards; those that served
    /// already were drained for up to 10 s.
    pub async fn start<F>(&mut self, factory: F) -> Result<(), LifecycleError>
    where
        F: Fn(ShardId) -> Rc<S> + Clone + Send + 'static,
    {
        let phase = self.readiness.phase();
        if phase != Phase::Starting {
            let kind = LifecycleErrorKind::Illegal;
            let to = Phase::Recovering;
            return Err(LifecycleError {
                kind,
                from: phase,
                to,
                shard: None,
                source: None,
            });
        }
        let started = self.make(factory).await;
        self.settle(started, Phase::Recovering, Phase::Stopped)?;
        let recovered = self.on_all(Phase::Serving, |s| Box::pin(s.recover())).await;
        self.settle(recovered, Phase::Recovering, Phase::Stopped)?;
        let serving = self.on_all(Phase::Serving, |s| Box::pin(s.serve())).await;
        let failed = serving.is_err();
        let result = self.settle(serving, Phase::Serving, Phase::Draining);
        if failed {
            // The failure that is reported is the first one, not that of cleaning up after it.
            let _ = self.drain_shards(FAILED_DRAIN_LIMIT).await;
            self.readiness.advance(Phase::Stopped)?;
        }
        result
    }

    /// To the phase that the result leads to; staying in a phase is no step.
    fn settle(
        &self,
        result: Result<(), LifecycleError>,
        then: Phase,
        otherwise: Phase,
    ) -> Result<(), LifecycleError> {
        let next = if result.is_ok() { then } else { otherwise };
        if next != self.readiness.phase() {
            self.readiness.advance(next)?;
        }
        result
    }

    /// Drains all shards at once, each for up to `limit`. On return the service is Stopped, and
    /// the engine may end.
    ///
    /// # Errors
    /// [`LifecycleErrorKind::Illegal`] when the service does not serve; else the first shard's
    /// failure or missed deadline: the service is Stopped all the same.
    pub async fn drain(&self, limit: Duration) -> Result<(), LifecycleError> {
        self.readiness.advance(Phase::Draining)?;
        let drained = self.drain_shards(limit).await;
        self.readiness.advance(Phase::Stopped)?;
        drained
    }

    /// Each shard's counters; a shard without a value, or that does not answer, is missing.
    pub async fn metrics(&self) -> Vec<(ShardId, S::Metrics)> {
        let calls = self.engine().shard_ids().map(|shard| {
            let values = self.values.clone();
            self.engine().call(shard, move |_| {
                Box::pin(async move { values.try_local().map(|s| (shard, s.metrics())) })
            })
        });
        join(calls.collect())
            .await
            .into_iter()
            .filter_map(|answer| answer.ok().flatten())
            .collect()
    }

    fn engine(&self) -> &EngineHandle {
        self.values.engine()
    }

    async fn make<F>(&self, factory: F) -> Result<(), LifecycleError>
    where
        F: Fn(ShardId) -> Rc<S> + Clone + Send + 'static,
    {
        let calls = self.engine().shard_ids().map(|shard| {
            let (values, factory) = (self.values.clone(), factory.clone());
            self.engine().call(shard, move |_| {
                let made = factory(shard);
                values.set_local(Rc::clone(&made));
                Box::pin(async move { made.start().await.map_err(boxed) })
            })
        });
        self.first_failure(join(calls.collect()).await, Phase::Recovering)
    }

    async fn on_all(&self, to: Phase, step: Step<S>) -> Result<(), LifecycleError> {
        let calls = self.engine().shard_ids().map(|shard| {
            let values = self.values.clone();
            self.engine().call(shard, move |_| {
                let value = values.local();
                Box::pin(async move { step(value).await.map_err(boxed) })
            })
        });
        self.first_failure(join(calls.collect()).await, to)
    }

    async fn drain_shards(&self, limit: Duration) -> Result<(), LifecycleError> {
        let calls = self.engine().shard_ids().map(|shard| {
            let values = self.values.clone();
            self.engine().call(shard, move |_| {
                let value = values.local();
                Box::pin(async move {
                    let drained = engine::timeout(limit, value.drain()).await;
                    drained.map(|result| result.map_err(boxed))
                })
            })
        });
        let answers = join(calls.collect()).await;
        let late = answers.iter().position(|answer| matches!(answer, Ok(None)));
        let answers = answers
            .into_iter()
            .map(|answer| answer.map(|r| r.unwrap_or(Ok(()))));
        self.first_failure(answers.collect(), Phase::Stopped)?;
        late.map_or(Ok(()), |shard| {
            let kind = LifecycleErrorKind::Deadline;
            Err(self.error(kind, ShardId(shard as u16), Phase::Stopped, None))
        })
    }

    /// By shard: whether the call was made, and what the service said.
    fn first_failure(
        &self,
        answers: Vec<Result<Result<(), BoxedError>, CallError>>,
        to: Phase,
    ) -> Result<(), LifecycleError> {
        for (shard, answer) in answers.into_iter().enumerate() {
            let (kind, source) = match answer {
                Ok(Ok(())) => continue,
                Ok(Err(source)) => (LifecycleErrorKind::Failed, source),
                Err(source) => (LifecycleErrorKind::Unreachable, boxed(source)),
            };
            return Err(self.error(kind, ShardId(shard as u16), to, Some(source)));
        }
        Ok(())
    }

    fn error(
        &self,
        kind: LifecycleErrorKind,
        shard: ShardId,
        to: Phase,
        source: Option<BoxedError>,
    ) -> LifecycleError {
        LifecycleError {
            kind,
            from: self.readiness.phase(),
            to,
            shard: Some(shard),
            source,
        }
    }
}

type BoxedError = Box<dyn Error + Send + Sync>;

fn boxed<E: Error + Send + Sync + 'static>(error: E) -> BoxedError {
    Box::new(error)
}

/// Polls all futures until each has ended; at most one a shard, so no cleverness about wakers.
async fn join<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut futures: Vec<Pin<Box<F>>> = futures.into_iter().map(Box::pin).collect();
    let mut outputs: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    poll_fn(|cx| {
        for (future, output) in futures.iter_mut().zip(&mut outputs) {
            if output.is_none()
                && let Poll::Ready(ended) = future.as_mut().poll(cx)
            {
                *output = Some(ended);
            }
        }
        if outputs.iter().all(Option::is_some) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
    outputs.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests;
