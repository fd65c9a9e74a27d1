//! From windows to rows: what each metric means for each cell, and the bars that we keep.
//!
//! A limit is "at most", so a bar that wants much is judged turned over: at least 12,000 PUT/s is at
//! most 83.3 µs a PUT, at least 2.5 GB for a CPU-second is at most 400 ms of CPU for a GB. The plain
//! figures stand beside them, unjudged. Knows nothing of how a window was run.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context, Result};

use super::cell::{Cell, Job, PAGE_KEYS};
use super::contenders::{NGINX, OURS, PEERS};
use super::wrk::Report;
use crate::report::{Limit, Peer, Row, Spread};

/// The most CPU a GET of 4 KiB may take.
const GET_SMALL_CPU_US_MAX: f64 = 25.0;
/// The same, times nginx's.
const GET_SMALL_RATIO_MAX: f64 = 2.5;
/// The median must be below 0.5 ms; wrk counts in microseconds.
const GET_SMALL_P50_MS_MAX: f64 = 0.499;
/// The most CPU a durable PUT of 4 KiB may take.
const PUT_SMALL_CPU_US_MAX: f64 = 40.0;
/// The least durable PUTs of 4 KiB a second.
const PUT_SMALL_RATE_MIN: f64 = 12_000.0;
/// The least GB of big GETs for a CPU-second; or else a part of nginx's.
const GET_BIG_YIELD_MIN: f64 = 2.5;
/// The least part of nginx's GB for a CPU-second that also keeps the bar.
const GET_BIG_PART_MIN: f64 = 0.8;
/// The least GB of big PUTs for a CPU-second.
const PUT_BIG_YIELD_MIN: f64 = 0.9;
/// The most CPU a listed key may take.
const LIST_KEY_CPU_US_MAX: f64 = 2.0;
/// The most CPU that a key of a million may take, times that of one of ten thousand.
const LIST_FLAT_RATIO_MAX: f64 = 1.3;
/// 99 of 100 pages must come below 10 ms; wrk counts in microseconds.
const LIST_P99_MS_MAX: f64 = 9.999;

/// One window of one contender.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// What the load generator saw.
    pub report: Report,
    /// CPU of the server and everything below it.
    pub cpu: Duration,
    /// The same between the load's end and the contenders' rest.
    pub after: Duration,
}

/// All windows of one contender in one cell.
pub struct Series {
    /// The cell.
    pub cell: Cell,
    /// The contender's name.
    pub contender: &'static str,
    /// Bytes of the shortest body among its compared answers.
    pub answer_bytes_min: u64,
    /// Its windows, round by round.
    pub samples: Vec<Sample>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Metric {
    /// CPU for an operation, a key or a GB.
    Cpu,
    /// CPU after a window, for the same.
    CpuAfter,
    /// `Cpu`, held against nginx.
    CpuBeside,
    P50,
    P99,
    Rate,
    Wall,
    Yield,
}

const METRICS: [Metric; 8] = [
    Metric::Cpu,
    Metric::CpuAfter,
    Metric::CpuBeside,
    Metric::P50,
    Metric::P99,
    Metric::Rate,
    Metric::Wall,
    Metric::Yield,
];

fn is_small_get(cell: Cell) -> bool {
    matches!(cell, Cell::GetSmall16 | Cell::GetSmall64)
}

fn is_big(cell: Cell) -> bool {
    matches!(cell, Cell::GetBig4 | Cell::PutBig4)
}

impl Metric {
    fn applies(self, cell: Cell, contender: &str) -> bool {
        match self {
            Self::Cpu | Self::P50 | Self::P99 | Self::Rate => true,
            Self::CpuAfter => matches!(cell.job(), Job::Put(_)),
            Self::CpuBeside => is_small_get(cell) && contender == OURS,
            Self::Wall => cell == Cell::PutSmall64,
            Self::Yield => is_big(cell),
        }
    }

    fn bar(self, cell: Cell) -> &'static str {
        let bars = cell.bars();
        match self {
            Self::Cpu => bars.cpu,
            Self::CpuAfter => bars.cpu_after,
            Self::CpuBeside => bars.cpu_beside,
            Self::P50 => bars.p50,
            Self::P99 => bars.p99,
            Self::Rate => bars.rate,
            Self::Wall => bars.wall,
            Self::Yield => bars.yield_,
        }
    }

