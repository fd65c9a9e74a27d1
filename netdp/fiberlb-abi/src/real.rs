//! Backends, and the way to them.

use crate::{Addr, layout};

/// The next hop, kept so that a packet needs no look-up of routes: that costs more than all else.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Hop {
    /// Destination MAC, then source MAC: the first twelve bytes of the frame.
    pub macs: [u32; 3],
    /// Interface to leave by; 0 while the hop is not known.
    pub ifindex: u32,
}
layout!(Hop, 16);

impl Hop {
    /// A frame from `from` to `to` through an interface.
    pub const fn new(to: [u8; 6], from: [u8; 6], ifindex: u32) -> Self {
        Self {
            macs: [
                u32::from_ne_bytes([to[0], to[1], to[2], to[3]]),
                u32::from_ne_bytes([to[4], to[5], from[0], from[1]]),
                u32::from_ne_bytes([from[2], from[3], from[4], from[5]]),
            ],
            ifindex,
        }
    }
}

/// Flags of [`Real`].
pub mod real_flags {
    /// It takes packets. Without it flows in the table are sent elsewhere.
    pub const ALIVE: u16 = 1;
    /// It takes no new flows: a SYN on a known flow is a new one.
    pub const DRAINING: u16 = 2;
}

/// One backend of one pool: a cache line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Real {
    /// Where packets go: the new destination, or the far end of the tunnel.
    pub addr: Addr,
    /// The way there.
    pub hop: Hop,
    /// The new destination port in network order; 0 keeps the packet's. DNAT only.
    pub port: u16,
    /// [`real_flags`].
    pub flags: u16,
    /// Grows each time that the identifier is given to another backend: flows of the old one end.
    pub generation: u32,
    /// Its weight, for algorithms that compare loads. Never 0 in a live one.
    pub weight: u32,
    /// Largest packet, without the Ethernet header, that the way takes; 0 for no limit.
    pub mtu: u32,
    /// Slot of the VIP whose backend it is, for whoever reads the table back.
    pub vip: u32,
    /// Zero.
    pub reserved: [u32; 3],
}
layout!(Real, 64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hop_holds_the_head_of_the_frame() {
        let hop = Hop::new([1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12], 3);
        let mut frame = [0; 12];
        for (chunk, word) in frame.chunks_exact_mut(4).zip(hop.macs) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        assert_eq!(frame, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    }
}
