//! A packet of the stack's: its head is in one piece, its checksum may be the card's to complete.

use aya_ebpf::bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use aya_ebpf::helpers::{bpf_l4_csum_replace, bpf_skb_pull_data};

use super::packet::Packet;
use crate::checksum::fold;

/// The longest headers that are looked at: of IPv4 with options, TCP without.
const HEAD: u32 = 14 + 60 + 20 + 60;
/// Where checksums are in their headers.
const TCP_CHECK: usize = 16;
const UDP_CHECK: usize = 6;

pub struct Frame {
    skb: *mut __sk_buff,
}

impl Frame {
    /// The packet with its head in one piece. `None` for one with a VLAN tag, which stands beside the frame and
    /// not in it.
    #[inline(always)]
    pub fn new(skb: *mut __sk_buff) -> Option<Self> {
        let frame = Self { skb };
        // SAFETY: the context is the program's.
        let (len, tagged) = unsafe { ((*skb).len, (*skb).vlan_present != 0) };
        if tagged {
            return None;
        }
        let head = if len < HEAD { len } else { HEAD };
        if (frame.data_end() - frame.data()) < head as usize {
            // SAFETY: as above; pointers into the frame are made anew.
            unsafe { bpf_skb_pull_data(skb, head) };
        }
        Some(frame)
    }

    #[inline(always)]
    pub fn data(&self) -> usize {
        // SAFETY: as above.
        unsafe { (*self.skb).data as usize }
    }

    #[inline(always)]
    pub fn data_end(&self) -> usize {
        // SAFETY: as above.
        unsafe { (*self.skb).data_end as usize }
    }

    /// The interface that the packet came in by.
    #[inline(always)]
    pub fn ingress_ifindex(&self) -> usize {
        // SAFETY: as above.
        unsafe { (*self.skb).ifindex as usize }
    }
}

/// Its length, with what is not in its head.
#[inline(always)]
pub fn len(frame: &Frame) -> usize {
    // SAFETY: as above.
    unsafe { (*frame.skb).len as usize }
}

/// Adjusts the checksum of TCP or UDP to changes of addresses and ports. The kernel knows whether there is one
/// already, or only the part of it that addresses make.
#[inline(always)]
pub fn fix_checksum(frame: &Frame, packet: &Packet, addrs: u64, ports: u64) -> Option<()> {
    let (check, flags) = if packet.is_udp() {
        (packet.l4 + UDP_CHECK, u64::from(BPF_F_MARK_MANGLED_0))
    } else {
        (packet.l4 + TCP_CHECK, 0)
    };
    let (addrs, ports) = (u64::from(fold(addrs)), u64::from(fold(ports)));
    let of_addrs = flags | u64::from(BPF_F_PSEUDO_HDR);
    // SAFETY: the context is the program's; pointers into the frame are made anew.
    let done = unsafe {
        bpf_l4_csum_replace(frame.skb, check as u32, 0, addrs, of_addrs) == 0
            && bpf_l4_csum_replace(frame.skb, check as u32, 0, ports, flags) == 0
    };
    done.then_some(())
}
