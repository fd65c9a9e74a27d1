//! Counters; one copy a CPU, summed by who reads them.

use crate::layout;

/// Of a VIP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct VipStats {
    /// Packets that were sent to a backend.
    pub packets: u64,
    /// Their bytes, as they came.
    pub bytes: u64,
    /// Flows that were begun.
    pub flows: u64,
    /// Packets dropped for their source.
    pub refused: u64,
    /// New flows that were not remembered, for the limit or for want of memory.
    pub uncached: u64,
    /// Packets dropped because there was no live backend.
    pub no_backend: u64,
    /// Packets dropped otherwise: a fragment by policy, no hops left, too large, no way to the backend.
    pub dropped: u64,
    /// Replies that were sent back to clients.
    pub replies: u64,
}
layout!(VipStats, 64);

/// Of a VIP: what the program answered itself, apart from what each packet counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct AnswerStats {
    /// SYNs that were answered with a cookie.
    pub cookies_sent: u64,
    /// Sources that proved themselves by one.
    pub cookies_proved: u64,
    /// Resets of no known flow, while cookies were asked for, that had none, an old one or a wrong one.
    pub cookies_wrong: u64,
    /// Packets too big for the way to the backend whose sender was told.
    pub too_big_told: u64,
    /// Packets too big whose sender was not told, as they may be fragmented or too many were told before.
    pub too_big_dropped: u64,
}
layout!(AnswerStats, 40);

/// Of a backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct RealStats {
    /// Packets that were sent to it.
    pub packets: u64,
    /// Their bytes, as they came.
    pub bytes: u64,
    /// Flows that were begun.
    pub flows: u64,
}
layout!(RealStats, 24);
