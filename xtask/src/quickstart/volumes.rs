//! CoronaFS's part of the quickstart: a real guest on a volume, and a clone beside it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use guest::{Guest, Machine, programs};
use tempfile::TempDir;

use super::clients::Toolbox;
use super::node::Spec;
use super::show::Show;
use crate::process;
use crate::volume_ctl::VolumeCtl;

/// What the guest runs on: no KVM is asked for.
const CLIENT: &str = "QEMU (TCG)";
/// What the guest does to an empty disk.
const PREPARE: [&str; 3] = [
    r"printf 'o\nn\np\n1\n2048\n131071\nw\n' | fdisk -u /dev/vda >/dev/null",
    "mke2fs /dev/vda1 >/dev/null",
    "mount -t ext4 /dev/vda1 /mnt",
];
/// Eight MiB that it goes on from; the kernel's own noise.
const FIRST: &str = "dd if=/dev/urandom of=/mnt/first bs=64k count=128 conv=fsync 2>/dev/null";
const SECOND: &str = "cp /mnt/first /mnt/second && sync";

/// A guest and its volume.
pub struct Volumes {
    ctl: VolumeCtl,
    kernel: PathBuf,
    work: TempDir,
    guest: Option<(Guest, String)>,
}

impl Volumes {
    /// Volumes of a node; `kernel` is the guest's.
    pub fn new(cli: &Path, node: &Spec<'_>, kernel: &Path) -> Result<Self> {
        Ok(Self {
            ctl: VolumeCtl::new(cli, format!("http://{}", node.ports.admin()), &node.data),
            kernel: kernel.to_owned(),
            work: tempfile::tempdir()?,
            guest: None,
        })
    }

    /// Makes and attaches a volume, and boots a guest that puts a file system on it.
    pub fn boot(&mut self, show: &mut Show) -> Result<()> {
        show.step(
            "a volume is made, attached, and a guest boots",
            CLIENT,
            || {
                self.ctl.ask(&["create", "disk", "--size", "1GiB"])?;
                let machine = Machine {
                    disks: vec![self.ctl.attach("disk", &[])?.1],
                    ..Machine::new(&self.kernel, self.work.path(), "guest")
                };
                let mut guest = machine.boot()?;
                for command in PREPARE {
                    guest.run(command)?;
                }
                guest.run(FIRST)?;
                let digest = guest.run("sha256sum </mnt/first")?;
                let kernel = guest.run("uname -r")?;
                self.guest = Some((guest, digest));
                Ok(((), format!("Linux {kernel}, ext4, 8 MiB written")))
            },
        )
    }

    /// A disk image becomes an object, the object a volume, and a guest runs what is in it while the volume
    /// is still being filled.
    pub fn boot_from_image(&mut self, toolbox: &Toolbox, show: &mut Show) -> Result<()> {
        let what = "an image is put as an object, cloned into a volume, and a guest boots with it";
        show.step(what, CLIENT, || {
            let (files, image) = (
                self.work.path().join("root"),
                self.work.path().join("root.raw"),
            );
            std::fs::create_dir_all(&files)?;
            std::fs::copy("/bin/busybox", files.join("busybox"))?;
            let payload = files.join("payload");
            let mut fill = Command::new("dd");
            fill.args(["if=/dev/urandom", "bs=64k", "count=256", "status=none"]);
            process::run(fill.arg(format!("of={}", payload.display())))?;
            programs::file_system(&files, &image, 64)?;
            let (wanted, digest) = (digest(&payload)?, digest(&image)?);
            let object = toolbox.put_image(&image)?;
            let create = [
                "create",
                "root",
                "--image",
                &object,
                "--image-sha256",
                &digest,
                "--checksums",
            ];
            self.ctl.ask(&create)?;
            let machine = Machine {
                disks: vec![self.ctl.attach("root", &[])?.1],
                ..Machine::new(&self.kernel, self.work.path(), "image")
            };
            let mut guest = machine.boot()?;
            guest.run("mount -t ext4 /dev/vda /mnt")?;
            let read = guest.run("chroot /mnt /busybox sha256sum /payload")?;
            ensure!(
                read.starts_with(&wanted),
                "the guest has {read}, not {wanted}"
            );
            guest.run("rm /mnt/payload; sync")?;
            let filled = self.ctl.ask(&["flatten", "root"])?;
            let verified = filled["image"]["verified"].as_bool();
            ensure!(verified == Some(true), "not verified: {filled}");
            guest.run(
                "umount /mnt; echo 3 >/proc/sys/vm/drop_caches; mount -t ext4 /dev/vda /mnt",
            )?;
            guest.run("test ! -e /mnt/payload && test -e /mnt/busybox")?;
            ensure!(guest.power_off()?.success(), "QEMU did not end well");
            self.ctl.ask(&["detach", "root"])?;
            let scrubbed = self.ctl.ask(&["scrub", "root"])?;
            ensure!(scrubbed["errors"] == 0, "the scrub says {scrubbed}");
            self.ctl.ask(&["delete", "root"])?;
            let shown = "digest equal; then filled, SHA-256 verified, scrubbed";
            Ok(((), shown.to_owned()))
        })
    }

    fn guest(&mut self) -> Result<&mut Guest> {
        let (guest, _) = self.guest.as_mut().context("no guest runs")?;
        Ok(guest)
    }

    /// The guest goes on writing while the node dies.
    pub fn begin_writing(&mut self) -> Result<()> {
        Ok(self.guest()?.begin(SECOND)?)
    }

    /// What it wrote is there, also in a clone of a snapshot; then it ends.
    pub fn read_back(&mut self, show: &mut Show) -> Result<()> {
        let what = "the guest goes on, and reads all that it wrote";
        show.step(what, CLIENT, || {
            self.guest()?.finish(SECOND)?;
            let (guest, digest) = self.guest.as_mut().context("no guest runs")?;
            guest.run("umount /mnt; echo 3 >/proc/sys/vm/drop_caches")?;
            guest.run("mount -t ext4 /dev/vda1 /mnt")?;
            for file in ["first", "second"] {
                let read = guest.run(&format!("sha256sum </mnt/{file}"))?;
                ensure!(read == *digest, "{file} is {read}, not {digest}");
            }
            Ok(((), "2 digests equal".to_owned()))
        })?;
        show.step("snapshot, clone, hot plug of the clone", CLIENT, || {
            self.guest()?.run("sync")?;
            self.ctl.ask(&["snapshot", "create", "disk", "now"])?;
            self.ctl.ask(&["clone", "disk", "now", "copy"])?;
            let (_, disk) = self.ctl.attach("copy", &[])?;
            let (mut guest, digest) = self.guest.take().context("no guest runs")?;
            guest.plug(&mut guest.qmp()?, &disk, 2)?;
            guest.run("until [ -b /dev/vdb1 ]; do usleep 10000; done; mkdir /tmp/c")?;
            guest.run("mount -t ext4 /dev/vdb1 /tmp/c")?;
            let read = guest.run("sha256sum </tmp/c/second")?;
            ensure!(read == digest, "the clone has {read}, not {digest}");
            ensure!(guest.power_off()?.success(), "QEMU did not end well");
            Ok(((), "digest equal".to_owned()))
        })
    }
}

/// A file's SHA-256, in digits.
fn digest(file: &Path) -> Result<String> {
    let said = process::capture(Command::new("sha256sum").arg(file))?;
    let digits = said.split_whitespace().next();
    Ok(digits.context("sha256sum says nothing")?.to_owned())
}
