//! Our server, with one shard and everything else at its defaults: each PUT is durable.
#![forbid(unsafe_code)]

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result};

use super::{Contender, START_DEADLINE};
use crate::objects::client::Client;
use crate::objects::process::{self, Process, SERVER_CPU, pinned};
use crate::objects::site::{Access, Site};

pub(super) const NAME: &str = "ultracloud";

pub(super) const CONTENDER: Contender = Contender {
    name: NAME,
    optional: false,
    hint: "name its binary in ULTRACLOUD_BIN, or run `cargo xtask bench objects`",
    find: || super::in_environment("ULTRACLOUD_BIN"),
    start,
};

const CONFIG: &str = "[shards]\ncount = 1\n";

fn start(program: &Path, dir: &Path) -> Result<Site> {
    let keys = super::throw_away_keys();
    let config = dir.join("node.toml");
    fs::write(&config, CONFIG).context("write the node's config")?;
    let mut command = pinned(SERVER_CPU, program);
    command
        .arg("node")
        .arg("--data-dir")
        .arg(dir.join("data"))
        .arg("--config")
        .arg(&config)
        .args(["--s3-listen", "127.0.0.1:0"])
        .args(["--admin-listen", "127.0.0.1:0"])
        .env("ULTRACLOUD_ACCESS_KEY", &keys.access)
        .env("ULTRACLOUD_SECRET_KEY", &keys.secret)
        .env("RUST_LOG", "warn");
    let mut process = Process::start(NAME, &mut command, dir)?;
    let (address, admin) = process.until("printing its listeners", START_DEADLINE, |process| {
        Ok(listeners(&process.said()?))
    })?;
    process.until("becoming healthy", START_DEADLINE, |_| {
        let answer = Client::connect(admin)?.request("GET", "/healthz", b"")?;
        Ok((answer.status == 200).then_some(()))
    })?;
    Ok(Site {
        name: NAME,
        version: process::version(program, "--version")
            .unwrap_or_else(|| "version unknown".to_owned()),
        address,
        access: Access::Signed(keys),
        list_keys_max: u32::MAX,
        process,
    })
}

/// The addresses of S3 and admin in the line `listening s3=ADDR admin=ADDR`.
fn listeners(said: &str) -> Option<(SocketAddr, SocketAddr)> {
    let ended = &said[..=said.rfind('\n')?];
    let mut lines = ended.lines();
    let line = lines.find_map(|line| line.strip_prefix("listening "))?;
    let address = |name: &str| {
        let mut words = line.split_whitespace();
        words.find_map(|word| word.strip_prefix(name)?.parse().ok())
    };
    Some((address("s3=")?, address("admin=")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listeners_are_found_once_their_line_is_whole() {
        let said = "made root credentials\nlistening s3=127.0.0.1:41 admin=127.0.0.1:42";
        assert_eq!(listeners(said), None);
        let (s3, admin) = listeners(&format!("{said}\n")).unwrap();
        assert_eq!((s3.port(), admin.port()), (41, 42));
        assert_eq!(listeners(""), None);
        assert_eq!(listeners("listening s3=nowhere admin=127.0.0.1:42\n"), None);
    }
}
