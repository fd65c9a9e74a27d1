//! A packet's way: the flow table, else the VIP and its algorithm.

use core::mem::MaybeUninit;
use core::ptr::write_volatile;

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use fiberlb_abi::{
    Config, Event, Flow, FlowV6, Real, Vip, algorithm, event_kind, flow_kind, flow_state, mode,
    real_flags, vip_flags,
};

use super::frame::Frame as XdpContext;
use super::packet::{ACK, FIN, Packet, RST, SYN};
use super::{deliver, gate, quic, wire};
use crate::table::{self, Found, tick};
use crate::{Verdict, choose, maps::*};

/// A chosen backend.
pub struct Target {
    pub slot: u32,
    pub id: u32,
    pub vip: &'static Vip,
    pub real: &'static Real,
}

/// Sends a packet where its flow goes.
#[inline(always)]
pub fn balance(ctx: &XdpContext, packet: &Packet) -> Verdict {
    let mut target = None;
    // What the table has of the flow although it does not hold: the flow is not new.
    let mut stale = no_flow();
    if let Some(mut found) = table::find(&packet.key) {
        if found.flow.kind == flow_kind::REVERSE {
            return reply(ctx, packet, &mut found);
        }
        if !packet.fragment {
            target = known(ctx, packet, found.flow);
            match &target {
                Some(target) => touch(ctx, packet, &mut found, target),
                None => stale = *found.flow,
            }
        }
    }
    let target = match target {
        Some(target) => target,
        None => {
            let begun = begin(ctx, packet, &stale);
            let (slot, id) = (begun >> 16, begun & 0xffff);
            if id == 0 {
                return slot;
            }
            let (Some(vip), Some(real)) = (VIPS_BY_SLOT.get(slot), REALS_BY_ID.get(id)) else {
                return XDP_DROP;
            };
            let target = Target {
                slot,
                id,
                vip,
                real,
            };
            if remember(ctx, packet, &target, &stale) != 0 {
                return XDP_DROP;
            }
            target
        }
    };
    deliver::forward(ctx, packet, &target)
}

/// `Flow::default()`, of which the compiler makes a call for each packet.
#[inline(always)]
fn no_flow() -> Flow {
    let mut flow = MaybeUninit::<Flow>::uninit();
    let words = flow.as_mut_ptr().cast::<u64>();
    // SAFETY: a flow is two words, aligned as they are, for which any bytes are valid.
    unsafe {
        write_volatile(words, 0);
        write_volatile(words.add(1), 0);
        flow.assume_init()
    }
}

/// The backend of a flow in the table, when it still holds.
#[inline(always)]
fn known(ctx: &XdpContext, packet: &Packet, flow: &mut Flow) -> Option<Target> {
    let slot = u32::from(flow.vip);
    let vip = VIPS_BY_SLOT.get(slot)?;
    // The epoch differs when sources' rules changed, and when the slot is another VIP's now.
    if flow.epoch != vip.epoch || vip.flags & vip_flags::LIVE == 0 {
        return choose::stay_a_branch();
    }
    if vip.flags & vip_flags::QUIC != 0
        && let Some(id) = quic::backend(ctx, packet, slot)
        && id != u32::from(flow.real)
        && let Some(real) = choose::live(id)
    {
        // The client's address now belongs to another connection.
        (flow.real, flow.generation) = (id as u16, real.generation);
    }
    let id = u32::from(flow.real);
    let real = choose::live(id)?;
    if real.generation != flow.generation {
        return choose::stay_a_branch();
    }
    let anew = packet.tcp_flags & (SYN | ACK) == SYN;
    if anew && (flow.state != flow_state::OPEN || real.flags & real_flags::DRAINING != 0) {
        return choose::stay_a_branch();
    }
    Some(Target {
        slot,
        id,
        vip,
        real,
    })
}

/// Notes that a packet of a known flow came.
#[inline(always)]
fn touch(ctx: &XdpContext, packet: &Packet, found: &mut Found, target: &Target) {
    let now = tick();
    if found.flow.tick != now {
        found.flow.tick = now;
        table::settle(&packet.key);
        // The way back is noted again: the client's router may be another one by now, and traffic one
        // way must not let the other one's entry grow old.
        if target.vip.mode == mode::DNAT {
            remember_reverse(ctx, packet, target, now);
        }
    }
    if packet.tcp_flags & (FIN | RST) != 0 && found.flow.state == flow_state::OPEN {
        found.flow.state = flow_state::CLOSING;
        choose::add_active(target.id, -1);
    }
}

