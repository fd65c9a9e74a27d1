//! A real guest: Debian's kernel and busybox under QEMU's own emulation, which needs no KVM.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use sha2::{Digest, Sha256};

use crate::killed::Process;
use crate::support::{Backend, Disk, image};

const MIB: u64 = 1 << 20;

/// What the guest runs: it says where it is on its console, and waits there for "go" where the host has
/// to do something.
const INIT: &str = r#"#!/bin/busybox sh
B=/bin/busybox
$B mount -t proc p /proc; $B mount -t sysfs s /sys; $B mount -t devtmpfs d /dev
for m in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk; do
	$B insmod /modules/$m.ko || echo "FAILED insmod $m"
done
step() { "$@" || { echo "FAILED $*"; $B reboot -f; }; }
meet() { echo "AT $*"; read go; }
step $B test -b /dev/vda
printf 'o\nn\np\n1\n2048\n32767\nw\n' | $B fdisk -u /dev/vda >/dev/null
step $B mke2fs /dev/vda1 >/dev/null
step $B mount -t ext4 /dev/vda1 /mnt
step $B dd if=/dev/urandom of=/mnt/a bs=64k count=16 conv=fsync 2>/dev/null
first=$($B sha256sum </mnt/a)
meet killing
# The backend dies and comes back while this is written.
step $B dd if=/mnt/a of=/mnt/b bs=64k conv=fsync 2>/dev/null
meet killed
step $B umount /mnt
echo 3 >/proc/sys/vm/drop_caches
step $B mount -t ext4 /dev/vda1 /mnt
for f in a b; do
	[ "$($B sha256sum </mnt/$f)" = "$first" ] || echo "FAILED digest of $f"
done
step $B rm /mnt/b
step $B fstrim /mnt
step $B umount /mnt
step $B dd if=/dev/urandom of=/dev/vda bs=64k seek=300 count=16 conv=fsync 2>/dev/null
echo 3 >/proc/sys/vm/drop_caches
echo "DIGEST $($B dd if=/dev/vda bs=64k skip=300 count=16 2>/dev/null | $B sha256sum)"
echo "SERIAL $($B cat /sys/block/vda/serial)"
before=$($B cat /sys/block/vda/size)
meet growing
while [ "$($B cat /sys/block/vda/size)" = "$before" ]; do $B usleep 10000; done
echo "SIZE $($B cat /sys/block/vda/size)"
$B reboot -f
"#;

/// A file of an initramfs (cpio, "newc").
struct Entry<'a> {
    name: &'a str,
    mode: u32,
    /// Major and minor number of a device.
    device: (u32, u32),
    bytes: &'a [u8],
}

