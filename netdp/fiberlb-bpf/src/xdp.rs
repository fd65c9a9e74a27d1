//! The load balancer and the end of tunnels as XDP programs: the driver's frame, before there is a packet of
//! the stack's. The files of these modules are [`crate::tc`]'s too, over another kind of frame.

#[path = "decap.rs"]
mod decap;
#[path = "deliver.rs"]
mod deliver;
#[path = "encap.rs"]
mod encap;
#[path = "fast.rs"]
mod fast;
#[path = "flows.rs"]
mod flows;
#[path = "xdp/frame.rs"]
mod frame;
#[path = "gate.rs"]
mod gate;
#[path = "icmp.rs"]
mod icmp;
#[path = "long.rs"]
mod long;
#[path = "packet.rs"]
mod packet;
#[path = "quic.rs"]
mod quic;
#[path = "too_big.rs"]
mod too_big;
#[path = "wire.rs"]
pub mod wire;

use aya_ebpf::bindings::xdp_action::XDP_PASS;

use crate::Verdict;
use frame::Frame;

/// Balances a frame.
#[inline(always)]
pub fn balance(ctx: &Frame) -> Verdict {
    // Apart from here on: what holds for one version needs no look at the other's words.
    let said = match wire::at::<wire::Ethernet>(ctx, 0).map(|ethernet| ethernet.ethertype) {
        Some(wire::ETHERTYPE_V4) => fast::balance(ctx).unwrap_or_else(|| long::balance_v4(ctx)),
        Some(wire::ETHERTYPE_V6) => long::balance_v6(ctx),
        _ => XDP_PASS,
    };
    match said {
        long::ICMP => icmp::balance(ctx),
        said => said,
    }
}

/// Takes outer headers off.
#[inline(always)]
pub fn strip(ctx: &Frame) -> Verdict {
    decap::strip(ctx).unwrap_or(XDP_PASS)
}
