//! One window of load by wrk, and its report.
//!
//! A window in which any request failed has no figures: an answer other than 2xx, a broken
//! connection or a timeout ends the run.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::script::REPORT;
use crate::process::{LOAD_CPU, Process, pinned};

/// What wrk may take beyond its window: reading targets, and answers that are late.
const GRACE: Duration = Duration::from_mins(2);

/// What one window gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Requests that were answered.
    pub requests: u64,
    /// Bytes of those answers, heads included.
    pub bytes: u64,
    /// From the first request to the last answer.
    pub duration: Duration,
    /// Median latency.
    pub p50: Duration,
    /// 99th percentile of latency.
    pub p99: Duration,
}

/// How a window is loaded.
#[derive(Debug, Clone, Copy)]
pub struct Load<'a> {
    /// The wrk binary.
    pub wrk: &'a Path,
    /// The script to run.
    pub script: &'a Path,
    /// The server.
    pub address: SocketAddr,
    /// Connections, all driven by one thread.
    pub connections: u32,
    /// Whole seconds.
    pub seconds: u64,
    /// Whether another load on the same CPU goes first.
    pub yields: bool,
    /// Where wrk's words go; two loads at a time have two directories.
    pub dir: &'a Path,
}

/// A window that has begun.
pub struct Running {
    process: Process,
    deadline: Duration,
}

impl Running {
    /// Waits for its end.
    pub fn finish(self) -> Result<Report> {
        parse(&self.process.finish(self.deadline)?)
    }
}

impl Load<'_> {
    /// Runs one window.
    pub fn run(&self) -> Result<Report> {
        self.start()?.finish()
    }

    /// Begins one window.
    pub fn start(&self) -> Result<Running> {
        let mut command = if self.yields {
            let mut command = pinned(LOAD_CPU, "nice");
            command.args(["-n", "19"]).arg(self.wrk);
            command
        } else {
            pinned(LOAD_CPU, self.wrk)
        };
        command
            .args(["--threads", "1", "--latency", "--timeout", "60s"])
            .args(["--connections", &self.connections.to_string()])
            .args(["--duration", &format!("{}s", self.seconds)])
            .arg("--script")
            .arg(self.script)
            .arg(format!("http://{}/", self.address));
        Ok(Running {
            process: Process::start("wrk", &mut command, self.dir)?,
            deadline: Duration::from_secs(self.seconds) + GRACE,
        })
    }
}

/// Reads what wrk printed.
pub fn parse(said: &str) -> Result<Report> {
    if let Some(line) = said.lines().find(|line| line.contains("Non-2xx")) {
        bail!("the load was refused: {}", line.trim());
    }
    if let Some(line) = said.lines().find(|line| line.contains("Socket errors")) {
        bail!("the load broke: {}", line.trim());
    }
    let mut lines = said.lines();
    let line = lines
        .find_map(|line| line.strip_prefix(REPORT))
        .with_context(|| format!("wrk gave no report: {said:?}"))?;
    let fields: BTreeMap<&str, u64> = line
        .split_whitespace()
        .map(|field| {
            let (name, value) = field.split_once('=').context("a field without value")?;
            let value = value
                .parse()
                .with_context(|| format!("{name} is {value}"))?;
            Ok((name, value))
        })
        .collect::<Result<_>>()
        .with_context(|| format!("wrk's report is{line}"))?;
    let field = |name: &str| {
        let value = fields.get(name).copied();
        value.with_context(|| format!("wrk's report has no {name}:{line}"))
    };
    let failed = field("failed")?;
    ensure!(failed == 0, "{failed} requests of the load failed");
    let report = Report {
        requests: field("requests")?,
        bytes: field("bytes")?,
        duration: Duration::from_micros(field("duration_us")?),
        p50: Duration::from_micros(field("p50_us")?),
        p99: Duration::from_micros(field("p99_us")?),
    };
    ensure!(
        report.requests > 0 && !report.duration.is_zero(),
        "no request was answered in the window: make it longer with --seconds"
    );
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "\
Running 1s test @ http://127.0.0.1:8099/
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   161.53us   78.67us   4.20ms   92.44%
    Req/Sec    97.11k     5.61k  104.84k    72.73%
  Latency Distribution
     50%  148.00us
     75%  170.00us
     90%  214.00us
     99%  375.00us
  106228 requests in 1.10s, 444.66MB read
Requests/sec:  96573.12
Transfer/sec:    404.24MB
";
    const LINE: &str = "perf-report requests=106228 bytes=466260000 duration_us=1100004 p50_us=148 p99_us=375 failed=0\n";

    #[test]
    fn a_window_without_failures_has_figures() {
        let report = parse(&format!("{SAID}{LINE}")).unwrap();
        assert_eq!(
            report,
            Report {
                requests: 106_228,
                bytes: 466_260_000,
                duration: Duration::from_micros(1_100_004),
                p50: Duration::from_micros(148),
                p99: Duration::from_micros(375),
            }
        );
    }

    #[test]
    fn any_failed_request_ends_the_run() {
        for bad in [
            format!("{SAID}  Non-2xx or 3xx responses: 1\n{LINE}"),
            format!("{SAID}  Socket errors: connect 0, read 3, write 0, timeout 0\n{LINE}"),
            format!("{SAID}{}", LINE.replace("failed=0", "failed=1")),
        ] {
            assert!(parse(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_report_that_is_missing_cut_or_empty_is_an_error() {
        assert!(parse(SAID).is_err());
        assert!(parse(LINE.split(" p99").next().unwrap()).is_err());
        assert!(parse(&LINE.replace("=148", "=x")).is_err());
        assert!(parse(&LINE.replace("=106228", "=0")).is_err());
    }
}
