//! What FiberLB's XDP program and its loader share: keys and values of the maps, events, hashes.
//!
//! Invariants:
//! - Every type is `repr(C)`, has no hidden padding (checked at compile time) and holds plain integers,
//!   so that any bytes are a valid value and the kernel may compare keys byte by byte.
//! - Addresses, ports and MAC addresses stay in network order, as the packet has them. An address is 16
//!   bytes; IPv4 is mapped (`::ffff:a.b.c.d`).
//! - Pinned maps outlive the process: a change of a layout here needs a new [`LAYOUT`], and a loader
//!   that finds another one refuses to take the maps over.
//!
//! The program is compiled apart from the workspace; nothing here allocates or needs `std`.
#![no_std]

mod event;
mod flow;
mod gate;
mod hash;
mod limit;
mod line;
mod real;
mod stats;
mod vip;

pub use event::{Event, event_kind};
pub use flow::{Addr, Back, Flow, FlowKey, FlowV6, flow_kind, flow_state};
pub use gate::{
    AnswerRules, Gate, PROVED_MAX, cookie, cookie_period, is_cookie, is_proved, proved_as,
    proved_tick,
};
pub use hash::{hash_flow, hash_source, hash_three, slot_of};
pub use limit::{Bucket, Config};
pub use line::{FlowKeyV4, Hashes, LOCKS_MAX, Line, NO_HOME, Shape, WAYS};
pub use real::{Hop, Real, real_flags};
pub use stats::{AnswerStats, RealStats, VipStats};
pub use vip::{
    PrefixKey, PrefixVip, QuicKey, RingLine, SourceKey, Vip, VipKey, algorithm, mode,
    source_action, vip_flags,
};

/// The version of all layouts here; it stands in [`Config::layout`].
pub const LAYOUT: u32 = 2;

/// Slots for VIPs: entries of `vips`, of `rings` and of their counters.
pub const VIPS_MAX: u32 = 4096;
/// Entries of `reals`; the identifier 0 means no backend.
pub const REALS_MAX: u32 = 16_384;
/// How many entries are kept by default of IPv4's and of IPv6's flows; the loader may choose otherwise.
pub const FLOWS_MAX: u32 = 1 << 20;
/// Lines for each entry of IPv4's flows, so that hardly a bucket is full before the table is.
pub const LINES_PER_FLOW: u32 = 2;
/// Lines that are in use at first.
pub const LINES_MIN: u32 = 4096;
/// Slots of a large ring and of a small one: primes, as Maglev wants.
pub const RING_LARGE: u32 = 65_537;
/// See [`RING_LARGE`].
pub const RING_SMALL: u32 = 4093;
/// Slots in one entry of a ring's map. The kernel rounds an entry to 8 bytes.
pub const RING_LINE: u32 = 4;
/// Most backends of a VIP whose algorithm looks at each of them.
pub const SCAN_MAX: u32 = 64;

/// Names of the maps, as the object has them.
pub mod map {
    /// [`crate::VipKey`] -> slot of the VIP.
    pub const VIP_SLOTS: &str = "vip_slots";
    /// [`crate::PrefixKey`] -> [`crate::PrefixVip`], longest prefix first.
    pub const VIP_PREFIXES: &str = "vip_prefixes";
    /// Slot -> [`crate::Vip`].
    pub const VIPS: &str = "vips";
    /// Slot -> map of [`crate::RingLine`].
    pub const RINGS: &str = "rings";
    /// Identifier -> [`crate::Real`].
    pub const REALS: &str = "reals";
    /// Identifier -> flows that are open; atomic.
    pub const ACTIVE: &str = "active";
    /// Number -> [`crate::Line`]: flows of IPv4.
    pub const FLOWS_V4: &str = "flows_v4";
    /// One [`crate::Shape`] of `flows_v4`.
    pub const SHAPE: &str = "shape";
    /// One lock of some buckets of `flows_v4`; the last is the shape's.
    pub const LOCKS: &str = "locks";
    /// [`crate::FlowKey`] -> [`crate::FlowV6`].
    pub const FLOWS_V6: &str = "flows_v6";
    /// [`crate::SourceKey`] -> allow or deny.
    pub const SOURCES: &str = "sources";
    /// [`crate::QuicKey`] -> identifier of the backend.
    pub const QUIC_IDS: &str = "quic_ids";
    /// One [`crate::Config`].
    pub const CONFIG: &str = "config";
    /// One [`crate::Bucket`] a CPU.
    pub const INSERTS: &str = "inserts";
    /// One [`crate::Bucket`] a CPU: the share of sources that proved themselves.
    pub const PROVED_INSERTS: &str = "proved_inserts";
    /// One [`crate::AnswerRules`].
    pub const ANSWER_RULES: &str = "answer_rules";
    /// One [`crate::Bucket`] a CPU: senders that may be told that a packet was too big.
    pub const TELLINGS: &str = "tellings";
    /// Slot -> [`crate::Gate`], a CPU.
    pub const GATES: &str = "gates";
    /// Source as [`crate::proved_as`] has it -> when it proved itself.
    pub const PROVED: &str = "proved";
    /// Slot -> next turn of weighted round robin, a CPU.
    pub const TURNS: &str = "turns";
    /// Slot -> [`crate::VipStats`], a CPU.
    pub const VIP_STATS: &str = "vip_stats";
    /// Slot -> [`crate::AnswerStats`], a CPU.
    pub const ANSWER_STATS: &str = "answer_stats";
    /// Identifier -> [`crate::RealStats`], a CPU.
    pub const REAL_STATS: &str = "real_stats";
    /// [`crate::Event`]s.
    pub const EVENTS: &str = "events";
    /// Addresses whose tunnels this machine ends.
    pub const TUNNEL_ENDS: &str = "tunnel_ends";
    /// How many flows a measurement walks over.
    pub const WALK: &str = ".data.walk";
    /// The interface by which a measurement sends.
    pub const SEND_BY: &str = "send_by";
    /// Packets that a measurement received, a CPU.
    pub const RECEIVED: &str = "received";
}

/// Names of the programs, as the object has them.
pub mod program {
    /// The load balancer.
    pub const BALANCE: &str = "fiberlb";
    /// The load balancer, for traffic control.
    pub const BALANCE_TC: &str = "fiberlb_tc";
    /// The other end of its tunnels, on a backend.
    pub const DECAPSULATE: &str = "fiberlb_decap";
    /// Measures the load balancer.
    pub const MEASURE_WALK: &str = "measure_walk";
    /// Measures what the measurement itself costs.
    pub const MEASURE_REFILL: &str = "measure_refill";
    /// Sends packets of many flows.
    pub const MEASURE_SEND: &str = "measure_send";
    /// Counts packets and drops them.
    pub const MEASURE_RECEIVE: &str = "measure_receive";
}

/// Asserts a size, and with it that fields leave no hole: the sum of their sizes is given.
macro_rules! layout {
    ($type:ty, $size:expr) => {
        const _: () = assert!(core::mem::size_of::<$type>() == $size);
        #[cfg(feature = "user")]
        // SAFETY: repr(C) with integers only and, as its size is the sum of its fields', no padding;
        // any bytes are a valid value.
        unsafe impl aya::Pod for $type {}
    };
}
pub(crate) use layout;
