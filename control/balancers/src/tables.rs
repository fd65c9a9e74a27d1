//! The tables of the program in the kernel, and the one task that writes them, on shard 0.
//!
//! States come as wholes; the newest that has come is applied next, in parts of less than 500 µs with the
//! shard's other work in between. A write that failed is tried again until it passes, or until a newer
//! state comes. What waits outside for a state watches [`Applied`].

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use engine::sync::Notify;
use engine::{CallError, EngineHandle, LocalFut, SchedGroup, ShardId, Sharded};
use fiberlb::apply::{Apply, SLICE};
use fiberlb::desired::{Desired, Proto, VipAt, mapped};
use fiberlb::kernel::{KernelTables, Sweep};
use fiberlb::tables::{Mirror, RingSpec};
use fiberlb_abi::{
    AnswerStats, Event, Flow, FlowKey, PrefixKey, Real, RealStats, SourceKey, Vip, VipKey,
    VipStats, vip_flags,
};
use tokio::sync::watch;

/// Whose task it is.
const SHARD: ShardId = ShardId(0);
/// Between two looks at a ring that the kernel is swapping, which takes it some milliseconds.
const SWAP_PAUSE: Duration = Duration::from_micros(500);
/// Between two tries of a write that failed.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Between two walks over the flow table.
const SWEEP_PAUSE: Duration = Duration::from_secs(5);
/// Walks over the flow table between two keys of cookies: ten minutes. A cookie holds for two minutes at most.
const COOKIE_KEY_SWEEPS: u64 = 120;
/// Events that are kept for who looks.
const EVENTS_MAX: usize = 64;
/// Events that are taken at once.
const EVENTS_BATCH: usize = 256;
/// Counters that are read between two looks at the shard's other work.
const READ_BATCH: usize = 64;

/// How far the tables are.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Applied {
    /// The generation that they have whole.
    pub generation: u32,
    /// Why the next one is not there yet, after a write that failed.
    pub error: Option<String>,
}

/// What was counted of one VIP.
#[derive(Clone, Debug, Default)]
pub struct VipCounters {
    /// The VIP's own.
    pub stats: VipStats,
    /// What the program answered itself.
    pub answers: AnswerStats,
    /// Those of its backends.
    pub reals: Vec<RealCounters>,
}

/// What was counted of one backend of a VIP.
#[derive(Clone, Copy, Debug)]
pub struct RealCounters {
    /// Its entry.
    pub real: Real,
    /// Its counters.
    pub stats: RealStats,
    /// Flows that are open.
    pub open: u64,
}

/// What the tables say of a packet.
#[derive(Clone, Debug)]
pub struct Looked {
    /// The VIP's entry.
    pub vip: Vip,
    /// The rule for sources that decides: bits of its prefix, and what it says.
    pub rule: Option<(SourceKey, u32, u32)>,
    /// Whether the source may come.
    pub allowed: bool,
    /// The flow in the table.
    pub flow: Option<Flow>,
    /// The backend of that flow.
    pub flow_real: Option<Real>,
    /// What the ring was made of.
    pub ring: Option<RingSpec>,
    /// Backends of the VIP, by identifier.
    pub reals: Vec<(u16, Real)>,
    /// What led to the VIP.
    pub at: Place,
}

/// An address or a prefix that leads to a VIP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Whether it is an address with a port, and no prefix.
    pub exact: bool,
    /// The address.
    pub addr: fiberlb_abi::Addr,
    /// Bits that count.
    pub len: u32,
    /// The port in network order; 0 for every port.
    pub port: u16,
}

/// What the sweep and the events have told.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Flows that were removed as nobody used them.
    pub expired: u64,
    /// Walks over the flow table.
    pub sweeps: u64,
    /// Open flows at the last walk.
    pub open: u64,
    /// Events that came.
    pub events: u64,
    /// The last of them.
    pub last: VecDeque<Event>,
}

