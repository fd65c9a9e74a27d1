//! Tunnels to backends: IP in IP, and IP in UDP (GUE, variant 1: the packet follows the UDP header).

use aya_ebpf::bindings::xdp_action::XDP_ABORTED;
use aya_ebpf::helpers::bpf_xdp_adjust_head;
use fiberlb_abi::{Addr, hash_flow, mode};

use super::flows::Target;
use super::frame::Frame;
use super::packet::Packet;
use super::{deliver, wire, wire::*};
use crate::checksum::fold;
use crate::{Verdict, maps::*};

/// Hop limit of outer headers.
const HOPS: u8 = 64;

/// What goes into a tunnel.
pub struct Inner {
    /// Its length with its IP header.
    pub len: u32,
    pub v4: bool,
    /// Makes GUE's source port.
    pub hash: u32,
}

/// Puts a packet into a tunnel and sends it; `None` when the way is too narrow.
#[inline(always)]
pub fn wrap(ctx: &Frame, packet: &Packet, target: &Target) -> Option<Verdict> {
    match wrap_packet(ctx, packet, target) {
        XDP_ABORTED => None,
        verdict => Some(verdict),
    }
}

/// Apart, and with a copy of the code: its [`Inner`] is not to take of the caller's share of the stack, and each
/// call costs.
#[inline(never)]
fn wrap_packet(ctx: &Frame, packet: &Packet, target: &Target) -> Verdict {
    wrap_here(ctx, packet, target).unwrap_or(XDP_ABORTED)
}

/// As [`wrap`], within the caller.
#[inline(always)]
pub fn wrap_here(ctx: &Frame, packet: &Packet, target: &Target) -> Option<Verdict> {
    let inner = Inner {
        len: packet.len,
        v4: packet.is_v4(),
        hash: hash_flow(&packet.key),
    };
    try_wrap(ctx, target, &inner)
}

/// As [`wrap`], for whatever goes to a backend.
#[inline(always)]
pub fn wrap_all(ctx: &Frame, target: &Target, inner: &Inner) -> Option<Verdict> {
    match wrap_once(ctx, target, inner) {
        XDP_ABORTED => None,
        verdict => Some(verdict),
    }
}

/// A function of BPF has five arguments at most and gives back a
/// word, hence the struct and `XDP_ABORTED` for none.
#[inline(never)]
fn wrap_once(ctx: &Frame, target: &Target, inner: &Inner) -> Verdict {
    try_wrap(ctx, target, inner).unwrap_or(XDP_ABORTED)
}

#[inline(always)]
fn try_wrap(ctx: &Frame, target: &Target, inner: &Inner) -> Option<Verdict> {
    let config = CONFIG.get(0)?;
    let gue = target.vip.mode == mode::GUE;
    let outer_v4 = target.real.addr.is_v4();
    let tos = tos(ctx, inner.v4)?;
    let ip = if outer_v4 { IPV4 } else { IPV6 };
    let more = overhead(target);
    if target.real.mtu != 0 && inner.len + more > target.real.mtu {
        return None;
    }
    // SAFETY: the context is the program's; pointers into the frame are made anew below.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(more as i32)) } != 0 {
        return None;
    }
    wire::at::<Ethernet>(ctx, 0)?.ethertype = if outer_v4 { ETHERTYPE_V4 } else { ETHERTYPE_V6 };
    let proto = match (gue, inner.v4) {
        (true, _) => PROTO_UDP,
        (false, true) => PROTO_IPIP,
        (false, false) => PROTO_IPV6,
    };
    let len = inner.len as u16 + if gue { UDP as u16 } else { 0 };
    if outer_v4 {
        write_v4(
            ctx,
            (&config.tunnel_v4, &target.real.addr),
            (len, proto, tos),
        )?;
    } else {
        write_v6(
            ctx,
            (&config.tunnel_v6, &target.real.addr),
            (len, proto, tos),
        )?;
    }
    if gue {
        let udp = wire::at::<Udp>(ctx, ETHERNET + ip)?;
        udp.src = (inner.hash as u16 | 0xc000).to_be();
        udp.dst = config.gue_port;
        udp.len = len.to_be();
        // None: RFC 6935 and 6936 allow it for tunnels over IPv6 too, whose packets have their own.
        udp.check = 0;
    }
    deliver::send(ctx, &target.real.hop)
}

/// How much longer a packet is within its tunnel.
#[inline(always)]
pub fn overhead(target: &Target) -> u32 {
    let ip = if target.real.addr.is_v4() { IPV4 } else { IPV6 };
    let udp = if target.vip.mode == mode::GUE { UDP } else { 0 };
    (ip + udp) as u32
}

/// The inner packet's class and its congestion bits, which the outer header takes over (RFC 6040).
#[inline(always)]
fn tos(ctx: &Frame, v4: bool) -> Option<u8> {
    if v4 {
        return Some(wire::at::<Ipv4>(ctx, ETHERNET)?.tos);
    }
    let head = u32::from_be(wire::at::<Ipv6>(ctx, ETHERNET)?.head);
    Some((head >> 20) as u8)
}

#[inline(always)]
fn write_v4(
    ctx: &Frame,
    (src, dst): (&Addr, &Addr),
    (payload, proto, tos): (u16, u8, u8),
) -> Option<()> {
    let ip = wire::at::<Ipv4>(ctx, ETHERNET)?;
    *ip = Ipv4 {
        version_ihl: 0x45,
        tos,
        total_len: (payload + IPV4 as u16).to_be(),
        // An identifier means nothing in a packet that is never fragmented (RFC 6864).
        id: 0,
        fragment: DONT_FRAGMENT,
        ttl: HOPS,
        proto,
        check: 0,
        src: src.words[3],
        dst: dst.words[3],
    };
    let words = wire::at::<[u32; 5]>(ctx, ETHERNET)?;
    let sum = u64::from(words[0])
        + u64::from(words[1])
        + u64::from(words[2])
        + u64::from(words[3])
        + u64::from(words[4]);
    wire::at::<Ipv4>(ctx, ETHERNET)?.check = !fold(sum);
    Some(())
}

#[inline(always)]
fn write_v6(
    ctx: &Frame,
    (src, dst): (&Addr, &Addr),
    (payload, next, tos): (u16, u8, u8),
) -> Option<()> {
    let ip = wire::at::<Ipv6>(ctx, ETHERNET)?;
    ip.head = (0x6000_0000 | (u32::from(tos) << 20)).to_be();
    ip.payload_len = payload.to_be();
    ip.next = next;
    ip.hops = HOPS;
    ip.src = src.words;
    ip.dst = dst.words;
    Some(())
}
