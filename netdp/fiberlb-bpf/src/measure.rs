//! What a packet costs over many flows: the load balancer behind a program that makes each packet of a
//! run another flow's, and that program alone, whose cost is taken off.

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP};
use aya_ebpf::btf_maps::{Array, PerCpuArray};
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;

use crate::{Verdict, wire, wire::*};

/// How many flows packets walk over.
#[btf_map(name = "walk")]
static WALK: Array<u32, 1> = Array::new();
/// Whose turn it is.
#[btf_map(name = "walk_at")]
static WALK_AT: PerCpuArray<u32, 1> = PerCpuArray::new();

const CLIENTS: u32 = 0x0a00_0000;
const VIP: u32 = 0xc000_0201;

/// Makes the frame, UDP over IPv4 without options, the next flow's as it came from its client.
#[inline(always)]
fn refill(ctx: &XdpContext) -> Option<()> {
    let flows = *WALK.get(0)?;
    let next = WALK_AT.get_ptr_mut(0)?;
    // SAFETY: the entry is this CPU's, and programs on a CPU do not interrupt each other.
    let at = unsafe {
        let at = *next;
        *next = if at + 1 < flows { at + 1 } else { 0 };
        at
    };
    let ip = wire::at::<Ipv4>(ctx, ETHERNET)?;
    ip.ttl = 64;
    ip.src = (CLIENTS + (at >> 14)).to_be();
    ip.dst = VIP.to_be();
    let udp = wire::at::<Udp>(ctx, ETHERNET + IPV4)?;
    udp.src = (4096 + (at as u16 & 0x3fff)).to_be();
    udp.dst = 53_u16.to_be();
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
