//! The gate before new flows of TCP: a source that has not proved itself gets a cookie, and comes in when
//! it has sent that back (see `fiberlb_abi::Gate`). Nothing is kept of who has not.
//!
//! Packets of known flows never come here.

use core::arch::asm;

use aya_ebpf::bindings::xdp_action::XDP_DROP;
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_redirect, bpf_xdp_adjust_tail};
use fiberlb_abi::{
    Addr, AnswerStats, FlowKey, Gate, cookie, cookie_period, is_cookie, is_proved, proved_as,
    proved_tick, vip_flags,
};

use super::frame::Frame;
use super::packet::{self, ACK, FIN, Packet, Parsed, RST, SYN};
use super::{wire, wire::*};
use crate::checksum::fold;
use crate::{Verdict, choose, maps::*, table};

/// A packet without a flow may go on.
const GO_ON: Verdict = 0;
/// Flags of VIPs that have a gate.
const ANY: u16 = vip_flags::COOKIES_AUTO | vip_flags::COOKIES_ALWAYS;
/// Flags that make a packet a SYN, a reset, or something else.
const KIND: u8 = FIN | SYN | RST | ACK;
const TCP: usize = 20;

/// Whether a packet of no known flow is one that a VIP's gate looks at.
#[inline(always)]
pub fn may_answer(packet: &Packet, flags: u16) -> bool {
    flags & ANY != 0 && packet.tcp_flags & (SYN | RST) != 0
}

/// What becomes of a packet of no known flow at a VIP's gate; `None` to go on.
#[inline(always)]
pub fn answer(ctx: &Frame, packet: &Packet, slot: u32, flags: u16) -> Option<Verdict> {
    if !may_answer(packet, flags) {
        return None;
    }
    let always = u32::from(flags & vip_flags::COOKIES_ALWAYS != 0);
    let said = match packet.tcp_flags & KIND {
        SYN => fiberlb_syn(ctx.ctx, slot, always),
        RST => fiberlb_reset(ctx.ctx, slot << 1 | always),
        _ => GO_ON,
    };
    match said {
        GO_ON => None,
        verdict => Some(verdict),
    }
}

/// The frame's key, and where TCP's header is; the key is in this CPU's scratch, as the stack is short.
#[inline(always)]
fn parse(ctx: &Frame) -> Option<(&'static mut Scratch, usize)> {
    let parsed = match wire::at::<Ethernet>(ctx, 0)?.ethertype {
        ETHERTYPE_V4 => packet::parse_v4(ctx),
        _ => packet::parse_v6(ctx),
    };
    let Some(Parsed::Flow(packet)) = parsed else {
        return None;
    };
    let scratch = table::scratch()?;
    scratch.key = packet.key;
    scratch.value.addr = proved_as(&packet.key.src);
    Some((scratch, packet.l4))
}

/// Lets a SYN in, or answers it with a cookie. The kernel checks functions with names once and by
/// themselves, hence they parse again.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fiberlb_syn(ctx: *mut xdp_md, slot: u32, always: u32) -> Verdict {
    let ctx = &Frame::new(ctx);
    let (Some((scratch, _)), Some(rules), Some(gate)) =
        (parse(ctx), ANSWER_RULES.get(0), gate(slot))
    else {
        return GO_ON;
    };
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    // While the gate is open, SYNs are counted whoever sent them, which saves a look-up for each.
    let was_closed = always != 0 || gate.is_closed(now);
    if was_closed && has_proved(&scratch.value.addr, now) {
        return GO_ON;
    }
    if !gate.asks(now, rules, is_full(now)) && always == 0 {
        return GO_ON;
    }
    if !was_closed && has_proved(&scratch.value.addr, now) {
        return GO_ON;
    }
    let cookie = cookie(&rules.keys[0], &scratch.key, cookie_period(now));
    let answered = if scratch.key.src.is_v4() {
        answer_v4(ctx, &scratch.key, cookie)
    } else {
        answer_v6(ctx, &scratch.key, cookie)
    };
    if answered.is_none() {
        count_vip(slot, |stats| stats.dropped += 1);
        return XDP_DROP;
    }
    count_answer(slot, |stats| stats.cookies_sent += 1);
    send_back(ctx)
}