/// Finds a backend for what the table does not hold: the VIP's slot above 16 bits of the backend's
/// identifier; above 0, the verdict. A function of BPF gives back a word, and memory of the caller's for
/// more would be on a stack that is short.
#[inline(never)]
fn begin(ctx: &XdpContext, packet: &Packet, stale: &Flow) -> u32 {
    match try_begin(ctx, packet, stale) {
        Ok((slot, id)) => (slot << 16) | id,
        Err(verdict) => verdict << 16,
    }
}

#[inline(always)]
fn try_begin(ctx: &XdpContext, packet: &Packet, stale: &Flow) -> Result<(u32, u32), Verdict> {
    let mut key = &packet.key;
    if packet.fragment {
        let scratch = table::scratch().ok_or(XDP_DROP)?;
        scratch.key = packet.key;
        (scratch.key.sport, scratch.key.dport) = (0, 0);
        key = &scratch.key;
    }
    let slot = choose::vip_slot(key).ok_or(XDP_PASS)?;
    let vip = VIPS_BY_SLOT.get(slot).ok_or(XDP_PASS)?;
    if vip.flags & vip_flags::LIVE == 0 {
        return Err(XDP_PASS);
    }
    if !choose::source_allowed(slot, vip, key) {
        count_vip(slot, |stats| stats.refused += 1);
        return Err(XDP_DROP);
    }
    if stale.kind == 0
        && let Some(verdict) = gate::answer(ctx, packet, slot, vip.flags)
    {
        return Err(verdict);
    }
    if packet.fragment && vip.flags & vip_flags::DROP_FRAGMENTS != 0 {
        count_vip(slot, |stats| stats.dropped += 1);
        return Err(XDP_DROP);
    }
    let quic = if vip.flags & vip_flags::QUIC != 0 {
        quic::backend(ctx, packet, slot)
    } else {
        None
    };
    let id = match quic {
        Some(id) => id,
        None if packet.fragment => choose::by_hash(slot, vip, key, algorithm::THREE_TUPLE),
        None => kept(stale, slot, vip).unwrap_or_else(|| choose::backend(slot, vip, key)),
    };
    if choose::live(id).is_none() {
        count_vip(slot, |stats| stats.no_backend += 1);
        return Err(XDP_DROP);
    }
    Ok((slot, id))
}

/// The backend of a flow that is known under another epoch: its source was checked again, no more.
#[inline(always)]
fn kept(flow: &Flow, slot: u32, vip: &Vip) -> Option<u32> {
    if flow.kind == 0 || u32::from(flow.vip) != slot || flow.epoch == vip.epoch {
        return None;
    }
    let id = u32::from(flow.real);
    let real = choose::live(id)?;
    (real.generation == flow.generation).then_some(id)
}

/// Puts a new flow into the table, as far as the limit lets it. Not 0 when the packet must be dropped.
#[inline(never)]
fn remember(ctx: &XdpContext, packet: &Packet, target: &Target, stale: &Flow) -> u32 {
    let Target { slot, id, vip, .. } = *target;
    let dnat = vip.mode == mode::DNAT;
    if packet.fragment {
        if dnat && vip.flags & vip_flags::FRAGMENTS != 0 && within_limit() {
            remember_reverse(ctx, packet, target, tick());
        }
        return 0;
    }
    // Without a reverse entry a reply could not be translated: DNAT always remembers.
    if vip.flags & vip_flags::NO_FLOWS != 0 && !dnat {
        return 0;
    }
    let known = stale.kind != 0;
    let room = known || within_limit() || gate::within_share(packet);
    let cached = room && insert(ctx, packet, target);
    if !cached {
        count_vip(slot, |stats| stats.uncached += 1);
        tell(packet, target, event_kind::UNCACHED);
        return u32::from(dnat);
    }
    if known && stale.state == flow_state::OPEN {
        if u32::from(stale.real) == id {
            return 0;
        }
        choose::add_active(u32::from(stale.real), -1);
    }
    choose::add_active(id, 1);
    count_vip(slot, |stats| stats.flows += 1);
    count_real(id, |stats| stats.flows += 1);
    tell(packet, target, event_kind::NEW_FLOW);
    0
}

