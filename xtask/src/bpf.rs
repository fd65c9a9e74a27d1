//! `cargo xtask bpf`: builds the programs for the kernel and prints where the object is.
//!
//! Objects are kept in the cache, each under the hash of what it was made from: the sources, their lock
//! file and the toolchain. A second call with the same sources builds nothing.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::process;
use crate::setup::{BPF_TARGET, Toolchain};
use crate::workspace::Workspace;

/// The crate, and what it is made from.
const CRATE: &str = "netdp/fiberlb-bpf";
const SOURCES: [&str; 2] = [CRATE, "netdp/fiberlb-abi"];
/// What the binary of the crate is called.
const OBJECT: &str = "fiberlb";
/// Tells the tests of `fiberlb`, and servers, where the object is.
pub const OBJECT_VARIABLE: &str = "ULTRACLOUD_FIBERLB_OBJECT";

/// What `cargo xtask bpf` takes.
#[derive(clap::Args)]
pub struct Options {
    /// With the programs that measure it
    #[arg(long)]
    measure: bool,
}

/// Which object.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    Product,
    /// Also what measures it.
    Measure,
}

/// Sets up the toolchain, builds, and prints the path.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let flavour = if options.measure {
        Flavour::Measure
    } else {
        Flavour::Product
    };
    let clients = crate::setup::run_as_progress(workspace, crate::setup::Scope::Clients)?;
    println!("{}", build(workspace, clients.bpf(), flavour)?.display());
    Ok(())
}

/// Builds the object unless the cache has it, and gives its path.
pub fn build(workspace: &Workspace, toolchain: &Toolchain, flavour: Flavour) -> Result<PathBuf> {
    let dir = crate::cache_dir()?
        .join("bpf")
        .join(fingerprint(workspace, toolchain)?);
    let name = match flavour {
        Flavour::Product => "fiberlb.o",
        Flavour::Measure => "fiberlb-measure.o",
    };
    let object = dir.join(name);
    if object.is_file() {
        return Ok(object);
    }
    let target = workspace.target_dir()?.join("bpf");
    let linker = toolchain.linker.display();
    let mut command = workspace.cargo();
    command.current_dir(workspace.root().join(CRATE)).args([
        "rustc",
        "--locked",
        "--release",
        "--target",
        BPF_TARGET,
    ]);
    if flavour == Flavour::Measure {
        command.args(["--features", "measure"]);
    }
    command
        .args(["--", "-C"])
        .arg(format!("linker={linker}"))
        .args(["-C", "link-arg=--btf"])
        .env("CARGO_TARGET_DIR", &target)
        .env("RUSTC", &toolchain.rustc)
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTC_WRAPPER")
        // aya-ebpf uses assembly for BPF, which is not stable yet; this compiler's version is known.
        .env("RUSTC_BOOTSTRAP", "1");
    process::run_as_progress(&mut command)?;
    let built = target.join(BPF_TARGET).join("release").join(OBJECT);
    ensure!(built.is_file(), "{} was not built", built.display());
    std::fs::create_dir_all(&dir)?;
    // Whole or not at all: another process may look meanwhile.
    let part = dir.join(format!("{name}.{}", std::process::id()));
    std::fs::copy(&built, &part).with_context(|| format!("cannot copy {}", built.display()))?;
    std::fs::rename(&part, &object)?;
    Ok(object)
}

/// The hash of all that an object is made from.
fn fingerprint(workspace: &Workspace, toolchain: &Toolchain) -> Result<String> {
    let listed = workspace.git_files(&["--cached", "--others", "--exclude-standard"])?;
    let is_source = |path: &&String| SOURCES.iter().any(|dir| Path::new(path).starts_with(dir));
    let mut sources: Vec<&String> = listed.iter().filter(is_source).collect();
    sources.sort();
    sources.dedup();
    let mut hash = Sha256::new();
    hash.update(&toolchain.versions);
    for path in sources {
        let on_disk = workspace.root().join(path);
        if on_disk.is_file() {
            let bytes = std::fs::read(&on_disk).with_context(|| format!("cannot read {path}"))?;
            hash.update(path.as_bytes());
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(&bytes);
        }
    }
    let hash = hash.finalize();
    let half = hash.first_chunk().expect("SHA-256 has 32 bytes");
    Ok(format!("{:032x}", u128::from_be_bytes(*half)))
}
