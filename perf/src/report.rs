//! Rows, limits and how they are shown: one table for people, one JSON object per line for tools.
//!
//! A row is one contender on one bar. A limit is always "at most". Never rounds before judging.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

/// Median and extremes of a row's rounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// Middle value; the mean of the middle two when their number is even.
    pub median: f64,
    /// Smallest value.
    pub min: f64,
    /// Largest value.
    pub max: f64,
}

impl Spread {
    /// Sums up at least one finite value.
    pub fn of(values: &[f64]) -> Result<Self> {
        ensure!(!values.is_empty(), "no round was measured");
        ensure!(
            values.iter().all(|v| v.is_finite()),
            "a round has no finite value: {values:?}"
        );
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = ((sorted.len() - 1) / 2, sorted.len() / 2);
        Ok(Self {
            median: f64::midpoint(sorted[low], sorted[high]),
            min: sorted[0],
            max: sorted[sorted.len() - 1],
        })
    }
}

/// The most a row may show.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Limit {
    /// Times the peer's median.
    Ratio(f64),
    /// In the row's own unit.
    Value(f64),
    /// So much more than the peer's median.
    Above(f64),
}

/// The one a row is compared with.
#[derive(Debug, Clone, PartialEq)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its median, in the row's unit.
    pub median: f64,
}

/// One contender on one bar.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// What is measured.
    pub bar: &'static str,
    /// Who did it.
    pub contender: &'static str,
    /// Unit of the spread.
    pub unit: &'static str,
    /// What the rounds gave.
    pub spread: Spread,
    /// Whom it is compared with; none where the peer took no part in the run.
    pub peer: Option<Peer>,
    /// What it must keep; none for a row that is there to compare with.
    pub limit: Option<Limit>,
}

#[derive(Serialize)]
struct JsonRow<'a> {
    /// `bar/contender`.
    bar: String,
    value: f64,
    unit: &'a str,
    /// In `unit` whatever the limit's kind, so that `ok` is always `value <= limit`.
    limit: Option<f64>,
    peer: Option<&'a str>,
    peer_value: Option<f64>,
    ratio: Option<f64>,
    ok: Option<bool>,
}

impl Row {
    /// Median over the peer's median.
    pub fn ratio(&self) -> Option<f64> {
        self.peer
            .as_ref()
            .map(|peer| self.spread.median / peer.median)
    }

    /// Whether the limit is kept; none where there is no limit, or no peer to hold it against.
    pub fn ok(&self) -> Option<bool> {
        self.limit_in_unit()
            .map(|limit| self.spread.median <= limit)
    }

    fn limit_in_unit(&self) -> Option<f64> {
        match self.limit? {
            Limit::Value(most) => Some(most),
            Limit::Ratio(most) => self.peer.as_ref().map(|peer| most * peer.median),
            Limit::Above(most) => self.peer.as_ref().map(|peer| peer.median + most),
        }
    }

    /// The row as one line of JSON.
    pub fn to_json(&self) -> Result<String> {
        let row = JsonRow {
            bar: format!("{}/{}", self.bar, self.contender),
            value: self.spread.median,
            unit: self.unit,
            limit: self.limit_in_unit(),
            peer: self.peer.as_ref().map(|peer| peer.name.as_str()),
            peer_value: self.peer.as_ref().map(|peer| peer.median),
            ratio: self.ratio(),
            ok: self.ok(),
        };
        serde_json::to_string(&row).with_context(|| format!("print {} as JSON", row.bar))
    }

    /// Its cells in a table: bar, contender, median, spread, unit, ratio, limit, verdict.
    pub fn cells(&self) -> [String; 8] {
        let Spread { median, min, max } = self.spread;
        let limit = match (self.limit, self.peer.as_ref()) {
            (None, _) => "-".to_owned(),
            (Some(Limit::Value(most)), _) => format!("<= {}", short(most)),
            (Some(Limit::Above(most)), Some(peer)) => format!("<= {} + {most}", peer.name),
            (Some(Limit::Above(most)), None) => format!("<= peer + {most}"),
            (Some(Limit::Ratio(most)), Some(peer)) => format!("<= {most} x {}", peer.name),
            (Some(Limit::Ratio(most)), None) => format!("<= {most} x peer"),
        };
        let ok = match self.ok() {
            None => "-",
            Some(true) => "yes",
            Some(false) => "NO",
        };
        [
            self.bar.to_owned(),
            self.contender.to_owned(),
            short(median),
            format!("{}..{}", short(min), short(max)),
            self.unit.to_owned(),
            self.ratio()
                .map_or("-".to_owned(), |ratio| format!("{ratio:.2}")),
            limit,
            ok.to_owned(),
        ]
    }
}

