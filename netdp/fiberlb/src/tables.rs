//! The program's tables, as whoever feeds them sees them.
//!
//! [`Tables`] is what can be written; the kernel's are in [`crate::kernel`], and tests have their own.
//! [`Mirror`] is what is known to be in them. It is read back once, when the tables are taken over, and
//! changes with each write that succeeded; so a write that failed, or a process that died between two
//! writes, leaves a mirror that is true, and the next state is reached from there.

use std::collections::{BTreeMap, BTreeSet};

use fiberlb_abi::{
    Addr, PrefixKey, PrefixVip, QuicKey, Real, RingLine, SourceKey, Vip, VipKey, vip_flags,
};

use crate::desired::{Algorithm, RingSize};
use crate::error::Result;
use crate::maglev::Entry;

/// What can be written.
pub trait Tables {
    /// A ring that no VIP uses yet.
    type Ring;

    /// Writes a backend.
    fn set_real(&mut self, id: u16, real: &Real) -> Result<()>;
    /// Makes an empty ring.
    fn new_ring(&mut self, lines: u32) -> Result<Self::Ring>;
    /// Writes a part of a ring, from line `at` on.
    fn write_ring(&mut self, ring: &mut Self::Ring, at: u32, lines: &[RingLine]);
    /// Begins to give a VIP another ring, between two packets. The old one goes with its last reader.
    fn swap_ring(&mut self, slot: u16, ring: Self::Ring) -> Result<()>;
    /// Whether the ring that was given last is there.
    ///
    /// # Errors
    ///
    /// That of the swap, once.
    fn swapped(&mut self) -> Result<bool> {
        Ok(true)
    }
    /// Blocks until [`Tables::swapped`] has an answer that stays.
    fn wait_for_swap(&mut self) {}
    /// Writes a VIP.
    fn set_vip(&mut self, slot: u16, vip: &Vip) -> Result<()>;
    /// Leads an address to a VIP, or nowhere.
    fn set_key(&mut self, key: &VipKey, slot: Option<u16>) -> Result<()>;
    /// Leads a prefix to a VIP, or nowhere.
    fn set_prefix(&mut self, key: &PrefixAt, vip: Option<PrefixVip>) -> Result<()>;
    /// Sets or removes a rule for sources.
    fn set_source(&mut self, key: &SourceAt, action: Option<u32>) -> Result<()>;
    /// Leads a server's identifier to a backend, or nowhere.
    fn set_quic(&mut self, key: &QuicKey, id: Option<u16>) -> Result<()>;
}

/// A prefix of VIPs: its key, and its length in bits without the protocol's.
pub type PrefixAt = (PrefixKey, u32);
/// A prefix of sources: its key, and its length in bits without the slot's.
pub type SourceAt = (SourceKey, u32);

/// What a VIP's ring was made of.
#[derive(Clone, PartialEq, Debug)]
pub struct RingSpec {
    /// How slots are chosen.
    pub algorithm: Algorithm,
    /// How many there are, for hashes.
    pub size: RingSize,
    /// The backends that it holds.
    pub entries: Vec<Entry>,
}

/// A backend's name within the tables: the slot of its VIP, its address, its port.
pub type RealName = (u32, Addr, u16);

/// What is in the tables.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Mirror {
    /// By slot; also those that are no longer live, for their epochs.
    pub vips: BTreeMap<u16, Vip>,
    /// By identifier; also those that are free, for their generations.
    pub reals: BTreeMap<u16, Real>,
    /// See [`Tables::set_key`].
    pub keys: BTreeMap<VipKey, u16>,
    /// See [`Tables::set_prefix`].
    pub prefixes: BTreeMap<PrefixAt, PrefixVip>,
    /// See [`Tables::set_source`].
    pub sources: BTreeMap<SourceAt, u32>,
    /// See [`Tables::set_quic`].
    pub quic: BTreeMap<QuicKey, u16>,
    /// By slot; a ring that was taken over from another process is not here, and is made again.
    pub rings: BTreeMap<u16, RingSpec>,
    /// Backends in use, by name.
    pub names: BTreeMap<RealName, u16>,
}

impl Mirror {
    /// Finishes a mirror that was read back.
    pub(crate) fn index(&mut self) {
        self.names = self
            .reals
            .iter()
            .filter(|(_, real)| is_used(real))
            .map(|(id, real)| (name(real), *id))
            .collect();
    }

    pub(crate) fn set_real(&mut self, id: u16, real: Real) {
        if let Some(old) = self.reals.insert(id, real)
            && is_used(&old)
            && self.names.get(&name(&old)) == Some(&id)
        {
            self.names.remove(&name(&old));
        }
        if is_used(&real) {
            self.names.insert(name(&real), id);
        }
    }

    /// Whether a slot is a VIP's.
    pub(crate) fn is_live(&self, slot: u16) -> bool {
        self.vips
            .get(&slot)
            .is_some_and(|vip| vip.flags & vip_flags::LIVE != 0)
    }

    /// Slots that something leads to, or that are live.
    pub(crate) fn slots(&self) -> BTreeSet<u16> {
        let live = self.vips.keys().copied().filter(|slot| self.is_live(*slot));
        let keys = self.keys.values().copied();
        let prefixes = self.prefixes.values().map(|vip| vip.slot);
        live.chain(keys).chain(prefixes).collect()
    }

    /// Rules for the sources of a VIP.
    pub(crate) fn sources_of(&self, slot: u16) -> BTreeMap<SourceAt, u32> {
        let first = SourceKey {
            slot: u32::from(slot),
            addr: Addr::default(),
        };
        self.sources
            .range((first, 0)..)
            .take_while(|((key, _), _)| key.slot == u32::from(slot))
            .map(|(at, action)| (*at, *action))
            .collect()
    }

    /// Servers' identifiers of a VIP.
    pub(crate) fn quic_of(&self, slot: u16) -> BTreeMap<QuicKey, u16> {
        let first = QuicKey { slot, server: 0 };
        self.quic
            .range(first..)
            .take_while(|(key, _)| key.slot == slot)
            .map(|(key, id)| (*key, *id))
            .collect()
    }
}

/// Whether an entry is a backend's; a free one keeps its generation alone.
pub(crate) fn is_used(real: &Real) -> bool {
    real.addr != Addr::default()
}

pub(crate) fn name(real: &Real) -> RealName {
    (real.vip, real.addr, real.port)
}

/// The same for the same address and port on every machine and in every process: FNV-1a.
pub(crate) fn stable_name(real: &Real) -> u64 {
    let port = real.port.to_ne_bytes();
    let bytes = real.addr.octets().into_iter().chain(port);
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
