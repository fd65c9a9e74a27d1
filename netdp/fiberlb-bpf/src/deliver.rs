//! Changing a packet and sending it.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::helpers::bpf_redirect;
use fiberlb_abi::{Addr, Hop, mode};

use super::flows::Target;
use super::frame::{self, Frame};
use super::packet::Packet;
use super::{encap, too_big, wire, wire::*};
use crate::checksum::{adjusted, change, change_addr, change_half};
use crate::table::Found;
use crate::{Verdict, maps::*};

/// Which end of a packet is translated.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    Source,
    Destination,
}

/// Sends a client's packet to its backend.
#[inline(always)]
pub fn forward(ctx: &Frame, packet: &Packet, target: &Target) -> Verdict {
    let sent = match target.vip.mode {
        mode::DNAT => translate(
            ctx,
            packet,
            End::Destination,
            (&target.real.addr, target.real.port),
        )
        .and_then(|()| send(ctx, &target.real.hop)),
        mode::DIRECT => direct(ctx, &target.real.hop),
        _ => {
            let sent = encap::wrap(ctx, packet, target);
            if sent.is_none()
                && let Some(verdict) = too_big::told(ctx, packet, target)
            {
                return verdict;
            }
            sent
        }
    };
    counted(sent, packet.len, target)
}

/// Counts what was sent, and what could not be.
#[inline(always)]
pub fn counted(sent: Option<Verdict>, len: u32, target: &Target) -> Verdict {
    let Some(verdict) = sent else {
        count_vip(target.slot, |stats| stats.dropped += 1);
        return XDP_DROP;
    };
    count_vip(target.slot, |stats| {
        stats.packets += 1;
        stats.bytes += u64::from(len);
    });
    count_real(target.id, |stats| {
        stats.packets += 1;
        stats.bytes += u64::from(len);
    });
    verdict
}

/// Sends a backend's packet to its client.
#[inline(always)]
pub fn back(ctx: &Frame, packet: &Packet, found: &Found) -> Verdict {
    let slot = u32::from(found.flow.vip);
    let sent = translate(ctx, packet, End::Source, (&found.addr, found.back.port))
        .and_then(|()| send(ctx, &found.back.hop));
    let Some(verdict) = sent else {
        count_vip(slot, |stats| stats.dropped += 1);
        return XDP_DROP;
    };
    count_vip(slot, |stats| stats.replies += 1);
    verdict
}

/// The frame as it is, to another machine of the link. Without a way there it cannot go by the stack,
/// which would take the VIP for its own.
#[inline(always)]
pub fn direct(ctx: &Frame, hop: &Hop) -> Option<Verdict> {
    if hop.ifindex == 0 {
        return None;
    }
    send(ctx, hop)
}

/// Writes the frame's addresses and sends it; without a next hop the stack routes it.
#[inline(always)]
pub fn send(ctx: &Frame, hop: &Hop) -> Option<Verdict> {
    if hop.ifindex == 0 {
        return Some(XDP_PASS);
    }
    *wire::at::<[u32; 3]>(ctx, 0)? = hop.macs;
    if hop.ifindex == ctx.ingress_ifindex() as u32 {
        return Some(XDP_TX);
    }
    // SAFETY: the helper has no preconditions.
    Some(unsafe { bpf_redirect(hop.ifindex, 0) } as Verdict)
}

/// Gives one end of a packet another address and port (0 keeps it), and takes one from its hops.
#[inline(always)]
fn translate(ctx: &Frame, packet: &Packet, end: End, (addr, port): (&Addr, u16)) -> Option<()> {
    let changed = if packet.is_v4() {
        translate_v4(ctx, end, addr)?
    } else {
        translate_v6(ctx, end, addr)?
    };
    if !packet.has_ports {
        return Some(());
    }
    let ports = wire::at::<Ports>(ctx, packet.l4)?;
    let old = match end {
        End::Source => &mut ports.src,
        End::Destination => &mut ports.dst,
    };
    let port = if port == 0 { *old } else { port };
    let ports = change_half(*old, port);
    *old = port;
    frame::fix_checksum(ctx, packet, changed, ports)
}

/// Gives the change that checksums over the pseudo header see; `None` when no hops are left.
#[inline(always)]
pub fn translate_v4(ctx: &Frame, end: End, addr: &Addr) -> Option<u64> {
    let ip = wire::at::<Ipv4>(ctx, ETHERNET)?;
    if ip.ttl <= 1 {
        return None;
    }
    let old = match end {
        End::Source => &mut ip.src,
        End::Destination => &mut ip.dst,
    };
    let changed = change(*old, addr.words[3]);
    *old = addr.words[3];
    let before = u16::from_ne_bytes([ip.ttl, ip.proto]);
    ip.ttl -= 1;
    let after = u16::from_ne_bytes([ip.ttl, ip.proto]);
    ip.check = adjusted(ip.check, changed + change_half(before, after));
    Some(changed)
}

/// As [`translate_v4`].
#[inline(always)]
pub fn translate_v6(ctx: &Frame, end: End, addr: &Addr) -> Option<u64> {
    let ip = wire::at::<Ipv6>(ctx, ETHERNET)?;
    if ip.hops <= 1 {
        return None;
    }
    ip.hops -= 1;
    let old = match end {
        End::Source => &mut ip.src,
        End::Destination => &mut ip.dst,
    };
    let changed = change_addr(old, &addr.words);
    *old = addr.words;
    Some(changed)
}
