//! Which VIP a packet is for, whether its source may reach it, and which backend a new flow gets.

use core::arch::asm;
use core::ffi::c_void;

use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_loop};
use fiberlb_abi::{
    FlowKey, PrefixKey, Real, SCAN_MAX, SourceKey, Vip, VipKey, algorithm, hash_flow, hash_source,
    hash_three, real_flags, slot_of, source_action, vip_flags,
};

use crate::{maps::*, table};

/// The slot of the VIP that a key leads to.
#[inline(always)]
pub fn vip_slot(key: &FlowKey) -> Option<u32> {
    match look_up(key) {
        NO_VIP => None,
        slot => Some(slot),
    }
}

/// The slot of no VIP.
pub const NO_VIP: u32 = u32::MAX;

/// The entry of [`KNOWN_VIPS`] for what a packet of IPv4 is sent to, and what it has in it then.
#[inline(always)]
fn known_at(key: &FlowKey) -> (Option<*mut KnownVip>, u64) {
    let to = u64::from(key.dst.words[3])
        | (u64::from(key.dport) << 32)
        | (u64::from(key.proto as u16) << 48);
    let at = (to.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as u32 % KNOWN_VIPS_MAX;
    (KNOWN_VIPS.get_ptr_mut(at), to)
}

/// As [`vip_slot`] for IPv4, as this CPU knows it of the same version of what leads to VIPs.
#[inline(always)]
pub fn known_vip(key: &FlowKey, version: u32) -> Option<u32> {
    let (known, to) = known_at(key);
    // SAFETY: the entry is this CPU's, and programs on a CPU do not interrupt each other.
    let known = unsafe { &*known? };
    (known.to == to && known.version == version).then_some(known.slot)
}

/// Apart, so that its keys share the stack with others'; a function of BPF gives back a word.
#[inline(never)]
fn look_up(key: &FlowKey) -> u32 {
    // From before, so that an answer that was the old one already is not taken for the new one's.
    let version = table::vips_version();
    let v4 = key.dst.is_v4();
    if v4 && let Some(slot) = known_vip(key, version) {
        return slot;
    }
    let slot = try_look_up(key).unwrap_or(NO_VIP);
    if v4 && let (Some(known), to) = known_at(key) {
        // SAFETY: as in `known_vip`.
        unsafe { *known = KnownVip { to, version, slot } };
    }
    slot
}

#[inline(always)]
fn try_look_up(key: &FlowKey) -> Option<u32> {
    let exact = VipKey {
        addr: key.dst,
        port: key.dport,
        proto: key.proto as u16,
    };
    // SAFETY: a slot is one word, and is copied at once.
    if let Some(slot) = unsafe { VIP_SLOTS.get(&exact) } {
        return Some(*slot);
    }
    let prefix = PrefixKey {
        proto: key.proto,
        addr: key.dst,
    };
    let found = VIP_PREFIXES.get(&Key::new(160, prefix))?;
    if found.port != 0 && found.port != key.dport {
        return None;
    }
    Some(u32::from(found.slot))
}

#[inline(always)]
fn known_source_at(slot: u32, key: &FlowKey) -> Option<&'static mut Known> {
    let at = key.src.words[2] ^ key.src.words[3] ^ slot;
    let at = at.wrapping_mul(0x9E37_79B1) >> 16;
    let known = KNOWN_SOURCES.get_ptr_mut(at % KNOWN_MAX)?;
    // SAFETY: the entry is this CPU's, and programs on a CPU do not interrupt each other.
    Some(unsafe { &mut *known })
}

/// What an entry says of a source; 0 for nothing.
#[inline(always)]
fn said(known: &Known, slot: u32, vip: &Vip, key: &FlowKey) -> u32 {
    if known.addr == key.src && u32::from(known.slot) == slot && known.epoch == vip.epoch {
        known.said
    } else {
        0
    }
}

/// What this CPU knows of a source of a VIP that has rules; 0 for nothing.
#[inline(always)]
pub fn known_source(slot: u32, vip: &Vip, key: &FlowKey) -> Option<u32> {
    known_source_at(slot, key).map(|known| said(known, slot, vip, key))
}

/// Whether a VIP's rules let a source in.
#[inline(never)]
pub fn source_allowed(slot: u32, vip: &Vip, key: &FlowKey) -> bool {
    let others = vip.flags & vip_flags::DENY_OTHERS == 0;
    if vip.flags & vip_flags::SOURCES == 0 {
        return others;
    }
    let Some(known) = known_source_at(slot, key) else {
        return false;
    };
    match said(known, slot, vip, key) {
        0 => {}
        said => return said == source_action::ALLOW,
    }
    let source = SourceKey {
        slot,
        addr: key.src,
    };
    let allowed = match SOURCES.get(&Key::new(160, source)) {
        Some(action) => *action == source_action::ALLOW,
        None => others,
    };
    (known.addr, known.slot, known.epoch) = (key.src, slot as u16, vip.epoch);
    known.said = if allowed {
        source_action::ALLOW
    } else {
        source_action::DENY
    };
    allowed
}

/// `None`, from a branch that stays one. The compiler makes arithmetic of a pointer that is there or not
/// by a condition, which the verifier refuses; it does not when the branch seems to do something.
#[inline(always)]
pub fn stay_a_branch<T>() -> Option<T> {
    // SAFETY: there is no instruction.
    unsafe { asm!("") };
    None
}

