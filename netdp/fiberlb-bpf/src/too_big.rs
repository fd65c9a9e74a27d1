//! Packets that do not fit the tunnel to their backend: their sender is told how large they may be
//! (RFC 1191 and RFC 8201), in the name of the VIP.

use aya_ebpf::bindings::xdp_action::XDP_DROP;
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_xdp_adjust_head};

use super::flows::Target;
use super::frame::Frame;
use super::gate::{count_answer, cut, send_back, sum};
use super::packet::Packet;
use super::{encap, wire, wire::*};
use crate::checksum::fold;
use crate::{Verdict, maps::*};

const ICMP: usize = 8;
/// What of the packet is sent back at most, so that the error is no longer than 576 bytes for IPv4 (RFC 1812,
/// section 4.3.2.3) and 1280 for IPv6 (RFC 4443, section 3.2).
const QUOTE_V4: usize = 576 - IPV4 - ICMP;
const QUOTE_V6: usize = 1280 - IPV6 - ICMP;
/// Hop limit of answers.
const HOPS: u8 = 64;

/// What the tunnel has room for, when a packet is too big for it.
#[inline(always)]
pub fn room(packet: &Packet, target: &Target) -> Option<u32> {
    let mtu = target.real.mtu;
    let room = mtu.saturating_sub(encap::overhead(target));
    (mtu != 0 && packet.len > room).then_some(room)
}

/// Tells the sender of a packet that was not sent, when it was too big. `None` when it was not.
#[inline(always)]
pub fn told(ctx: &Frame, packet: &Packet, target: &Target) -> Option<Verdict> {
    let room = room(packet, target)?;
    let first = packet.has_ports;
    Some(fiberlb_too_big(
        ctx.ctx,
        target.slot,
        room,
        u32::from(first),
    ))
}

/// Checked by the kernel once and by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fiberlb_too_big(ctx: *mut xdp_md, slot: u32, mtu: u32, first: u32) -> Verdict {
    let ctx = &Frame::new(ctx);
    let told = match wire::at::<Ethernet>(ctx, 0).map(|ethernet| ethernet.ethertype) {
        // A later piece has nothing that its sender would know it by.
        _ if first == 0 => None,
        Some(ETHERTYPE_V4) => tell_v4(ctx, mtu),
        Some(ETHERTYPE_V6) => tell_v6(ctx, mtu),
        _ => None,
    };
    if told.is_none() {
        count_answer(slot, |stats| stats.too_big_dropped += 1);
        return XDP_DROP;
    }
    count_answer(slot, |stats| stats.too_big_told += 1);
    send_back(ctx)
}

/// Whether this CPU may tell one more sender now.
#[inline(always)]
fn may_tell() -> bool {
    let (Some(rules), Some(bucket)) = (ANSWER_RULES.get(0), TELLINGS.get_ptr_mut(0)) else {
        return false;
    };
    // SAFETY: the entry is this CPU's, and programs on a CPU do not interrupt each other; the helper has
    // no preconditions.
    unsafe { (*bucket).spend(bpf_ktime_get_ns(), rules.tell_cost_ns, rules.tell_burst_ns) }
}

