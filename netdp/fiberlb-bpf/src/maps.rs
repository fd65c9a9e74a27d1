//! The maps. Their names are those of `fiberlb_abi::map`; the loader may change sizes.

use aya_ebpf::bindings::{BPF_F_INNER_MAP, BPF_F_MMAPABLE, BPF_F_NO_COMMON_LRU};
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use fiberlb_abi::{
    Addr, AnswerRules, AnswerStats, Bucket, Config, FlowKey, FlowV6, Gate, LINES_PER_FLOW,
    LOCKS_MAX, Line, PrefixKey, PrefixVip, QuicKey, Real, RealStats, RingLine, Shape, SourceKey,
    Vip, VipKey, VipStats,
};

const VIPS: usize = fiberlb_abi::VIPS_MAX as usize;
const REALS: usize = fiberlb_abi::REALS_MAX as usize;
const FLOWS: usize = fiberlb_abi::FLOWS_MAX as usize;
const LINES: usize = FLOWS * LINES_PER_FLOW as usize;
const PROVED_LEN: usize = fiberlb_abi::PROVED_MAX as usize;
const LOCKS_LEN: usize = LOCKS_MAX as usize + 1;

/// Rings differ in length, and user space fills them through its own mapping.
const RING_FLAGS: usize = (BPF_F_MMAPABLE | BPF_F_INNER_MAP) as usize;
/// One table, so that a flow is found on whichever CPU its packet comes; lists of what was used least
/// recently and free entries a CPU, so that CPUs do not wait for each other.
const FLOW_FLAGS: usize = BPF_F_NO_COMMON_LRU as usize;
/// User space reads and removes flows, and takes them from the counts, with atomic operations of its own.
const SHARED: usize = BPF_F_MMAPABLE as usize;

type Ring = Array<RingLine, 1, RING_FLAGS>;

#[btf_map(name = "vip_slots")]
pub static VIP_SLOTS: HashMap<VipKey, u32, { 2 * VIPS }> = HashMap::new();
#[btf_map(name = "vip_prefixes")]
pub static VIP_PREFIXES: LpmTrie<PrefixKey, PrefixVip, VIPS> = LpmTrie::new();
#[btf_map(name = "vips")]
pub static VIPS_BY_SLOT: Array<Vip, VIPS> = Array::new();
#[btf_map(name = "rings")]
pub static RINGS: ArrayOfMaps<Ring, VIPS> = ArrayOfMaps::new();
/// Shared so that it begins at a page: an entry then is one cache line.
#[btf_map(name = "reals")]
pub static REALS_BY_ID: Array<Real, REALS, SHARED> = Array::new();
#[btf_map(name = "active")]
pub static ACTIVE: Array<u64, REALS, SHARED> = Array::new();
#[btf_map(name = "flows_v4")]
pub static FLOWS_V4: Array<Line, LINES, SHARED> = Array::new();
#[btf_map(name = "shape")]
pub static SHAPE: Array<Shape, 1, SHARED> = Array::new();
#[btf_map(name = "locks")]
pub static LOCKS: Array<u64, LOCKS_LEN> = Array::new();
#[btf_map(name = "flows_v6")]
pub static FLOWS_V6: LruHashMap<FlowKey, FlowV6, FLOWS, FLOW_FLAGS> = LruHashMap::new();
#[btf_map(name = "sources")]
pub static SOURCES: LpmTrie<SourceKey, u32, 65_536> = LpmTrie::new();
#[btf_map(name = "quic_ids")]
pub static QUIC_IDS: HashMap<QuicKey, u32, { 2 * REALS }> = HashMap::new();
#[btf_map(name = "config")]
pub static CONFIG: Array<Config, 1> = Array::new();
#[btf_map(name = "inserts")]
pub static INSERTS: PerCpuArray<Bucket, 1> = PerCpuArray::new();
#[btf_map(name = "proved_inserts")]
pub static PROVED_INSERTS: PerCpuArray<Bucket, 1> = PerCpuArray::new();
#[btf_map(name = "answer_rules")]
pub static ANSWER_RULES: Array<AnswerRules, 1> = Array::new();
#[btf_map(name = "tellings")]
pub static TELLINGS: PerCpuArray<Bucket, 1> = PerCpuArray::new();
#[btf_map(name = "gates")]
pub static GATES: PerCpuArray<Gate, VIPS> = PerCpuArray::new();
#[btf_map(name = "proved")]
pub static PROVED: LruHashMap<Addr, u32, PROVED_LEN> = LruHashMap::new();
#[btf_map(name = "answer_stats")]
pub static ANSWER_STATS: PerCpuArray<AnswerStats, VIPS> = PerCpuArray::new();
#[btf_map(name = "turns")]
pub static TURNS: PerCpuArray<u32, VIPS> = PerCpuArray::new();
#[btf_map(name = "vip_stats")]
pub static VIP_STATS: PerCpuArray<VipStats, VIPS> = PerCpuArray::new();
#[btf_map(name = "real_stats")]
pub static REAL_STATS: PerCpuArray<RealStats, REALS> = PerCpuArray::new();
#[btf_map(name = "events")]
pub static EVENTS: RingBuf<(), 262_144> = RingBuf::new();
#[btf_map(name = "tunnel_ends")]
pub static TUNNEL_ENDS: HashMap<Addr, u32, 64> = HashMap::new();

/// Where entries of the flow table are composed.
#[repr(C)]
pub struct Scratch {
    pub key: FlowKey,
    pub value: FlowV6,
}

#[btf_map(name = "scratch")]
pub static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// What the rules of a VIP said of a source.
#[repr(C)]
pub struct Known {
    pub addr: Addr,
    pub slot: u16,
    /// [`Vip::epoch`] at which it was said: other rules have another one.
    pub epoch: u16,
    /// 0 for an entry that was never written.
    pub said: u32,
}

/// Sources that were looked up lately: the longest prefix costs as much as the rest of a packet.
pub const KNOWN_MAX: u32 = 2048;
#[btf_map(name = "known_sources")]
pub static KNOWN_SOURCES: PerCpuArray<Known, { KNOWN_MAX as usize }> = PerCpuArray::new();

/// What leads to which VIP.
#[repr(C)]
pub struct KnownVip {
    /// Address below port below protocol.
    pub to: u64,
    /// [`fiberlb_abi::Shape::vips`] at which it led there.
    pub version: u32,
    pub slot: u32,
}

/// Addresses of IPv4 that were looked up lately, also those that lead nowhere: a hash of the kernel's takes the
/// whole key, and a call.
pub const KNOWN_VIPS_MAX: u32 = 1024;
#[btf_map(name = "known_vips")]
pub static KNOWN_VIPS: PerCpuArray<KnownVip, { KNOWN_VIPS_MAX as usize }> = PerCpuArray::new();

/// Counts something of a VIP on this CPU.
#[inline(always)]
pub fn count_vip(slot: u32, add: impl FnOnce(&mut VipStats)) {
    if let Some(stats) = VIP_STATS.get_ptr_mut(slot) {
        // SAFETY: the entry is this CPU's, and programs on a CPU do not interrupt each other.
        add(unsafe { &mut *stats });
    }
}

/// Counts something of a backend on this CPU.
#[inline(always)]
pub fn count_real(id: u32, add: impl FnOnce(&mut RealStats)) {
    if let Some(stats) = REAL_STATS.get_ptr_mut(id) {
        // SAFETY: as above.
        add(unsafe { &mut *stats });
    }
}