    fn unit(self, cell: Cell) -> &'static str {
        match (self, cell.job()) {
            (Self::Cpu | Self::CpuAfter, _) if is_big(cell) => "ms CPU/GB",
            (Self::Cpu, Job::List(_)) => "us CPU/key",
            (Self::Cpu, Job::Roll(_)) => "us CPU/page",
            (Self::Cpu | Self::CpuAfter | Self::CpuBeside, _) => "us CPU/op",
            (Self::P50 | Self::P99, _) => "ms",
            (Self::Rate, Job::List(_)) => "keys/s",
            (Self::Rate, Job::Roll(_)) => "pages/s",
            (Self::Rate, _) => "ops/s",
            (Self::Wall, _) => "us/op",
            (Self::Yield, _) => "GB/CPU-s",
        }
    }

    fn value(self, cell: Cell, sample: Sample) -> f64 {
        let Sample { report, cpu, after } = sample;
        let requests = report.requests as f64;
        let cpu = if self == Self::CpuAfter { after } else { cpu };
        let (cpu, wall) = (cpu.as_secs_f64(), report.duration.as_secs_f64());
        let (ops, gigabytes) = match cell.job() {
            Job::Get(bytes) | Job::Put(bytes) => (requests, requests * bytes as f64 / 1e9),
            Job::List(_) => (requests * f64::from(PAGE_KEYS), 0.0),
            Job::Roll(_) => (requests, 0.0),
        };
        match self {
            Self::Cpu | Self::CpuAfter if is_big(cell) => cpu * 1e3 / gigabytes,
            Self::Cpu | Self::CpuAfter | Self::CpuBeside => cpu * 1e6 / ops,
            Self::P50 => report.p50.as_secs_f64() * 1e3,
            Self::P99 => report.p99.as_secs_f64() * 1e3,
            Self::Rate => ops / wall,
            Self::Wall => wall * 1e6 / ops,
            Self::Yield => gigabytes / cpu,
        }
    }

    /// What we have to keep; `nginx` is its median in this metric.
    fn limit(self, cell: Cell, nginx: Option<f64>) -> Option<Limit> {
        match (self, cell) {
            (Self::Cpu, Cell::GetSmall16 | Cell::GetSmall64) => {
                Some(Limit::Value(GET_SMALL_CPU_US_MAX))
            }
            (Self::CpuBeside, _) => Some(Limit::Ratio(GET_SMALL_RATIO_MAX)),
            (Self::P50, Cell::GetSmall16) => Some(Limit::Value(GET_SMALL_P50_MS_MAX)),
            (Self::Cpu, Cell::PutSmall64) => Some(Limit::Value(PUT_SMALL_CPU_US_MAX)),
            (Self::Wall, Cell::PutSmall64) => Some(Limit::Value(1e6 / PUT_SMALL_RATE_MIN)),
            (Self::Cpu, Cell::GetBig4) => Some(big_get_limit(nginx)),
            (Self::Cpu, Cell::PutBig4) => Some(Limit::Value(1e3 / PUT_BIG_YIELD_MIN)),
            (Self::Cpu, Cell::List1e4 | Cell::List1e5 | Cell::List1e6) => {
                Some(Limit::Value(LIST_KEY_CPU_US_MAX))
            }
            (Self::P99, Cell::List1e4 | Cell::List1e5 | Cell::List1e6) => {
                Some(Limit::Value(LIST_P99_MS_MAX))
            }
            _ => None,
        }
    }
}

/// Either of two bars keeps it, so the wider one is the limit.
fn big_get_limit(nginx: Option<f64>) -> Limit {
    let plain = 1e3 / GET_BIG_YIELD_MIN;
    match nginx {
        Some(nginx) if nginx / GET_BIG_PART_MIN > plain => Limit::Ratio(1.0 / GET_BIG_PART_MIN),
        _ => Limit::Value(plain),
    }
}