/// Takes a reset that brings a cookie; every other one goes on. It is at a VIP's slot, above whether that always
/// asks: one word takes less of the stack.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fiberlb_reset(ctx: *mut xdp_md, at: u32) -> Verdict {
    let ctx = &Frame::new(ctx);
    // One after the other: a branch for both would read what only the first one's success has set.
    let Some((scratch, l4)) = parse(ctx) else {
        return choose::stay_a_branch().unwrap_or(GO_ON);
    };
    let Some(rules) = ANSWER_RULES.get(0) else {
        return GO_ON;
    };
    let Some(tcp) = wire::at::<Tcp>(ctx, l4) else {
        return GO_ON;
    };
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    if is_cookie(tcp.seq, rules, &scratch.key, cookie_period(now)) {
        let proved = PROVED.insert(&scratch.value.addr, proved_tick(now), 0);
        // Without an entry its next SYN is asked again.
        if proved.is_ok() {
            count_answer(at >> 1, |stats| stats.cookies_proved += 1);
        }
        return XDP_DROP;
    }
    let (slot, always) = (at >> 1, at & 1 != 0);
    if always || gate(slot).is_some_and(|gate| gate.is_closed(now)) {
        count_answer(slot, |stats| stats.cookies_wrong += 1);
    }
    GO_ON
}

#[inline(always)]
fn gate(slot: u32) -> Option<&'static mut Gate> {
    // SAFETY: the entry is this CPU's, and programs on a CPU do not interrupt each other.
    GATES.get_ptr_mut(slot).map(|gate| unsafe { &mut *gate })
}

#[inline(always)]
fn has_proved(proved_as: &Addr, now: u64) -> bool {
    // SAFETY: the time is one word, and is copied at once.
    unsafe { PROVED.get(proved_as) }.is_some_and(|at| is_proved(*at, now))
}

/// Whether this CPU may put no more flows of sources that have not proved themselves into the table.
#[inline(always)]
fn is_full(now: u64) -> bool {
    let (Some(config), Some(bucket)) = (CONFIG.get(0), INSERTS.get_ptr_mut(0)) else {
        return false;
    };
    // SAFETY: the entry is this CPU's, and programs on a CPU do not interrupt each other.
    let credit = unsafe { (*bucket).credit(now, config.insert_burst_ns) };
    credit < u64::from(config.insert_cost_ns)
}

