//! QUIC by connection identifier: a connection keeps its backend when its client's address changes.
//!
//! Identifiers are made by backends in the plaintext form of QUIC-LB (draft-ietf-quic-load-balancers):
//! the first byte's upper three bits are the configuration, of which 7 says that no server is named,
//! and the next two bytes name the server. Initial and 0-RTT packets carry an identifier of the client's
//! own making; they go where their addresses lead.

use fiberlb_abi::QuicKey;

use super::frame::Frame;
use super::packet::Packet;
use super::{wire, wire::UDP};
use crate::{choose, maps::*};

/// Long header's form bit.
const LONG: u8 = 0x80;
/// Bits of a long header's type; the two types below are the ones without the server's identifier.
const KIND: u8 = 0x30;
const INITIAL: u8 = 0x00;
const ZERO_RTT: u8 = 0x10;
/// Shortest identifier that names a server.
const NAMED: u8 = 3;

#[repr(C)]
struct Long {
    first: u8,
    version: [u8; 4],
    id_len: u8,
    id: [u8; 3],
}

#[repr(C)]
struct Short {
    first: u8,
    id: [u8; 3],
}

/// The live backend that a packet's connection identifier names.
#[inline(always)]
pub fn backend(ctx: &Frame, packet: &Packet, slot: u32) -> Option<u32> {
    if !packet.is_udp() || packet.fragment {
        return None;
    }
    let payload = packet.l4 + UDP;
    let short = wire::at::<Short>(ctx, payload)?;
    let id = if short.first & LONG == 0 {
        short.id
    } else {
        let long = wire::at::<Long>(ctx, payload)?;
        if matches!(long.first & KIND, INITIAL | ZERO_RTT) || long.id_len < NAMED {
            return None;
        }
        long.id
    };
    if id[0] >> 5 == 7 {
        return None;
    }
    let key = QuicKey {
        slot: slot as u16,
        server: u16::from_ne_bytes([id[1], id[2]]),
    };
    // SAFETY: an identifier is one word, and is copied at once.
    let id = *unsafe { QUIC_IDS.get(&key) }?;
    choose::live(id)?;
    Some(id)
}
