//! ICMP errors about flows: to the backend that the flow has, or back to its client.
//!
//! The message holds the head of a packet as it was on the wire. With DNAT that head is translated too,
//! so that who gets the message knows the packet. The checksum inside that head is left alone: nobody
//! can check it, as the payload is cut.

use aya_ebpf::bindings::xdp_action::XDP_PASS;
use fiberlb_abi::{Addr, Flow, flow_kind, hash_flow, mode, vip_flags};

use super::deliver::{self, End};
use super::flows::Target;
use super::frame::Frame;
use super::packet::{self, Message};
use super::{encap, wire, wire::*};
use crate::checksum::{adjusted, change, change_addr, change_half};
use crate::table::{self, Found};
use crate::{Verdict, choose, maps::*};

/// Sends an error where its flow goes. Apart from the rest, whose share of the stack is small.
#[inline(never)]
pub fn balance(ctx: &Frame) -> Verdict {
    let Some(message) = packet::parse_error(ctx) else {
        return XDP_PASS;
    };
    let message = &message;
    let found = table::find(&message.key);
    if let Some(found) = &found
        && found.flow.kind == flow_kind::REVERSE
    {
        return back(ctx, message, found);
    }
    match target(message, found.as_ref().map(|found| &*found.flow)) {
        Some(target) => forward(ctx, message, &target),
        None => XDP_PASS,
    }
}

/// The backend of the flow; for one that is not in the table, the ring's.
#[inline(always)]
fn target(message: &Message, flow: Option<&Flow>) -> Option<Target> {
    let slot = match flow {
        Some(flow) => u32::from(flow.vip),
        None => choose::vip_slot(&message.key)?,
    };
    let vip = VIPS_BY_SLOT.get(slot)?;
    if vip.flags & vip_flags::LIVE == 0 {
        return None;
    }
    let id = match flow {
        Some(flow) => u32::from(flow.real),
        None => choose::by_hash(slot, vip, &message.key, vip.algorithm),
    };
    let real = choose::live(id)?;
    if flow.is_some_and(|flow| flow.generation != real.generation) {
        return choose::stay_a_branch();
    }
    Some(Target {
        slot,
        id,
        vip,
        real,
    })
}

#[inline(always)]
fn forward(ctx: &Frame, message: &Message, target: &Target) -> Verdict {
    let sent = match target.vip.mode {
        mode::DNAT => translate(
            ctx,
            message,
            End::Destination,
            (&target.real.addr, target.real.port),
        )
        .and_then(|()| deliver::send(ctx, &target.real.hop)),
        mode::DIRECT => deliver::direct(ctx, &target.real.hop),
        _ => encap::wrap_all(
            ctx,
            target,
            &encap::Inner {
                len: message.len,
                v4: message.key.src.is_v4(),
                hash: hash_flow(&message.key),
            },
        ),
    };
    deliver::counted(sent, message.len, target)
}

#[inline(always)]
fn back(ctx: &Frame, message: &Message, found: &Found) -> Verdict {
    let slot = u32::from(found.flow.vip);
    let sent = translate(ctx, message, End::Source, (&found.addr, found.back.port))
        .and_then(|()| deliver::send(ctx, &found.back.hop));
    match sent {
        Some(verdict) => {
            count_vip(slot, |stats| stats.replies += 1);
            verdict
        }
        None => {
            count_vip(slot, |stats| stats.dropped += 1);
            aya_ebpf::bindings::xdp_action::XDP_DROP
        }
    }
}

/// Translates the outer header's end, and the same machine's end in the packet inside: the other one.
#[inline(always)]
fn translate(ctx: &Frame, message: &Message, outer: End, (addr, port): (&Addr, u16)) -> Option<()> {
    let v4 = message.key.src.is_v4();
    let pseudo = if v4 {
        deliver::translate_v4(ctx, outer, addr)?;
        0
    } else {
        deliver::translate_v6(ctx, outer, addr)?
    };
    let inner = message.icmp + 8;
    let mut changed = if v4 {
        let ip = wire::at::<Ipv4>(ctx, inner)?;
        let old = match outer {
            End::Source => &mut ip.dst,
            End::Destination => &mut ip.src,
        };
        let diff = change(*old, addr.words[3]);
        *old = addr.words[3];
        let check = adjusted(ip.check, diff);
        let all = diff + change_half(ip.check, check);
        ip.check = check;
        all
    } else {
        let ip = wire::at::<Ipv6>(ctx, inner)?;
        let old = match outer {
            End::Source => &mut ip.dst,
            End::Destination => &mut ip.src,
        };
        let diff = change_addr(old, &addr.words);
        *old = addr.words;
        diff + pseudo
    };
    if port != 0 {
        let ports = wire::at::<Ports>(ctx, message.inner_ports)?;
        let old = match outer {
            End::Source => &mut ports.dst,
            End::Destination => &mut ports.src,
        };
        changed += change_half(*old, port);
        *old = port;
    }
    let icmp = wire::at::<Icmp>(ctx, message.icmp)?;
    icmp.check = adjusted(icmp.check, changed);
    Some(())
}
