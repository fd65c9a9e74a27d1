//! The cells of `perf objects`: what is asked for, over how many connections, and which bars the
//! answers give.
//!
//! A cell's numbers never depend on the contender; who takes part in a cell is the contender's word.
#![forbid(unsafe_code)]

use clap::ValueEnum;

/// Bytes of a small object.
pub const SMALL_BYTES: usize = 4 << 10;
/// Bytes of a big object.
pub const BIG_BYTES: usize = 16 << 20;
/// Keys of one page of a listing.
pub const PAGE_KEYS: u32 = 1000;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Cell {
    /// GET of 4 KiB, 16 connections.
    #[value(name = "get-4k-c16")]
    GetSmall16,
    /// GET of 4 KiB, 64 connections.
    #[value(name = "get-4k-c64")]
    GetSmall64,
    /// PUT of 4 KiB, 64 connections.
    #[value(name = "put-4k-c64")]
    PutSmall64,
    /// GET of 16 MiB, 4 connections.
    #[value(name = "get-16m-c4")]
    GetBig4,
    /// PUT of 16 MiB, 4 connections.
    #[value(name = "put-16m-c4")]
    PutBig4,
    /// LIST of pages of 1,000 out of 10,000 keys, one connection.
    #[value(name = "list-1e4")]
    List1e4,
    /// LIST of pages of 1,000 out of 100,000 keys, one connection; with --large.
    #[value(name = "list-1e5")]
    List1e5,
    /// LIST of pages of 1,000 out of 1,000,000 keys, one connection; with --large.
    #[value(name = "list-1e6")]
    List1e6,
    /// LIST by a delimiter, which rolls 1,000,000 keys up to 10 common prefixes; with --large.
    #[value(name = "list-rolled-1e6")]
    ListRolled1e6,
}

/// What one request of a cell does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// Reads an object of so many bytes.
    Get(usize),
    /// Writes an object of so many bytes.
    Put(usize),
    /// Reads one page of a bucket of so many keys.
    List(u32),
    /// Reads the common prefixes of a bucket of so many keys.
    Roll(u32),
}

/// The names of a cell's bars.
#[derive(Debug, Clone, Copy)]
pub struct Bars {
    /// CPU of the server for an operation, a key or a GB.
    pub cpu: &'static str,
    /// CPU of the work that a server leaves for later, in the same unit.
    pub cpu_after: &'static str,
    /// `cpu`, held against nginx.
    pub cpu_beside: &'static str,
    /// Operations a second.
    pub rate: &'static str,
    /// Wall time of the whole run for an operation: the rate turned over, so that less is better.
    pub wall: &'static str,
    /// CPU for a key, held against that of a short listing.
    pub flat: &'static str,
    /// Median latency.
    pub p50: &'static str,
    /// 99th percentile of latency.
    pub p99: &'static str,
    /// Bytes for a CPU-second: `cpu` turned over.
    pub yield_: &'static str,
}

macro_rules! bars {
    ($cell:literal) => {
        Bars {
            cpu: concat!($cell, "/cpu"),
            cpu_after: concat!($cell, "/cpu-after"),
            cpu_beside: concat!($cell, "/cpu-beside-nginx"),
            rate: concat!($cell, "/rate"),
            wall: concat!($cell, "/wall"),
            flat: concat!($cell, "/cpu-beside-1e4"),
            p50: concat!($cell, "/p50"),
            p99: concat!($cell, "/p99"),
            yield_: concat!($cell, "/yield"),
        }
    };
}

impl Cell {
    /// Its name on the command line and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::GetSmall16 => "get-4k-c16",
            Self::GetSmall64 => "get-4k-c64",
            Self::PutSmall64 => "put-4k-c64",
            Self::GetBig4 => "get-16m-c4",
            Self::PutBig4 => "put-16m-c4",
            Self::List1e4 => "list-1e4",
            Self::List1e5 => "list-1e5",
            Self::List1e6 => "list-1e6",
            Self::ListRolled1e6 => "list-rolled-1e6",
        }
    }

    /// The names of its bars.
    pub fn bars(self) -> Bars {
        match self {
            Self::GetSmall16 => bars!("get-4k-c16"),
            Self::GetSmall64 => bars!("get-4k-c64"),
            Self::PutSmall64 => bars!("put-4k-c64"),
            Self::GetBig4 => bars!("get-16m-c4"),
            Self::PutBig4 => bars!("put-16m-c4"),
            Self::List1e4 => bars!("list-1e4"),
            Self::List1e5 => bars!("list-1e5"),
            Self::List1e6 => bars!("list-1e6"),
            Self::ListRolled1e6 => bars!("list-rolled-1e6"),
        }
    }

    /// What one of its requests does.
    pub fn job(self) -> Job {
        match self {
            Self::GetSmall16 | Self::GetSmall64 => Job::Get(SMALL_BYTES),
            Self::PutSmall64 => Job::Put(SMALL_BYTES),
            Self::GetBig4 => Job::Get(BIG_BYTES),
            Self::PutBig4 => Job::Put(BIG_BYTES),
            Self::List1e4 => Job::List(10_000),
            Self::List1e5 => Job::List(100_000),
            Self::List1e6 => Job::List(1_000_000),
            Self::ListRolled1e6 => Job::Roll(1_000_000),
        }
    }

    /// Connections of the load.
    pub fn connections(self) -> u32 {
        match self {
            Self::GetSmall16 => 16,
            Self::GetSmall64 | Self::PutSmall64 => 64,
            Self::GetBig4 | Self::PutBig4 => 4,
            Self::List1e4 | Self::List1e5 | Self::List1e6 | Self::ListRolled1e6 => 1,
        }
    }

    /// Whether it runs only when asked for by --large or by its name.
    pub fn is_large(self) -> bool {
        matches!(self, Self::List1e5 | Self::List1e6 | Self::ListRolled1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_has_one_name_everywhere() {
        for cell in Cell::value_variants() {
            let value = cell.to_possible_value().unwrap();
            assert_eq!(value.get_name(), cell.name());
            assert_eq!(cell.bars().cpu, format!("{}/cpu", cell.name()));
        }
    }

    #[test]
    fn every_listing_is_a_whole_number_of_pages() {
        for cell in Cell::value_variants() {
            if let Job::List(keys) = cell.job() {
                assert_eq!(keys % PAGE_KEYS, 0);
            }
        }
    }
}
