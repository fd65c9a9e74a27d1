//! A simulated machine with one log, for all of the log's simulation tests.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::cell::RefCell;
use std::future::Future;
use std::path::Path;
use std::rc::Rc;

use engine::sim::{NodeId, Sim};
use engine::{EngineConfig, Rng};
use segment_log::{FlushMode, Log, LogConfig, LogError, Lsn, Position, Recovered};

pub const DIR: &str = "/log";
pub const BLOCK: u64 = 4096;

/// Small segments, so that a test rolls over often.
pub fn small() -> LogConfig {
    LogConfig {
        segment_bytes: 64 << 10,
        spare_segments: 1,
        reserve_segments: 0,
        batch_bytes_max: 8 << 10,
        batches_in_flight: 4,
        beside_bytes_min: 0,
        record_bytes_max: 12 << 10,
        flush: FlushMode::Adaptive,
    }
}

/// What replay shows of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub lsn: u64,
    pub kind: u8,
    pub payload: Vec<u8>,
    pub position: Position,
    pub len: u32,
}

pub struct World {
    pub sim: Sim,
    pub node: NodeId,
}

impl World {
    pub fn new(seed: u64) -> World {
        let sim = Sim::new(seed);
        let node = sim.node("a");
        let world = World { sim, node };
        world.power();
        world
    }

    /// Starts the machine again.
    pub fn power(&self) {
        let mut config = EngineConfig::unpinned(1);
        config.pool_bytes = 8 << 20;
        config.recv_buffers = 8;
        self.sim.start(self.node, config).unwrap();
    }

    pub fn crash(&self) {
        self.sim.crash(self.node);
        self.power();
    }

    pub fn run<F: Future + 'static>(&self, future: F) -> F::Output {
        self.sim.run(self.node, 0, future)
    }

    /// Opens the log and replays all of it.
    pub fn open(&self, config: LogConfig) -> Result<(Rc<Log>, Recovered, Vec<Seen>), LogError> {
        self.run(open(config, Lsn(0), 0))
    }

    pub fn flip(&self, segment: u32, offset: u64) {
        self.sim
            .disk(self.node)
            .flip_bit(segment_path(segment), offset);
    }

    pub fn segment_files(&self) -> Vec<u32> {
        let files = self.sim.disk(self.node).files();
        let names = files
            .iter()
            .filter_map(|(path, _)| path.file_name()?.to_str());
        names
            .filter_map(|name| name.strip_suffix(".seg")?.parse().ok())
            .collect()
    }
}

pub fn segment_path(segment: u32) -> String {
    format!("{DIR}/{segment:08}.seg")
}

pub async fn open(
    config: LogConfig,
    after: Lsn,
    first_segment: u32,
) -> Result<(Rc<Log>, Recovered, Vec<Seen>), LogError> {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let sink = Rc::clone(&seen);
    let (log, recovered) = Log::open(
        Path::new(DIR),
        config,
        after,
        first_segment,
        move |record| {
            sink.borrow_mut().push(Seen {
                lsn: record.lsn.0,
                kind: record.kind,
                payload: record.payload.to_vec(),
                position: record.position,
                len: record.len,
            });
            Ok(())
        },
    )
    .await?;
    Ok((log, recovered, seen.take()))
}

/// A payload that tells which record it is, of a length that the seed decides.
pub fn payload(seed: u64, id: u64, len_max: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed ^ id.wrapping_mul(0x9E37_79B9));
    let len = if rng.once_in(8) {
        rng.below(len_max)
    } else {
        rng.below(600)
    };
    let mut bytes = id.to_le_bytes().to_vec();
    while (bytes.len() as u64) < len {
        bytes.extend_from_slice(&rng.next_u64().to_le_bytes());
    }
    bytes
}

/// The seeds of a test: `count` of them, or as many as UC_SEEDS says, or the one that UC_SEED names.
pub fn seeds(count: u64) -> Vec<u64> {
    let number = |name| {
        let value = std::env::var(name).ok()?;
        Some(
            value
                .parse::<u64>()
                .unwrap_or_else(|_| panic!("{name} is no number: {value}")),
        )
    };
    match number("UC_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("UC_SEEDS").unwrap_or(count)).collect(),
    }
}

/// Runs a test for each seed; says which one failed and how to run it alone.
pub fn for_seeds(count: u64, test: impl Fn(u64)) {
    for seed in seeds(count) {
        let told = Told(seed);
        test(seed);
        std::mem::forget(told);
    }
}

struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        eprintln!(
            "seed {} failed; run it again with UC_SEED={}",
            self.0, self.0
        );
    }
}
