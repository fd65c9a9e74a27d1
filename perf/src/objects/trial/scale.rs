//! Ten million tiny objects on one shard: memory while they are written, read and recovered.
//!
//! Memory is the process's at its highest since its start, which the kernel keeps; shared and huge
//! pages count. The free disk is looked at before anything is written.
#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::idle::mib;
use super::restart::{End, restart};
use super::tiny::Tiny;
use super::{Lab, Window, row};
use crate::machine;
use crate::objects::contenders::{Node, Setup};
use crate::objects::script::Body;
use crate::proc;
use crate::report::Row;

/// The most memory that ten million keys may take.
const MEMORY_MIB_MAX: f64 = 2048.0;
/// From so many keys on the bar is judged.
const KEYS_JUDGED: u32 = 10_000_000;
/// Free disk that a key needs: its record, its entry in two generations of the index, and slack.
const DISK_BYTES_PER_KEY: u64 = 2048;
/// Free disk that stays: segments that are kept ready, and what others on this disk need.
const DISK_BYTES_KEPT: u64 = 1 << 30;
/// Keys that are read, all over.
const READ_KEYS: u32 = 50_000;
/// Connections that read them.
const READ_CONNECTIONS: u32 = 16;
const SECTOR_BYTES: u64 = 512;

/// Runs the trial.
pub(super) fn run(lab: &Lab<'_>) -> Result<Vec<Row>> {
    let tiny = Tiny {
        count: lab.args.scale_keys,
    };
    check_disk(lab.dir, tiny.count)?;
    let judged = tiny.count >= KEYS_JUDGED;
    let limit = judged.then_some(MEMORY_MIB_MAX);
    let node = lab.node(&Setup::default())?;
    let mut rows = vec![row("scale/keys", "keys", &[f64::from(tiny.count)], None)?];
    fill(&node, tiny, &mut rows)?;
    read(lab, &node, tiny, &mut rows)?;
    let filled = proc::memory(node.site.process.id())?;
    let disk = disk_bytes(&lab.dir.join("data"))? as f64 / f64::from(tiny.count);
    let stopped = again(lab, node, End::Stopped, tiny)?;
    let killed = again(lab, stopped.node, End::Killed, tiny)?;
    killed.node.stop()?;
    let peaks = [stopped.peak_mib, killed.peak_mib];
    rows.extend([
        row("scale/memory-peak", "MiB", &[mib(filled.peak)], limit)?,
        row("scale/memory-after-reads", "MiB", &[mib(filled.held)], None)?,
        row("scale/memory-peak-restarted", "MiB", &peaks, limit)?,
        row("scale/disk", "B/key", &[disk], None)?,
        row("scale/restart-clean", "s", &[stopped.served_s], None)?,
        row("scale/restart-killed", "s", &[killed.served_s], None)?,
    ]);
    Ok(rows)
}

fn check_disk(dir: &Path, keys: u32) -> Result<()> {
    let free = machine::free_bytes(dir)?;
    let needed = u64::from(keys) * DISK_BYTES_PER_KEY + DISK_BYTES_KEPT;
    ensure!(
        free >= needed,
        "{} has {:.1} GiB free, and {keys} keys may need {:.1}: name another directory with --dir, \
         or fewer keys with --scale-keys",
        dir.display(),
        mib(free) / 1024.0,
        mib(needed) / 1024.0
    );
    Ok(())
}

fn fill(node: &Node, tiny: Tiny, rows: &mut Vec<Row>) -> Result<()> {
    let endpoint = &node.site.endpoint;
    Tiny::make_bucket(endpoint)?;
    let (began, before) = (Instant::now(), node.site.cpu()?);
    tiny.fill(endpoint, tiny.count, 0)?;
    let (wall, keys) = (began.elapsed().as_secs_f64(), f64::from(tiny.count));
    let cpu = node.site.cpu()?.saturating_sub(before).as_secs_f64();
    rows.extend([
        row("scale/fill-rate", "ops/s", &[keys / wall], None)?,
        row("scale/fill-cpu", "us CPU/op", &[cpu * 1e6 / keys], None)?,
    ]);
    tiny.check(endpoint, tiny.count, 0)
}

fn read(lab: &Lab<'_>, node: &Node, tiny: Tiny, rows: &mut Vec<Row>) -> Result<()> {
    let endpoint = &node.site.endpoint;
    let targets = tiny.targets(lab, endpoint, READ_KEYS)?;
    let window = Window {
        name: "reads",
        endpoint,
        targets: &targets,
        body: Body::None,
        connections: READ_CONNECTIONS,
        seconds: lab.args.seconds,
        yields: false,
    };
    let (mut cpu_us, mut p50_ms, mut p99_ms) = (Vec::new(), Vec::new(), Vec::new());
    for _ in lab.rounds() {
        let before = node.site.cpu()?;
        let report = lab.run(&window)?;
        let cpu = node.site.cpu()?.saturating_sub(before).as_secs_f64();
        cpu_us.push(cpu * 1e6 / report.requests as f64);
        p50_ms.push(report.p50.as_secs_f64() * 1e3);
        p99_ms.push(report.p99.as_secs_f64() * 1e3);
    }
    rows.extend([
        row("scale/get-cpu", "us CPU/op", &cpu_us, None)?,
        row("scale/get-p50", "ms", &p50_ms, None)?,
        row("scale/get-p99", "ms", &p99_ms, None)?,
    ]);
    Ok(())
}

/// A restart and the most memory that it took.
struct Again {
    node: Node,
    served_s: f64,
    peak_mib: f64,
}

fn again(lab: &Lab<'_>, node: Node, end: End, tiny: Tiny) -> Result<Again> {
    end.of(node)?;
    let restarted = restart(lab, tiny)?;
    let endpoint = &restarted.node.site.endpoint;
    tiny.check(endpoint, tiny.count, 0)?;
    let memory = proc::memory(restarted.node.site.process.id())?;
    Ok(Again {
        node: restarted.node,
        served_s: restarted.served_s,
        peak_mib: mib(memory.peak),
    })
}

/// Bytes that the files below a directory take.
fn disk_bytes(dir: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let entry = entry.with_context(|| format!("list {}", dir.display()))?;
        let meta = entry.metadata().context("look at a file of the node")?;
        sum += if meta.is_dir() {
            disk_bytes(&entry.path())?
        } else {
            meta.blocks() * SECTOR_BYTES
        };
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_is_too_small_is_refused_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        check_disk(dir.path(), 1).unwrap();
        let free = machine::free_bytes(dir.path()).unwrap();
        let too_many = free / DISK_BYTES_PER_KEY + 1;
        let error = check_disk(dir.path(), u32::try_from(too_many).unwrap()).unwrap_err();
        assert!(error.to_string().contains("--scale-keys"), "{error}");
    }

    #[test]
    fn files_count_by_the_space_they_take_in_all_directories() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(dir.path().join("a/b"), vec![7; 100_000]).unwrap();
        let sum = disk_bytes(dir.path()).unwrap();
        assert!((100_000..200_000).contains(&sum), "{sum}");
    }
}
