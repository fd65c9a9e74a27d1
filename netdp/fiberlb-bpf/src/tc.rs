//! The load balancer as a program of traffic control, where an interface takes no XDP: the same files as
//! [`crate::xdp`]'s, over packets that the stack has made already.
//!
//! Translation and direct return only. Tunnels, SYN cookies and errors about size need what a packet of the
//! stack's does not let a program do simply: its segments may be one packet, its checksum half done.

#[path = "deliver.rs"]
mod deliver;
#[path = "flows.rs"]
mod flows;
#[path = "tc/frame.rs"]
mod frame;
#[path = "icmp.rs"]
mod icmp;
#[path = "long.rs"]
mod long;
#[path = "packet.rs"]
mod packet;
#[path = "quic.rs"]
mod quic;
#[path = "tc/without.rs"]
mod without;
// Tunnels' protocols are not used here.
#[allow(dead_code)]
#[path = "wire.rs"]
mod wire;

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::bindings::{__sk_buff, TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::bpf_redirect;

use crate::Verdict;
use frame::Frame;
use without::{encap, gate, too_big};

/// What `bpf_redirect` says here.
const REDIRECT: Verdict = TC_ACT_REDIRECT as Verdict;

/// Balances a packet.
#[inline(always)]
pub fn balance(skb: *mut __sk_buff) -> i32 {
    let Some(frame) = Frame::new(skb) else {
        return TC_ACT_UNSPEC;
    };
    match verdict(&frame) {
        XDP_DROP => TC_ACT_SHOT,
        // SAFETY: the helper has no preconditions.
        XDP_TX => (unsafe { bpf_redirect(frame.ingress_ifindex() as u32, 0) }) as i32,
        REDIRECT => TC_ACT_REDIRECT,
        _ => TC_ACT_UNSPEC,
    }
}

#[inline(always)]
fn verdict(frame: &Frame) -> Verdict {
    let said = match wire::at::<wire::Ethernet>(frame, 0).map(|ethernet| ethernet.ethertype) {
        Some(wire::ETHERTYPE_V4) => long::balance_v4(frame),
        Some(wire::ETHERTYPE_V6) => long::balance_v6(frame),
        _ => XDP_PASS,
    };
    match said {
        long::ICMP => icmp::balance(frame),
        said => said,
    }
}
