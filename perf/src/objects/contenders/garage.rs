//! Garage as a single node on LMDB, twice: with fsync of data and metadata, and without, which is
//! its default and loses acknowledged PUTs when the power fails.
//!
//! Not installed by set-up: it takes half an hour to build.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{Contender, START_DEADLINE};
use crate::objects::site::{Access, Endpoint, Keys, REGION, Site, free_address};
use crate::process::{self, Process, SERVER_CPU, pinned};

pub(super) const NAME: &str = "garage";
pub(super) const NAME_UNSYNCED: &str = "garage-unsynced";
const HINT: &str = "optional: `cargo install garage --version 2.5.0 --locked`, half an hour";
/// Filling a million keys would take it over ten minutes.
const LIST_KEYS_MAX: u32 = 100_000;

pub(super) const CONTENDER: Contender = Contender {
    name: NAME,
    optional: true,
    hint: HINT,
    find: || process::on_path("garage"),
    start: |program, dir| start(program, dir, NAME, Sync::Each),
};

pub(super) const CONTENDER_UNSYNCED: Contender = Contender {
    name: NAME_UNSYNCED,
    optional: true,
    hint: HINT,
    find: || process::on_path("garage"),
    start: |program, dir| start(program, dir, NAME_UNSYNCED, Sync::Never),
};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sync {
    Each,
    Never,
}

fn start(program: &Path, dir: &Path, name: &'static str, sync: Sync) -> Result<Site> {
    let address = free_address()?;
    let path = dir.join("garage.toml");
    fs::write(&path, config(dir, address, free_address()?, sync)?).context("write garage.toml")?;
    let mut command = pinned(SERVER_CPU, program);
    command.arg("-c").arg(&path).arg("server");
    command.env("RUST_LOG", "error");
    let mut process = Process::start(name, &mut command, dir)?;
    let node = process.until("telling its node id", START_DEADLINE, |_| {
        let told = admin(program, &path, &["node", "id", "-q"]);
        Ok(told.ok().filter(|id| !id.is_empty()))
    })?;
    let node = node.split('@').next().unwrap_or(&node);
    // The id comes from a file; only an answer shows that the server takes orders.
    process.until("taking orders", START_DEADLINE, |_| {
        Ok(admin(program, &path, &["status"]).ok())
    })?;
    let keys = Keys {
        access: "GK0123456789abcdef01234567".to_owned(),
        secret: "0123456789abcdef".repeat(4),
    };
    let (id, secret) = (keys.access.as_str(), keys.secret.as_str());
    admin(
        program,
        &path,
        &["layout", "assign", "-z", "z1", "-c", "20G", node],
    )?;
    admin(program, &path, &["layout", "apply", "--version", "1"])?;
    admin(
        program,
        &path,
        &["key", "import", "--yes", id, secret, "-n", "perf"],
    )?;
    admin(program, &path, &["key", "allow", "--create-bucket", "perf"])?;
    super::listening(&mut process, address)?;
    Ok(Site {
        name,
        version: process::version(program, "--version")
            .unwrap_or_else(|| "version unknown".to_owned()),
        endpoint: Endpoint {
            address,
            access: Access::Signed(keys),
        },
        list_keys_max: LIST_KEYS_MAX,
        process,
    })
}

/// Gives one order to the running server and returns what it says.
fn admin(program: &Path, config: &Path, order: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .arg("-c")
        .arg(config)
        .args(order)
        .output()
        .with_context(|| format!("run garage {}", order[0]))?;
    ensure!(
        output.status.success(),
        "garage {} ended with {}: {}",
        order[0],
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn config(dir: &Path, s3: SocketAddr, rpc: SocketAddr, sync: Sync) -> Result<String> {
    let dir = dir.to_str().context("garage needs a directory in UTF-8")?;
    ensure!(
        !dir.contains(['"', '\\', '\n']),
        "{dir:?} cannot be written into garage.toml"
    );
    let synced = sync == Sync::Each;
    let mut text = String::new();
    for (key, value) in [
        ("metadata_dir", format!("{dir}/meta")),
        ("data_dir", format!("{dir}/data")),
        ("db_engine", "lmdb".to_owned()),
        ("rpc_bind_addr", rpc.to_string()),
        ("rpc_public_addr", rpc.to_string()),
        ("rpc_secret", "0123456789abcdef".repeat(4)),
    ] {
        writeln!(text, "{key} = \"{value}\"")?;
    }
    write!(
        text,
        "replication_factor = 1\ncompression_level = \"none\"\n\
         metadata_fsync = {synced}\ndata_fsync = {synced}\n\
         [s3_api]\ns3_region = \"{REGION}\"\napi_bind_addr = \"{s3}\"\n"
    )?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_settings_differ_in_fsync_only() {
        let [s3, rpc] = ["127.0.0.1:1", "127.0.0.1:2"].map(|text| text.parse().unwrap());
        let text = |sync| config(Path::new("/t"), s3, rpc, sync).unwrap();
        let synced = text(Sync::Each);
        assert!(synced.contains("metadata_fsync = true\ndata_fsync = true\n"));
        assert_eq!(synced.replace("= true", "= false"), text(Sync::Never));
        assert!(config(Path::new("/t\""), s3, rpc, Sync::Each).is_err());
    }
}
