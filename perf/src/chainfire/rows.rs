//! From windows to rows, and the bars that we keep against etcd in the same run.
//!
//! A limit is "at most", so a rate is judged turned over: 1.5 times etcd's puts are at most 1 / 1.5
//! of its wall time a put.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::Result;

use super::cluster::{ETCD, OURS};
use super::load::{Job, Report};
use crate::report::{Limit, Peer, Row, Spread};

/// Puts of many clients: so many times etcd's rate at least.
const PUT_RATE_MIN: f64 = 1.5;
/// Linearizable gets of many clients.
const GET_RATE_MIN: f64 = 3.0;
/// Puts of one client.
const PUT_ALONE_RATE_MIN: f64 = 1.0;

/// What is asked of clusters of which size, by how many clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    /// Its name.
    pub name: &'static str,
    /// What its clients do.
    pub job: Job,
    /// How many there are.
    pub clients: usize,
    bars: [&'static str; 5],
}

macro_rules! cell {
    ($name:literal, $job:expr, $clients:literal) => {
        Cell {
            name: $name,
            job: $job,
            clients: $clients,
            bars: [
                concat!($name, "/wall"),
                concat!($name, "/rate"),
                concat!($name, "/p50"),
                concat!($name, "/p99"),
                concat!($name, "/cpu"),
            ],
        }
    };
}

const ONE: [Cell; 4] = [
    cell!("put-c1-n1", Job::Put, 1),
    cell!("put-c64-n1", Job::Put, 64),
    cell!("get-c64-n1", Job::Get, 64),
    cell!("get-serializable-c64-n1", Job::GetSerializable, 64),
];
const THREE: [Cell; 4] = [
    cell!("put-c1-n3", Job::Put, 1),
    cell!("put-c64-n3", Job::Put, 64),
    cell!("get-c64-n3", Job::Get, 64),
    cell!("get-serializable-c64-n3", Job::GetSerializable, 64),
];

impl Cell {
    /// The cells of clusters of this size.
    pub fn of(members: usize) -> &'static [Cell] {
        if members == 1 { &ONE } else { &THREE }
    }

    fn rate_min(self) -> Option<f64> {
        match (self.job, self.clients) {
            (Job::Put, 1) => Some(PUT_ALONE_RATE_MIN),
            (Job::Put, _) => Some(PUT_RATE_MIN),
            (Job::Get, _) => Some(GET_RATE_MIN),
            (Job::GetSerializable, _) => None,
        }
    }
}

/// One window of one contender.
#[derive(Debug, Clone)]
pub struct Sample {
    /// What the load saw.
    pub report: Report,
    /// CPU of all members.
    pub cpu: Duration,
}

/// All windows of one contender in one cell.
pub struct Series {
    /// The cell.
    pub cell: Cell,
    /// The contender.
    pub contender: &'static str,
    /// Its windows, round by round.
    pub samples: Vec<Sample>,
}

impl Series {
    /// A series without windows yet.
    pub fn new(cell: Cell, contender: &'static str) -> Self {
        Self {
            cell,
            contender,
            samples: Vec::new(),
        }
    }
}

const UNITS: [&str; 5] = ["us/op", "ops/s", "ms", "ms", "us CPU/op"];

fn values(sample: &Sample) -> [f64; 5] {
    let (report, cpu) = (&sample.report, sample.cpu.as_secs_f64());
    let (answers, wall) = (report.answers as f64, report.wall.as_secs_f64());
    let ms = |quantile| report.latency.value_at_quantile(quantile) as f64 / 1e6;
    [
        wall * 1e6 / answers,
        answers / wall,
        ms(0.5),
        ms(0.99),
        cpu * 1e6 / answers,
    ]
}

/// The rows of all series, which stand cell by cell.
pub fn rows(series: &[Series]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for of_cell in series.chunk_by(|one, next| one.cell == next.cell) {
        let cell = of_cell[0].cell;
        for (metric, unit) in UNITS.iter().enumerate() {
            let found: Vec<(&'static str, Vec<f64>)> = of_cell
                .iter()
                .map(|one| {
                    let samples = one.samples.iter();
                    let values = samples.map(|sample| values(sample)[metric]);
                    (one.contender, values.collect())
                })
                .collect();
            let limit = match metric {
                0 => cell.rate_min().map(|rate| Limit::Ratio(1.0 / rate)),
                3 => cell.rate_min().map(|_| Limit::Ratio(1.0)),
                _ => None,
            };
            rows.extend(of_bar(cell.bars[metric], unit, limit, &found)?);
        }
    }
    Ok(rows)
}

/// What a trial measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bar {
    /// From a put until the last of many watchers has its event.
    WatchEvent,
    /// Wall time of one of many leases.
    LeaseGrant,
    /// Memory with many keys.
    Memory,
}

impl Bar {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::WatchEvent => "watch-event",
            Self::LeaseGrant => "lease-grant",
            Self::Memory => "memory",
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::WatchEvent => "ms",
            Self::LeaseGrant => "us/lease",
            Self::Memory => "MiB",
        }
    }

    fn limit(self) -> Option<Limit> {
        (self == Self::Memory).then_some(Limit::Ratio(1.0))
    }
}

/// The rows of a trial.
pub fn trial(bar: Bar, found: &[(&'static str, Vec<f64>)]) -> Result<Vec<Row>> {
    of_bar(bar.name(), bar.unit(), bar.limit(), found)
}

fn of_bar(
    bar: &'static str,
    unit: &'static str,
    limit: Option<Limit>,
    found: &[(&'static str, Vec<f64>)],
) -> Result<Vec<Row>> {
    let etcd = found.iter().find(|(contender, _)| *contender == ETCD);
    let etcd = etcd.map(|(_, values)| Spread::of(values)).transpose()?;
    let peer = etcd.map(|spread| Peer {
        name: ETCD.to_owned(),
        median: spread.median,
    });
    let row = |(contender, values): &(&'static str, Vec<f64>)| {
        Ok(Row {
            bar,
            contender,
            unit,
            spread: Spread::of(values)?,
            peer: peer.clone(),
            limit: limit.filter(|_| *contender == OURS),
        })
    };
    found.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdrhistogram::Histogram;

    fn series(cell: Cell, contender: &'static str, answers: u64) -> Series {
        let mut latency = Histogram::new(3).unwrap();
        latency.record_n(1_000_000, answers).unwrap();
        let report = Report {
            answers,
            wall: Duration::from_secs(1),
            latency,
        };
        let cpu = Duration::from_millis(900);
        Series {
            cell,
            contender,
            samples: vec![Sample { report, cpu }],
        }
    }

    fn verdict(rows: &[Row], bar: &str) -> Option<bool> {
        let mut rows = rows.iter();
        let row = rows.find(|row| row.bar == bar && row.contender == OURS);
        row.unwrap().ok()
    }

    #[test]
    fn a_rate_is_judged_by_its_times_of_etcds() {
        for (answers, kept) in [(15_010, true), (14_990, false)] {
            let rows = rows(&[series(ONE[1], OURS, answers), series(ONE[1], ETCD, 10_000)]);
            let rows = rows.unwrap();
            assert_eq!(verdict(&rows, "put-c64-n1/wall"), Some(kept));
            assert_eq!(verdict(&rows, "put-c64-n1/p99"), Some(true));
            assert_eq!(verdict(&rows, "put-c64-n1/cpu"), None);
        }
    }

    #[test]
    fn without_etcd_nothing_is_judged() {
        let rows = rows(&[series(THREE[2], OURS, 30_000)]).unwrap();
        assert!(rows.iter().all(|row| row.ok().is_none()));
    }
}
