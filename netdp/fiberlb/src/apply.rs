//! Brings the tables to a desired state, a bounded part at a time.
//!
//! VIP by VIP: backends, then a new ring, then the swap, then the VIP itself and what leads to it. When
//! all are done, what nothing uses any more goes, in the other order. Whoever looks between two writes,
//! the program or the next process, finds every VIP with a ring and backends that are right, old or new.
//!
//! - Identifiers of backends and slots of VIPs are found again by name. One that is freed is given out
//!   again in a later state at the earliest, with another generation or epoch, so that flows of the old
//!   one cannot reach the new one.
//! - A ring never is shorter than its VIP says: a VIP that gets a shorter one learns its length first.
//! - An error leaves the tables between two writes; the same state can be continued, or another begun.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use fiberlb_abi::{
    PrefixKey, PrefixVip, QuicKey, REALS_MAX, Real, RingLine, SourceKey, VIPS_MAX, Vip as Entry,
    VipKey, algorithm, mode, real_flags, source_action, vip_flags,
};

use crate::desired::{
    Algorithm, Backend, BackendState, Desired, FlowTable, Fragments, Mode, Proto, SynCookies, Vip,
    VipAt, mapped,
};
use crate::error::{Error, ErrorKind, Result};
use crate::maglev;
use crate::ring::{self, Ring};
use crate::tables::{Mirror, PrefixAt, RingSpec, SourceAt, Tables};

/// Work is counted in probes of a ring, some nanoseconds each. A system call costs as many:
const CALL_COST: u32 = 200;
/// And a new map:
const MAP_COST: u32 = 10_000;
/// A part that holds a shard for less than 500 µs.
pub const SLICE: u32 = 20_000;

/// A state on its way into the tables.
#[derive(Debug)]
pub struct Apply<R> {
    desired: Desired,
    /// The next VIP, then what is garbage.
    next: usize,
    steps: VecDeque<Step<R>>,
    slots: BTreeSet<u16>,
    reals: BTreeSet<u16>,
    /// Free when this state began; only these are given out.
    free_slots: Free,
    free_reals: Free,
    swept: bool,
}

/// Walks over free numbers from the lowest.
#[derive(Debug)]
struct Free {
    next: u32,
    end: u32,
    taken: BTreeSet<u16>,
}

#[derive(Debug)]
enum Step<R> {
    Real(u16, Real),
    Build(u16, RingSpec, Ring),
    Fill(u16, RingSpec, Vec<RingLine>, u32, R),
    Swap(u16, RingSpec),
    Vip(u16, Entry),
    Key(VipKey, Option<u16>),
    Prefix(PrefixAt, Option<PrefixVip>),
    Source(SourceAt, Option<u32>),
    Quic(QuicKey, Option<u16>),
}

impl Free {
    fn new(range: std::ops::Range<u32>, taken: BTreeSet<u16>) -> Self {
        Self {
            next: range.start,
            end: range.end,
            taken,
        }
    }

    fn take(&mut self) -> Option<u16> {
        while self.next < self.end {
            let number = self.next as u16;
            self.next += 1;
            if !self.taken.contains(&number) {
                return Some(number);
            }
        }
        None
    }
}

impl<R> Apply<R> {
    /// Begins to apply a state.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Desired`] when it contradicts itself; nothing is changed then.
    pub fn new(desired: Desired, mirror: &Mirror) -> Result<Self> {
        desired.check()?;
        let reals = mirror.names.values().copied().collect();
        Ok(Self {
            desired,
            next: 0,
            steps: VecDeque::new(),
            slots: BTreeSet::new(),
            reals: BTreeSet::new(),
            free_slots: Free::new(0..VIPS_MAX, mirror.slots()),
            free_reals: Free::new(1..REALS_MAX, reals),
            swept: false,
        })
    }

    /// Its generation.
    pub fn generation(&self) -> u32 {
        self.desired.generation
    }

