//! The frame that an XDP program sees: all of it, in one piece, with whole checksums.

use super::packet::Packet;
use super::wire::{self, *};
use crate::checksum::adjusted;

pub type Frame = aya_ebpf::programs::XdpContext;

/// Its length.
#[inline(always)]
pub fn len(frame: &Frame) -> usize {
    frame.data_end() - frame.data()
}

/// Adjusts the checksum of TCP or UDP to changes of addresses and ports.
#[inline(always)]
pub fn fix_checksum(frame: &Frame, packet: &Packet, addrs: u64, ports: u64) -> Option<()> {
    let changed = addrs + ports;
    if packet.is_udp() {
        let udp = wire::at::<Udp>(frame, packet.l4)?;
        // 0 is no checksum (IPv4 only), so a sum that comes out as 0 is sent as its other form.
        if udp.check != 0 {
            let check = adjusted(udp.check, changed);
            udp.check = if check == 0 { 0xffff } else { check };
        }
    } else {
        let tcp = wire::at::<Tcp>(frame, packet.l4)?;
        tcp.check = adjusted(tcp.check, changed);
    }
    Some(())
}
