//! The guest's first files: busybox, the kernel's modules for disks, and a shell that reads lines.

use std::path::{Path, PathBuf};

use crate::GuestError;
use crate::console::PROMPT;

/// Modules in the order in which they need each other.
const MODULES: &str =
    "virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk";

/// What the guest runs. The console must not echo what is typed.
fn init() -> String {
    format!(
        r#"#!/bin/busybox sh
B=/bin/busybox
$B mount -t proc p /proc; $B mount -t sysfs s /sys; $B mount -t devtmpfs d /dev
$B --install -s /bin
export PATH=/bin
for m in {MODULES}; do insmod /modules/$m.ko || echo "no module $m"; done
stty -echo
status=0
while echo "{PROMPT} $status" && read -r line; do
	eval "$line"
	status=$?
done 2>&1
"#
    )
}

/// A file of an initramfs (cpio, "newc").
struct Entry<'a> {
    name: &'a str,
    mode: u32,
    /// Major and minor number of a device.
    device: (u32, u32),
    bytes: &'a [u8],
}

/// An initramfs is such entries one after the other, each padded to four bytes, and one that ends it.
fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut archive = Vec::new();
    let end = Entry {
        name: "TRAILER!!!",
        mode: 0,
        device: (0, 0),
        bytes: &[],
    };
    for (number, entry) in entries.iter().chain([&end]).enumerate() {
        let (major, minor) = entry.device;
        let (len, name) = (entry.bytes.len() as u32, entry.name.len() as u32 + 1);
        let (number, mode) = (number as u32 + 1, entry.mode);
        let head = [number, mode, 0, 0, 1, 0, len, 0, 0, major, minor, name, 0];
        archive.extend_from_slice(b"070701");
        for field in head {
            archive.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        archive.extend_from_slice(entry.name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend_from_slice(entry.bytes);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
}

/// The guest's first files, with modules of the kernel in `vm`.
///
/// # Errors
/// When busybox or the modules cannot be read.
pub fn initramfs(vm: &Path) -> Result<Vec<u8>, GuestError> {
    const DIRECTORY: u32 = 0o040_755;
    const PROGRAM: u32 = 0o100_755;
    const CONSOLE: u32 = 0o020_600;
    let read = |path: PathBuf| {
        let what = format!("read {}", path.display());
        std::fs::read(path).map_err(GuestError::io(what))
    };
    let busybox = read(PathBuf::from("/bin/busybox"))?;
    let mut modules = Vec::new();
    for module in MODULES.split(' ') {
        let name = format!("modules/{module}.ko");
        let bytes = read(vm.join(&name))?;
        modules.push((name, bytes));
    }
    let plain = |name, mode, bytes| Entry {
        name,
        mode,
        device: (0, 0),
        bytes,
    };
    let mut entries: Vec<Entry> = ["bin", "dev", "mnt", "modules", "proc", "sys", "tmp"]
        .into_iter()
        .map(|name| plain(name, DIRECTORY, &[][..]))
        .collect();
    entries.push(Entry {
        device: (5, 1),
        ..plain("dev/console", CONSOLE, &[])
    });
    let init = init();
    entries.push(plain("bin/busybox", PROGRAM, &busybox));
    entries.push(plain("init", PROGRAM, init.as_bytes()));
    for (name, bytes) in &modules {
        entries.push(plain(name, PROGRAM, bytes));
    }
    Ok(archive(&entries))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_padded_and_ends() {
        let entry = Entry {
            name: "a",
            mode: 0o100_644,
            device: (0, 0),
            bytes: b"12345",
        };
        let bytes = archive(&[entry]);
        assert!(bytes.len().is_multiple_of(4));
        assert!(bytes.starts_with(b"07070100000001000081A4"));
        assert_eq!(&bytes[110..120], b"a\x0012345\0\0\0");
        assert!(bytes[120..].windows(10).any(|name| name == b"TRAILER!!!"));
    }
}
