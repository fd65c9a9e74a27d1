//! GET of 4 KiB while compaction runs, beside the same GET while nothing does.
//!
//! A feed of objects is written and 11 of 20 are removed, spread evenly, so that all its log
//! segments become mostly dead at the same moment. Quiet and busy windows take turns, and the node's
//! own counter says what each was: it must stand still in a quiet window and move nearly all the time
//! in a busy one. Nobody writes in either, so compaction is not slowed down for writers. `hot` GETs
//! find their records in memory, `cold` ones read the disk that compaction reads and writes.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::{Lab, Window, row, row_beside};
use crate::machine;
use crate::objects::body;
use crate::objects::cell::SMALL_BYTES;
use crate::objects::contenders::{Node, Setup};
use crate::objects::fill::{Fill, Method, no_body};
use crate::objects::script::Body;
use crate::objects::wrk::Report;
use crate::report::Row;

/// The most that the 99th percentile may be, times that of a quiet window.
const P99_RATIO_MAX: f64 = 3.0;
const CONNECTIONS: u32 = 16;
const BUCKET: &str = "/perf-compaction";
/// Bytes of records that compaction has moved.
const MOVED: &str = "uc_lightningstor_compacted_bytes_total";
/// Objects that stay in the node's memory.
const HOT_KEYS: u32 = 2_000;
/// Objects that are far more than that memory.
const COLD_KEYS: u32 = 24_000;
/// The feed is cut into so many parts of neighbours, of each of which [`DEAD`] die.
const PARTS: u32 = 20;
const DEAD: u32 = 11;
const FEED_KEYS_MIN: u32 = 65_540;
const FEED_KEYS_MAX: u32 = 1_000_000;
/// Compaction outlasts a window by this much.
const FEED_MARGIN: f64 = 1.5;
/// How often the counter is read.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// The counter has settled when it stood still for so long: compaction looks for work every second.
const STILL: Duration = Duration::from_secs(4);
const STILL_DEADLINE: Duration = Duration::from_mins(5);
const START_DEADLINE: Duration = Duration::from_secs(30);
/// The least part of a busy window in which compaction is seen to move something.
const BUSY_PART_MIN: f64 = 0.75;
/// How often a window is begun again when the counter shows it to be of the wrong kind.
const ATTEMPTS: u32 = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Quiet,
    Busy,
}

impl Kind {
    /// Whether a window in which the counter moved for this part of the time is of this kind.
    fn is_shown(self, moving_part: f64) -> bool {
        match self {
            Self::Quiet => moving_part == 0.0,
            Self::Busy => moving_part >= BUSY_PART_MIN,
        }
    }
}

/// One set of objects that are read.
struct Readers {
    name: &'static str,
    keys: u32,
    bars: Bars,
    targets: PathBuf,
    quiet: Vec<Seen>,
    busy: Vec<Seen>,
}

struct Bars {
    quiet_p99: &'static str,
    busy_p99: &'static str,
    busy_p50: &'static str,
}

/// What a window showed.
struct Seen {
    report: Report,
    moving_part: f64,
    moved_mib_per_s: f64,
}

fn readers(lab: &Lab<'_>, node: &Node) -> Result<[Readers; 2]> {
    let of = |name: &'static str, keys: u32, bars: Bars| -> Result<Readers> {
        let fill = Fill {
            method: Method::Put,
            count: keys,
            path: &|number| read_path(name, number),
            body: &|number| body::stored(number.into(), SMALL_BYTES),
        };
        fill.run(&node.site.endpoint)?;
        let paths = (0..keys).map(|number| read_path(name, number));
        let targets = paths.map(|path| node.site.endpoint.target("GET", &path, ""));
        Ok(Readers {
            name,
            keys,
            bars,
            targets: lab.targets(name, targets)?,
            quiet: Vec::new(),
            busy: Vec::new(),
        })
    };
    let hot = Bars {
        quiet_p99: "compaction/hot-quiet-p99",
        busy_p99: "compaction/hot-busy-p99",
        busy_p50: "compaction/hot-busy-p50",
    };
    let cold = Bars {
        quiet_p99: "compaction/cold-quiet-p99",
        busy_p99: "compaction/cold-busy-p99",
        busy_p50: "compaction/cold-busy-p50",
    };
    Ok([of("hot", HOT_KEYS, hot)?, of("cold", COLD_KEYS, cold)?])
}

fn read_path(name: &str, number: u32) -> String {
    format!("{BUCKET}/{name}-{number:08}")
}

/// Runs the trial.
pub(super) fn run(lab: &Lab<'_>) -> Result<Vec<Row>> {
    let node = lab.node(&Setup::default())?;
    node.site.endpoint.ask("PUT", BUCKET, "")?;
    let mut all = readers(lab, &node)?;
    let mut feed = Feed {
        keys: FEED_KEYS_MIN,
    };
    feed.size(&node, lab)?;
    for round in lab.rounds() {
        eprintln!("round {} of {}", round + 1, lab.args.rounds);
        for readers in &mut all {
            for kind in [Kind::Quiet, Kind::Busy] {
                let seen = window(lab, &node, &mut feed, readers, kind)?;
                match kind {
                    Kind::Quiet => readers.quiet.push(seen),
                    Kind::Busy => readers.busy.push(seen),
                }
            }
        }
    }
    for readers in &all {
        check(&node, readers)?;
    }
    node.stop()?;
    rows(&all)
}