/// Three figures' worth of a value.
fn short(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

/// The rows as an aligned table under a head.
pub fn table(rows: &[Row]) -> String {
    let head = [
        "bar",
        "contender",
        "median",
        "min..max",
        "unit",
        "ratio",
        "limit",
        "ok",
    ];
    let mut lines = vec![head.map(str::to_owned)];
    lines.extend(rows.iter().map(Row::cells));
    let mut widths = [0; 8];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for line in &lines {
        let mut text = String::new();
        for (cell, width) in line.iter().zip(widths) {
            write!(text, "{cell:<width$}  ").expect("writing to a string cannot fail");
        }
        out.push_str(text.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(median: f64, limit: Option<Limit>) -> Row {
        Row {
            bar: "echo",
            contender: "engine",
            unit: "us",
            spread: Spread {
                median,
                min: median,
                max: median,
            },
            peer: Some(Peer {
                name: "raw".into(),
                median: 4.0,
            }),
            limit,
        }
    }

    #[test]
    fn the_median_is_the_middle_or_between_the_middle_two() {
        let odd = Spread::of(&[3.0, 1.0, 2.0]).unwrap();
        assert_eq!(
            odd,
            Spread {
                median: 2.0,
                min: 1.0,
                max: 3.0
            }
        );
        assert_eq!(
            Spread::of(&[4.0, 1.0, 2.0, 3.0]).unwrap().median.to_bits(),
            2.5f64.to_bits()
        );
    }

    #[test]
    fn rounds_that_measured_nothing_have_no_median() {
        assert!(Spread::of(&[]).is_err());
        assert!(Spread::of(&[1.0, f64::NAN]).is_err());
        assert!(Spread::of(&[f64::INFINITY]).is_err());
    }

    #[test]
    fn a_ratio_is_kept_up_to_its_limit_and_missed_just_above() {
        let limit = Some(Limit::Ratio(1.25));
        assert_eq!(row(5.0, limit).ok(), Some(true));
        assert_eq!(row(5.000_001, limit).ok(), Some(false));
        assert_eq!(row(9.0, None).ok(), None);
    }

    #[test]
    fn a_distance_is_kept_up_to_its_limit_and_missed_just_above() {
        let limit = Some(Limit::Above(5.0));
        assert_eq!(row(9.0, limit).ok(), Some(true));
        assert_eq!(row(9.000_001, limit).ok(), Some(false));
        assert_eq!(row(9.0, limit).cells()[6], "<= raw + 5");
    }

    #[test]
    fn a_ratio_without_its_peer_is_not_judged() {
        let alone = Row {
            peer: None,
            ..row(1.0, Some(Limit::Ratio(1.25)))
        };
        assert_eq!((alone.ratio(), alone.ok()), (None, None));
        let value = Row {
            peer: None,
            ..row(1.0, Some(Limit::Value(3.0)))
        };
        assert_eq!(value.ok(), Some(true));
    }

    #[test]
    fn json_shows_the_limit_in_the_rows_own_unit() {
        let line = row(5.5, Some(Limit::Ratio(1.25))).to_json().unwrap();
        assert_eq!(
            line,
            r#"{"bar":"echo/engine","value":5.5,"unit":"us","limit":5.0,"peer":"raw","peer_value":4.0,"ratio":1.375,"ok":false}"#
        );
    }

    #[test]
    fn table_columns_line_up() {
        let text = table(&[row(5.5, Some(Limit::Ratio(1.25))), row(1234.0, None)]);
        let starts: Vec<_> = text
            .lines()
            .map(|l| l.find("us").or(l.find("unit")))
            .collect();
        assert_eq!(text.lines().count(), 3);
        assert!(starts.iter().all(|start| *start == starts[0]), "{text}");
    }
}