/// An initramfs is such entries one after the other, each padded to four bytes, and one that ends it.
fn initramfs(entries: &[Entry]) -> Vec<u8> {
    let mut archive = Vec::new();
    let end = Entry {
        name: "TRAILER!!!",
        mode: 0,
        device: (0, 0),
        bytes: &[],
    };
    for (number, entry) in entries.iter().chain([&end]).enumerate() {
        let (major, minor) = entry.device;
        let (len, name) = (entry.bytes.len(), entry.name.len() + 1);
        let head = [
            number as u32 + 1,
            entry.mode,
            0,
            0,
            1,
            0,
            len as u32,
            0,
            0,
            major,
            minor,
            name as u32,
            0,
        ];
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

/// Writes the guest's first files.
fn build(vm: &Path, to: &Path) {
    const DIRECTORY: u32 = 0o040_755;
    const PROGRAM: u32 = 0o100_755;
    const CONSOLE: u32 = 0o020_600;
    let read = |path: PathBuf| std::fs::read(&path).unwrap();
    let busybox = read(PathBuf::from("/bin/busybox"));
    let mut modules: Vec<(String, Vec<u8>)> = Vec::new();
    for file in std::fs::read_dir(vm.join("modules")).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        modules.push((format!("modules/{name}"), read(path)));
    }
    let plain = |name, mode, bytes| Entry {
        name,
        mode,
        device: (0, 0),
        bytes,
    };
    let mut entries: Vec<Entry> = ["bin", "dev", "mnt", "modules", "proc", "sys"]
        .into_iter()
        .map(|name| plain(name, DIRECTORY, &[][..]))
        .collect();
    entries.push(Entry {
        device: (5, 1),
        ..plain("dev/console", CONSOLE, &[])
    });
    entries.push(plain("bin/busybox", PROGRAM, &busybox));
    entries.push(plain("init", PROGRAM, INIT.as_bytes()));
    for (name, bytes) in &modules {
        entries.push(plain(name, PROGRAM, bytes));
    }
    std::fs::write(to, initramfs(&entries)).unwrap();
}

/// A running guest and its console.
struct Qemu {
    child: Child,
    console: BufReader<ChildStdout>,
    keys: ChildStdin,
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Qemu {
    fn boot(vm: &Path, initrd: &Path, socket: &Path) -> Qemu {
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-accel", "tcg,thread=multi,tb-size=256", "-m", "256"]);
        command.args(["-M", "q35,memory-backend=mem", "-nodefaults", "-no-reboot"]);
        command.args(["-object", "memory-backend-memfd,id=mem,size=256M,share=on"]);
        command.args(["-display", "none", "-serial", "stdio"]);
        command.arg("-kernel").arg(vm.join("vmlinux"));
        command.arg("-initrd").arg(initrd);
        command.args(["-append", "console=ttyS0 panic=-1 quiet reboot=t tsc=reliable no_timer_check mitigations=off nokaslr random.trust_cpu=on"]);
        let chardev = format!("socket,id=c0,path={},reconnect=1", socket.display());
        command.args(["-chardev", &chardev]);
        command.args(["-device", "pcie-root-port,id=rp0,chassis=1"]);
        command.args([
            "-device",
            "vhost-user-blk-pci,chardev=c0,num-queues=2,queue-size=128,bus=rp0",
        ]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let console = BufReader::new(child.stdout.take().unwrap());
        let keys = child.stdin.take().unwrap();
        Qemu {
            child,
            console,
            keys,
        }
    }

    /// Reads the console up to a line that begins so; the rest of that line.
    fn says(&mut self, what: &str) -> String {
        let mut seen = String::new();
        loop {
            let mut line = Vec::new();
            let got = self.console.read_until(b'\n', &mut line).unwrap();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim();
            let failed = got == 0 || line.contains("FAILED") || line.contains("Kernel panic");
            assert!(!failed, "waiting for {what}: {seen}{line}");
            if let Some(rest) = line.strip_prefix(what) {
                return rest.trim().to_owned();
            }
            seen.push_str(line);
            seen.push('\n');
        }
    }

    fn go(&mut self) {
        self.keys.write_all(b"go\n").unwrap();
    }
}

#[test]
fn a_guest_partitions_writes_survives_a_killed_backend_and_sees_its_disk_grow() {
    let Some(vm) = std::env::var_os("ULTRACLOUD_VM").map(PathBuf::from) else {
        eprintln!("no guest kernel (`cargo xtask test` has one): no guest was booted");
        return;
    };
    let (dir, path) = image(32 * MIB);
    let (socket, initrd) = (dir.path().join("s"), dir.path().join("initrd"));
    build(&vm, &initrd);
    let process = Process::start(&socket, Some(&path));
    // QEMU does not wait for a socket that is not there yet.
    crate::support::until("the backend listens", || socket.exists());
    let mut guest = Qemu::boot(&vm, &initrd, &socket);
    guest.says("AT killing");
    guest.go();
    drop(process);
    let backend = Backend::listen(Disk::File(path.clone()), &socket);
    guest.says("AT killed");
    guest.go();
    let digest = guest.says("DIGEST");
    let stored = std::fs::read(&path).unwrap();
    let stored = &stored[300 * 65_536..316 * 65_536];
    let expected = hex::encode(Sha256::digest(stored));
    assert_eq!(digest.split_whitespace().next(), Some(&*expected));
    assert_eq!(guest.says("SERIAL"), "a-serial-number");
    guest.says("AT growing");
    guest.go();
    backend.grow(64 * MIB);
    assert_eq!(guest.says("SIZE"), (64 * MIB / 512).to_string());
    assert!(guest.child.wait().unwrap().success());
    let stats = backend.stats();
    assert_eq!((stats.connections, stats.errors, stats.faults), (1, 0, 0));
    assert!(stats.written_bytes > 0, "{stats:?}");
    backend.shutdown();
}
