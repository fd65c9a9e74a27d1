//! `ultractl completion`: what a shell needs to complete verbs, flags and their values.

use std::io::{self, Write as _};

use anyhow::Result;
use clap_complete::Shell;

/// Writes a shell's script.
pub fn run(shell: Shell, mut command: clap::Command) -> Result<()> {
    // Into memory first: clap_complete panics on a pipe that was closed.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "ultractl", &mut script);
    let mut out = io::stdout().lock();
    out.write_all(&script)?;
    out.flush()?;
    Ok(())
}