/// A backend by its identifier, when it takes packets.
#[inline(always)]
pub fn live(id: u32) -> Option<&'static Real> {
    let real = REALS_BY_ID.get(id)?;
    if real.flags & real_flags::ALIVE == 0 {
        return stay_a_branch();
    }
    Some(real)
}

/// The backend in a slot of a VIP's ring; 0 where there is none.
#[inline(always)]
fn ring_at(vip_slot: u32, at: u32) -> u32 {
    let Some(ring) = RINGS.get(vip_slot) else {
        return 0;
    };
    let Some(line) = ring.get(at / 4) else {
        return 0;
    };
    // One load and a shift: an index into the line would be one more bound to prove.
    // SAFETY: a line is 8 bytes, and entries of arrays are aligned to as many.
    let line = unsafe { *core::ptr::from_ref(line).cast::<u64>() };
    (line >> (16 * (at % 4))) as u32 & 0xffff
}

/// The hash that a VIP's algorithm looks at.
#[inline(always)]
fn hash_for(algorithm: u8, key: &FlowKey) -> u32 {
    match algorithm {
        algorithm::THREE_TUPLE => hash_three(key),
        algorithm::SOURCE => hash_source(key),
        _ => hash_flow(key),
    }
}

/// The backend of a flow by hash alone, for packets that are not remembered; 0 when there is none.
#[inline(always)]
pub fn by_hash(slot: u32, vip: &Vip, key: &FlowKey, algorithm: u8) -> u32 {
    ring_at(slot, slot_of(hash_for(algorithm, key), vip.ring_len))
}

/// The backend of a new flow; 0 when there is none.
#[inline(always)]
pub fn backend(slot: u32, vip: &Vip, key: &FlowKey) -> u32 {
    match vip.algorithm {
        algorithm::ROUND_ROBIN => ring_at(slot, turn(slot, vip.ring_len)),
        algorithm::RANDOM_OF_TWO => {
            let one = ring_at(slot, random_slot(vip.ring_len));
            let two = ring_at(slot, random_slot(vip.ring_len));
            if load(two) < load(one) { two } else { one }
        }
        algorithm::LEAST_FLOWS => least(slot, vip.ring_len),
        other => by_hash(slot, vip, key, other),
    }
}

#[inline(always)]
fn random_slot(len: u32) -> u32 {
    // SAFETY: the helper has no preconditions.
    slot_of(unsafe { bpf_get_prandom_u32() }, len)
}

/// The next slot in turn on this CPU.
#[inline(always)]
fn turn(slot: u32, len: u32) -> u32 {
    let Some(next) = TURNS.get_ptr_mut(slot) else {
        return 0;
    };
    // SAFETY: the entry is this CPU's, and programs on a CPU do not interrupt each other.
    unsafe {
        let at = if *next < len { *next } else { 0 };
        *next = at + 1;
        at
    }
}

/// Open flows beside a backend's weight; the most for one that takes none.
#[inline(always)]
fn load(id: u32) -> u64 {
    let (Some(real), Some(active)) = (live(id), ACTIVE.get_ptr(id)) else {
        return u64::MAX;
    };
    // SAFETY: the entry of an array stays; a count that is a moment old is as good.
    let active = unsafe { core::ptr::read_volatile(active) };
    // Counts may be taken off before they are added: one below zero is none.
    let active = if active > u64::from(u32::MAX) {
        0
    } else {
        active
    };
    // Spread by 2^16 so that weights tell apart backends with few flows; a weight of 0 is a bug's.
    ((active + 1) << 16) / u64::from(real.weight.max(1))
}

/// A search for the least load among the slots of a ring.
struct Search {
    slot: u32,
    /// Where it begins: after this CPU's last one, so that equal loads take turns.
    start: u32,
    len: u32,
    best: u32,
    best_load: u64,
}

/// The backend with the least load. The kernel's own loop is verified once, not once a turn.
#[inline(always)]
fn least(slot: u32, len: u32) -> u32 {
    let len = len.min(SCAN_MAX);
    let mut search = Search {
        slot,
        start: turn(slot, len),
        len,
        best: 0,
        best_load: u64::MAX,
    };
    let look: unsafe extern "C" fn(u32, *mut Search) -> u64 = look;
    // SAFETY: the callback takes what is passed here, which outlives the call.
    unsafe {
        bpf_loop(
            len,
            look as *mut c_void,
            core::ptr::from_mut(&mut search).cast(),
            0,
        );
    }
    search.best
}

/// Looks at one slot; 0 goes on.
unsafe extern "C" fn look(step: u32, search: *mut Search) -> u64 {
    // SAFETY: `least` passes its own and does not touch it meanwhile.
    let search = unsafe { &mut *search };
    let at = search.start + step;
    let at = if at >= search.len {
        at - search.len
    } else {
        at
    };
    let id = ring_at(search.slot, at);
    let load = load(id);
    if load < search.best_load {
        (search.best, search.best_load) = (id, load);
    }
    0
}

/// Adds to the open flows of a backend.
#[inline(always)]
pub fn add_active(id: u32, by: i64) {
    if let Some(active) = ACTIVE.get_ptr_mut(id) {
        // SAFETY: the entry of an array stays, is aligned, and everybody changes it atomically. This is
        // the instruction of `fetch_add`, which `core` leaves out for targets without compare-and-swap.
        unsafe {
            asm!(
                "lock *(u64 *)({active} + 0) += {by}",
                active = in(reg) active,
                by = in(reg) by,
                options(nostack),
            );
        }
    }
}