/// A window that was shown to be of its kind.
fn window(
    lab: &Lab<'_>,
    node: &Node,
    feed: &mut Feed,
    readers: &Readers,
    kind: Kind,
) -> Result<Seen> {
    for _ in 0..ATTEMPTS {
        if kind == Kind::Quiet {
            feed.write(node)?;
            still(node)?;
        } else {
            let before = node.metric(MOVED)?;
            feed.kill(node)?;
            moving(node, before)?;
        }
        let seen = watched(lab, node, readers)?;
        if kind.is_shown(seen.moving_part) {
            return Ok(seen);
        }
        eprintln!(
            "{} {kind:?}: compaction ran in {:.0} % of the window, which does not count",
            readers.name,
            seen.moving_part * 100.0
        );
        if kind == Kind::Busy {
            still(node)?;
            feed.grow(lab)?;
            feed.write(node)?;
        }
    }
    bail!("no window of {ATTEMPTS} was {kind:?} by the node's own counter {MOVED}")
}

/// One window, with the counter read all along, also when it should stand still: reading it takes
/// CPU, and both kinds pay for that.
fn watched(lab: &Lab<'_>, node: &Node, readers: &Readers) -> Result<Seen> {
    let window = Window {
        name: readers.name,
        endpoint: &node.site.endpoint,
        targets: &readers.targets,
        body: Body::None,
        connections: CONNECTIONS,
        seconds: lab.args.seconds,
        yields: false,
    };
    let ended = AtomicBool::new(false);
    let (report, moved) = thread::scope(|scope| {
        let watch = scope.spawn(|| watch(node, &ended));
        let report = lab.run(&window);
        ended.store(true, Ordering::Relaxed);
        let moved = watch.join();
        (
            report,
            moved.map_err(|_| anyhow!("the watch on a metric panicked")),
        )
    });
    let (report, moved) = (report?, moved??);
    ensure!(moved.len() > 1, "the window was too short to be watched");
    let steps: Vec<u64> = moved.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let moving = steps.iter().filter(|step| **step > 0).count();
    let seconds = report.duration.as_secs_f64();
    Ok(Seen {
        report,
        moving_part: moving as f64 / steps.len() as f64,
        moved_mib_per_s: steps.iter().sum::<u64>() as f64 / f64::from(1 << 20) / seconds,
    })
}

fn watch(node: &Node, ended: &AtomicBool) -> Result<Vec<u64>> {
    let mut values = vec![node.metric(MOVED)?];
    while !ended.load(Ordering::Relaxed) {
        thread::sleep(LOOK_INTERVAL);
        values.push(node.metric(MOVED)?);
    }
    // What moved after the load's end says nothing about it.
    values.pop();
    Ok(values)
}

/// Waits until compaction has nothing to do; gives what the counter stands at.
fn still(node: &Node) -> Result<u64> {
    let end = Instant::now() + STILL_DEADLINE;
    let (mut value, mut since) = (node.metric(MOVED)?, Instant::now());
    while since.elapsed() < STILL {
        ensure!(
            Instant::now() < end,
            "compaction still ran after {STILL_DEADLINE:?}"
        );
        thread::sleep(LOOK_INTERVAL);
        let now = node.metric(MOVED)?;
        if now != value {
            (value, since) = (now, Instant::now());
        }
    }
    Ok(value)
}

/// Waits until compaction moves something.
fn moving(node: &Node, before: u64) -> Result<()> {
    let end = Instant::now() + START_DEADLINE;
    while node.metric(MOVED)? == before {
        ensure!(
            Instant::now() < end,
            "compaction did not begin within {START_DEADLINE:?}"
        );
        thread::sleep(LOOK_INTERVAL);
    }
    Ok(())
}

/// The objects that give compaction its work.
struct Feed {
    keys: u32,
}

impl Feed {
    fn path(number: u32) -> String {
        format!("{BUCKET}/feed-{number:08}")
    }

    /// Writes every object anew: what is left of an earlier feed dies.
    fn write(&self, node: &Node) -> Result<()> {
        let fill = Fill {
            method: Method::Put,
            count: self.keys,
            path: &Self::path,
            body: &|number| body::stored(u64::from(number) << 32, SMALL_BYTES),
        };
        fill.run(&node.site.endpoint).context("write the feed")
    }

    /// Removes 11 objects of every 20.
    fn kill(&self, node: &Node) -> Result<()> {
        let fill = Fill {
            method: Method::Delete,
            count: self.keys / PARTS * DEAD,
            path: &|turn| Self::path(self.dying(turn)),
            body: &no_body,
        };
        fill.run(&node.site.endpoint)
            .context("remove most of the feed")
    }

