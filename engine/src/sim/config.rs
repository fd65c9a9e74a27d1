//! What a simulated world does by chance: latencies and fault rates. Every fault is off by
//! default; a rate `x_one_in` of 0 means never. Ranges are in nanoseconds, their end excluded.

use std::ops::Range;

/// Rates and ranges of one simulation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimConfig {
    /// What polling a task once costs its shard.
    pub poll_ns: Range<u64>,
    /// From submitting an op that does not wait (close, shut down, arm a receive) to its effect.
    pub call_ns: Range<u64>,
    /// What direct reads and writes must be a multiple of, in place and length: the disk's sectors.
    pub direct_align: u64,
    /// Latency of a read.
    pub disk_read_ns: Range<u64>,
    /// Latency of a write, an allocation or a discard.
    pub disk_write_ns: Range<u64>,
    /// Latency of a sync of a file or directory.
    pub disk_sync_ns: Range<u64>,
    /// Latency of a name-space request.
    pub name_ns: Range<u64>,
    /// One-way delay between two nodes, drawn for each segment and datagram.
    pub link_ns: Range<u64>,
    /// One-way delay inside a node.
    pub loopback_ns: Range<u64>,
    /// Reads that answer EIO.
    pub read_fails_one_in: u64,
    /// Writes that answer EIO, some of their sectors written.
    pub write_fails_one_in: u64,
    /// Writes that write a prefix only, and say so.
    pub short_writes_one_in: u64,
    /// Syncs that answer EIO; what they should have made durable may be lost.
    pub sync_fails_one_in: u64,
    /// Stream sends that stop after a prefix and say so, on a connection that lives.
    pub short_sends_one_in: u64,
    /// Sealings of pages that answer ENOMEM.
    pub page_seals_fail_one_in: u64,
    /// Datagrams between nodes that are dropped.
    pub datagram_drops_one_in: u64,
    /// Datagrams between nodes that arrive twice.
    pub datagram_duplicates_one_in: u64,
    /// Datagrams between nodes that arrive up to ten delays late, so behind later ones.
    pub datagram_reorders_one_in: u64,
    /// Steps of the world after which [`super::Sim::run`] gives up.
    pub steps_max: u64,
}

impl Default for SimConfig {
    fn default() -> SimConfig {
        SimConfig {
            poll_ns: 200..2_000,
            call_ns: 200..3_000,
            direct_align: 4096,
            disk_read_ns: 40_000..200_000,
            disk_write_ns: 20_000..150_000,
            disk_sync_ns: 80_000..1_500_000,
            name_ns: 20_000..200_000,
            link_ns: 50_000..500_000,
            loopback_ns: 5_000..20_000,
            read_fails_one_in: 0,
            write_fails_one_in: 0,
            short_writes_one_in: 0,
            sync_fails_one_in: 0,
            short_sends_one_in: 0,
            page_seals_fail_one_in: 0,
            datagram_drops_one_in: 0,
            datagram_duplicates_one_in: 0,
            datagram_reorders_one_in: 0,
            steps_max: 50_000_000,
        }
    }
}
