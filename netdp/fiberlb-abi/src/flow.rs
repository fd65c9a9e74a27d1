//! The flow table: who a packet is, and where its flow goes.

use crate::{Hop, layout};

/// An address in network order; IPv4 is mapped.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(C)]
pub struct Addr {
    /// As read from a packet, in words: the bytes of each are in network order.
    pub words: [u32; 4],
}
layout!(Addr, 16);

/// The third word of a mapped IPv4 address.
const MAPPED: u32 = 0xffff_u32.to_be();

impl Addr {
    /// An IPv4 address as the packet has it.
    #[inline(always)]
    pub const fn v4(word: u32) -> Self {
        Self {
            words: [0, 0, MAPPED, word],
        }
    }

    /// From the 16 bytes of an address, IPv4 mapped.
    pub const fn from_octets(bytes: [u8; 16]) -> Self {
        let mut words = [0; 4];
        let mut at = 0;
        while at < 4 {
            let [a, b, c, d] = [
                bytes[at * 4],
                bytes[at * 4 + 1],
                bytes[at * 4 + 2],
                bytes[at * 4 + 3],
            ];
            words[at] = u32::from_ne_bytes([a, b, c, d]);
            at += 1;
        }
        Self { words }
    }

    /// Its 16 bytes.
    pub fn octets(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        for (chunk, word) in bytes.chunks_exact_mut(4).zip(self.words) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    /// Whether it is a mapped IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == MAPPED
    }
}

/// A packet's source, destination and protocol.
///
/// | bytes | field |
/// | --- | --- |
/// | 0-15 | source address |
/// | 16-31 | destination address |
/// | 32-33 | source port |
/// | 34-35 | destination port |
/// | 36-39 | protocol; a whole word, so that nothing is left unset |
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(C, align(8))]
pub struct FlowKey {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Source port, in network order.
    pub sport: u16,
    /// Destination port, in network order.
    pub dport: u16,
    /// IP protocol number.
    pub proto: u32,
}
layout!(FlowKey, 40);

/// Kinds of [`Flow`].
pub mod flow_kind {
    /// From a client to a VIP.
    pub const FORWARD: u8 = 1;
    /// From a backend to a client; DNAT only.
    pub const REVERSE: u8 = 2;
}

/// States of [`Flow`].
pub mod flow_state {
    /// Counted as open.
    pub const OPEN: u8 = 0;
    /// A FIN or RST was seen: a SYN begins a new flow.
    pub const CLOSING: u8 = 1;
}

/// What is known of a flow in one direction. Both directions are in one table, so that a packet costs one
/// look-up whichever way it goes. Its alignment makes copies of it two words, not a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C, align(8))]
pub struct Flow {
    /// [`flow_kind`]; 0 for none.
    pub kind: u8,
    /// [`flow_state`].
    pub state: u8,
    /// [`crate::Vip::epoch`] at which the source was last allowed.
    pub epoch: u16,
    /// Slot of the VIP.
    pub vip: u16,
    /// Identifier of the backend.
    pub real: u16,
    /// [`crate::Real::generation`] of the backend that was chosen.
    pub generation: u32,
    /// When the last packet came, in units of 2^30 ns of the monotonic clock.
    pub tick: u32,
}
layout!(Flow, 16);

/// What only a flow of the reverse direction has: what its packets are made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C, align(8))]
pub struct Back {
    /// The way back to the client.
    pub hop: Hop,
    /// The VIP's port; 0 leaves ports as they are.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
    /// The VIP's address, of IPv4.
    pub v4: u32,
}
layout!(Back, 24);

/// A flow of IPv6, in a hash of the kernel's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct FlowV6 {
    /// As for IPv4.
    pub flow: Flow,
    /// As for IPv4.
    pub back: Back,
    /// Reverse: the VIP's address.
    pub addr: Addr,
}
layout!(FlowV6, 56);
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_its_octets_in_order() {
        let octets = core::array::from_fn(|at| at as u8);
        assert_eq!(Addr::from_octets(octets).octets(), octets);
        assert!(!Addr::from_octets(octets).is_v4());
        let mapped = Addr::v4(u32::from_ne_bytes([192, 0, 2, 1]));
        assert!(mapped.is_v4());
        assert_eq!(
            mapped.octets(),
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1]
        );
    }
}
