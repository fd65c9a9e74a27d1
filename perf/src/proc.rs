//! What the kernel says about a running server: CPU of its whole process tree, its memory, and where
//! its threads may run.
//!
//! CPU comes from `/proc/PID/stat`, which holds every thread of a process, ended ones and io_uring's
//! workers included, in ticks of 10 ms. Never guesses: a line that does not parse is an error.
#![forbid(unsafe_code)]

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// The unit of `/proc/PID/stat`: USER_HZ is 100 on every architecture that io_uring servers run on.
const TICK: Duration = Duration::from_millis(10);

/// What one line of `/proc/PID/stat` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    pid: u32,
    parent: u32,
    /// User and system time, with that of children that were waited for.
    ticks: u64,
}

/// Reads a line of `/proc/PID/stat`. The name in it may hold spaces and parentheses.
fn parse_stat(line: &str) -> Result<Stat> {
    let read = || -> Option<Stat> {
        let (head, rest) = line.rsplit_once(')')?;
        let pid = head.split_once(" (")?.0.parse().ok()?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        // The 14th to 17th field of the line, of which `fields` starts with the third.
        let ticks = number(11)? + number(12)? + number(13)? + number(14)?;
        Some(Stat {
            pid,
            parent: u32::try_from(number(1)?).ok()?,
            ticks,
        })
    };
    read().with_context(|| format!("not a line of /proc/PID/stat: {line:?}"))
}

/// CPU time of a process and of everything it started, so far.
pub fn tree_cpu(root: u32) -> Result<Duration> {
    let mut stats = Vec::new();
    for entry in fs::read_dir("/proc").context("list /proc")? {
        let name = entry.context("list /proc")?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // A process that ended since the listing is nobody's CPU any more.
        if let Ok(line) = fs::read_to_string(format!("/proc/{pid}/stat")) {
            stats.push(parse_stat(&line)?);
        }
    }
    ensure!(
        stats.iter().any(|stat| stat.pid == root),
        "process {root} has ended"
    );
    let ticks = ticks_below(root, &stats);
    Ok(TICK * u32::try_from(ticks).context("CPU time past a year")?)
}

/// The ticks of a process and its descendants.
fn ticks_below(root: u32, stats: &[Stat]) -> u64 {
    let mut family = vec![root];
    let mut at = 0;
    while let Some(parent) = family.get(at).copied() {
        let children = stats.iter().filter(|stat| stat.parent == parent);
        // Process ids may be taken again between two reads; nobody counts twice.
        let fresh: Vec<u32> = children
            .map(|stat| stat.pid)
            .filter(|pid| !family.contains(pid))
            .collect();
        family.extend(fresh);
        at += 1;
    }
    let members = stats.iter().filter(|stat| family.contains(&stat.pid));
    members.map(|stat| stat.ticks).sum()
}

/// Memory of a process, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// All that it holds now: resident pages of every kind, swapped ones and huge pages.
    pub held: u64,
    /// Its own pages.
    pub anonymous: u64,
    /// Pages of mapped files, its program among them.
    pub file: u64,
    /// Pages of shared memory.
    pub shared: u64,
    /// The most that was ever resident, with what is swapped and in huge pages now.
    pub peak: u64,
}

/// Memory of a process.
pub fn memory(pid: u32) -> Result<Memory> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    parse_memory(&status).with_context(|| path)
}