    /// Does work of about `budget` probes; true when the tables are as desired.
    ///
    /// # Errors
    ///
    /// The tables' own, and [`ErrorKind::Full`]. Calling again tries the same write again.
    pub fn advance<T: Tables<Ring = R>>(
        &mut self,
        mirror: &mut Mirror,
        tables: &mut T,
        budget: u32,
    ) -> Result<bool> {
        let mut left = i64::from(budget);
        while left > 0 {
            let Some(step) = self.steps.pop_front() else {
                if self.next < self.desired.vips.len() {
                    self.plan_vip(mirror)?;
                    left -= i64::from(CALL_COST);
                } else if self.swept {
                    return Ok(true);
                } else {
                    self.sweep(mirror);
                }
                continue;
            };
            let ran = run(step, mirror, tables, left as u32);
            if let Some(rest) = ran.rest {
                self.steps.push_front(rest);
            }
            let cost = ran.cost?;
            left -= i64::from(cost);
        }
        Ok(false)
    }

    /// Applies all of it at once.
    pub fn finish<T: Tables<Ring = R>>(
        mut self,
        mirror: &mut Mirror,
        tables: &mut T,
    ) -> Result<()> {
        while !self.advance(mirror, tables, u32::MAX)? {
            tables.wait_for_swap();
        }
        Ok(())
    }

    /// Steps that bring one VIP to what is desired.
    fn plan_vip(&mut self, mirror: &Mirror) -> Result<()> {
        let vip = self.desired.vips[self.next].clone();
        let slot = match slot_of(&vip, mirror) {
            Some(slot) => slot,
            None => self.free_slots.take().ok_or_else(|| full("VIPs"))?,
        };
        let mut entries = Vec::new();
        let mut quic = BTreeMap::new();
        let mut steps = VecDeque::new();
        // A backend stops being alive when no ring leads to it any more.
        let mut late = Vec::new();
        for backend in &vip.backends {
            let wanted = real(slot, &vip, backend);
            let known = mirror.names.get(&crate::tables::name(&wanted)).copied();
            let id = match known {
                Some(id) => id,
                None => self.free_reals.take().ok_or_else(|| full("backends"))?,
            };
            let stored = mirror.reals.get(&id).copied().unwrap_or_default();
            let generation = stored.generation + u32::from(known.is_none());
            let wanted = Real {
                generation,
                ..wanted
            };
            if stored != wanted {
                let dies = stored.flags & !wanted.flags & real_flags::ALIVE != 0;
                let step = Step::Real(id, wanted);
                if dies {
                    late.push(step);
                } else {
                    steps.push_back(step);
                }
            }
            if backend.state == BackendState::Up {
                entries.push(maglev::Entry {
                    id,
                    name: crate::tables::stable_name(&wanted),
                    weight: backend.weight,
                });
            }
            if let Some(server) = backend.quic_server.filter(|_| vip.quic) {
                let server = server.to_be();
                quic.insert(QuicKey { slot, server }, id);
            }
            self.reals.insert(id);
        }
        entries.sort_by_key(|entry| entry.name);
        let spec = RingSpec {
            algorithm: vip.algorithm,
            size: vip.ring,
            entries,
        };
        plan_tables(
            &mut steps,
            (slot, &vip),
            (spec, quic),
            mirror,
            self.desired.generation,
        );
        steps.extend(late);
        self.steps = steps;
        self.slots.insert(slot);
        self.next += 1;
        Ok(())
    }

    /// Steps that remove what no VIP of this state uses.
    fn sweep(&mut self, mirror: &Mirror) {
        let dead = |slot: &u16| !self.slots.contains(slot);
        let mut steps = VecDeque::new();
        let keys = mirror.keys.iter().filter(|(_, slot)| dead(slot));
        steps.extend(keys.map(|(key, _)| Step::Key(*key, None)));
        let prefixes = mirror.prefixes.iter().filter(|(_, vip)| dead(&vip.slot));
        steps.extend(prefixes.map(|(at, _)| Step::Prefix(*at, None)));
        for slot in mirror.slots().iter().filter(|slot| dead(slot)) {
            let epoch = mirror.vips.get(slot).map_or(0, |vip| vip.epoch);
            let gone = Entry {
                epoch: epoch.wrapping_add(1),
                ..Entry::default()
            };
            steps.push_back(Step::Vip(*slot, gone));
        }
        let sources = mirror.sources.keys();
        let sources = sources.filter(|(key, _)| dead(&(key.slot as u16)));
        steps.extend(sources.map(|at| Step::Source(*at, None)));
        let quic = mirror.quic.keys().filter(|key| dead(&key.slot));
        steps.extend(quic.map(|key| Step::Quic(*key, None)));
        let unused = mirror.names.values().filter(|id| !self.reals.contains(id));
        steps.extend(unused.map(|id| {
            let gone = Real {
                generation: mirror.reals[id].generation,
                ..Real::default()
            };
            Step::Real(*id, gone)
        }));
        self.steps = steps;
        self.swept = true;
    }
}