#[inline(always)]
fn tell_v4(ctx: &Frame, mtu: u32) -> Option<()> {
    let ip = wire::at::<Ipv4>(ctx, ETHERNET)?;
    let (src, dst, tos) = (ip.src, ip.dst, ip.tos);
    // Who lets it be fragmented is not told, as he would not care; nobody is no host's address.
    let nobody = matches!(u32::from_be(src) >> 24, 0 | 127 | 224..);
    if ip.fragment & DONT_FRAGMENT == 0 || nobody || !may_tell() {
        return None;
    }
    let len = usize::from(u16::from_be(ip.total_len));
    let quote = quote(ctx, len.min(QUOTE_V4))?;
    make_room(ctx, IPV4 + ICMP, ETHERTYPE_V4)?;
    *wire::at::<Ipv4>(ctx, ETHERNET)? = Ipv4 {
        version_ihl: 0x45,
        // The class of the packet, without its congestion bits.
        tos: tos & !3,
        total_len: (quote + (IPV4 + ICMP) as u16).to_be(),
        id: 0,
        fragment: DONT_FRAGMENT,
        ttl: HOPS,
        proto: PROTO_ICMP,
        check: 0,
        src: dst,
        dst: src,
    };
    let words = wire::at::<[u32; 5]>(ctx, ETHERNET)?;
    wire::at::<Ipv4>(ctx, ETHERNET)?.check = !fold(sum(words));
    *wire::at::<Icmp>(ctx, ETHERNET + IPV4)? = Icmp {
        kind: 3,
        code: 4,
        check: 0,
        rest: mtu.to_be(),
    };
    finish::<{ (QUOTE_V4 + ICMP) / 4 }>(ctx, ETHERNET + IPV4, 0)
}

/// As [`tell_v4`].
#[inline(always)]
fn tell_v6(ctx: &Frame, mtu: u32) -> Option<()> {
    let ip = wire::at::<Ipv6>(ctx, ETHERNET)?;
    let (src, dst) = (ip.src, ip.dst);
    let nobody = u32::from_be(src[0]) >> 24 == 0xff || src == [0; 4];
    if nobody || !may_tell() {
        return None;
    }
    let len = usize::from(u16::from_be(ip.payload_len)) + IPV6;
    let quote = quote(ctx, len.min(QUOTE_V6))?;
    make_room(ctx, IPV6 + ICMP, ETHERTYPE_V6)?;
    let payload = quote + ICMP as u16;
    let ip = wire::at::<Ipv6>(ctx, ETHERNET)?;
    ip.head = 0x6000_0000_u32.to_be();
    ip.payload_len = payload.to_be();
    ip.next = PROTO_ICMPV6;
    ip.hops = HOPS;
    (ip.src, ip.dst) = (dst, src);
    *wire::at::<Icmp>(ctx, ETHERNET + IPV6)? = Icmp {
        kind: 2,
        code: 0,
        check: 0,
        rest: mtu.to_be(),
    };
    let pseudo = (u32::from(payload) + u32::from(PROTO_ICMPV6)).to_be();
    let pseudo = sum(&src) + sum(&dst) + u64::from(pseudo);
    finish::<{ (QUOTE_V6 + ICMP) / 4 }>(ctx, ETHERNET + IPV6, pseudo)
}

/// Cuts the frame after so many bytes of its packet, in whole words; gives how many there are now.
#[inline(always)]
fn quote(ctx: &Frame, len: usize) -> Option<u16> {
    let len = len & !3;
    cut(ctx, ETHERNET + len)?;
    Some(len as u16)
}

/// Puts so many bytes between the frame's head and its packet, and turns its addresses.
#[inline(always)]
fn make_room(ctx: &Frame, more: usize, ethertype: u16) -> Option<()> {
    let [a, b, c, d, e, f] = wire::at::<Ethernet>(ctx, 0)?.macs;
    // SAFETY: as above.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(more as i32)) } != 0 {
        return None;
    }
    *wire::at::<Ethernet>(ctx, 0)? = Ethernet {
        macs: [d, e, f, a, b, c],
        ethertype,
    };
    Some(())
}

/// The checksum of the message, which ends with the frame.
#[inline(always)]
fn finish<const WORDS: usize>(ctx: &Frame, icmp: usize, pseudo: u64) -> Option<()> {
    let mut all = pseudo;
    let mut turn = 0;
    while turn < WORDS {
        let Some(word) = wire::at::<u32>(ctx, icmp + 4 * turn) else {
            break;
        };
        all += u64::from(*word);
        turn += 1;
    }
    wire::at::<Icmp>(ctx, icmp)?.check = !fold(all);
    Some(())
}
