//! How a server says where it listens: `listening admin=ADDRESS`, in a line of its log.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::process::{self, Running};

/// Waits for the line, and gives the admin endpoint.
///
/// # Errors
/// When the server ends, or the deadline passes, without it; with the end of its log.
pub fn admin(server: &mut Running, log: &Path, deadline: Duration) -> Result<String> {
    let listens = process::until(deadline, || {
        let said = fs::read_to_string(log)?;
        let line = said
            .lines()
            .find_map(|line| line.strip_prefix("listening "));
        Ok((line.is_some() || !server.is_running()?).then(|| line.map(str::to_owned)))
    })?;
    let line = listens.flatten();
    let mut words = line.iter().flat_map(|line| line.split_whitespace());
    let Some(admin) = words.find_map(|word| word.strip_prefix("admin=")) else {
        let said = fs::read_to_string(log)?;
        bail!("the server does not listen:\n{}", process::tail(&said, 10));
    };
    Ok(admin.to_owned())
}
