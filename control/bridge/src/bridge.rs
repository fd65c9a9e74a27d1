//! Calls: admission, the way to the shard and back, and the two sides of a deadline.

use std::fmt;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use control_kit::metrics::Registry;
use engine::{CallError, EngineHandle, Flow, LocalFut, ShardId, Sharded};
use shards::RouteError;
use tokio::time::Instant;
use tracing::field::Empty;
use tracing::{Instrument as _, Span};

use crate::context::CallContext;
use crate::error::{Callee, Error, Failure};
use crate::in_flight::{self, InFlight, Limits, Refusal};
use crate::metrics::Metrics;
use crate::target::Target;
use crate::ticket::Ticket;

/// Calls services on the shards of one engine. Clones are the same bridge.
#[derive(Clone)]
pub struct Bridge {
    inner: Arc<Inner>,
}

struct Inner {
    engine: EngineHandle,
    in_flight: InFlight,
    metrics: Metrics,
    /// Shards take calls to [`Target::Any`] in turn.
    turn: AtomicUsize,
}

impl fmt::Debug for Bridge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bridge")
            .field("in_flight", &self.inner.in_flight)
            .finish_non_exhaustive()
    }
}

/// What comes back from a shard: the service's answer, or why there is none.
type Answer<R, E> = Result<Result<R, E>, Fault>;

/// Why a shard gave no answer of the service.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Busy,
    /// The deadline has passed, or the caller has gone.
    Late,
    Gone,
}

impl From<CallError> for Fault {
    fn from(error: CallError) -> Fault {
        match error {
            CallError::Busy => Fault::Busy,
            CallError::Deadline => Fault::Late,
            CallError::Gone => Fault::Gone,
        }
    }
}

impl From<RouteError> for Fault {
    fn from(error: RouteError) -> Fault {
        match error {
            RouteError::Busy => Fault::Busy,
            // It is tried while the partition moves, until the deadline.
            RouteError::Deadline | RouteError::Moved => Fault::Late,
            RouteError::Gone => Fault::Gone,
        }
    }
}

impl Bridge {
    /// A bridge to the shards of an engine, with its metrics in a registry.
    ///
    /// # Panics
    /// When a limit is 0, or the registry has a bridge's metrics already.
    pub fn new(engine: &EngineHandle, limits: Limits, registry: &Registry) -> Bridge {
        let (metrics, shown) = Metrics::new(registry);
        Bridge {
            inner: Arc::new(Inner {
                engine: engine.clone(),
                in_flight: InFlight::new(limits, shown),
                metrics,
                turn: AtomicUsize::new(0),
            }),
        }
    }