/// Shard 0's part.
pub struct TablesOwner {
    tables: RefCell<KernelTables>,
    mirror: RefCell<Mirror>,
    wanted: RefCell<Option<Desired>>,
    newest: Cell<u32>,
    changed: Notify,
    applied: watch::Sender<Applied>,
    flow_idle: Duration,
    seen: RefCell<Seen>,
}

/// A handle on the tables, for the control layer.
#[derive(Clone)]
pub struct Tables {
    values: Sharded<TablesOwner>,
    applied: watch::Receiver<Applied>,
}

impl Tables {
    /// Gives the tables to shard 0 and starts their task there.
    #[expect(
        clippy::disallowed_methods,
        reason = "the node's own calls to its one owner: they are few, and none is a tenant's work"
    )]
    pub async fn start(
        engine: &EngineHandle,
        tables: KernelTables,
        mirror: Mirror,
        flow_idle: Duration,
    ) -> Result<Tables, CallError> {
        let values = Sharded::new(engine);
        let (sender, applied) = watch::channel(Applied::default());
        let on_shard = values.clone();
        let started = engine.call(SHARD, move |_| {
            let owner = Rc::new(TablesOwner {
                tables: RefCell::new(tables),
                mirror: RefCell::new(mirror),
                wanted: RefCell::default(),
                newest: Cell::new(0),
                changed: Notify::default(),
                applied: sender,
                flow_idle,
                seen: RefCell::default(),
            });
            on_shard.set_local(Rc::clone(&owner));
            engine::spawn_local(SchedGroup::BACKGROUND, Rc::clone(&owner).apply()).detach();
            engine::spawn_local(SchedGroup::MAINTENANCE, owner.sweep()).detach();
            Box::pin(async {}) as LocalFut<()>
        });
        started.await?;
        Ok(Tables { values, applied })
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the node's own calls to its one owner: they are few, and none is a tenant's work"
    )]
    async fn call<R, F, Fut>(&self, f: F) -> Result<R, CallError>
    where
        R: Send + 'static,
        F: FnOnce(Rc<TablesOwner>) -> Fut + Send + 'static,
        Fut: Future<Output = R> + 'static,
    {
        let values = self.values.clone();
        let engine = self.values.engine().clone();
        let on_shard = move |_: &engine::Shard| {
            let owner = values.local();
            Box::pin(async move { f(owner).await }) as LocalFut<R>
        };
        engine.call(SHARD, on_shard).await
    }

    /// Asks for a state; an older one than was asked for before is not applied.
    pub async fn want(&self, desired: Desired) -> Result<(), CallError> {
        self.call(|owner| async move { owner.want(desired) }).await
    }

    /// How far the tables are.
    pub fn applied(&self) -> watch::Receiver<Applied> {
        self.applied.clone()
    }

    /// Counters of VIPs, in their order; `None` for those that are not there.
    pub async fn counters(
        &self,
        vips: Vec<(VipAt, Proto)>,
    ) -> Result<Vec<Option<VipCounters>>, CallError> {
        self.call(|owner| async move { owner.counters(&vips).await })
            .await
    }

    /// What the tables say of a packet; `None` when no VIP takes it.
    pub async fn look(&self, key: FlowKey) -> Result<fiberlb::Result<Option<Looked>>, CallError> {
        self.call(move |owner| async move { owner.look(&key) })
            .await
    }

    /// What the sweep and the events have told.
    pub async fn seen(&self) -> Result<Seen, CallError> {
        self.call(|owner| async move { owner.seen.borrow().clone() })
            .await
    }
}

impl TablesOwner {
    fn want(&self, desired: Desired) {
        if desired.generation > self.newest.get() {
            self.newest.set(desired.generation);
            *self.wanted.borrow_mut() = Some(desired);
            self.changed.notify_all();
        }
    }

