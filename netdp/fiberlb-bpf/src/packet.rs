//! Parsing: what a frame is, and where its headers are.

use fiberlb_abi::{Addr, FlowKey};

use super::frame::{self, Frame as XdpContext};
use super::wire::*;

/// TCP's flags that matter here.
pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// A packet of TCP or UDP, or a fragment of one.
pub struct Packet {
    /// Ports are 0 in a fragment that has none.
    pub key: FlowKey,
    /// Where TCP's or UDP's header is.
    pub l4: usize,
    /// Length of the packet with its IP header.
    pub len: u32,
    /// 0 for UDP and fragments.
    pub tcp_flags: u8,
    /// It is a piece of a packet.
    pub fragment: bool,
    /// It has TCP's or UDP's header: it is whole, or the first piece.
    pub has_ports: bool,
}

impl Packet {
    #[inline(always)]
    pub fn is_v4(&self) -> bool {
        self.key.src.is_v4()
    }

    #[inline(always)]
    pub fn is_udp(&self) -> bool {
        self.key.proto == u32::from(PROTO_UDP)
    }
}

/// An ICMP error about a packet that went through here.
pub struct Message {
    /// The packet as a flow from the client's side: what it was sent to is the source.
    pub key: FlowKey,
    /// Where the ICMP header is.
    pub icmp: usize,
    /// Where the ports of the packet inside are.
    pub inner_ports: usize,
    /// Length of the message with its IP header.
    pub len: u32,
}

/// What a frame can be here.
pub enum Parsed {
    Flow(Packet),
    /// ICMP, to be looked at by [`parse_error`].
    Icmp,
}

/// Parses a frame with ICMP; `None` when it is no error about TCP or UDP.
#[inline(always)]
pub fn parse_error(ctx: &XdpContext) -> Option<Message> {
    if at::<Ethernet>(ctx, 0)?.ethertype == ETHERTYPE_V4 {
        let ip = at::<Ipv4>(ctx, ETHERNET)?;
        let len = u32::from(u16::from_be(ip.total_len));
        parse_error_v4(ctx, ETHERNET + header_len(ip)?, len)
    } else {
        let ip = at::<Ipv6>(ctx, ETHERNET)?;
        let len = u32::from(u16::from_be(ip.payload_len)) + IPV6 as u32;
        parse_error_v6(ctx, len)
    }
}

/// Length of an IPv4 header with its options, when it is one.
#[inline(always)]
fn header_len(ip: &Ipv4) -> Option<usize> {
    let words = ip.version_ihl & 15;
    if ip.version_ihl >> 4 != 4 || words < 5 {
        return None;
    }
    Some(usize::from(words) * 4)
}

/// Parses a frame of IPv4; `None` is for the stack.
#[inline(always)]
pub fn parse_v4(ctx: &XdpContext) -> Option<Parsed> {
    let ip = at::<Ipv4>(ctx, ETHERNET)?;
    let l4 = ETHERNET + header_len(ip)?;
    let len = u32::from(u16::from_be(ip.total_len));
    if !holds(ctx, len) {
        return None;
    }
    let key = FlowKey {
        src: Addr::v4(ip.src),
        dst: Addr::v4(ip.dst),
        sport: 0,
        dport: 0,
        proto: u32::from(ip.proto),
    };
    let fragment = ip.fragment & FRAGMENT_V4 != 0;
    let first = ip.fragment & OFFSET_V4 == 0;
    if ip.proto == PROTO_ICMP && !fragment {
        return Some(Parsed::Icmp);
    }
    parse_ports(ctx, key, (l4, len), (fragment, first))
}

/// Whether the frame holds a packet of this length: tunnels repeat it in their own headers.
#[inline(always)]
fn holds(ctx: &XdpContext, len: u32) -> bool {
    ETHERNET + len as usize <= frame::len(ctx)
}

/// Mapped addresses on the wire would be taken for IPv4's in the tables, and the frame with them.
#[inline(always)]
fn mapped(key: &FlowKey) -> bool {
    key.src.is_v4() || key.dst.is_v4()
}

