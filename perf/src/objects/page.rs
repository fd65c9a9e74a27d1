//! The sections on LightningStor of a page of benchmarks: what each was measured on, the command that
//! repeats it, the bars with their verdicts, and all figures.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use crate::page;
use crate::report::Row;

/// What a suite says of itself.
pub struct Section {
    heading: &'static str,
    /// Its name on the command line.
    suite: &'static str,
    about: &'static str,
}

/// The section of `perf objects`.
pub const OBJECTS: Section = Section {
    heading: "LightningStor",
    suite: "objects",
    about: ABOUT_OBJECTS,
};

/// The section of `perf objects` when only the trial of many keys runs: it takes long.
pub const SCALE: Section = Section {
    heading: "LightningStor: 10,000,000 keys",
    suite: "objects",
    about: ABOUT_SCALE,
};

/// The section of `perf chainfire`.
pub const CHAINFIRE: Section = Section {
    heading: "ChainFire",
    suite: "chainfire",
    about: ABOUT_CHAINFIRE,
};

/// The section of `perf control`.
pub const CONTROL: Section = Section {
    heading: "Control kit",
    suite: "control",
    about: ABOUT_CONTROL,
};

/// The section of `perf volumes`.
pub const VOLUMES: Section = Section {
    heading: "CoronaFS",
    suite: "volumes",
    about: ABOUT_VOLUMES,
};

/// The section of `perf fiberlb`.
pub const FIBERLB: Section = Section {
    heading: "FiberLB",
    suite: "fiberlb",
    about: ABOUT_FIBERLB,
};

/// The section of `perf big-object`.
pub const BIG_OBJECT: Section = Section {
    heading: "LightningStor: one object of 6 GiB",
    suite: "big-object",
    about: ABOUT_BIG_OBJECT,
};

/// An option whose value names a directory of one machine.
const DIR: &str = "--dir";

/// Writes the section into the page; its other sections stay.
pub fn write(path: &Path, section: &Section, facts: &[String], rows: &[Row]) -> Result<()> {
    let old = match fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(page::EMPTY.to_owned()),
        read => read,
    };
    let old = old.with_context(|| format!("read {}", path.display()))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let today = page::date(now.context("the clock is before 1970")?.as_secs() / 86_400);
    let words: Vec<String> = std::env::args().skip(1).collect();
    let text = section.text(&today, &section.command(&words), facts, rows);
    let new = page::with_section(&old, section.heading, &text);
    fs::write(path, new).with_context(|| format!("write {}", path.display()))
}

impl Section {
    /// The command that repeats a run of `perf` with these words.
    fn command(&self, words: &[String]) -> String {
        let mut line = format!("cargo xtask bench {} --", self.suite);
        let mut words = words.iter().skip_while(|word| *word == self.suite);
        while let Some(word) = words.next() {
            if word == DIR {
                words.next();
            } else if !word.starts_with("--dir=") {
                line.push(' ');
                line.push_str(word);
            }
        }
        line
    }

    fn text(&self, today: &str, command: &str, facts: &[String], rows: &[Row]) -> String {
        let mut text = format!("Measured on {today} by\n\n```\n{command}\n```\n\n");
        for fact in facts {
            writeln!(text, "- {fact}").expect("writing to a string cannot fail");
        }
        text.push_str(self.about);
        let judged: Vec<&Row> = rows.iter().filter(|row| row.ok().is_some()).collect();
        text.push_str("\n### Bars\n\n");
        text.push_str(&page::table(&judged));
        text.push_str("\n### All figures\n\n");
        text.push_str(&page::table(&rows.iter().collect::<Vec<_>>()));
        text
    }
}

const ABOUT_OBJECTS: &str = "
Each server runs alone on CPU 1 and wrk on CPU 0, over presigned URLs on loopback; rounds interleave
the contenders. A figure is the median of the rounds, beside it the smallest and the largest. CPU is
that of the server's whole process tree. No window begins before all contenders rest; what a server
still does after a window of PUTs (merges, compaction) is that row's `cpu-after`. Our PUTs are durable before they are answered; s3s-fs syncs
nothing, and nginx serves static files without checking anything. A ratio is to the median of the
contender or row that it names, in the same run. A bar is always \"at most\": 12,000 PUT/s are at most
83.3 us a PUT, 2.5 GB for a CPU-second are at most 400 ms of CPU for a GB. `restart`, `scale`,
`compaction`, `tenants` and `idle` are trials of our node alone: one shard on CPU 1, but `idle` at its
defaults.
";

const ABOUT_CHAINFIRE: &str = "
Clusters of one (n1) and three members (n3), ours and Debian's etcd; every member runs on CPU 1 with
fsync on, the load on CPU 0, a connection for each client, 256 B a value. Rounds interleave the
contenders. A figure is the median of the rounds; CPU is that of all members. A rate is judged turned
over: 1.5 times etcd's puts are at most 0.667 of its wall time a put. `watch-event` is from a put until
the last of the watchers has the event; `lease-grant` and `memory` are with the leases and keys that the
command names (1,000 watchers, 100,000 leases and 1,000,000 keys where it names none), on one member.
";