/// Ring, rules, VIP and what leads to it, in their order.
fn plan_tables<R>(
    steps: &mut VecDeque<Step<R>>,
    (slot, vip): (u16, &Vip),
    (spec, quic): (RingSpec, BTreeMap<QuicKey, u16>),
    mirror: &Mirror,
    generation: u32,
) {
    let stored = mirror.vips.get(&slot).copied().unwrap_or_default();
    let ring = Ring::new(spec.algorithm, spec.size, spec.entries.clone());
    let rules = rules(slot, vip);
    let had = mirror.sources_of(slot);
    let live = stored.flags & vip_flags::LIVE != 0;
    let wanted = entry(vip, &ring, !rules.is_empty(), generation);
    let fresh = !live
        || rules != had
        || (stored.flags ^ wanted.flags) & (vip_flags::SOURCES | vip_flags::DENY_OTHERS) != 0;
    let wanted = Entry {
        epoch: stored.epoch.wrapping_add(u16::from(fresh)),
        ..wanted
    };
    let shorter = live && wanted.ring_len < stored.ring_len;
    if shorter {
        steps.push_back(Step::Vip(
            slot,
            Entry {
                ring_len: wanted.ring_len,
                ..stored
            },
        ));
    }
    if mirror.rings.get(&slot) != Some(&spec) {
        steps.push_back(Step::Build(slot, spec, ring));
    }
    let gone = had.keys().filter(|at| !rules.contains_key(at));
    steps.extend(gone.map(|at| Step::Source(*at, None)));
    let changed = rules
        .iter()
        .filter(|(at, action)| had.get(at) != Some(action));
    steps.extend(changed.map(|(at, action)| Step::Source(*at, Some(*action))));
    let had = mirror.quic_of(slot);
    let gone = had.keys().filter(|key| !quic.contains_key(key));
    steps.extend(gone.map(|key| Step::Quic(*key, None)));
    let changed = quic.iter().filter(|(key, id)| had.get(key) != Some(id));
    steps.extend(changed.map(|(key, id)| Step::Quic(*key, Some(*id))));
    let same = Entry {
        generation: stored.generation,
        ..wanted
    };
    if stored != same {
        steps.push_back(Step::Vip(slot, wanted));
    }
    plan_keys(steps, (slot, vip), mirror);
}

fn plan_keys<R>(steps: &mut VecDeque<Step<R>>, (slot, vip): (u16, &Vip), mirror: &Mirror) {
    let (keys, prefix) = keys_of(vip);
    // The one key of the VIP that can be there against its wish: the entry for fragments.
    if let [VipKey { addr, proto, .. }] = keys[..] {
        let fragments = VipKey {
            addr,
            port: 0,
            proto,
        };
        if mirror.keys.get(&fragments) == Some(&slot) {
            steps.push_back(Step::Key(fragments, None));
        }
    }
    let new = keys
        .iter()
        .filter(|key| mirror.keys.get(key) != Some(&slot));
    steps.extend(new.map(|key| Step::Key(*key, Some(slot))));
    if let Some((at, port)) = prefix {
        let wanted = PrefixVip { slot, port };
        if mirror.prefixes.get(&at) != Some(&wanted) {
            steps.push_back(Step::Prefix(at, Some(wanted)));
        }
    }
}

/// What leads to a VIP: keys, the first of which names it, and a prefix with its port.
fn keys_of(vip: &Vip) -> (Vec<VipKey>, Option<(PrefixAt, u16)>) {
    let proto = vip.proto.number();
    match vip.at {
        VipAt::Port(addr, port) => {
            let addr = mapped(addr);
            let port = port.to_be();
            let mut keys = vec![VipKey { addr, port, proto }];
            if vip.fragments != Fragments::Pass {
                keys.push(VipKey {
                    addr,
                    port: 0,
                    proto,
                });
            }
            (keys, None)
        }
        VipAt::Prefix(prefix, port) => {
            let (addr, len) = prefix.mapped();
            let proto = u32::from(proto);
            let at = (PrefixKey { proto, addr }, len);
            (Vec::new(), Some((at, port.unwrap_or(0).to_be())))
        }
    }
}