fn parse_memory(status: &str) -> Result<Memory> {
    let bytes = |name: &str| -> Result<u64> {
        let mut lines = status.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kib = value.and_then(|value| value.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        Ok(kib.with_context(|| format!("no {name} in kB"))? << 10)
    };
    let elsewhere = bytes("VmSwap")? + bytes("HugetlbPages")?;
    Ok(Memory {
        held: bytes("VmRSS")? + elsewhere,
        anonymous: bytes("RssAnon")?,
        file: bytes("RssFile")?,
        shared: bytes("RssShmem")?,
        peak: bytes("VmHWM")? + elsewhere,
    })
}

/// Refuses a process of which any thread may run on another CPU than `cpu`.
pub fn check_pinned(pid: u32, cpu: usize) -> Result<()> {
    let dir = format!("/proc/{pid}/task");
    for entry in fs::read_dir(&dir).with_context(|| format!("list {dir}"))? {
        let path = entry.with_context(|| format!("list {dir}"))?.path();
        let Ok(status) = fs::read_to_string(path.join("status")) else {
            continue;
        };
        let allowed = allowed_cpus(&status)?;
        if allowed != cpu.to_string() {
            let thread = path.display();
            bail!("{thread} may run on CPU {allowed}, expected {cpu}: it left its pinning");
        }
    }
    Ok(())
}

fn allowed_cpus(status: &str) -> Result<&str> {
    let mut lines = status.lines();
    let list = lines.find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    Ok(list
        .context("a thread's status has no Cpus_allowed_list")?
        .trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NGINX: &str = "1412 (nginx: worker) S 1410 1410 900 0 -1 4194624 1093 0 0 0 \
        57 241 3 4 20 0 1 0 81643 12730368 1330 18446744073709551615 1 1 0 0 0 0 0";

    fn stat(pid: u32, parent: u32, ticks: u64) -> Stat {
        Stat { pid, parent, ticks }
    }

    #[test]
    fn a_stat_line_gives_the_parent_and_all_four_times() {
        assert_eq!(
            parse_stat(NGINX).unwrap(),
            stat(1412, 1410, 57 + 241 + 3 + 4)
        );
    }

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let line = NGINX.replace("nginx: worker", "a) S 1 (b c) R 2");
        assert_eq!(parse_stat(&line).unwrap(), parse_stat(NGINX).unwrap());
    }

    #[test]
    fn a_line_that_ends_early_is_an_error() {
        let cut = NGINX.find(" 3 4").unwrap();
        assert!(parse_stat(&NGINX[..cut]).is_err());
        assert!(parse_stat("").is_err());
    }

    #[test]
    fn a_tree_counts_children_of_children_and_nobody_else() {
        let stats = [
            stat(9, 7, 1),
            stat(5, 1, 10),
            stat(7, 5, 100),
            stat(6, 1, 1000),
        ];
        assert_eq!(ticks_below(5, &stats), 111);
    }

    #[test]
    fn a_process_that_is_its_own_ancestor_counts_once() {
        assert_eq!(ticks_below(5, &[stat(5, 6, 1), stat(6, 5, 2)]), 3);
    }

    #[test]
    fn this_process_has_used_cpu_and_a_process_that_cannot_exist_is_an_error() {
        assert!(tree_cpu(std::process::id()).is_ok());
        assert!(tree_cpu(u32::MAX).is_err());
    }

    #[test]
    fn all_memory_counts_wherever_its_pages_are() {
        let status = "Name:\tx\nVmHWM:\t     300 kB\nVmRSS:\t     200 kB\nRssAnon:\t     120 kB\n\
            RssFile:\t      50 kB\nRssShmem:\t      30 kB\nVmSwap:\t       7 kB\n\
            HugetlbPages:\t    2048 kB\nThreads:\t1\n";
        let memory = parse_memory(status).unwrap();
        assert_eq!(memory.held, (200 + 7 + 2048) << 10);
        assert_eq!(memory.peak, (300 + 7 + 2048) << 10);
        assert_eq!(memory.anonymous + memory.file + memory.shared, 200 << 10);
        assert!(parse_memory(&status.replace("VmSwap", "VmOther")).is_err());
        assert!(super::memory(std::process::id()).unwrap().held > 0);
    }

    #[test]
    fn the_cpus_a_thread_may_use_are_found_in_its_status() {
        let status = "Name:\tx\nCpus_allowed:\t2\nCpus_allowed_list:\t1\nMems_allowed:\t1\n";
        assert_eq!(allowed_cpus(status).unwrap(), "1");
        assert!(allowed_cpus("Name:\tx\n").is_err());
    }
}