const ABOUT_CONTROL: &str = "
`noop` is a call that does nothing, with authentication, request id, deadline, metrics and log span by the kit,
with none of them by the bare server; 16 connections with a call at a time, the server on CPU 1. `saga` is steps
that do nothing, 64 operations of four steps at a time, and `reserve` reservations of one tenant's quota, 64 at a
time, both in one process on CPU 0, on ChainFire of one (n1) and three members (n3) on CPU 1. Writes are
revisions of ChainFire; an operation's beginning and its waiting client are in a step's figures.
";

const ABOUT_VOLUMES: &str = "
Each backend is a process on CPU 1, alone at work there, and the front end, libblkio's vhost-user-blk, runs on
CPU 0; one ring, rounds that interleave the contenders, and every block that is read is compared. A figure is
the median of the rounds; CPU is that of the backend's process with its kernel workers. Both backends write
by direct I/O and are durable when a flush has returned. A front end waits for calls, but polls where a row
says so. `io_uring` is the same load on the peer's file without a backend: it has no CPU of its own here.
Ours polls a ring for up to 50 us, with at most half of the shard's time; `coronafs-not-polling` never does.
";

const ABOUT_FIBERLB: &str = "
The kernel runs and times the program itself (`BPF_PROG_TEST_RUN`) on one CPU. A program before it makes each
packet another flow's, UDP in 64 bytes; what that costs alone is taken off. The VIP has 100 backends, a ring of
65,537 slots and rules for sources; counters, the limit on new flows and sampled events are on. A round is the
best of many short runs; a figure is the median of the rounds. With a tunnel, the figure has in it that the
header of the run before is taken off again. A ring is built, filled and swapped in parts, as its owner does it.

The rows through veth have a generator (frames that the kernel makes), a contender in a network namespace of its
own, and a program that counts and drops what comes out, all on one CPU; a packet's time is that of all three, and
`generator` is the time without a contender. Both contenders translate 4,096 flows to 100 backends, nftables by
connection tracking and a `dnat` to a map by hash. Contenders take turns; a round is the best of some short runs.
";

const ABOUT_SCALE: &str = "
A node with one shard on CPU 1 takes 10,000,000 objects of a few bytes from one client on CPU 0. Memory
is what the kernel says of the node's process.
";

const ABOUT_BIG_OBJECT: &str = "
A node with one shard on CPU 1 and everything else at its defaults takes the object in parts of
64 MiB, four at a time, and gives it back in one GET, of which every byte is compared with what was
sent. Memory is what the kernel says of the node's process: `above-pool` is the most that was ever
resident less the shard's buffer pool, and the others are what was held at that moment. Rates are those
of a client on the same machine that makes and compares the bytes; CPU is the node's, for both ways.
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Limit, Spread};

    fn row(bar: &'static str, limit: Option<Limit>) -> Row {
        Row {
            bar,
            contender: "ultracloud",
            unit: "ms",
            spread: Spread {
                median: 2.0,
                min: 1.0,
                max: 3.0,
            },
            peer: None,
            limit,
        }
    }

    #[test]
    fn the_command_repeats_the_run_without_this_machines_directory() {
        let words = |text: &str| -> Vec<String> { text.split(' ').map(str::to_owned).collect() };
        let line = OBJECTS.command(&words(
            "objects --large --dir /x --rounds 3 --dir=/y --report d.md",
        ));
        let expected = "cargo xtask bench objects -- --large --rounds 3 --report d.md";
        assert_eq!(line, expected);
    }

    #[test]
    fn judged_rows_stand_in_both_tables_and_others_in_one() {
        let rows = [row("a", Some(Limit::Value(2.0))), row("b", None)];
        let facts = ["Linux".to_owned()];
        let text = OBJECTS.text("2026-01-02", "run it", &facts, &rows);
        assert!(text.starts_with("Measured on 2026-01-02 by\n\n```\nrun it\n```\n\n- Linux\n"));
        assert_eq!(text.matches("| a |").count(), 2);
        assert_eq!(text.matches("| b |").count(), 1);
    }

    #[test]
    fn a_page_is_made_and_its_other_sections_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("page.md");
        write(&path, &OBJECTS, &[], &[row("a", None)]).unwrap();
        let made = fs::read_to_string(&path).unwrap();
        assert!(made.starts_with(page::EMPTY) && made.contains("## LightningStor\n"));
        fs::write(&path, made + "\n## CoronaFS\n\nvolumes\n").unwrap();
        write(&path, &BIG_OBJECT, &[], &[row("c", None)]).unwrap();
        write(&path, &OBJECTS, &[], &[row("b", None)]).unwrap();
        let again = fs::read_to_string(&path).unwrap();
        assert!(
            again.contains("\n## CoronaFS\n\nvolumes\n\n## LightningStor: one object of 6 GiB\n")
        );
        assert!(again.contains("| c |"));
        assert!(again.contains("| b |") && !again.contains("| a |"));
    }
}
