//! The far end of a tunnel: takes the outer headers off, for addresses that this machine ends.

use aya_ebpf::bindings::xdp_action::XDP_PASS;
use aya_ebpf::helpers::bpf_xdp_adjust_head;
use fiberlb_abi::Addr;

use super::frame::Frame;
use super::{wire, wire::*};
use crate::{Verdict, maps::*};

/// Strips a frame that came through a tunnel to here; `None` for every other one.
#[inline(always)]
pub fn strip(ctx: &Frame) -> Option<Verdict> {
    let (dst, ip, proto) = outer(ctx)?;
    // SAFETY: only its presence is looked at.
    unsafe { TUNNEL_ENDS.get(&dst) }?;
    let (less, v4) = match proto {
        PROTO_IPIP => (ip, true),
        PROTO_IPV6 => (ip, false),
        PROTO_UDP => {
            if wire::at::<Udp>(ctx, ETHERNET + ip)?.dst != CONFIG.get(0)?.gue_port {
                return None;
            }
            // Variant 1: the version of the packet inside stands where GUE's own would.
            match *wire::at::<u8>(ctx, ETHERNET + ip + UDP)? >> 4 {
                4 => (ip + UDP, true),
                6 => (ip + UDP, false),
                _ => return None,
            }
        }
        _ => return None,
    };
    let macs = *wire::at::<[u32; 3]>(ctx, 0)?;
    // SAFETY: the context is the program's; pointers into the frame are made anew below.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, less as i32) } != 0 {
        return None;
    }
    *wire::at::<[u32; 3]>(ctx, 0)? = macs;
    wire::at::<Ethernet>(ctx, 0)?.ethertype = if v4 { ETHERTYPE_V4 } else { ETHERTYPE_V6 };
    Some(XDP_PASS)
}

/// Destination, length and payload of an outer header that has no options and is no fragment.
#[inline(always)]
fn outer(ctx: &Frame) -> Option<(Addr, usize, u8)> {
    match wire::at::<Ethernet>(ctx, 0)?.ethertype {
        ETHERTYPE_V4 => {
            let ip = wire::at::<Ipv4>(ctx, ETHERNET)?;
            if ip.version_ihl != 0x45 || ip.fragment & FRAGMENT_V4 != 0 {
                return None;
            }
            Some((Addr::v4(ip.dst), IPV4, ip.proto))
        }
        ETHERTYPE_V6 => {
            let ip = wire::at::<Ipv6>(ctx, ETHERNET)?;
            Some((Addr { words: ip.dst }, IPV6, ip.next))
        }
        _ => None,
    }
}