/// Both directions, or none.
#[inline(always)]
fn insert(ctx: &XdpContext, packet: &Packet, target: &Target) -> bool {
    let now = tick();
    if target.vip.mode == mode::DNAT && !remember_reverse(ctx, packet, target, now) {
        return false;
    }
    remember_forward(packet, target, now)
}

#[inline(never)]
fn remember_forward(packet: &Packet, target: &Target, now: u32) -> bool {
    let Some(scratch) = table::scratch() else {
        return false;
    };
    scratch.key = packet.key;
    scratch.value = FlowV6::default();
    scratch.value.flow = flow(flow_kind::FORWARD, target, now);
    table::put()
}

#[inline(always)]
fn flow(kind: u8, target: &Target, now: u32) -> Flow {
    Flow {
        kind,
        state: flow_state::OPEN,
        epoch: target.vip.epoch,
        vip: target.slot as u16,
        real: target.id as u16,
        generation: target.real.generation,
        tick: now,
    }
}

/// The way of replies: from the backend to where this packet came from.
#[inline(always)]
fn remember_reverse(ctx: &XdpContext, packet: &Packet, target: &Target, now: u32) -> bool {
    if packet.fragment || target.vip.flags & vip_flags::FRAGMENTS != 0 {
        let put = compose_reverse(ctx, packet, target, now, false) && table::put();
        if !put || packet.fragment {
            return false;
        }
    }
    compose_reverse(ctx, packet, target, now, true) && table::put()
}

/// Apart from what puts it, as both take much of the stack.
#[inline(never)]
fn compose_reverse(
    ctx: &XdpContext,
    packet: &Packet,
    target: &Target,
    now: u32,
    with_ports: bool,
) -> bool {
    let (Some(ethernet), Some(scratch)) = (wire::at::<wire::Ethernet>(ctx, 0), table::scratch())
    else {
        return false;
    };
    let [a, b, c, d, e, f] = ethernet.macs;
    let word = |low: u16, high: u16| u32::from(low) | (u32::from(high) << 16);
    let Scratch { key, value } = scratch;
    value.flow = flow(flow_kind::REVERSE, target, now);
    value.addr = packet.key.dst;
    value.back.v4 = packet.key.dst.words[3];
    value.back.reserved = 0;
    // From whom it came to whom it is sent, and the other way.
    value.back.hop.macs = [word(d, e), word(f, a), word(b, c)];
    value.back.hop.ifindex = ctx.ingress_ifindex() as u32;
    key.src = target.real.addr;
    key.dst = packet.key.src;
    key.proto = packet.key.proto;
    (key.sport, key.dport, value.back.port) = (0, 0, 0);
    if with_ports {
        key.sport = match target.real.port {
            0 => packet.key.dport,
            port => port,
        };
        key.dport = packet.key.sport;
        value.back.port = packet.key.dport;
    }
    true
}

/// Whether this CPU may put one more flow into the table.
#[inline(always)]
fn within_limit() -> bool {
    let Some(config) = CONFIG.get(0) else {
        return false;
    };
    if config.insert_cost_ns == 0 {
        return true;
    }
    let Some(bucket) = INSERTS.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: the entry is this CPU's, and programs on a CPU do not interrupt each other; the helper
    // has no preconditions.
    unsafe { (*bucket).take(bpf_ktime_get_ns(), config) }
}

/// Tells of a new flow, when the sample takes it.
#[inline(never)]
fn tell(packet: &Packet, target: &Target, kind: u32) {
    let Some(config): Option<&Config> = CONFIG.get(0) else {
        return;
    };
    // SAFETY: the helper has no preconditions.
    if config.sample_mask == u32::MAX || unsafe { bpf_get_prandom_u32() } & config.sample_mask != 0
    {
        return;
    }
    let event = Event {
        key: packet.key,
        kind,
        vip: target.slot as u16,
        real: target.id as u16,
    };
    // A full buffer loses the event: it is a sample.
    let _ = EVENTS.output_untyped::<Event>(&event, 0);
}

/// Sends a backend's packet back to its client.
#[inline(always)]
fn reply(ctx: &XdpContext, packet: &Packet, found: &mut Found) -> Verdict {
    let now = tick();
    if found.flow.tick != now {
        found.flow.tick = now;
        table::settle(&packet.key);
    }
    deliver::back(ctx, packet, found)
}
