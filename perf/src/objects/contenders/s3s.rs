//! s3s-fs: an S3 server that keeps a file for each object and syncs nothing.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::Contender;
use crate::objects::site::{Access, Endpoint, Site, free_address};
use crate::process::{self, Process, SERVER_CPU, pinned};

pub(super) const NAME: &str = "s3s-fs";
/// It walks the whole tree for every page: of 100,000 keys a page takes many seconds.
const LIST_KEYS_MAX: u32 = 10_000;

pub(super) const CONTENDER: Contender = Contender {
    name: NAME,
    optional: false,
    hint: "name its binary in ULTRACLOUD_S3S_FS, or run `cargo xtask bench objects`",
    find: || super::in_environment("ULTRACLOUD_S3S_FS").or_else(|| process::on_path(NAME)),
    start,
};

fn start(program: &Path, dir: &Path) -> Result<Site> {
    let address = free_address()?;
    let keys = super::throw_away_keys();
    let root = dir.join("objects");
    fs::create_dir(&root).context("make the directory of objects")?;
    let mut command = pinned(SERVER_CPU, program);
    command
        .args(["--host", &address.ip().to_string()])
        .args(["--port", &address.port().to_string()])
        .args(["--access-key", &keys.access, "--secret-key", &keys.secret])
        .arg(&root)
        .env("RUST_LOG", "error");
    let mut process = Process::start(NAME, &mut command, dir)?;
    super::listening(&mut process, address)?;
    Ok(Site {
        name: NAME,
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