/// The slot that a VIP has.
fn slot_of(vip: &Vip, mirror: &Mirror) -> Option<u16> {
    let (keys, prefix) = keys_of(vip);
    match (keys.first(), prefix) {
        (Some(key), _) => mirror.keys.get(key).copied(),
        (None, Some((at, _))) => mirror.prefixes.get(&at).map(|vip| vip.slot),
        (None, None) => None,
    }
}

fn entry(vip: &Vip, ring: &Ring, has_rules: bool, generation: u32) -> Entry {
    let flag = |flag: u16, set: bool| if set { flag } else { 0 };
    let cookies = match (vip.proto, vip.syn_cookies) {
        (Proto::Udp, _) | (_, SynCookies::Off) => 0,
        (_, SynCookies::Auto) => vip_flags::COOKIES_AUTO,
        (_, SynCookies::Always) => vip_flags::COOKIES_ALWAYS,
    };
    Entry {
        flags: vip_flags::LIVE
            | flag(vip_flags::SOURCES, has_rules)
            | flag(vip_flags::DENY_OTHERS, vip.sources.deny_others)
            | flag(vip_flags::QUIC, vip.quic)
            | flag(vip_flags::NO_FLOWS, vip.flows == FlowTable::None)
            | flag(vip_flags::DROP_FRAGMENTS, vip.fragments == Fragments::Drop)
            | flag(vip_flags::FRAGMENTS, vip.fragments == Fragments::Forward)
            | cookies,
        epoch: 0,
        algorithm: match vip.algorithm {
            Algorithm::FiveTuple => algorithm::FIVE_TUPLE,
            Algorithm::ThreeTuple => algorithm::THREE_TUPLE,
            Algorithm::Source => algorithm::SOURCE,
            Algorithm::RoundRobin => algorithm::ROUND_ROBIN,
            Algorithm::RandomOfTwo => algorithm::RANDOM_OF_TWO,
            Algorithm::LeastFlows => algorithm::LEAST_FLOWS,
        },
        mode: match vip.mode {
            Mode::Dnat => mode::DNAT,
            Mode::Direct => mode::DIRECT,
            Mode::Ipip => mode::IPIP,
            Mode::Gue => mode::GUE,
        },
        reserved: 0,
        ring_len: ring.len(),
        generation,
    }
}

fn real(slot: u16, vip: &Vip, backend: &Backend) -> Real {
    let port = match vip.mode {
        Mode::Dnat => backend.port.unwrap_or(0).to_be(),
        _ => 0,
    };
    Real {
        addr: mapped(backend.addr),
        hop: backend.hop.unwrap_or_default(),
        port,
        flags: match backend.state {
            BackendState::Up => real_flags::ALIVE,
            BackendState::Draining => real_flags::ALIVE | real_flags::DRAINING,
            BackendState::Down => 0,
        },
        generation: 0,
        weight: backend.weight,
        mtu: backend.mtu.unwrap_or(0),
        vip: u32::from(slot),
        reserved: [0; 3],
    }
}

fn rules(slot: u16, vip: &Vip) -> BTreeMap<SourceAt, u32> {
    let allow = vip
        .sources
        .allow
        .iter()
        .map(|at| (at, source_action::ALLOW));
    let deny = vip.sources.deny.iter().map(|at| (at, source_action::DENY));
    let slot = u32::from(slot);
    allow
        .chain(deny)
        .map(|(prefix, action)| {
            let (addr, len) = prefix.mapped();
            ((SourceKey { slot, addr }, len), action)
        })
        .collect()
}

/// A step that was done, or a part of it.
struct Ran<R> {
    /// What is left of it; after an error, what to try again.
    rest: Option<Step<R>>,
    cost: Result<u32>,
}

impl<R> Ran<R> {
    fn new(rest: Option<Step<R>>, cost: Result<u32>) -> Self {
        Self { rest, cost }
    }
}

/// Does a step, or a part of one.
fn run<T: Tables>(
    step: Step<T::Ring>,
    mirror: &mut Mirror,
    tables: &mut T,
    budget: u32,
) -> Ran<T::Ring> {
    let step = match step {
        Step::Build(slot, spec, ring) => return build((slot, spec, ring), tables, budget),
        Step::Fill(slot, spec, lines, at, ring) => {
            return fill((slot, spec, lines, at, ring), tables, budget);
        }
        Step::Swap(slot, spec) => return swap((slot, spec), mirror, tables, budget),
        small => small,
    };
    match write(&step, mirror, tables) {
        Ok(()) => Ran::new(None, Ok(CALL_COST)),
        Err(error) => Ran::new(Some(step), Err(error)),
    }
}

