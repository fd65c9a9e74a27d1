//! What group commit costs on a real disk: appenders (64, or as told) of 4 KiB each, for each flush mode and
//! depth, in interleaved rounds. Prints records and batches per second, and CPU time of the whole
//! process per record and batch. Usage: `flush_modes DIR [SECONDS] [ROUNDS] [APPENDERS]`.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use engine::{Engine, EngineConfig, SchedGroup, ShardId};
use segment_log::{FlushMode, Log, LogConfig, LogMetrics, Lsn};

const BODY: usize = 4096;

/// How much, and how long.
#[derive(Clone, Copy)]
struct Load {
    appenders: usize,
    time: Duration,
}

/// User and system time of the process, kernel workers of its ring included, in microseconds.
fn cpu_micros() -> u64 {
    let stat = read_text("/proc/self/stat");
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|n| n.parse::<u64>().ok())
        .sum();
    // USER_HZ is 100 on every Linux that the engine runs on.
    ticks * 10_000
}

#[allow(
    clippy::disallowed_methods,
    reason = "a measuring tool reads the clock of the kernel"
)]
fn read_text(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

async fn load(dir: PathBuf, config: LogConfig, load: Load) -> (LogMetrics, u64) {
    let (log, _) = Log::open(&dir, config, Lsn(0), 0, |_| Ok(()))
        .await
        .expect("the log opens");
    // Enough segments for the run are there before the clock starts.
    engine::sleep(Duration::from_secs(1)).await;
    let cpu = cpu_micros();
    let end = engine::now() + load.time;
    let appenders: Vec<_> = (0..load.appenders)
        .map(|n| append_until(&log, n, end))
        .collect();
    for appender in appenders {
        appender.await;
    }
    let (metrics, cpu) = (log.metrics(), cpu_micros() - cpu);
    log.close().await.expect("the log closes");
    (metrics, cpu)
}

fn append_until(log: &Rc<Log>, number: usize, end: engine::Nanos) -> engine::Task<()> {
    let log = Rc::clone(log);
    engine::spawn_local(SchedGroup::FOREGROUND, async move {
        let body = vec![number as u8; BODY];
        while engine::now() < end {
            log.append(1, &[&body]).await.expect("a record");
            if let [oldest, _, _, ..] = log.segments()[..]
                && oldest.sealed
            {
                // Another appender may have been first.
                let _ = log.release(oldest.number).await;
            }
        }
    })
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let dir = arguments
        .get(1)
        .map_or_else(|| PathBuf::from("."), PathBuf::from);
    let number = |index: usize, default| {
        arguments
            .get(index)
            .map_or(default, |n| n.parse().unwrap_or(default))
    };
    let (seconds, rounds) = (number(2, 3), number(3, 3));
    let appenders = number(4, 64) as usize;
    let work = Load {
        appenders,
        time: Duration::from_secs(seconds),
    };
    println!(
        "mode      depth  beside KiB  records/s  batches/s  rec/batch  CPU us/record  CPU us/batch  p50 us <"
    );
    for round in 0..rounds {
        let cases = [
            (FlushMode::Adaptive, 1, 0),
            (FlushMode::Adaptive, 2, 0),
            (FlushMode::Adaptive, 4, 0),
            (FlushMode::Adaptive, 8, 0),
            (FlushMode::Adaptive, 8, 32),
            (FlushMode::Adaptive, 8, 64),
            (FlushMode::Adaptive, 8, 128),
            (FlushMode::Linked, 1, 0),
            (FlushMode::Linked, 2, 0),
            (FlushMode::Linked, 8, 0),
            (FlushMode::Dsync, 1, 0),
            (FlushMode::Dsync, 2, 0),
            (FlushMode::Dsync, 4, 0),
            (FlushMode::Dsync, 8, 0),
        ];
        for (flush, depth, beside_kib) in cases {
            let config = LogConfig {
                flush,
                batches_in_flight: depth,
                beside_bytes_min: beside_kib << 10,
                spare_segments: 2,
                ..LogConfig::default()
            };
            let name = format!("flush-modes-{round}-{flush:?}-{depth}-{beside_kib}");
            measure(&dir.join(name), config, work);
        }
    }
}

fn measure(place: &Path, config: LogConfig, work: Load) {
    let engine = Engine::start(EngineConfig::unpinned(1)).expect("io_uring is there");
    let LogConfig {
        flush,
        batches_in_flight: depth,
        beside_bytes_min: beside,
        ..
    } = config;
    let target = place.to_owned();
    let handle = engine.handle();
    let answer = handle.call_blocking(ShardId(0), move |_| Box::pin(load(target, config, work)));
    let (metrics, cpu) = answer.expect("the shard answers");
    let cpu = cpu as f64;
    engine.shutdown().expect("the engine ends");
    let (records, batches) = (metrics.appends, metrics.batches);
    let mut seen = 0;
    let half = metrics.flush_us.iter().position(|n| {
        seen += n;
        seen * 2 >= batches
    });
    let seconds = work.time.as_secs_f64();
    println!(
        "{:9} {depth:5}  {:10}  {:9.0}  {:9.0}  {:9.1}  {:13.1}  {:12.1}  {}",
        format!("{flush:?}"),
        beside >> 10,
        records as f64 / seconds,
        batches as f64 / seconds,
        records as f64 / batches.max(1) as f64,
        cpu / records.max(1) as f64,
        cpu / batches.max(1) as f64,
        half.map_or(0, |bucket| 1_u64 << bucket),
    );
    if let Err(error) = remove(place) {
        eprintln!("{} is left behind: {error}", place.display());
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "a measuring tool cleans up after itself"
)]
fn remove(place: &Path) -> std::io::Result<()> {
    std::fs::remove_dir_all(place)
}
