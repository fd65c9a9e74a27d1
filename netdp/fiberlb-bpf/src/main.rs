//! FiberLB's programs for the kernel: the load balancer, and the far end of its tunnels.
//!
//! A packet costs one look-up in the flow table when its flow is known, whichever way it goes; else the
//! VIP is looked up, its sources are checked, and its algorithm chooses a backend from its ring. What is
//! not for a VIP, and what cannot be parsed, goes to the stack untouched: other EtherTypes and VLAN
//! tags, IPv6 extension headers other than a fragment's, headers that the frame does not hold.
//!
//! Invariants:
//! - The tables for VIPs, rings and backends are only read here. User space changes them in an order in
//!   which every state between is good: backends, then rings, then VIPs.
//! - A packet is changed only when it will be sent; a frame that is dropped or passed is as it came,
//!   except that a backend whose next hop is not known gets its packets by way of the stack.
//! - Checksums are adjusted by what changed and never computed from the payload, so that frames whose
//!   payload is elsewhere, cut or wrong stay so.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod checksum;
mod choose;
mod maps;
#[cfg(feature = "measure")]
mod measure;
mod table;
mod tc;
mod xdp;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;

#[cfg(feature = "measure")]
use crate::xdp::{balance, wire};

/// What a program gives back: one of `xdp_action`, also in the parts that both kinds of programs share.
type Verdict = u32;

/// The load balancer.
#[xdp]
pub fn fiberlb(ctx: XdpContext) -> Verdict {
    xdp::balance(&ctx)
}

/// The load balancer where an interface takes no XDP.
#[unsafe(no_mangle)]
#[unsafe(link_section = "classifier")]
pub fn fiberlb_tc(ctx: *mut __sk_buff) -> i32 {
    tc::balance(ctx)
}

/// The far end of tunnels, on a backend.
#[xdp]
pub fn fiberlb_decap(ctx: XdpContext) -> Verdict {
    xdp::strip(&ctx)
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}