    /// The object that dies at this turn. Each pass takes one of every 20 neighbours, so no segment
    /// is mostly dead before the last pass, and then all are.
    fn dying(&self, turn: u32) -> u32 {
        let in_pass = self.keys / PARTS;
        turn % in_pass * PARTS + turn / in_pass
    }

    /// Finds out how many objects keep compaction at work for longer than a window.
    fn size(&mut self, node: &Node, lab: &Lab<'_>) -> Result<()> {
        self.write(node)?;
        let before = still(node)?;
        self.kill(node)?;
        moving(node, before)?;
        let began = Instant::now();
        let moved = still(node)? - before;
        let took = (began.elapsed().saturating_sub(STILL)).max(LOOK_INTERVAL);
        let lives = f64::from(self.keys) * f64::from(PARTS - DEAD) / f64::from(PARTS);
        eprintln!(
            "compaction moved {:.0} MiB of {lives:.0} live objects in {took:.1?}",
            moved as f64 / f64::from(1 << 20)
        );
        let windows = lab.args.seconds as f64 * FEED_MARGIN / took.as_secs_f64();
        let wanted = f64::from(self.keys) * windows;
        self.resize(wanted.min(f64::from(FEED_KEYS_MAX)) as u32, lab)
    }

    fn grow(&mut self, lab: &Lab<'_>) -> Result<()> {
        self.resize(self.keys.saturating_mul(2), lab)
    }

    fn resize(&mut self, wanted: u32, lab: &Lab<'_>) -> Result<()> {
        let parts = wanted.clamp(FEED_KEYS_MIN, FEED_KEYS_MAX) / PARTS;
        self.keys = self.keys.max(parts * PARTS);
        // Written anew before the old ones are gone, and moved while they are there.
        let needed = u64::from(self.keys) * SMALL_BYTES as u64 * 3;
        let free = machine::free_bytes(lab.dir)?;
        ensure!(
            free >= needed,
            "{} has {} MiB free, and the feed of compaction needs {}: name another with --dir",
            lab.dir.display(),
            free >> 20,
            needed >> 20
        );
        Ok(())
    }
}

/// Compares some of what was read all along.
fn check(node: &Node, readers: &Readers) -> Result<()> {
    for number in (0..readers.keys).step_by(readers.keys as usize / 50) {
        let path = read_path(readers.name, number);
        let got = node.site.endpoint.ask("GET", &path, "")?;
        let expected = body::stored(number.into(), SMALL_BYTES);
        ensure!(
            got == expected,
            "GET {path} gives other bytes after compaction"
        );
    }
    Ok(())
}

fn rows(all: &[Readers]) -> Result<Vec<Row>> {
    let of = |seen: &[Seen], value: fn(&Seen) -> f64| seen.iter().map(value).collect::<Vec<_>>();
    let p99 = |seen: &Seen| seen.report.p99.as_secs_f64() * 1e3;
    let mut rows = Vec::new();
    for readers in all {
        let bars = &readers.bars;
        let quiet = row(bars.quiet_p99, "ms", &of(&readers.quiet, p99), None)?;
        let busy = of(&readers.busy, p99);
        rows.push(row_beside(
            bars.busy_p99,
            &busy,
            &quiet,
            Some(P99_RATIO_MAX),
        )?);
        rows.push(quiet);
        let p50 = of(&readers.busy, |seen| seen.report.p50.as_secs_f64() * 1e3);
        rows.push(row(bars.busy_p50, "ms", &p50, None)?);
    }
    let busy = |value: fn(&Seen) -> f64| -> Vec<f64> {
        all.iter()
            .flat_map(|readers| of(&readers.busy, value))
            .collect()
    };
    let moving = busy(|seen| seen.moving_part * 100.0);
    rows.push(row("compaction/moving", "% of window", &moving, None)?);
    let moved = busy(|seen| seen.moved_mib_per_s);
    rows.push(row("compaction/moved", "MiB/s", &moved, None)?);
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_stretch_of_the_feed_is_mostly_dead_after_the_last_pass_only() {
        let feed = Feed { keys: 2_000 };
        let dead_after = |passes: u32| -> BTreeSet<u32> {
            (0..feed.keys / PARTS * passes)
                .map(|turn| feed.dying(turn))
                .collect()
        };
        for (passes, in_40) in [(DEAD - 1, 20), (DEAD, 22)] {
            let dead = dead_after(passes);
            assert!(dead.iter().all(|number| *number < feed.keys));
            for start in (0..feed.keys).step_by(40) {
                assert_eq!(dead.range(start..start + 40).count(), in_40);
            }
        }
    }

    #[test]
    fn a_window_is_busy_only_when_the_counter_moved_nearly_all_along() {
        assert!(Kind::Busy.is_shown(0.75) && !Kind::Busy.is_shown(0.74));
        assert!(Kind::Quiet.is_shown(0.0) && !Kind::Quiet.is_shown(0.05));
    }
}