    /// Runs `f` on a shard's value and awaits its answer, until the context's deadline. What `f`
    /// does there is in a span `shard_call` with shard, tenant and request id, and its CPU time is
    /// the tenant's.
    ///
    /// On the shard it runs at service level 0, so that it may call the service groups of every
    /// level; with [`Target::Owner`] at the level of that target's group. At its deadline it is
    /// dropped at an await: what must not stop half-way there has to be a task of its own.
    ///
    /// When the future is dropped, a call that has not begun never does; one that has runs on, to
    /// its end or its deadline. Needs a tokio runtime with its timer.
    ///
    /// # Errors
    /// [`Failure::Service`] is what `f` said. [`Failure::Bridge`]: `TenantBusy`, `BridgeBusy`,
    /// `ShardBusy` and `Draining` when nothing happened, and a later try may pass; `Deadline` and
    /// `Gone`, which say whether the call had begun.
    ///
    /// # Panics
    /// When a partition is not on the map of its router.
    pub async fn call<T, R, E, F, Fut>(
        &self,
        context: &CallContext,
        target: Target<T>,
        f: F,
    ) -> Result<R, Failure<E>>
    where
        T: 'static,
        R: Send + 'static,
        E: Send + 'static,
        F: FnOnce(Rc<T>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<R, E>> + 'static,
    {
        let metrics = &self.inner.metrics;
        metrics.calls.increment();
        let (entry, callee) = self.way(&target);
        let outcome = match self.admit(context, callee) {
            Ok(held) => {
                let asked = Instant::now();
                let ticket = Ticket::default();
                let body = Body::new(context, &ticket, held, f);
                let mut waiting = Waiting::new(ticket, metrics);
                let answered = self.send(entry, target, body);
                let answered = tokio::time::timeout_at(context.deadline, answered).await;
                metrics.took.record(asked.elapsed());
                let begun = waiting.end();
                answered
                    .unwrap_or(Err(Fault::Late))
                    .map_err(|fault| match fault {
                        Fault::Busy => Error::shard_busy(context, callee),
                        Fault::Late => Error::deadline(context, callee, begun),
                        Fault::Gone => Error::gone(context, callee, begun),
                    })
            }
            Err(refused) => Err(refused),
        };
        match outcome {
            Ok(answer) => answer.map_err(Failure::Service),
            Err(error) => {
                metrics.count_failure(error.kind());
                Err(Failure::Bridge(error))
            }
        }
    }

    /// The shard where a call comes in, and what it is made to.
    fn way<T>(&self, target: &Target<T>) -> (ShardId, Callee) {
        let shards = self.inner.engine.shards();
        match target {
            Target::Shard(_, shard) => (*shard, Callee::Shard(*shard)),
            Target::Any(_) => {
                let turn = self.inner.turn.fetch_add(1, Ordering::Relaxed);
                let shard = ShardId((turn % shards) as u16);
                (shard, Callee::Shard(shard))
            }
            // Its owner, unless it has moved since the map was first laid out.
            Target::Owner { partition, .. } => {
                let shard = ShardId((partition.index() % shards) as u16);
                (shard, Callee::Owner(*partition))
            }
        }
    }

    fn admit(&self, context: &CallContext, callee: Callee) -> Result<in_flight::Held, Error> {
        if Instant::now() >= context.deadline {
            return Err(Error::deadline(context, callee, false));
        }
        let held = self.inner.in_flight.enter(context.tenant.shared_id());
        held.map_err(|refusal| match refusal {
            Refusal::Tenant(held) => Error::tenant_busy(context, held),
            Refusal::Full(held) => Error::bridge_busy(context, held),
            Refusal::Draining => Error::draining(context),
        })
    }

    async fn send<T, R, E, F, Fut>(
        &self,
        entry: ShardId,
        target: Target<T>,
        body: Body<F>,
    ) -> Answer<R, E>
    where
        T: 'static,
        R: Send + 'static,
        E: Send + 'static,
        F: FnOnce(Rc<T>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<R, E>> + 'static,
    {
        let engine = &self.inner.engine;
        let answered = match target {
            Target::Shard(values, _) | Target::Any(values) => {
                let run = move |_: &engine::Shard| -> LocalFut<Answer<R, E>> {
                    Box::pin(run_here(values, body))
                };
                engine.call(entry, run).await
            }
            Target::Owner {
                router,
                group,
                partition,
            } => {
                let run = move |_: &engine::Shard| -> LocalFut<Answer<R, E>> {
                    Box::pin(async move {
                        engine::set_flow(body.flow);
                        let left = body.left();
                        let until = engine::now() + left;
                        let routed = router
                            .call_until(partition, group, until, move |value, _| body.run(value));
                        let routed = engine::timeout(left, routed).await;
                        routed.unwrap_or(Err(RouteError::Deadline))?
                    })
                };
                engine.call(entry, run).await
            }
        };
        answered?
    }

    #[cfg(test)]
    pub(crate) fn in_flight(&self) -> &InFlight {
        &self.inner.in_flight
    }

    /// From now on new calls are refused; those in flight go on.
    pub fn close(&self) {
        self.inner.in_flight.close();
    }

    /// [`Bridge::close`], then waits until nothing is in flight, for up to `limit`. How many calls
    /// still are; their deadlines end them.
    pub async fn drain(&self, limit: Duration) -> usize {
        self.close();
        match tokio::time::timeout(limit, self.inner.in_flight.idle()).await {
            Ok(()) => 0,
            Err(_) => self.inner.in_flight.total(),
        }
    }
}

async fn run_here<T, R, E, F, Fut>(values: Sharded<T>, body: Body<F>) -> Answer<R, E>
where
    T: 'static,
    F: FnOnce(Rc<T>) -> Fut,
    Fut: Future<Output = Result<R, E>>,
{
    let value = values.try_local().ok_or(Fault::Gone)?;
    body.run(value).await
}

/// What travels to the shard.
struct Body<F> {
    ticket: Ticket,
    held: in_flight::Held,
    deadline: Instant,
    flow: Flow,
    span: Span,
    f: F,
}

impl<F> Body<F> {
    fn new(context: &CallContext, ticket: &Ticket, held: in_flight::Held, f: F) -> Body<F> {
        let span = tracing::info_span!(
            "shard_call",
            shard = Empty,
            tenant = context.tenant.id(),
            request_id = context.request.as_str(),
        );
        Body {
            ticket: ticket.clone(),
            held,
            deadline: context.deadline,
            flow: Flow::of_tenant(context.tenant.number().0),
            span,
            f,
        }
    }

    /// Time until the deadline.
    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Runs on the shard: only while somebody waits for it, and not past the deadline.
    async fn run<T, R, E, Fut>(self, value: Rc<T>) -> Answer<R, E>
    where
        F: FnOnce(Rc<T>) -> Fut,
        Fut: Future<Output = Result<R, E>>,
    {
        let left = self.left();
        if left.is_zero() || !self.ticket.begin() {
            return Err(Fault::Late);
        }
        engine::set_flow(self.flow);
        self.span.record("shard", engine::shard_id().0);
        let f = self.f;
        let work = async move { f(value).await }.instrument(self.span);
        let answer = engine::timeout(left, work).await;
        // Before the answer: who has it may call again at once.
        drop(self.held);
        answer.ok_or(Fault::Late)
    }
}

/// The caller's side of a call in flight. Dropped early, it abandons the call.
struct Waiting<'a> {
    ticket: Ticket,
    metrics: &'a Metrics,
    ended: bool,
}

impl<'a> Waiting<'a> {
    fn new(ticket: Ticket, metrics: &'a Metrics) -> Waiting<'a> {
        Waiting {
            ticket,
            metrics,
            ended: false,
        }
    }

    /// Whether the call had begun; when not, it never will.
    fn end(&mut self) -> bool {
        self.ended = true;
        !self.ticket.abandon()
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.ticket.abandon();
            self.metrics.abandoned.increment();
        }
    }
}