    /// Applies one state after the other, for ever.
    async fn apply(self: Rc<Self>) {
        loop {
            let changed = self.changed.notified();
            let Some(desired) = self.wanted.take() else {
                changed.await;
                continue;
            };
            let generation = desired.generation;
            let begun = Apply::new(desired, &self.mirror.borrow());
            let outcome = match begun {
                Ok(apply) => self.advance(apply).await,
                Err(error) => Err(error),
            };
            match outcome {
                Ok(true) => drop(self.applied.send_replace(Applied {
                    generation,
                    error: None,
                })),
                // A newer state has come, after a write that failed.
                Ok(false) => {}
                Err(error) => {
                    tracing::error!(generation, %error, "a state cannot be applied");
                    self.note(Some(error.to_string()));
                }
            }
        }
    }

    fn note(&self, error: Option<String>) {
        self.applied.send_modify(|applied| applied.error = error);
    }

    /// Applies a state; false when it failed and a newer one has come.
    async fn advance<R>(&self, mut apply: Apply<R>) -> fiberlb::Result<bool>
    where
        KernelTables: fiberlb::tables::Tables<Ring = R>,
    {
        loop {
            let advanced = {
                let (mirror, tables) = (&self.mirror, &self.tables);
                apply.advance(&mut mirror.borrow_mut(), &mut *tables.borrow_mut(), SLICE)
            };
            match advanced {
                Ok(true) => return Ok(true),
                Ok(false) if self.tables.borrow().is_swapping() => engine::sleep(SWAP_PAUSE).await,
                Ok(false) => engine::yield_now().await,
                Err(error) => {
                    let generation = apply.generation();
                    tracing::warn!(generation, %error, "a write into the tables failed");
                    self.note(Some(error.to_string()));
                    engine::sleep(RETRY_PAUSE).await;
                    if self.wanted.borrow().is_some() {
                        return Ok(false);
                    }
                }
            }
        }
    }

    /// Walks over the flow table and takes events, for ever.
    async fn sweep(self: Rc<Self>) {
        loop {
            let mut sweep = Sweep::default();
            loop {
                let now = engine::now().0;
                let idle = self.flow_idle.as_nanos() as u64;
                let ended = self.tables.borrow_mut().sweep(&mut sweep, now, idle);
                self.take_events();
                match ended {
                    Ok(false) => engine::yield_now().await,
                    Ok(true) => break,
                    Err(error) => {
                        tracing::warn!(%error, "the flow table cannot be walked");
                        break;
                    }
                }
            }
            {
                let mut seen = self.seen.borrow_mut();
                seen.sweeps += 1;
                seen.expired += sweep.expired;
                seen.open = sweep.open.values().sum();
            }
            self.rotate_cookie_key();
            engine::sleep(SWEEP_PAUSE).await;
        }
    }

    /// Now and then makes cookies with another key.
    fn rotate_cookie_key(&self) {
        if !self.seen.borrow().sweeps.is_multiple_of(COOKIE_KEY_SWEEPS) {
            return;
        }
        if let Err(error) = self.tables.borrow_mut().rotate_cookie_key() {
            tracing::warn!(%error, "SYN cookies keep their key");
        }
    }

    fn take_events(&self) {
        let mut tables = self.tables.borrow_mut();
        let mut seen = self.seen.borrow_mut();
        for _ in 0..EVENTS_BATCH {
            let Some(event) = tables.next_event() else {
                break;
            };
            seen.events += 1;
            seen.last.push_back(event);
            if seen.last.len() > EVENTS_MAX {
                seen.last.pop_front();
            }
        }
    }

    async fn counters(&self, vips: &[(VipAt, Proto)]) -> Vec<Option<VipCounters>> {
        let mut all = Vec::with_capacity(vips.len());
        let mut read = 0;
        for (at, proto) in vips {
            let Some((slot, reals)) = self.entries(*at, *proto) else {
                all.push(None);
                continue;
            };
            let mut counters = VipCounters {
                stats: self.tables.borrow().vip_stats(slot).unwrap_or_default(),
                answers: self.tables.borrow().answer_stats(slot).unwrap_or_default(),
                reals: Vec::with_capacity(reals.len()),
            };
            for (id, real) in reals {
                read += 1;
                if read % READ_BATCH == 0 {
                    engine::yield_now().await;
                }
                let tables = self.tables.borrow();
                let open = tables.active(id);
                counters.reals.push(RealCounters {
                    real,
                    stats: tables.real_stats(id).unwrap_or_default(),
                    // Counts may be taken off before they are added: one below zero is none.
                    open: if open > u64::from(u32::MAX) { 0 } else { open },
                });
            }
            all.push(Some(counters));
        }
        all
    }

