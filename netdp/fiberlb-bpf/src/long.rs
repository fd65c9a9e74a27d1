//! The long ways of a packet. They are functions of their own, with their own registers and share of the stack.

use aya_ebpf::bindings::xdp_action::XDP_PASS;

use super::flows;
use super::frame::Frame;
use super::packet::{self, Parsed};
use crate::Verdict;

/// What they say of ICMP, which is looked at from above, where little of the stack is used up.
pub const ICMP: Verdict = Verdict::MAX;

#[inline(never)]
pub fn balance_v4(frame: &Frame) -> Verdict {
    balance(frame, packet::parse_v4(frame))
}

#[inline(never)]
pub fn balance_v6(frame: &Frame) -> Verdict {
    balance(frame, packet::parse_v6(frame))
}

#[inline(always)]
fn balance(frame: &Frame, parsed: Option<Parsed>) -> Verdict {
    match parsed {
        Some(Parsed::Flow(packet)) => flows::balance(frame, &packet),
        Some(Parsed::Icmp) => ICMP,
        None => XDP_PASS,
    }
}