/// The rows of all series, which stand cell by cell in the order of the report.
pub fn rows(series: &[Series]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for of_cell in series.chunk_by(|one, next| one.cell == next.cell) {
        let cell = of_cell[0].cell;
        for metric in METRICS {
            metric_rows(metric, cell, of_cell, &mut rows)
                .with_context(|| format!("sum up {}", metric.bar(cell)))?;
        }
    }
    rows.extend(flat_row(&rows));
    Ok(rows)
}

/// Our CPU for a key of a long listing beside that of a short one, when both were measured.
fn flat_row(rows: &[Row]) -> Option<Row> {
    let cpu = |cell: Cell| {
        let mut rows = rows.iter();
        rows.find(|row| row.bar == cell.bars().cpu && row.contender == OURS)
    };
    let (short, long) = (cpu(Cell::List1e4)?, cpu(Cell::List1e6)?);
    Some(Row {
        bar: Cell::List1e6.bars().flat,
        peer: Some(Peer {
            name: Cell::List1e4.name().to_owned(),
            median: short.spread.median,
        }),
        limit: Some(Limit::Ratio(LIST_FLAT_RATIO_MAX)),
        ..long.clone()
    })
}

fn metric_rows(metric: Metric, cell: Cell, series: &[Series], rows: &mut Vec<Row>) -> Result<()> {
    let spread = |one: &Series| {
        let samples = one.samples.iter();
        let values: Vec<f64> = samples.map(|sample| metric.value(cell, *sample)).collect();
        Spread::of(&values)
    };
    let median = |name: &str| -> Result<Option<f64>> {
        let one = series.iter().find(|one| one.contender == name);
        Ok(one.map(spread).transpose()?.map(|spread| spread.median))
    };
    let nginx = median(NGINX)?;
    let beside = |name: &'static str| -> Result<Option<Peer>> {
        let peer = median(name)?;
        Ok(peer.map(|median| Peer {
            name: name.to_owned(),
            median,
        }))
    };
    let mut peer = beside(NGINX)?;
    if metric != Metric::CpuBeside {
        for name in PEERS {
            peer = peer.map_or_else(|| beside(name), |peer| Ok(Some(peer)))?;
        }
    }
    let takes_part = series
        .iter()
        .filter(|one| metric.applies(cell, one.contender));
    for one in takes_part {
        rows.push(Row {
            bar: metric.bar(cell),
            contender: one.contender,
            unit: metric.unit(cell),
            spread: spread(one)?,
            peer: peer.clone(),
            limit: (one.contender == OURS)
                .then(|| metric.limit(cell, nginx))
                .flatten(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A window of one second.
    fn series(cell: Cell, contender: &'static str, requests: u64, cpu_ms: u64) -> Series {
        let report = Report {
            requests,
            bytes: 0,
            duration: Duration::from_secs(1),
            p50: Duration::from_micros(400),
            p99: Duration::from_millis(2),
        };
        let cpu = Duration::from_millis(cpu_ms);
        Series {
            cell,
            contender,
            answer_bytes_min: 0,
            samples: vec![Sample {
                report,
                cpu,
                after: Duration::ZERO,
            }],
        }
    }

    fn row<'a>(rows: &'a [Row], bar: &str, contender: &str) -> &'a Row {
        let found = rows
            .iter()
            .find(|row| row.bar == bar && row.contender == contender);
        found.unwrap_or_else(|| panic!("no row {bar}/{contender}"))
    }

    fn close(value: f64, expected: f64) -> bool {
        (value - expected).abs() < expected * 1e-9
    }

    #[test]
    fn a_small_get_is_judged_alone_beside_nginx_and_by_its_median() {
        let rows = rows(&[
            series(Cell::GetSmall16, OURS, 40_000, 960),
            series(Cell::GetSmall16, NGINX, 100_000, 900),
        ])
        .unwrap();
        let cpu = row(&rows, "get-4k-c16/cpu", OURS);
        assert!(close(cpu.spread.median, 24.0) && cpu.ok() == Some(true));
        let beside = row(&rows, "get-4k-c16/cpu-beside-nginx", OURS);
        assert!(close(beside.ratio().unwrap(), 24.0 / 9.0) && beside.ok() == Some(false));
        assert_eq!(row(&rows, "get-4k-c16/p50", OURS).ok(), Some(true));
        assert!(close(
            row(&rows, "get-4k-c16/rate", NGINX).spread.median,
            1e5
        ));
        assert!(
            rows.iter()
                .all(|row| row.contender == OURS || row.limit.is_none())
        );
    }

    #[test]
    fn without_nginx_nothing_is_held_against_it() {
        let rows = rows(&[series(Cell::GetSmall64, OURS, 40_000, 960)]).unwrap();
        assert_eq!(row(&rows, "get-4k-c64/cpu-beside-nginx", OURS).ok(), None);
        assert_eq!(row(&rows, "get-4k-c64/cpu", OURS).ok(), Some(true));
    }

    #[test]
    fn twelve_thousand_puts_a_second_keep_the_bar_and_one_less_does_not() {
        for (requests, ok) in [(12_000, true), (11_999, false)] {
            let rows = rows(&[series(Cell::PutSmall64, OURS, requests, 100)]).unwrap();
            assert_eq!(row(&rows, "put-4k-c64/wall", OURS).ok(), Some(ok));
        }
    }

    #[test]
    fn a_big_get_keeps_either_of_its_two_bars() {
        // 100 × 16 MiB are 1.678 GB.
        let judged = |ours_ms, nginx_ms| {
            let rows = rows(&[
                series(Cell::GetBig4, OURS, 100, ours_ms),
                series(Cell::GetBig4, NGINX, 100, nginx_ms),
            ]);
            row(&rows.unwrap(), "get-16m-c4/cpu", OURS).ok()
        };
        assert_eq!(judged(670, 400), Some(true), "2.504 GB, 0.6 of nginx");
        assert_eq!(judged(690, 400), Some(false), "2.43 GB, 0.58 of nginx");
        assert_eq!(judged(690, 560), Some(true), "2.43 GB, 0.81 of nginx");
    }

    #[test]
    fn a_listing_is_counted_in_keys_and_compared_with_a_server_that_lists() {
        let rows = rows(&[
            series(Cell::List1e4, OURS, 100, 190),
            series(Cell::List1e4, "s3s-fs", 2, 1000),
        ])
        .unwrap();
        let ours = row(&rows, "list-1e4/cpu", OURS);
        assert!(close(ours.spread.median, 1.9) && ours.ok() == Some(true));
        assert_eq!(ours.peer.as_ref().unwrap().name, "s3s-fs");
        assert!(close(row(&rows, "list-1e4/rate", OURS).spread.median, 1e5));
    }

    #[test]
    fn a_long_listing_is_flat_up_to_its_ratio_and_both_must_have_run() {
        for (cpu_ms, ok) in [(129, true), (131, false)] {
            let rows = rows(&[
                series(Cell::List1e4, OURS, 100, 100),
                series(Cell::List1e6, OURS, 100, cpu_ms),
            ])
            .unwrap();
            let flat = row(&rows, "list-1e6/cpu-beside-1e4", OURS);
            assert_eq!(flat.ok(), Some(ok));
        }
        let alone = rows(&[series(Cell::List1e6, OURS, 100, 100)]).unwrap();
        assert!(alone.iter().all(|row| row.bar != "list-1e6/cpu-beside-1e4"));
    }

    #[test]
    fn a_page_must_come_below_ten_milliseconds_also_at_the_99th_percentile() {
        for (micros, ok) in [(9_999, true), (10_000, false)] {
            let mut one = series(Cell::List1e5, OURS, 100, 100);
            one.samples[0].report.p99 = Duration::from_micros(micros);
            assert_eq!(
                row(&rows(&[one]).unwrap(), "list-1e5/p99", OURS).ok(),
                Some(ok)
            );
        }
    }

    #[test]
    fn big_bodies_show_what_a_cpu_second_yields() {
        let rows = rows(&[series(Cell::PutBig4, OURS, 100, 1000)]).unwrap();
        let expected = 100.0 * f64::from(1 << 24) / 1e9;
        let shown = row(&rows, "put-16m-c4/yield", OURS);
        assert!(close(shown.spread.median, expected) && shown.limit.is_none());
        assert_eq!(row(&rows, "put-16m-c4/cpu", OURS).ok(), Some(true));
    }
}
