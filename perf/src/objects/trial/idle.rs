//! A fresh node at its defaults that nobody asks anything: what it holds, and what it uses.
#![forbid(unsafe_code)]

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Lab, row};
use crate::objects::contenders::{Cpus, Setup};
use crate::proc::{self, Memory};
use crate::report::Row;

/// The most that an idle node may hold.
const MEMORY_MIB_MAX: f64 = 150.0;
/// How often it is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// One round: the memory at its highest, and CPU for a second.
struct Sample {
    memory: Memory,
    cpu_ms_per_s: f64,
}

/// Runs the trial.
pub(super) fn run(lab: &Lab<'_>) -> Result<Vec<Row>> {
    let samples: Vec<Sample> = lab.rounds().map(|_| sample(lab)).collect::<Result<_>>()?;
    let mib = |bytes: fn(&Memory) -> u64| -> Vec<f64> {
        let samples = samples.iter();
        samples.map(|one| mib(bytes(&one.memory))).collect()
    };
    let cpu: Vec<f64> = samples.iter().map(|one| one.cpu_ms_per_s).collect();
    let held = mib(|memory| memory.held);
    Ok(vec![
        row("idle/memory", "MiB", &held, Some(MEMORY_MIB_MAX))?,
        row(
            "idle/memory-anonymous",
            "MiB",
            &mib(|memory| memory.anonymous),
            None,
        )?,
        row("idle/memory-files", "MiB", &mib(|memory| memory.file), None)?,
        row(
            "idle/memory-shared",
            "MiB",
            &mib(|memory| memory.shared),
            None,
        )?,
        row("idle/cpu", "ms CPU/s", &cpu, None)?,
    ])
}

/// Bytes in MiB.
pub(super) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn sample(lab: &Lab<'_>) -> Result<Sample> {
    let setup = Setup {
        cpus: Cpus::All,
        ..Setup::default()
    };
    let node = lab.node(&setup)?;
    let pid = node.site.process.id();
    let (began, before) = (Instant::now(), node.site.cpu()?);
    let mut memory = proc::memory(pid)?;
    while began.elapsed() < Duration::from_secs(lab.args.seconds) {
        thread::sleep(LOOK_INTERVAL);
        let now = proc::memory(pid)?;
        if now.held > memory.held {
            memory = now;
        }
    }
    let used = node.site.cpu()?.saturating_sub(before);
    let cpu_ms_per_s = used.as_secs_f64() * 1e3 / began.elapsed().as_secs_f64();
    node.stop()?;
    std::fs::remove_dir_all(lab.dir.join("data"))?;
    Ok(Sample {
        memory,
        cpu_ms_per_s,
    })
}
