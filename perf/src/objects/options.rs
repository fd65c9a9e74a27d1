//! What `perf objects` is told on its command line, and which cells and trials that chooses.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};

use super::cell::Cell;
use super::contenders::{CONTENDERS, OURS};
use super::trial::Trial;

/// Options of `perf objects`.
#[derive(Args)]
pub struct ObjectsArgs {
    /// One JSON object per line in place of the table.
    #[arg(long)]
    pub json: bool,
    /// Fail when a bar is missed, when none was judged, or when a contender is missing.
    #[arg(long)]
    pub strict: bool,
    /// Also write the rows into this page, as its section on LightningStor.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Rounds; every contender runs every cell once in each.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Seconds of one contender's window.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub seconds: u64,
    /// Where the servers keep their data: a directory on a disk [default: the system's temporary directory].
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Also what needs a million keys: long listings and restarts; filling them takes minutes.
    #[arg(long)]
    pub large: bool,
    /// Also ten million keys: 10 minutes, and 20 GiB of free disk.
    #[arg(long)]
    pub scale: bool,
    /// Keys of the scale trial; its bar is judged from ten million on.
    #[arg(long, default_value_t = 10_000_000, value_parser = clap::value_parser!(u32).range(1000..=100_000_000))]
    pub scale_keys: u32,
    /// Keys of the restart trial; its bar is judged from a million on.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1000..=100_000_000))]
    pub restart_keys: u32,
    /// Cells and trials to run [default: all but those of --large and --scale].
    #[arg(long, value_delimiter = ',', value_parser = choices())]
    pub cells: Vec<Choice>,
    /// Contenders to run [default: all that are installed].
    #[arg(long, value_delimiter = ',')]
    pub contenders: Vec<String>,
}

/// What one name in --cells stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// A cell, in which contenders stand beside each other.
    Cell(Cell),
    /// A trial of our node alone.
    Trial(Trial),
}

fn choices() -> impl TypedValueParser<Value = Choice> {
    let cells = Cell::value_variants()
        .iter()
        .filter_map(Cell::to_possible_value);
    let trials = Trial::value_variants()
        .iter()
        .filter_map(Trial::to_possible_value);
    let all: Vec<PossibleValue> = cells.chain(trials).collect();
    PossibleValuesParser::new(all).try_map(|name| {
        let cell = Cell::from_str(&name, false).map(Choice::Cell);
        cell.or_else(|_| Trial::from_str(&name, false).map(Choice::Trial))
    })
}

impl ObjectsArgs {
    /// The cells to run, in the order of the report, each once.
    pub fn cells(&self) -> Vec<Cell> {
        let all = Cell::value_variants().iter().copied();
        let by_default = self.cells.is_empty();
        all.filter(|cell| {
            let large = cell.is_large();
            self.cells.contains(&Choice::Cell(*cell))
                || (large && self.large)
                || (!large && by_default)
        })
        .collect()
    }

    /// The trials to run, in the order of the report, each once.
    pub fn trials(&self) -> Vec<Trial> {
        let all = Trial::value_variants().iter().copied();
        let by_default = self.cells.is_empty() && self.runs(OURS);
        all.filter(|trial| {
            self.cells.contains(&Choice::Trial(*trial))
                || match trial {
                    Trial::Restart => self.large,
                    Trial::Scale => self.scale,
                    Trial::Idle | Trial::Tenants | Trial::Compaction => by_default,
                }
        })
        .collect()
    }

    /// Whether a contender takes part, if it is installed.
    pub fn runs(&self, contender: &str) -> bool {
        self.contenders.is_empty() || self.contenders.iter().any(|chosen| chosen == contender)
    }

    /// Refuses contenders that nobody knows.
    pub fn check_names(&self) -> Result<()> {
        let known = CONTENDERS.iter().map(|contender| contender.name);
        for name in &self.contenders {
            ensure!(
                known.clone().any(|known| known == name),
                "no contender is named {name}: there are {}",
                known.collect::<Vec<_>>().join(", ")
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: ObjectsArgs,
    }

    fn args(words: &[&str]) -> ObjectsArgs {
        Cli::try_parse_from([&["objects"], words].concat())
            .unwrap()
            .args
    }

    #[test]
    fn what_is_large_runs_only_when_asked_for() {
        let plain = args(&[]);
        assert!(plain.cells().iter().all(|cell| !cell.is_large()));
        let expected = [Trial::Idle, Trial::Tenants, Trial::Compaction];
        assert_eq!(plain.trials(), expected);
        let large = args(&["--large"]);
        assert!(large.cells().contains(&Cell::List1e6));
        assert!(large.trials().contains(&Trial::Restart));
        assert!(!large.trials().contains(&Trial::Scale));
        assert!(args(&["--scale"]).trials().contains(&Trial::Scale));
    }

    #[test]
    fn chosen_cells_and_trials_run_in_order_each_once() {
        let chosen = args(&["--cells", "scale,list-1e5,idle,get-4k-c16,list-1e5"]);
        assert_eq!(chosen.cells(), [Cell::GetSmall16, Cell::List1e5]);
        assert_eq!(chosen.trials(), [Trial::Idle, Trial::Scale]);
        assert!(Cli::try_parse_from(["objects", "--cells", "nothing"]).is_err());
    }

    #[test]
    fn trials_of_our_node_run_only_when_it_takes_part() {
        assert_eq!(args(&["--contenders", "nginx"]).trials(), []);
    }
}
