//! What builds programs for the kernel: Debian's Rust with its `core` for BPF, and bpf-linker in the cache.
//!
//! rustc.org's toolchains have no `core` for BPF; Debian's `rustc-web` has, prebuilt. Security updates
//! move it, and bpf-linker reads its bitcode, so both must have the same major version of LLVM: that is
//! looked up here and never assumed. Another one gets a bpf-linker of its own, beside the old.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{Report, State, debian, ensure_built, version_of};
use crate::process;
use crate::workspace::Workspace;

/// The compiler, by its path: `rustc` in the search path may be rustup's.
const RUSTC: &str = "/usr/bin/rustc";
const PACKAGES: [&str; 2] = ["rustc-web", "libstd-rust-web-dev-bpf"];
pub const TARGET: &str = "bpfel-unknown-none";
const LINKER_VERSION: &str = "0.13.0";
/// Versions of LLVM that this bpf-linker can be built with.
const LINKER_LLVM: std::ops::RangeInclusive<u32> = 20..=23;

/// The compiler and the linker after set-up.
pub struct Toolchain {
    pub rustc: PathBuf,
    pub linker: PathBuf,
    /// Both versions, in words: what is built depends on them.
    pub versions: String,
}

/// Installs what is missing.
pub fn ensure(workspace: &Workspace, cache: &Path, report: &mut Report) -> Result<Toolchain> {
    let why = "compiles programs for the kernel";
    let mut state = State::Found;
    if !has_core() {
        debian::install_packages(&PACKAGES)?;
        ensure!(
            has_core(),
            "{} are installed, and {RUSTC} still has no core for {TARGET}: is it another package's?",
            PACKAGES.join(" and ")
        );
        state = State::Installed;
    }
    let said = process::capture(Command::new(RUSTC).arg("-vV"))?;
    let llvm = llvm_of(&said).with_context(|| format!("{RUSTC} tells no version of LLVM"))?;
    let version = super::version_in(&said).unwrap_or("?").to_owned();
    report.line(state, "rustc-web", &version, why)?;
    ensure!(
        LINKER_LLVM.contains(&llvm),
        "{RUSTC} has LLVM {llvm}; bpf-linker {LINKER_VERSION} takes {} to {}: it needs a newer version, in \
         xtask/src/setup/bpf.rs",
        LINKER_LLVM.start(),
        LINKER_LLVM.end()
    );
    ensure_llvm(llvm, report)?;
    let linker = ensure_linker(workspace, cache, llvm, report)?;
    Ok(Toolchain {
        rustc: RUSTC.into(),
        linker,
        versions: format!("{said}\nbpf-linker {LINKER_VERSION}"),
    })
}

/// Whether the compiler runs and has `core` for BPF.
fn has_core() -> bool {
    let mut command = Command::new(RUSTC);
    let Ok(dir) = process::capture(command.args(["--print", "target-libdir", "--target", TARGET]))
    else {
        return false;
    };
    let Ok(entries) = std::fs::read_dir(dir) else {
        return false;
    };
    entries
        .flatten()
        .any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
}

/// The libraries of the compiler's LLVM, which bpf-linker is built with.
fn ensure_llvm(llvm: u32, report: &mut Report) -> Result<()> {
    let config = prefix(llvm).join("bin/llvm-config");
    let why = "the same LLVM, for bpf-linker";
    let version = || version_of(Command::new(&config).arg("--version"));
    let mut state = State::Found;
    if version().is_none() {
        debian::install_packages(&[&format!("llvm-{llvm}-dev")])?;
        state = State::Installed;
    }
    let version = version().with_context(|| format!("{} does not run", config.display()))?;
    ensure!(
        major(&version) == Some(llvm),
        "{} is LLVM {version}, and {RUSTC} has {llvm}: they must be the same",
        config.display()
    );
    report.line(state, "llvm-dev", &version, why)
}

fn ensure_linker(
    workspace: &Workspace,
    cache: &Path,
    llvm: u32,
    report: &mut Report,
) -> Result<PathBuf> {
    let root = cache.join(format!("bpf-linker-{LINKER_VERSION}-llvm-{llvm}"));
    let linker = root.join("bin/bpf-linker");
    let prefix = prefix(llvm);
    let mut install = workspace.cargo();
    install
        .args(["install", "bpf-linker", "--version", LINKER_VERSION])
        .args(["--locked", "--no-default-features", "--features"])
        .arg(format!("llvm-{llvm}"))
        .arg("--root")
        .arg(&root)
        // Without these it compiles for minutes and then does not find LLVM.
        .env("LLVM_PREFIX", &prefix)
        .env(format!("LLVM_SYS_{llvm}1_PREFIX"), &prefix)
        .env(
            "RUSTFLAGS",
            format!("-L native={}", prefix.join("lib").display()),
        );
    let installed = || version_of(Command::new(&linker).arg("--version"));
    let why = "links programs for the kernel";
    ensure_built("bpf-linker", why, installed, &mut install, report)?;
    Ok(linker)
}

fn prefix(llvm: u32) -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{llvm}"))
}

/// The major version of LLVM in what `rustc -vV` prints.
fn llvm_of(said: &str) -> Option<u32> {
    let line = said
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "));
    major(line?)
}

fn major(version: &str) -> Option<u32> {
    version.split('.').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compilers_llvm_is_found_in_what_it_prints() {
        let said = "rustc 1.96.0 (ac68faa20 2026-05-25)\nbinary: rustc\nrelease: 1.96.0\nLLVM version: 22.1.8";
        assert_eq!(llvm_of(said), Some(22));
        assert_eq!(llvm_of("rustc 1.96.0"), None);
    }
}
