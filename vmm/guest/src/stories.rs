//! What a guest does with its disks, told so that it can be compared: for tests in short, for lanes in long.
//! Nothing here knows who serves the disks.

use crate::{Disk, Guest, GuestError, Qmp};

/// Partitions a disk, makes a file system on it, mounts that at `/mnt` and writes a file of so many KiB
/// there; its digest. All of it is on the disk then.
///
/// # Errors
/// The step that failed.
pub fn make_files(guest: &mut Guest, disk: &str, kib: u64) -> Result<String, GuestError> {
    guest.run(&format!("test -b /dev/{disk}"))?;
    let table = r"printf 'o\nn\np\n1\n2048\n\nw\n'";
    guest.run(&format!("{table} | fdisk -u /dev/{disk} >/dev/null"))?;
    guest.run(&format!("mke2fs /dev/{disk}1 >/dev/null"))?;
    mount(guest, disk)?;
    let random = format!("dd if=/dev/urandom of=/mnt/a bs=1k count={kib} conv=fsync 2>/dev/null");
    guest.run(&format!("{random} && sync"))?;
    digest(guest, "/mnt/a")
}

/// Mounts what [`make_files`] has made.
///
/// # Errors
/// When it is not there.
pub fn mount(guest: &mut Guest, disk: &str) -> Result<(), GuestError> {
    guest.run(&format!("mount -t ext4 /dev/{disk}1 /mnt"))?;
    Ok(())
}

/// The digest of a file, or of what a command prints.
///
/// # Errors
/// When it cannot be read.
pub fn digest(guest: &mut Guest, file: &str) -> Result<String, GuestError> {
    let said = guest.run(&format!("sha256sum <{file}"))?;
    Ok(said
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned())
}

/// Mounts a disk anew, and forgets what the kernel has of it: what is read next comes from the disk.
///
/// # Errors
/// When it is in use.
pub fn remount(guest: &mut Guest, disk: &str) -> Result<(), GuestError> {
    guest.run("umount /mnt && echo 3 >/proc/sys/vm/drop_caches")?;
    mount(guest, disk)
}

/// Plugs a second disk in, writes it full in so many pieces of 64 KiB, reads it back and unplugs it; the
/// digest of what was written from its start.
///
/// # Errors
/// The step that failed.
pub fn plug_write_unplug(
    guest: &mut Guest,
    qmp: &mut Qmp,
    disk: &Disk,
    pieces: u64,
) -> Result<String, GuestError> {
    const PORT: usize = 1;
    guest.plug(qmp, disk, PORT)?;
    guest.run("while ! test -b /dev/vdb; do usleep 10000; done")?;
    let random = "dd if=/dev/urandom of=/dev/vdb bs=64k conv=fsync 2>/dev/null";
    guest.run(&format!(
        "{random} count={pieces} && echo 3 >/proc/sys/vm/drop_caches"
    ))?;
    let read = format!("dd if=/dev/vdb of=/tmp/read bs=64k count={pieces} 2>/dev/null");
    guest.run(&read)?;
    let digest = digest(guest, "/tmp/read")?;
    guest.unplug(qmp, &disk.id)?;
    guest.run("rm /tmp/read; while test -b /dev/vdb; do usleep 10000; done")?;
    Ok(digest)
}

/// Waits until the guest's kernel sees a size in sectors.
///
/// # Errors
/// When it does not come.
pub fn sees_size(guest: &mut Guest, disk: &str, sectors: u64) -> Result<(), GuestError> {
    let size = format!("$(cat /sys/block/{disk}/size)");
    guest.run(&format!(
        r#"while [ "{size}" != {sectors} ]; do usleep 10000; done"#
    ))?;
    Ok(())
}

/// Begins to write files, synced each, until [`stop_writing`]. It goes on through a migration.
///
/// # Errors
/// When the guest is gone.
pub fn begin_writing(guest: &mut Guest) -> Result<(), GuestError> {
    let write = "dd if=/dev/urandom of=/mnt/w$((i%8)) bs=64k count=4 conv=fsync 2>/dev/null";
    let note = "sha256sum /mnt/w$((i%8)) >/tmp/s$((i%8))";
    let until = "while ! test -e /tmp/stop; do";
    let end = "i=$((i+1)); done; echo $i >/tmp/count";
    guest.run(&format!(
        "(i=0; {until} {write} && {note} || touch /tmp/failed; {end}) &"
    ))?;
    guest.run("while ! test -e /tmp/s0; do usleep 10000; done")?;
    Ok(())
}

/// Ends the writing, and compares what was written with what the disk has; how many files that were.
///
/// # Errors
/// When a write failed, or a file is not as it was written.
pub fn stop_writing(guest: &mut Guest, disk: &str) -> Result<u64, GuestError> {
    guest.run("touch /tmp/stop; wait; ! test -e /tmp/failed")?;
    remount(guest, disk)?;
    guest.run("cat /tmp/s? | sha256sum -c >/dev/null")?;
    let count = guest.run("cat /tmp/count; rm -f /tmp/stop /tmp/count /tmp/s?")?;
    Ok(count.trim().parse().unwrap_or_default())
}
