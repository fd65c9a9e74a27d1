//! VIPs: how one is found, and how it balances.

use crate::{Addr, layout};

/// A VIP by its address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(C)]
pub struct VipKey {
    /// Address.
    pub addr: Addr,
    /// Port in network order. 0 is the entry that fragments use, as they have none.
    pub port: u16,
    /// IP protocol number.
    pub proto: u16,
}
layout!(VipKey, 20);

/// What a prefix of VIPs is looked up by; the kernel's key has the length in bits before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(C)]
pub struct PrefixKey {
    /// IP protocol number: always a part of the prefix.
    pub proto: u32,
    /// Address.
    pub addr: Addr,
}
layout!(PrefixKey, 20);

/// What a prefix leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct PrefixVip {
    /// Slot of the VIP.
    pub slot: u16,
    /// The only port in network order, or 0 for every port.
    pub port: u16,
}
layout!(PrefixVip, 4);

/// Who may reach a VIP; the kernel's key has the length in bits before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(C)]
pub struct SourceKey {
    /// Slot of the VIP: always a part of the prefix.
    pub slot: u32,
    /// Source address.
    pub addr: Addr,
}
layout!(SourceKey, 20);

/// Values of `sources`.
pub mod source_action {
    /// Let in.
    pub const ALLOW: u32 = 1;
    /// Dropped.
    pub const DENY: u32 = 2;
}

/// A server identifier of QUIC-LB's plaintext form, within a VIP.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(C)]
pub struct QuicKey {
    /// Slot of the VIP.
    pub slot: u16,
    /// The second and third byte of the connection identifier.
    pub server: u16,
}
layout!(QuicKey, 4);

/// Four slots of a ring: identifiers of backends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct RingLine {
    /// Identifiers.
    pub reals: [u16; 4],
}
layout!(RingLine, 8);

/// How a backend is chosen for a new flow.
pub mod algorithm {
    /// The ring's slot by the hash of both addresses, both ports and the protocol.
    pub const FIVE_TUPLE: u8 = 1;
    /// By the hash of both addresses and the protocol.
    pub const THREE_TUPLE: u8 = 2;
    /// By the hash of the source address.
    pub const SOURCE: u8 = 3;
    /// The ring's slots in turn, on each CPU.
    pub const ROUND_ROBIN: u8 = 4;
    /// Two slots of the ring at random; the one with less load.
    pub const RANDOM_OF_TWO: u8 = 5;
    /// The one with the least load of the ring's first [`crate::SCAN_MAX`] slots.
    pub const LEAST_FLOWS: u8 = 6;
}

/// How packets reach a backend.
pub mod mode {
    /// New destination address and port; replies come back through here.
    pub const DNAT: u8 = 1;
    /// New MAC addresses only; replies go straight to the client.
    pub const DIRECT: u8 = 2;
    /// IP in IP.
    pub const IPIP: u8 = 3;
    /// IP in UDP, as variant 1 of GUE has it.
    pub const GUE: u8 = 4;
}

/// Flags of [`Vip`].
pub mod vip_flags {
    /// The slot is in use.
    pub const LIVE: u16 = 1;
    /// `sources` has entries for it.
    pub const SOURCES: u16 = 2;
    /// A source that no entry names is dropped.
    pub const DENY_OTHERS: u16 = 4;
    /// UDP packets are QUIC: connection identifiers lead to backends.
    pub const QUIC: u16 = 8;
    /// Flows are not remembered: the ring decides for every packet.
    pub const NO_FLOWS: u16 = 16;
    /// Fragments are dropped.
    pub const DROP_FRAGMENTS: u16 = 32;
    /// Replies come in fragments too: a reverse entry without ports is kept.
    pub const FRAGMENTS: u16 = 64;
    /// Sources of new flows of TCP have to prove themselves while there are too many.
    pub const COOKIES_AUTO: u16 = 128;
    /// They always have to.
    pub const COOKIES_ALWAYS: u16 = 256;
}

/// What a VIP does with packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Vip {
    /// [`vip_flags`].
    pub flags: u16,
    /// Changes with the rules for sources: every flow is checked again, once.
    pub epoch: u16,
    /// [`algorithm`].
    pub algorithm: u8,
    /// [`mode`].
    pub mode: u8,
    /// Zero.
    pub reserved: u16,
    /// Slots of its ring in use; at least 1.
    pub ring_len: u32,
    /// The generation of the state that wrote this, for whoever reads it back.
    pub generation: u32,
}
layout!(Vip, 16);
