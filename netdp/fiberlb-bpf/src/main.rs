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
mod decap;
mod deliver;
mod encap;
mod flows;
mod gate;
mod icmp;
mod maps;
#[cfg(feature = "measure")]
mod measure;
mod packet;
mod quic;
mod table;
mod too_big;
mod wire;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;

use crate::packet::Parsed;

/// What a program gives back: one of `xdp_action`.
type Verdict = u32;

/// The load balancer.
#[xdp]
pub fn fiberlb(ctx: XdpContext) -> Verdict {
    balance(&ctx)
}

#[inline(always)]
fn balance(ctx: &XdpContext) -> Verdict {
    // Apart from here on: what holds for one version needs no look at the other's words.
    match wire::at::<wire::Ethernet>(ctx, 0).map(|ethernet| ethernet.ethertype) {
        Some(wire::ETHERTYPE_V4) => balance_parsed(ctx, packet::parse_v4(ctx)),
        Some(wire::ETHERTYPE_V6) => balance_parsed(ctx, packet::parse_v6(ctx)),
        _ => xdp_action::XDP_PASS,
    }
}

#[inline(always)]
fn balance_parsed(ctx: &XdpContext, parsed: Option<Parsed>) -> Verdict {
    match parsed {
        Some(Parsed::Flow(packet)) => flows::balance(ctx, &packet),
        Some(Parsed::Icmp) => icmp::balance(ctx),
        None => xdp_action::XDP_PASS,
    }
}

/// The far end of tunnels, on a backend.
#[xdp]
pub fn fiberlb_decap(ctx: XdpContext) -> Verdict {
    decap::strip(&ctx).unwrap_or(xdp_action::XDP_PASS)
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}
