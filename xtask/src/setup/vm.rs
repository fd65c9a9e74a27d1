//! What a guest boots in tests: Debian's kernel for clouds, unpacked into the cache and not installed.
//!
//! The kernel lies in its image behind a decompressor, as an LZ4 stream. QEMU boots it without that,
//! which under emulation saves half of the time.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::{Report, State};
use crate::process;

/// Always the newest of the release.
const META: &str = "linux-image-cloud-amd64";
const WHY: &str = "boots as a guest that attaches disks";

/// What a guest needs for its disks, without what they need themselves.
const MODULES: [&str; 6] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "virtio_blk",
];

/// Where an LZ4 stream of the kernel's build begins.
const LZ4_MAGIC: [u8; 4] = [0x02, 0x21, 0x4C, 0x18];

/// The directory with `vmlinux` and `modules`.
pub fn dir(cache: &Path) -> PathBuf {
    cache.join("vm")
}

/// Fetches and unpacks the kernel, unless one is there.
pub fn ensure(cache: &Path, report: &mut Report) -> Result<()> {
    let dir = dir(cache);
    if let Ok(version) = std::fs::read_to_string(dir.join("version")) {
        return report.line(State::Found, "guest kernel", version.trim(), WHY);
    }
    let package = package()?;
    eprintln!("fetching {package} ({WHY})");
    let work = cache.join("vm.part");
    if work.exists() {
        std::fs::remove_dir_all(&work)?;
    }
    std::fs::create_dir_all(&work)?;
    process::run_as_progress(
        Command::new("apt-get")
            .args(["download", "-q", &package])
            .current_dir(&work),
    )
    .with_context(|| format!("cannot fetch {package}; run `apt-get update` as root first"))?;
    let archive = find(&work, &is_package)?;
    process::run_as_progress(Command::new("dpkg-deb").arg("-x").arg(archive).arg(&work))?;
    unpack(&work)?;
    let version = package.trim_start_matches("linux-image-");
    std::fs::write(work.join("version"), version)?;
    if dir.exists() {
        std::fs::remove_dir_all(&dir)?;
    }
    std::fs::rename(&work, &dir)?;
    report.line(State::Installed, "guest kernel", version, WHY)
}

/// The package that the release's meta package stands for.
fn package() -> Result<String> {
    let said = process::capture(Command::new("apt-cache").args(["depends", META]))
        .context("apt-cache tells the newest kernel, and this machine has none")?;
    let name = said
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
    let name = name.with_context(|| format!("{META} is unknown; run `apt-get update` as root"))?;
    Ok(format!("linux-image-{name}"))
}

/// Keeps the kernel and the modules of what was in the package.
fn unpack(work: &Path) -> Result<()> {
    let image = std::fs::read(find(&work.join("boot"), &|name| {
        name.starts_with("vmlinuz")
    })?)?;
    let start = image
        .windows(LZ4_MAGIC.len())
        .position(|window| window == LZ4_MAGIC)
        .context("the kernel's image has no LZ4 stream")?;
    let packed = work.join("vmlinux.lz4");
    std::fs::write(&packed, &image[start..])?;
    // What follows the stream in the image makes lz4 complain at its end.
    let _ = Command::new("lz4")
        .args(["-dcfq"])
        .arg(&packed)
        .stdout(std::fs::File::create(work.join("vmlinux"))?)
        .stderr(Stdio::null())
        .status()
        .context("cannot run lz4")?;
    let kernel = std::fs::read(work.join("vmlinux"))?;
    ensure!(
        kernel.starts_with(b"\x7FELF") && kernel.len() > image.len(),
        "the kernel did not unpack: {} bytes",
        kernel.len()
    );
    std::fs::create_dir_all(work.join("modules"))?;
    for module in MODULES {
        let name = format!("{module}.ko");
        let found = find(&work.join("lib"), &|file| file == name)?;
        std::fs::copy(found, work.join("modules").join(&name))?;
    }
    for part in ["boot", "lib", "usr"] {
        let part = work.join(part);
        if part.exists() {
            std::fs::remove_dir_all(part)?;
        }
    }
    std::fs::remove_file(packed)?;
    std::fs::remove_file(find(work, &is_package)?)?;
    Ok(())
}

fn is_package(name: &str) -> bool {
    Path::new(name)
        .extension()
        .is_some_and(|kind| kind == "deb")
}

/// The first file below a directory whose name is wanted.
fn find(dir: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<PathBuf> {
    fn search(dir: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Option<PathBuf>> {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                if let Some(found) = search(&path, wanted)? {
                    return Ok(Some(found));
                }
            } else if wanted(&entry.file_name().to_string_lossy()) {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }
    search(dir, wanted)?.with_context(|| format!("{} has no such file", dir.display()))
}