/// One write of one entry, into the tables and then into the mirror.
fn write<T: Tables>(step: &Step<T::Ring>, mirror: &mut Mirror, tables: &mut T) -> Result<()> {
    fn set<K: Ord + Copy, V: Copy>(map: &mut BTreeMap<K, V>, key: &K, value: Option<V>) {
        match value {
            Some(value) => map.insert(*key, value),
            None => map.remove(key),
        };
    }
    match step {
        Step::Real(id, real) => {
            tables.set_real(*id, real)?;
            mirror.set_real(*id, *real);
        }
        Step::Vip(slot, vip) => {
            tables.set_vip(*slot, vip)?;
            mirror.vips.insert(*slot, *vip);
        }
        Step::Key(key, slot) => {
            tables.set_key(key, *slot)?;
            set(&mut mirror.keys, key, *slot);
        }
        Step::Prefix(at, vip) => {
            tables.set_prefix(at, *vip)?;
            set(&mut mirror.prefixes, at, *vip);
        }
        Step::Source(at, action) => {
            tables.set_source(at, *action)?;
            set(&mut mirror.sources, at, *action);
        }
        Step::Quic(key, id) => {
            tables.set_quic(key, *id)?;
            set(&mut mirror.quic, key, *id);
        }
        Step::Build(..) | Step::Fill(..) | Step::Swap(..) => {
            unreachable!("these take several parts")
        }
    }
    Ok(())
}

fn build<T: Tables>(
    (slot, spec, mut ring): (u16, RingSpec, Ring),
    tables: &mut T,
    budget: u32,
) -> Ran<T::Ring> {
    if !ring.advance(budget) {
        return Ran::new(Some(Step::Build(slot, spec, ring)), Ok(budget));
    }
    let lines = ring::lines(ring.len() as usize);
    match tables.new_ring(lines) {
        Ok(map) => {
            let lines = ring::packed(&ring.into_slots());
            Ran::new(Some(Step::Fill(slot, spec, lines, 0, map)), Ok(MAP_COST))
        }
        Err(error) => Ran::new(Some(Step::Build(slot, spec, ring)), Err(error)),
    }
}

fn fill<T: Tables>(
    (slot, spec, lines, at, mut ring): (u16, RingSpec, Vec<RingLine>, u32, T::Ring),
    tables: &mut T,
    budget: u32,
) -> Ran<T::Ring> {
    let rest = &lines[at as usize..];
    let part = &rest[..rest.len().min(budget as usize)];
    tables.write_ring(&mut ring, at, part);
    let written = part.len() as u32;
    let at = at + written;
    if at < lines.len() as u32 {
        let rest = Step::Fill(slot, spec, lines, at, ring);
        return Ran::new(Some(rest), Ok(written));
    }
    match tables.swap_ring(slot, ring) {
        Ok(()) => Ran::new(Some(Step::Swap(slot, spec)), Ok(written + CALL_COST)),
        Err(error) => anew(slot, spec, error),
    }
}

/// The ring is used up by the swap: when that fails, it is made anew.
fn anew<R>(slot: u16, spec: RingSpec, error: Error) -> Ran<R> {
    let ring = Ring::new(spec.algorithm, spec.size, spec.entries.clone());
    Ran::new(Some(Step::Build(slot, spec, ring)), Err(error))
}

/// Nothing that may need the new ring is written before packets find it.
fn swap<T: Tables>(
    (slot, spec): (u16, RingSpec),
    mirror: &mut Mirror,
    tables: &mut T,
    budget: u32,
) -> Ran<T::Ring> {
    match tables.swapped() {
        Ok(true) => {
            mirror.rings.insert(slot, spec);
            Ran::new(None, Ok(0))
        }
        Ok(false) => Ran::new(Some(Step::Swap(slot, spec)), Ok(budget)),
        Err(error) => anew(slot, spec, error),
    }
}

fn full(what: &str) -> Error {
    let what = format!("no entry for {what} is free until the state before is applied whole");
    Error::new(ErrorKind::Full, what)
}

#[cfg(test)]
mod tests;