/// Whether a flow has room although the limit is reached: its source proved itself, and such ones have a
/// share of their own.
#[inline(always)]
pub fn within_share(packet: &Packet) -> bool {
    let [a, b, c, d] = packet.key.src.words;
    let pair = |high: u32, low: u32| (u64::from(high) << 32) | u64::from(low);
    packet.key.proto == u32::from(PROTO_TCP) && fiberlb_share(pair(a, b), pair(c, d)) != 0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fiberlb_share(high: u64, low: u64) -> u32 {
    let src = Addr {
        words: [
            (high >> 32) as u32,
            high as u32,
            (low >> 32) as u32,
            low as u32,
        ],
    };
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let (Some(config), Some(bucket)) = (CONFIG.get(0), PROVED_INSERTS.get_ptr_mut(0)) else {
        return 0;
    };
    // SAFETY: the entry is this CPU's, and programs on a CPU do not interrupt each other.
    u32::from(has_proved(&proved_as(&src), now) && unsafe { (*bucket).take(now, config) })
}

/// Makes a SYN of IPv4 the answer to it, without options.
#[inline(always)]
fn answer_v4(ctx: &Frame, key: &FlowKey, cookie: u32) -> Option<()> {
    let (src, dst) = (key.src.words[3], key.dst.words[3]);
    *wire::at::<Ipv4>(ctx, ETHERNET)? = Ipv4 {
        version_ihl: 0x45,
        tos: 0,
        total_len: ((IPV4 + TCP) as u16).to_be(),
        id: 0,
        fragment: DONT_FRAGMENT,
        ttl: HOPS,
        proto: PROTO_TCP,
        check: 0,
        src: dst,
        dst: src,
    };
    let words = wire::at::<[u32; 5]>(ctx, ETHERNET)?;
    wire::at::<Ipv4>(ctx, ETHERNET)?.check = !fold(sum(words));
    finish(ctx, ETHERNET + IPV4, key, cookie)
}

/// As [`answer_v4`].
#[inline(always)]
fn answer_v6(ctx: &Frame, key: &FlowKey, cookie: u32) -> Option<()> {
    let ip = wire::at::<Ipv6>(ctx, ETHERNET)?;
    ip.head = 0x6000_0000_u32.to_be();
    ip.payload_len = (TCP as u16).to_be();
    ip.hops = HOPS;
    (ip.src, ip.dst) = (key.dst.words, key.src.words);
    finish(ctx, ETHERNET + IPV6, key, cookie)
}

/// What any other receiver might have; nothing is sent into it.
const WINDOW: u16 = 4096_u16.to_be();
/// Hop limit of answers.
const HOPS: u8 = 64;

/// TCP's header, the frame's addresses and its length.
#[inline(always)]
fn finish(ctx: &Frame, l4: usize, key: &FlowKey, cookie: u32) -> Option<()> {
    *wire::at::<Tcp>(ctx, l4)? = Tcp {
        src: key.dport,
        dst: key.sport,
        // No byte will follow, so any number is as good.
        seq: 0,
        ack: cookie,
        offset: (TCP as u8 / 4) << 4,
        flags: SYN | ACK,
        window: WINDOW,
        check: 0,
        urgent: 0,
    };
    // A mapped address has two bytes more that are set than the one on the wire; one's complement sums take
    // them for nothing.
    let pseudo = sum(&key.src.words) + sum(&key.dst.words);
    let pseudo = pseudo + u64::from((u32::from(PROTO_TCP) + TCP as u32).to_be());
    let check = !fold(pseudo + sum(wire::at::<[u32; 5]>(ctx, l4)?));
    wire::at::<Tcp>(ctx, l4)?.check = check;
    let macs = wire::at::<[u16; 6]>(ctx, 0)?;
    let [a, b, c, d, e, f] = *macs;
    *macs = [d, e, f, a, b, c];
    cut(ctx, l4 + TCP)
}

/// Cuts the frame after so many bytes. Pointers into it have to be made anew.
#[inline(always)]
pub fn cut(ctx: &Frame, len: usize) -> Option<()> {
    let mut has = ctx.data_end() - ctx.data();
    // SAFETY: there is no instruction. The compiler would take the two pointers off one by one, and the
    // verifier lets them be taken off each other only.
    unsafe { asm!("", inout("r1") has, options(nostack)) };
    let less = len as i64 - has as i64;
    // SAFETY: the context is the program's; the caller makes its pointers anew.
    (unsafe { bpf_xdp_adjust_tail(ctx.ctx, less as i32) } == 0).then_some(())
}

/// Sends a frame out by the interface that it came in by. Not by `XDP_TX`, which veth sends to peers alone
/// that have an XDP program of their own.
#[inline(always)]
pub fn send_back(ctx: &Frame) -> Verdict {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_redirect(ctx.ingress_ifindex() as u32, 0) as Verdict }
}

/// The sum of words, for a checksum.
#[inline(always)]
pub fn sum(words: &[u32]) -> u64 {
    words.iter().map(|word| u64::from(*word)).sum()
}

/// Counts an answer to a VIP's packet on this CPU.
#[inline(always)]
pub fn count_answer(slot: u32, add: impl FnOnce(&mut AnswerStats)) {
    if let Some(stats) = ANSWER_STATS.get_ptr_mut(slot) {
        // SAFETY: the entry is this CPU's, and programs on a CPU do not interrupt each other.
        add(unsafe { &mut *stats });
    }
}
