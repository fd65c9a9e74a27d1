//! The short way of IPv4: a whole packet without options, whose flow is known or whose VIP keeps none.
//!
//! What is not plain here goes the long way ([`super::flows`]), which begins anew and decides alike: nothing
//! has been changed until then. The short way writes no flow, and makes no calls but to find a flow that is not
//! at home, to look into a ring, and to send: where the kernel keeps processors from guessing where a return
//! goes, each costs a misprediction. It is a function of its own so that the rare cases take no registers.

use aya_ebpf::bindings::xdp_action::XDP_PASS;
use fiberlb_abi::{
    Addr, FlowKey, FlowKeyV4, Line, algorithm, flow_kind, mode, source_action, vip_flags,
};

use super::flows::Target;
use super::frame::Frame;
use super::packet::{FIN, Packet, RST, SYN};
use super::{deliver, encap, gate, too_big, wire::*};
use crate::table::{self, Found, Near};
use crate::{Verdict, choose, maps::*};

const ADDRS: usize = ETHERNET + 12;
const L4: usize = ETHERNET + IPV4;

/// `None` when the packet is one for the long way.
#[inline(always)]
pub fn balance(ctx: &Frame) -> Option<Verdict> {
    let (packet, key) = parse(ctx)?;
    match table::near(&key)? {
        Near::Known(line) => known(ctx, &packet, line),
        Near::New(version) => unkept(ctx, &packet, version),
    }
}

#[inline(always)]
fn parse(ctx: &Frame) -> Option<(Packet, FlowKeyV4)> {
    let ip = at::<Ipv4>(ctx, ETHERNET)?;
    if ip.version_ihl != 0x45 || ip.fragment & FRAGMENT_V4 != 0 {
        return None;
    }
    let len = u32::from(u16::from_be(ip.total_len));
    if ETHERNET + len as usize > ctx.data_end() - ctx.data() {
        return None;
    }
    let tcp_flags = match ip.proto {
        PROTO_UDP => {
            at::<Udp>(ctx, L4)?;
            0
        }
        PROTO_TCP => at::<Tcp>(ctx, L4)?.flags,
        _ => return None,
    };
    let ports = *at::<u32>(ctx, L4)?;
    let key = FlowKeyV4 {
        addrs: *at::<u64>(ctx, ADDRS)?,
        ports: u64::from(ports) | (u64::from(ip.proto) << 32),
    };
    let packet = Packet {
        key: FlowKey {
            src: Addr::v4(key.addrs as u32),
            dst: Addr::v4((key.addrs >> 32) as u32),
            sport: ports as u16,
            dport: (ports >> 16) as u16,
            proto: u32::from(ip.proto),
        },
        l4: L4,
        len,
        tcp_flags,
        fragment: false,
        has_ports: true,
    };
    Some((packet, key))
}

#[inline(always)]
fn forward(ctx: &Frame, packet: &Packet, target: &Target) -> Option<Verdict> {
    match target.vip.mode {
        mode::DNAT | mode::DIRECT => Some(deliver::forward(ctx, packet, target)),
        _ if too_big::room(packet, target).is_some() => None,
        _ => Some(tunnel(ctx, target.slot << 16 | target.id)),
    }
}

/// Apart for its share of the stack; a slot above the identifier of a backend.
#[inline(never)]
fn tunnel(ctx: &Frame, to: u32) -> Verdict {
    let (slot, id) = (to >> 16, to & 0xffff);
    let (Some((packet, _)), Some(vip), Some(real)) =
        (parse(ctx), VIPS_BY_SLOT.get(slot), REALS_BY_ID.get(id))
    else {
        return XDP_PASS;
    };
    let target = Target {
        slot,
        id,
        vip,
        real,
    };
    let sent = encap::wrap_here(ctx, &packet, &target);
    deliver::counted(sent, packet.len, &target)
}

/// A packet of a flow that the table has. The first one of a second, and the first and last ones of a
/// connection, change its entry and go the long way.
#[inline(always)]
fn known(ctx: &Frame, packet: &Packet, line: &'static mut Line) -> Option<Verdict> {
    if table::known_tick()? != line.flow.tick {
        return None;
    }
    if line.flow.kind == flow_kind::REVERSE {
        let found = Found {
            addr: Addr::v4(line.back.v4),
            back: &line.back,
            flow: &mut line.flow,
        };
        return Some(deliver::back(ctx, packet, &found));
    }
    if packet.tcp_flags & (SYN | FIN | RST) != 0 {
        return None;
    }
    let flow = &line.flow;
    let (slot, id) = (u32::from(flow.vip), u32::from(flow.real));
    let vip = VIPS_BY_SLOT.get(slot)?;
    if flow.epoch != vip.epoch || vip.flags & (vip_flags::LIVE | vip_flags::QUIC) != vip_flags::LIVE
    {
        return None;
    }
    let real = choose::live(id)?;
    if real.generation != flow.generation {
        return None;
    }
    let target = Target {
        slot,
        id,
        vip,
        real,
    };
    forward(ctx, packet, &target)
}

/// A packet that the table has no flow of: of a VIP that keeps none, or of none of ours.
#[inline(always)]
fn unkept(ctx: &Frame, packet: &Packet, version: u32) -> Option<Verdict> {
    let slot = choose::known_vip(&packet.key, version)?;
    if slot == choose::NO_VIP {
        return Some(XDP_PASS);
    }
    let vip = VIPS_BY_SLOT.get(slot)?;
    let needed = vip_flags::LIVE | vip_flags::NO_FLOWS;
    if vip.flags & (needed | vip_flags::QUIC) != needed
        || vip.mode == mode::DNAT
        || vip.algorithm > algorithm::SOURCE
        || gate::may_answer(packet, vip.flags)
    {
        return None;
    }
    if vip.flags & (vip_flags::SOURCES | vip_flags::DENY_OTHERS) != 0
        && choose::known_source(slot, vip, &packet.key)? != source_action::ALLOW
    {
        return None;
    }
    let id = choose::by_hash(slot, vip, &packet.key, vip.algorithm);
    let target = Target {
        slot,
        id,
        vip,
        real: choose::live(id)?,
    };
    forward(ctx, packet, &target)
}