/// As [`parse_v4`].
#[inline(always)]
pub fn parse_v6(ctx: &XdpContext) -> Option<Parsed> {
    let ip = at::<Ipv6>(ctx, ETHERNET)?;
    let mut key = FlowKey {
        src: Addr { words: ip.src },
        dst: Addr { words: ip.dst },
        sport: 0,
        dport: 0,
        proto: u32::from(ip.next),
    };
    if mapped(&key) {
        return None;
    }
    let len = u32::from(u16::from_be(ip.payload_len)) + IPV6 as u32;
    if !holds(ctx, len) {
        return None;
    }
    let l4 = ETHERNET + IPV6;
    match ip.next {
        PROTO_ICMPV6 => Some(Parsed::Icmp),
        PROTO_FRAGMENT => {
            let fragment = at::<Fragment>(ctx, l4)?;
            key.proto = u32::from(fragment.next);
            let first = fragment.offset & OFFSET_V6 == 0;
            parse_ports(ctx, key, (l4 + 8, len), (true, first))
        }
        _ => parse_ports(ctx, key, (l4, len), (false, true)),
    }
}

/// `place` is the offset of the ports and the packet's length, `piece` whether it is a fragment and
/// whether it is the first one.
#[inline(always)]
fn parse_ports(
    ctx: &XdpContext,
    mut key: FlowKey,
    (l4, len): (usize, u32),
    (fragment, first): (bool, bool),
) -> Option<Parsed> {
    let tcp = key.proto == u32::from(PROTO_TCP);
    if !tcp && key.proto != u32::from(PROTO_UDP) {
        return None;
    }
    let mut tcp_flags = 0;
    if first {
        if tcp {
            let header = at::<Tcp>(ctx, l4)?;
            (key.sport, key.dport) = (header.src, header.dst);
            tcp_flags = if fragment { 0 } else { header.flags };
        } else {
            let header = at::<Udp>(ctx, l4)?;
            (key.sport, key.dport) = (header.src, header.dst);
        }
    }
    Some(Parsed::Flow(Packet {
        key,
        l4,
        len,
        tcp_flags,
        fragment,
        has_ports: first,
    }))
}

/// Destination unreachable (with too big), time exceeded, parameter problem.
#[inline(always)]
fn parse_error_v4(ctx: &XdpContext, icmp: usize, len: u32) -> Option<Message> {
    if !matches!(at::<Icmp>(ctx, icmp)?.kind, 3 | 11 | 12) {
        return None;
    }
    let inner = at::<Ipv4>(ctx, icmp + 8)?;
    // With options inside, ports would be at a second variable offset; such errors go to the stack.
    if header_len(inner)? != IPV4 || inner.fragment & OFFSET_V4 != 0 {
        return None;
    }
    let key = FlowKey {
        src: Addr::v4(inner.dst),
        dst: Addr::v4(inner.src),
        sport: 0,
        dport: 0,
        proto: u32::from(inner.proto),
    };
    parse_inner_ports(ctx, key, icmp, (icmp + 8 + IPV4, len))
}

/// Destination unreachable, too big, time exceeded, parameter problem.
#[inline(always)]
fn parse_error_v6(ctx: &XdpContext, len: u32) -> Option<Message> {
    let icmp = ETHERNET + IPV6;
    if !matches!(at::<Icmp>(ctx, icmp)?.kind, 1..=4) {
        return None;
    }
    let inner = at::<Ipv6>(ctx, icmp + 8)?;
    let key = FlowKey {
        src: Addr { words: inner.dst },
        dst: Addr { words: inner.src },
        sport: 0,
        dport: 0,
        proto: u32::from(inner.next),
    };
    if mapped(&key) {
        return None;
    }
    parse_inner_ports(ctx, key, icmp, (icmp + 8 + IPV6, len))
}

#[inline(always)]
fn parse_inner_ports(
    ctx: &XdpContext,
    mut key: FlowKey,
    icmp: usize,
    (inner_ports, len): (usize, u32),
) -> Option<Message> {
    if key.proto != u32::from(PROTO_TCP) && key.proto != u32::from(PROTO_UDP) {
        return None;
    }
    let ports = at::<Ports>(ctx, inner_ports)?;
    (key.sport, key.dport) = (ports.dst, ports.src);
    Some(Message {
        key,
        icmp,
        inner_ports,
        len,
    })
}
