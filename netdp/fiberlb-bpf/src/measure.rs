//! What a packet costs over many flows: the load balancer behind a program that makes each packet of a
//! run another flow's, and that program alone, whose cost is taken off. And both ends of a network in which
//! it is compared with others: a program that sends packets, and one that counts and drops them.

use core::arch::asm;

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP};
use aya_ebpf::btf_maps::{Array, PerCpuArray};
use aya_ebpf::helpers::{bpf_redirect, bpf_xdp_adjust_head};
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;

use crate::{Verdict, wire, wire::*};

/// How many flows packets walk over. A section by itself is a map to user space, and takes nothing of the stack
/// here, which is short.
#[unsafe(link_section = ".data.walk")]
static mut WALK: u32 = 0;
/// Whose turn it is. One word for all CPUs, of which one measures.
static mut WALK_AT: u32 = 0;

/// The interface that packets are sent by.
#[btf_map(name = "send_by")]
static SEND_BY: Array<u32, 1> = Array::new();
/// How many came.
#[btf_map(name = "received")]
static RECEIVED: PerCpuArray<u64, 1> = PerCpuArray::new();

const CLIENTS: u32 = 0x0a00_0000;
const VIP: u32 = 0xc000_0201;

/// What a frame is long: that of a run before may have an outer header still.
const FRAME: usize = 64;

/// The number of the flow whose turn it is.
#[inline(always)]
fn next_flow() -> u32 {
    let next = &raw mut WALK_AT;
    // SAFETY: aligned words that are read and written whole; any value of them is good.
    unsafe {
        let at = next.read_volatile();
        let flows = (&raw const WALK).read_volatile();
        next.write_volatile(if at + 1 < flows { at + 1 } else { 0 });
        at
    }
}

/// Makes the frame, UDP without options, the next flow's as it came from its client.
#[inline(always)]
fn refill(ctx: &XdpContext) -> Option<()> {
    let at = next_flow();
    if ctx.data_end() - ctx.data() != FRAME && unwrap(ctx) == 0 {
        return None;
    }
    let v6 = wire::at::<Ethernet>(ctx, 0)?.ethertype == ETHERTYPE_V6;
    let client = (CLIENTS + (at >> 14)).to_be();
    let l4 = if v6 {
        let ip = wire::at::<Ipv6>(ctx, ETHERNET)?;
        ip.hops = 64;
        ip.src = [0x2001_0db8_u32.to_be(), 0, 0, client];
        ip.dst = [0x2001_0db8_u32.to_be(), 0, 0, 1_u32.to_be()];
        ETHERNET + IPV6
    } else {
        let ip = wire::at::<Ipv4>(ctx, ETHERNET)?;
        ip.ttl = 64;
        // In the widths in which it will be read: a frame that a card wrote is not in the processor's store
        // buffer, from which it cannot read two words as one.
        *wire::at::<u64>(ctx, ETHERNET + 12)? = u64::from(client) | (u64::from(VIP.to_be()) << 32);
        ETHERNET + IPV4
    };
    let source = (4096 + (at as u16 & 0x3fff)).to_be();
    *wire::at::<u32>(ctx, l4)? = u32::from(source) | (u32::from(53_u16.to_be()) << 16);
    Some(())
}

/// Takes off the outer header of the run before. Apart, as most runs have none and the stack is short.
#[inline(never)]
fn unwrap(ctx: &XdpContext) -> u32 {
    u32::from(try_unwrap(ctx).is_some())
}

#[inline(always)]
fn try_unwrap(ctx: &XdpContext) -> Option<()> {
    let mut more = ctx.data_end() - ctx.data() - FRAME;
    // SAFETY: there is no instruction. From a length that it knows, the compiler would leave out checks that
    // the verifier wants to see.
    unsafe { asm!("", inout("r1") more, options(nostack)) };
    // SAFETY: the context is the program's; pointers into the frame are made anew below.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, more as i32) } != 0 {
        return None;
    }
    let v6 = *wire::at::<u8>(ctx, ETHERNET)? >> 4 == 6;
    let ethernet = wire::at::<Ethernet>(ctx, 0)?;
    ethernet.ethertype = if v6 { ETHERTYPE_V6 } else { ETHERTYPE_V4 };
    Some(())
}

/// Refills and does no more.
#[xdp]
pub fn measure_refill(ctx: XdpContext) -> Verdict {
    match refill(&ctx) {
        Some(()) => XDP_DROP,
        None => XDP_ABORTED,
    }
}

/// Refills and balances.
#[xdp]
pub fn measure_walk(ctx: XdpContext) -> Verdict {
    match refill(&ctx) {
        Some(()) => crate::balance(&ctx),
        None => XDP_ABORTED,
    }
}

/// Writes all headers: the frame's memory may hold what became of it when it was sent before.
#[inline(always)]
fn send(ctx: &XdpContext) -> Option<Verdict> {
    let at = next_flow();
    let frame = wire::at::<[u16; 21]>(ctx, 0)?;
    // From 02:00:00:00:00:09 to 02:00:00:00:00:01.
    let macs = [2, 0, 0x0100, 2, 0, 0x0900];
    let client = CLIENTS + 256 + (at >> 14);
    let [client, vip] = [client, VIP].map(|addr| [(addr >> 16) as u16, addr as u16]);
    let ip = [
        0x4500, 50, 0, 0x4000, 0x4011, 0, client[0], client[1], vip[0], vip[1],
    ];
    let mut sum = 0;
    for word in ip {
        sum += u32::from(word);
    }
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    let udp = [4096 + (at as u16 & 0x3fff), 53, 30, 0];
    for (to, word) in frame.iter_mut().zip(macs) {
        *to = word;
    }
    frame[6] = ETHERTYPE_V4;
    for (to, word) in frame[7..].iter_mut().zip(ip) {
        *to = word.to_be();
    }
    frame[12] = (!sum as u16).to_be();
    for (to, word) in frame[17..].iter_mut().zip(udp) {
        *to = word.to_be();
    }
    // SAFETY: the helper has no preconditions.
    Some(unsafe { bpf_redirect(*SEND_BY.get(0)?, 0) } as Verdict)
}

/// Sends a packet of the flow whose turn it is.
#[xdp]
pub fn measure_send(ctx: XdpContext) -> Verdict {
    send(&ctx).unwrap_or(XDP_ABORTED)
}

/// Counts a packet and drops it.
#[xdp]
pub fn measure_receive(_ctx: XdpContext) -> Verdict {
    if let Some(count) = RECEIVED.get_ptr_mut(0) {
        // SAFETY: the entry is this CPU's, and programs on a CPU do not interrupt each other.
        unsafe { *count += 1 };
    }
    XDP_DROP
}
