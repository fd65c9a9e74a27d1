//! What is measured of whom, and what it must keep.
#![forbid(unsafe_code)]

use super::front::{Job, Load};
use crate::report::Limit;

/// Whose requests are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    /// Our volume; the null device where that is what a cell has.
    CoronaFs,
    /// After [`SNAPSHOTS`] snapshots.
    Snapshots,
    /// With blocks that are encrypted on disk.
    Encrypted,
    /// With rings that are not polled.
    Sleeps,
    /// The peer.
    Qemu,
    /// No backend: the front end's own io_uring.
    Plain,
}

/// Snapshots of [`Contender::Snapshots`].
pub const SNAPSHOTS: u64 = 1000;

impl Contender {
    pub fn name(self) -> &'static str {
        match self {
            Self::CoronaFs => "coronafs",
            Self::Snapshots => "coronafs-1000-snapshots",
            Self::Encrypted => "coronafs-xts",
            Self::Sleeps => "coronafs-not-polling",
            Self::Qemu => "qemu-storage-daemon",
            Self::Plain => "io_uring",
        }
    }
}

/// What lies behind the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    Null,
    Tmpfs,
    Disk,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// CPU of the backend's process for each operation.
    Cpu,
    /// Median of the latency that the front end sees.
    P50,
}

/// A bar.
pub struct Judge {
    pub of: Contender,
    pub metric: Metric,
    pub limit: Limit,
    pub beside: Contender,
}

/// A cell.
pub struct Cell {
    pub name: &'static str,
    /// Names of the bars on CPU and latency.
    pub cpu: &'static str,
    pub p50: &'static str,
    pub place: Place,
    pub load: Load,
    /// Whether the front end polls for completions, as one that wants QD 1 to be fast does.
    pub front_polls: bool,
    pub contenders: &'static [Contender],
    pub judges: &'static [Judge],
}

const READ: Load = Load {
    job: Job::Read,
    bytes: 4096,
    depth: 32,
    random: true,
    stamped: true,
};

const SEQUENTIAL: Load = Load {
    bytes: 128 << 10,
    depth: 8,
    random: false,
    ..READ
};

const fn cpu(of: Contender, limit: Limit, beside: Contender) -> Judge {
    Judge {
        of,
        metric: Metric::Cpu,
        limit,
        beside,
    }
}

/// At most the peer's CPU.
const NO_WORSE: Judge = cpu(Contender::CoronaFs, Limit::Ratio(1.0), Contender::Qemu);
/// Snapshots cost at most a fifth.
const AS_BEFORE: Judge = cpu(Contender::Snapshots, Limit::Ratio(1.2), Contender::CoronaFs);

/// Encryption costs at most half.
const AS_PLAIN: Judge = cpu(Contender::Encrypted, Limit::Ratio(1.5), Contender::CoronaFs);

const BOTH: &[Contender] = &[Contender::CoronaFs, Contender::Qemu];
const ALL: &[Contender] = &[
    Contender::CoronaFs,
    Contender::Snapshots,
    Contender::Qemu,
    Contender::Plain,
];
const ALL_ON_DISK: &[Contender] = &[
    Contender::CoronaFs,
    Contender::Snapshots,
    Contender::Encrypted,
    Contender::Qemu,
    Contender::Plain,
];
const OURS_AND_QEMU: &[Contender] = &[
    Contender::CoronaFs,
    Contender::Snapshots,
    Contender::Encrypted,
    Contender::Qemu,
];

/// All cells.
pub const CELLS: &[Cell] = &[
    Cell {
        name: "null-read-4k-qd32",
        cpu: "null-read-4k-qd32/cpu",
        p50: "null-read-4k-qd32/p50",
        place: Place::Null,
        load: Load {
            stamped: false,
            ..READ
        },
        front_polls: false,
        contenders: BOTH,
        judges: &[cpu(Contender::CoronaFs, Limit::Value(0.5), Contender::Qemu)],
    },
    Cell {
        name: "tmpfs-randread-4k-qd32",
        cpu: "tmpfs-randread-4k-qd32/cpu",
        p50: "tmpfs-randread-4k-qd32/p50",
        place: Place::Tmpfs,
        load: READ,
        front_polls: false,
        contenders: ALL,
        judges: &[
            cpu(Contender::CoronaFs, Limit::Value(3.0), Contender::Qemu),
            AS_BEFORE,
        ],
    },
    Cell {
        name: "tmpfs-randread-4k-qd1-polled",
        cpu: "tmpfs-randread-4k-qd1-polled/cpu",
        p50: "tmpfs-randread-4k-qd1-polled/p50",
        place: Place::Tmpfs,
        load: Load { depth: 1, ..READ },
        front_polls: true,
        contenders: &[Contender::CoronaFs, Contender::Qemu, Contender::Plain],
        judges: &[Judge {
            of: Contender::CoronaFs,
            metric: Metric::P50,
            limit: Limit::Above(5.0),
            beside: Contender::Plain,
        }],
    },
    Cell {
        name: "tmpfs-randread-4k-qd1",
        cpu: "tmpfs-randread-4k-qd1/cpu",
        p50: "tmpfs-randread-4k-qd1/p50",
        place: Place::Tmpfs,
        load: Load { depth: 1, ..READ },
        front_polls: false,
        contenders: &[Contender::CoronaFs, Contender::Sleeps, Contender::Qemu],
        judges: &[],
    },
    Cell {
        name: "disk-randread-4k-qd32",
        cpu: "disk-randread-4k-qd32/cpu",
        p50: "disk-randread-4k-qd32/p50",
        place: Place::Disk,
        load: READ,
        front_polls: false,
        contenders: ALL_ON_DISK,
        judges: &[NO_WORSE, AS_BEFORE, AS_PLAIN],
    },
    Cell {
        name: "disk-randwrite-4k-qd32-flush32",
        cpu: "disk-randwrite-4k-qd32-flush32/cpu",
        p50: "disk-randwrite-4k-qd32-flush32/p50",
        place: Place::Disk,
        load: Load {
            job: Job::WriteFlush(32),
            ..READ
        },
        front_polls: false,
        contenders: OURS_AND_QEMU,
        judges: &[NO_WORSE, AS_BEFORE, AS_PLAIN],
    },
    Cell {
        name: "disk-read-128k-qd8",
        cpu: "disk-read-128k-qd8/cpu",
        p50: "disk-read-128k-qd8/p50",
        place: Place::Disk,
        load: SEQUENTIAL,
        front_polls: false,
        contenders: OURS_AND_QEMU,
        judges: &[NO_WORSE, AS_BEFORE, AS_PLAIN],
    },
    Cell {
        name: "disk-write-128k-qd8",
        cpu: "disk-write-128k-qd8/cpu",
        p50: "disk-write-128k-qd8/p50",
        place: Place::Disk,
        load: Load {
            job: Job::Write,
            ..SEQUENTIAL
        },
        front_polls: false,
        contenders: OURS_AND_QEMU,
        judges: &[NO_WORSE, AS_BEFORE, AS_PLAIN],
    },
];