    /// The slot of a VIP, and its backends.
    fn entries(&self, at: VipAt, proto: Proto) -> Option<(u16, Vec<(u16, Real)>)> {
        let mirror = self.mirror.borrow();
        let slot = match at {
            VipAt::Port(addr, port) => *mirror.keys.get(&VipKey {
                addr: mapped(addr),
                port: port.to_be(),
                proto: proto.number(),
            })?,
            VipAt::Prefix(prefix, _) => {
                let (addr, len) = prefix.mapped();
                let proto = u32::from(proto.number());
                mirror.prefixes.get(&(PrefixKey { proto, addr }, len))?.slot
            }
        };
        Some((slot, reals_of(&mirror, slot)))
    }

    /// Finds what the program finds, in the order in which it looks.
    fn look(&self, key: &FlowKey) -> fiberlb::Result<Option<Looked>> {
        let mirror = self.mirror.borrow();
        let exact = VipKey {
            addr: key.dst,
            port: key.dport,
            proto: key.proto as u16,
        };
        let (slot, at) = if let Some(slot) = mirror.keys.get(&exact) {
            let at = Place {
                exact: true,
                addr: key.dst,
                len: 128,
                port: key.dport,
            };
            (*slot, at)
        } else {
            let longest = mirror
                .prefixes
                .iter()
                .filter(|((at, len), _)| at.proto == key.proto && holds(&at.addr, *len, &key.dst))
                .max_by_key(|((_, len), _)| *len);
            let found = longest.filter(|(_, vip)| vip.port == 0 || vip.port == key.dport);
            let Some(((at, len), vip)) = found else {
                return Ok(None);
            };
            let at = Place {
                exact: false,
                addr: at.addr,
                len: *len,
                port: vip.port,
            };
            (vip.slot, at)
        };
        let Some(vip) = mirror.vips.get(&slot).copied() else {
            return Ok(None);
        };
        let rule = mirror
            .sources
            .iter()
            .filter(|((at, len), _)| at.slot == u32::from(slot) && holds(&at.addr, *len, &key.src))
            .max_by_key(|((_, len), _)| *len)
            .map(|((at, len), action)| (*at, *len, *action));
        let by_default = vip.flags & vip_flags::DENY_OTHERS == 0;
        let allow = fiberlb_abi::source_action::ALLOW;
        let flow = self.tables.borrow().flow(key)?;
        let flow = flow.filter(|flow| flow.vip == slot);
        Ok(Some(Looked {
            vip,
            rule,
            allowed: rule.map_or(by_default, |(_, _, action)| action == allow),
            flow,
            flow_real: flow.and_then(|flow| mirror.reals.get(&flow.real).copied()),
            ring: mirror.rings.get(&slot).cloned(),
            reals: reals_of(&mirror, slot),
            at,
        }))
    }
}

fn reals_of(mirror: &Mirror, slot: u16) -> Vec<(u16, Real)> {
    let first = (u32::from(slot), fiberlb_abi::Addr::default(), 0);
    let next = (u32::from(slot) + 1, fiberlb_abi::Addr::default(), 0);
    let ids = mirror.names.range(first..next).map(|(_, id)| *id);
    ids.map(|id| (id, mirror.reals[&id])).collect()
}

/// Whether a prefix, whose other bits are clear, holds an address.
fn holds(prefix: &fiberlb_abi::Addr, len: u32, addr: &fiberlb_abi::Addr) -> bool {
    let mask = u128::MAX.checked_shl(128 - len).unwrap_or(0);
    let bits = |addr: &fiberlb_abi::Addr| u128::from_be_bytes(addr.octets());
    bits(prefix) == bits(addr) & mask
}
