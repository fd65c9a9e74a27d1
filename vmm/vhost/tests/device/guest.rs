//! A real guest: Debian's kernel and busybox under QEMU's own emulation, which needs no KVM.

use std::path::{Path, PathBuf};

use guest::{Disk as GuestDisk, Guest, Machine, json, stories};
use sha2::{Digest, Sha256};

use crate::killed::Process;
use crate::support::{Backend, Disk, image, until};

const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;

/// Where the guest's kernel is.
fn vm() -> Option<PathBuf> {
    let vm = std::env::var_os("ULTRACLOUD_VM").map(PathBuf::from);
    if vm.is_none() {
        eprintln!("no guest kernel (`cargo xtask test` has one): no guest was booted");
    }
    vm
}

fn digest_of(path: &Path, range: std::ops::Range<u64>) -> String {
    let stored = std::fs::read(path).unwrap();
    hex::encode(Sha256::digest(
        &stored[range.start as usize..range.end as usize],
    ))
}

fn is_well(backend: &Backend) {
    let stats = backend.stats();
    assert_eq!((stats.errors, stats.faults), (0, 0), "{stats:?}");
    assert!(stats.written_bytes > 0, "{stats:?}");
}

#[test]
fn a_guest_uses_its_disks_through_a_killed_backend_growth_and_hot_plug() {
    let Some(vm) = vm() else { return };
    let (dir, path) = image(32 * MIB);
    let socket = dir.path().join("s");
    let process = Process::start(&socket, Some(&path));
    // QEMU does not wait for a socket that is not there yet.
    until("the backend listens", || socket.exists());
    let machine = Machine::new(&vm, dir.path(), "machine").with_disk("one", &socket);
    let mut guest = machine.boot().unwrap();
    let digest = stories::make_files(&mut guest, "vda", 1024).unwrap();
    // The backend dies and comes back while this is written.
    let copy = "dd if=/mnt/a of=/mnt/b bs=64k conv=fsync 2>/dev/null";
    guest.begin(copy).unwrap();
    drop(process);
    let backend = Backend::listen(Disk::File(path.clone()), &socket);
    guest.finish(copy).unwrap();
    stories::remount(&mut guest, "vda").unwrap();
    for file in ["/mnt/a", "/mnt/b"] {
        assert_eq!(stories::digest(&mut guest, file).unwrap(), digest);
    }
    guest
        .run("rm /mnt/b && fstrim /mnt && umount /mnt")
        .unwrap();
    assert_eq!(
        guest.run("cat /sys/block/vda/serial").unwrap(),
        "a-serial-number"
    );
    backend.grow(64 * MIB);
    stories::sees_size(&mut guest, "vda", 64 * MIB / SECTOR).unwrap();
    let mut qmp = guest.qmp().unwrap();
    for packed in [false, true] {
        plug(&mut guest, &mut qmp, packed);
    }
    guest.begin("reboot -f").unwrap();
    assert!(guest.wait().unwrap().success());
    is_well(&backend);
    backend.shutdown();
}

fn plug(guest: &mut Guest, qmp: &mut guest::Qmp, packed: bool) {
    let (dir, path) = image(2 * MIB);
    let socket = dir.path().join("s");
    let backend = Backend::listen(Disk::File(path.clone()), &socket);
    let id = if packed { "packed" } else { "split" }.to_owned();
    let disk = GuestDisk { id, socket, packed };
    let digest = stories::plug_write_unplug(guest, qmp, &disk, 32).unwrap();
    assert_eq!(digest, digest_of(&path, 0..2 * MIB));
    is_well(&backend);
    backend.shutdown();
}

#[test]
fn a_guest_is_reset_migrated_and_killed_and_finds_its_files() {
    let Some(vm) = vm() else { return };
    let (dir, path) = image(32 * MIB);
    let (here, there) = (dir.path().join("a"), dir.path().join("b"));
    let backends = [&here, &there].map(|socket| Backend::listen(Disk::File(path.clone()), socket));
    let mut machine = Machine::new(&vm, dir.path(), "here").with_disk("disk", &here);
    machine.reboots = true;
    let mut first = machine.boot().unwrap();
    let digest = stories::make_files(&mut first, "vda", 1024).unwrap();
    let mut qmp = first.qmp().unwrap();
    qmp.run("system_reset", &json!({})).unwrap();
    first.is_ready().unwrap();
    stories::mount(&mut first, "vda").unwrap();
    assert_eq!(stories::digest(&mut first, "/mnt/a").unwrap(), digest);
    stories::begin_writing(&mut first).unwrap();
    assert!(stories::stop_writing(&mut first, "vda").unwrap() > 0);
    let machine = Machine::new(&vm, dir.path(), "there").with_disk("disk", &there);
    let mut incoming = machine.clone();
    incoming.incoming = Some(dir.path().join("migration"));
    let mut second = incoming.boot().unwrap();
    let mut other = second.qmp().unwrap();
    first
        .migrate(&mut qmp, &dir.path().join("migration"))
        .unwrap();
    until("it runs there", || {
        other.run("query-status", &json!({})).unwrap()["running"] == true
    });
    drop((qmp, first));
    stories::remount(&mut second, "vda").unwrap();
    stories::begin_writing(&mut second).unwrap();
    assert!(stories::stop_writing(&mut second, "vda").unwrap() > 0);
    second.run("sync").unwrap();
    assert_eq!(stories::digest(&mut second, "/mnt/a").unwrap(), digest);
    drop(other);
    second.kill().unwrap();
    let mut third = machine.boot().unwrap();
    stories::mount(&mut third, "vda").unwrap();
    assert_eq!(stories::digest(&mut third, "/mnt/a").unwrap(), digest);
    drop(third);
    for backend in backends {
        is_well(&backend);
        backend.shutdown();
    }
}
