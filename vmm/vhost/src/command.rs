//! What a front end's messages ask of the shard, as types.

use std::os::fd::OwnedFd;

use crate::memory::RegionSpec;
use crate::ring::RingAddr;

/// One message. Those that the message layer answers by itself are not here.
#[derive(Debug)]
pub(crate) enum Command {
    Features,
    SetFeatures(u64),
    SetMemory(Vec<RegionSpec>),
    AddRegion(RegionSpec),
    RemoveRegion {
        guest: u64,
        user: u64,
        bytes: u64,
    },
    SetSize {
        queue: u32,
        size: u32,
    },
    SetAddr {
        queue: u32,
        addr: RingAddr,
    },
    SetBase {
        queue: u32,
        base: u32,
    },
    /// Stops the queue and answers how far it has come.
    TakeBase {
        queue: u32,
    },
    SetKick {
        queue: u32,
        event: Option<OwnedFd>,
    },
    SetCall {
        queue: u32,
        event: Option<OwnedFd>,
    },
    SetError {
        queue: u32,
        event: Option<OwnedFd>,
    },
    Enable {
        queue: u32,
        enable: bool,
    },
    Config {
        offset: u32,
        len: u32,
    },
    SetConfig {
        offset: u32,
        bytes: Vec<u8>,
    },
    SetInflight(SharedMemory, InflightShape),
    SetLog(SharedMemory),
    Status,
    SetStatus(u64),
    Reset,
}

/// A part of a file that the front end shares.
#[derive(Debug)]
pub(crate) struct SharedMemory {
    pub(crate) file: OwnedFd,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

/// For how many rings of what size marks of requests in progress are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InflightShape {
    pub(crate) queues: u16,
    pub(crate) size: u16,
}

/// What a message is answered.
#[derive(Debug)]
pub(crate) enum Answer {
    Done,
    Number(u64),
    Bytes(Vec<u8>),
}

/// Why a message was refused. The front end is told no more than that it was.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("queue {queue} of {queues}")]
    Queue { queue: u32, queues: u16 },
    #[error("a ring of {size} entries")]
    Size { size: u32 },
    #[error("features {0:#x} were not offered")]
    Features(u64),
    #[error("{len} bytes of configuration at {offset}")]
    Config { offset: u32, len: usize },
    #[error("{0}")]
    Not(&'static str),
    #[error("memory that is shared")]
    Memory(#[from] std::io::Error),
    #[error("a ring")]
    Ring(#[from] crate::memory::Outside),
}
