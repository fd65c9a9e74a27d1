//! The guest's first files, in an archive that the kernel unpacks (cpio, "newc").

use std::path::Path;

use anyhow::{Context, Result};

/// What the guest runs: it loads the drivers of its disks, then does what it is told, line by line.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mount -t proc p /proc
/bin/busybox mount -t sysfs s /sys
/bin/busybox mount -t devtmpfs d /dev
/bin/busybox --install -s /bin
export PATH=/bin
for m in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk; do
	insmod /modules/$m.ko || echo "no driver $m"
done
stty -echo
echo "@READY"
while read -r line; do
	( eval "$line" ) 2>&1
	echo "@DONE $?"
done
"#;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CONSOLE: u32 = 0o020_600;

/// A file of the archive.
struct Entry<'a> {
    name: &'a str,
    mode: u32,
    /// Major and minor number of a device.
    device: (u32, u32),
    bytes: &'a [u8],
}

impl<'a> Entry<'a> {
    fn new(name: &'a str, mode: u32, bytes: &'a [u8]) -> Entry<'a> {
        Entry {
            name,
            mode,
            device: (0, 0),
            bytes,
        }
    }
}

/// Writes the archive, with the modules of a kernel.
pub fn build(kernel: &Path, to: &Path) -> Result<()> {
    let read = |path: &Path| {
        std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let busybox = read(Path::new("/bin/busybox"))?;
    let mut modules: Vec<(String, Vec<u8>)> = Vec::new();
    let dir = kernel.join("modules");
    let listed = std::fs::read_dir(&dir);
    for file in listed.with_context(|| format!("cannot list {}", dir.display()))? {
        let file = file?;
        let name = format!("modules/{}", file.file_name().to_string_lossy());
        modules.push((name, read(&file.path())?));
    }
    let directories = ["bin", "dev", "mnt", "modules", "proc", "sys", "tmp"];
    let mut entries: Vec<Entry> = directories
        .into_iter()
        .map(|name| Entry::new(name, DIRECTORY, &[]))
        .collect();
    entries.push(Entry {
        device: (5, 1),
        ..Entry::new("dev/console", CONSOLE, &[])
    });
    entries.push(Entry::new("bin/busybox", PROGRAM, &busybox));
    entries.push(Entry::new("init", PROGRAM, INIT.as_bytes()));
    for (name, bytes) in &modules {
        entries.push(Entry::new(name, PROGRAM, bytes));
    }
    std::fs::write(to, archive(&entries)).with_context(|| format!("cannot write {}", to.display()))
}

/// Such entries one after the other, each padded to four bytes, and one that ends it.
fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut archive = Vec::new();
    let end = Entry::new("TRAILER!!!", 0, &[]);
    for (number, entry) in entries.iter().chain([&end]).enumerate() {
        let (major, minor) = entry.device;
        let (len, name) = (entry.bytes.len() as u32, entry.name.len() as u32 + 1);
        let inode = number as u32 + 1;
        archive.extend_from_slice(b"070701");
        for field in [
            inode, entry.mode, 0, 0, 1, 0, len, 0, 0, major, minor, name, 0,
        ] {
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
