//! The log of a process, on stderr: a line an event, with the call that it belongs to.

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// What is logged unless RUST_LOG says otherwise: raft tells of every election as an error of its own.
const FILTER: &str = "info,openraft=error";

/// The form of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// An object of JSON a line.
    Json,
}

/// Starts the log; RUST_LOG chooses what is in it.
///
/// # Panics
/// If the process has a log already.
pub fn start(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(FILTER));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(false).init(),
        LogFormat::Json => builder.json().init(),
    }
}
