//! The story of `vm-volumes`: CoronaFS's volumes as disks of real guests (contracts CO-1, BY-8, VM-1 as far as
//! it is about attaching).
//!
//! One node serves all; guests run Debian's kernel under QEMU. What the guest wrote is judged by digests that
//! it computes itself, after its caches were dropped or it was started anew.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use guest::{Disk, Guest, Machine, programs};
use proof::Accelerator;
use serde_json::json;

use super::announce;
use super::artifacts::{About, Artifacts, Part, Scope};
use crate::process::{self, Running};
use crate::volume_ctl::VolumeCtl;

const MIB: u64 = 1 << 20;
const DEADLINE: Duration = Duration::from_mins(1);
/// Files that the guest writes while something happens to it.
const FILES: usize = 24;

/// What the lane is about.
pub const ABOUT: About = About {
    lane: "vm-volumes",
    contracts: &["CO-1", "BY-8", "CARD-6", "VM-1"],
    scopes: &[
        Scope {
            name: "machine",
            words: "One node of one machine serves the volumes; the guests run on the same machine under \
                    QEMU's own emulation (vm_accelerator_mode=tcg). No contract that asks for KVM is claimed.",
        },
        Scope {
            name: "migration",
            words: "The sides of the live migrations are QEMU processes, each on a vhost-user backend of its own: \
                    at first of one node, then of two. The volume is one node's; the other reaches it by NBD, \
                    on the same machine.",
        },
    ],
    not_shown: &[
        Part {
            what: "KVM: guests at the hardware's speed",
            reason: "the machine's /dev/kvm boots no stock kernel",
        },
        Part {
            what: "migration between two machines",
            reason: "the two nodes are processes of one machine",
        },
        Part {
            what: "power loss under a guest",
            reason: "a killed process leaves the kernel's cache; the volumes' simulation cuts the power",
        },
    ],
    clients: &["qemu"],
    accelerator: Accelerator::Tcg,
};

/// Writes files that tell what they hold, one after the other, durably.
fn writing(name: &str) -> String {
    format!(
        "i=0; while [ $i -lt {FILES} ]; do dd if=/dev/urandom of=/mnt/{name}$i bs=64k count=4 conv=fsync 2>/dev/null \
         || exit 1; (cd /mnt; sha256sum {name}$i >>{name}.sums); sync; i=$((i+1)); done"
    )
}

/// Reads them back from the disk.
fn checking(name: &str) -> String {
    format!(
        "sync; echo 3 >/proc/sys/vm/drop_caches; [ $(wc -l </mnt/{name}.sums) = {FILES} ] \
         && (cd /mnt && sha256sum -c -s {name}.sums)"
    )
}

const MOUNT: &str = "mount -t ext4 -o discard /dev/vda1 /mnt";

/// What fio does, behind the partition: blocks with sums of their own in a random order, sixteen at a time,
/// past the guest's caches; all are read back and verified.
const FIO: &str = "--name=v --filename=/dev/vda --offset=72m --size=16m --rw=randwrite --bs=4k --direct=1 \
     --ioengine=libaio --iodepth=16 --fsync=64 --verify=crc32c --verify_fatal=1 --do_verify=1 --thread";
const FIO_BYTES: u64 = 16 * MIB;
/// How often the backend is killed meanwhile.
const KILLS: u64 = 2;

struct Story<'a> {
    server: &'a Path,
    cli: &'a Path,
    dir: PathBuf,
    node: Option<(Running, VolumeCtl)>,
    starts: u32,
    machine: Machine,
    guest: Option<Guest>,
    /// Another node, while it serves the volume too.
    other: Option<(Running, VolumeCtl)>,
}

/// Runs the story.
pub fn run(server: &Path, cli: &Path, kernel: &Path, artifacts: &mut Artifacts) -> Result<()> {
    // Paths of sockets are bounded, and the work root's may be long.
    let sockets = tempfile::tempdir()?;
    let mut story = Story {
        server,
        cli,
        dir: artifacts.dir().to_owned(),
        node: None,
        starts: 0,
        machine: Machine {
            reboots: true,
            ..Machine::new(kernel, sockets.path(), "guest")
        },
        guest: None,
        other: None,
    };
    artifacts.step("clean-local-state", |_| story.start())?;
    artifacts.step("volume-attached", |out| story.attach(out))?;
    artifacts.step("guest-makes-a-file-system", |out| story.prepare(out))?;
    artifacts.step("discard-frees-space", |out| story.discard(out))?;
    artifacts.step("backend-killed-under-writes", |_| story.kill_backend())?;
    artifacts.step("backend-drained-under-writes", |_| story.drain_backend())?;
    artifacts.step("fio-verifies-over-kills", |out| story.fio(out))?;
    artifacts.step("clone-hot-plugged-and-unplugged", |out| story.plug(out))?;
    artifacts.step("live-resize", |out| story.resize(out))?;
    artifacts.step("guest-reset", |_| story.reset())?;
    artifacts.step("qemu-killed", |_| story.kill_qemu())?;
    artifacts.step("live-migration-under-writes", |out| story.migrate(out))?;
    artifacts.step("live-migration-to-another-node", |out| {
        story.migrate_to_other(out)
    })?;
    artifacts.step("rollback", |_| story.roll_back())?;
    artifacts.step("taken-over", |out| story.take_over(out))
}

impl Story<'_> {
    fn start(&mut self) -> Result<()> {
        self.node = Some(self.start_node("data", &self.machine.dir.clone())?);
        Ok(())
    }

    fn start_node(&mut self, data: &str, sockets: &Path) -> Result<(Running, VolumeCtl)> {
        self.starts += 1;
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(self.server)
            .args([
                "node",
                "--role",
                "coronafs",
                "--admin-listen",
                "127.0.0.1:0",
            ])
            .arg("--data-dir")
            .arg(self.dir.join(data))
            .env(
                "ULTRACLOUD_CORONAFS__SOCKET_DIR",
                format!("\"{}\"", sockets.display()),
            );
        let log = self.dir.join(format!("node-{}.log", self.starts));
        let mut process = Running::start(&mut command, &log)?;
        let admin = announce::admin(&mut process, &log, DEADLINE)?;
        let url = format!("http://{admin}");
        let ctl = VolumeCtl::new(self.cli, url, &self.dir.join(data));
        Ok((process, ctl))
    }

    fn ctl(&self) -> Result<&VolumeCtl> {
        let (_, ctl) = self.node.as_ref().context("the node does not run")?;
        Ok(ctl)
    }

    fn guest(&mut self) -> Result<&mut Guest> {
        self.guest.as_mut().context("no guest runs")
    }

    /// The disk is attached twice, for a migration is to come.
    fn attach(&mut self, out: &mut Artifacts) -> Result<()> {
        self.ctl()?.ask(&["create", "disk", "--size", "96MiB"])?;
        let (made, disk) = self.ctl()?.attach("disk", &["--access", "shared"])?;
        out.keep("attach", &made)?;
        self.machine.disks = vec![disk];
        Ok(())
    }

    fn prepare(&mut self, out: &mut Artifacts) -> Result<()> {
        let mut guest = self.machine.boot()?;
        guest.run(r"printf 'o\nn\np\n1\n2048\n131071\nw\n' | fdisk -u /dev/vda >/dev/null")?;
        guest.run("mke2fs /dev/vda1 >/dev/null")?;
        guest.run(MOUNT)?;
        guest.run(&writing("first"))?;
        guest.run(&checking("first"))?;
        out.fact("guest_kernel", guest.run("uname -r")?);
        self.guest = Some(guest);
        Ok(())
    }

    fn used(&self) -> Result<u64> {
        let shown = self.ctl()?.ask(&["stat", "disk"])?;
        shown["mapped_bytes"].as_u64().context("no mapped_bytes")
    }

    fn discard(&mut self, out: &mut Artifacts) -> Result<()> {
        let guest = self.guest()?;
        guest.run("dd if=/dev/urandom of=/mnt/big bs=1M count=16 conv=fsync 2>/dev/null")?;
        let full = self.used()?;
        self.guest()?.run("rm /mnt/big; sync; fstrim /mnt; sync")?;
        let freed = self.used()?;
        out.fact("used_bytes_before_and_after_discard", json!([full, freed]));
        ensure!(
            freed + 15 * MIB <= full,
            "{full} bytes before, {freed} after"
        );
        Ok(())
    }

    /// Runs what the guest writes while something happens, and reads it back.
    fn under_writes(
        &mut self,
        name: &str,
        happen: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        let command = writing(name);
        self.guest()?.begin(&command)?;
        happen(self)?;
        self.guest()?.finish(&command)?;
        self.guest()?.run(&checking(name))?;
        self.guest()?.run(&checking("first"))?;
        Ok(())
    }

    fn kill_backend(&mut self) -> Result<()> {
        self.under_writes("killed", |story| {
            story.node = None;
            story.start()
        })
    }

    fn drain_backend(&mut self) -> Result<()> {
        self.under_writes("drained", |story| {
            let (process, _) = story.node.take().context("the node does not run")?;
            let pid = process.id().to_string();
            process::run(Command::new("kill").args(["-TERM", &pid]))?;
            process.finish(DEADLINE)?;
            story.start()
        })
    }

    /// The guest gets its programs by a volume of their own, which was imported from an image.
    fn fio(&mut self, out: &mut Artifacts) -> Result<()> {
        let image = self.machine.dir.join("tools.raw");
        programs::image(Path::new("/usr/bin/fio"), &image, 160)?;
        self.ctl()?
            .ask(&["import", &image.display().to_string(), "tools"])?;
        fs::remove_file(&image)?;
        let (_, disk) = self.ctl()?.attach("tools", &["--access", "read-only"])?;
        let guest = self.guest()?;
        guest.plug(&mut guest.qmp()?, &disk, 3)?;
        guest.run("until [ -b /dev/vdb ]; do usleep 10000; done; mkdir -p /tools")?;
        guest.run("mount -t ext4 -o ro,noload /dev/vdb /tools")?;
        let before = self.used()?;
        let command = format!("{} {FIO}", programs::command("fio"));
        self.guest()?.begin(&command)?;
        for kill in 1..=KILLS {
            process::until(DEADLINE, || {
                Ok((self.used()? >= before + kill * FIO_BYTES / (KILLS + 1)).then_some(()))
            })?
            .context("fio does not write")?;
            self.node = None;
            self.start()?;
        }
        let said = self.guest()?.finish(&command)?;
        ensure!(said.contains("err= 0"), "fio says\n{said}");
        out.fact("fio_kills", KILLS);
        let guest = self.guest()?;
        guest.run("umount /tools")?;
        guest.unplug(&mut guest.qmp()?, &disk.id)?;
        guest.run("until [ ! -b /dev/vdb ]; do usleep 10000; done")?;
        self.ctl()?.ask(&["detach", "tools"])?;
        self.ctl()?.ask(&["delete", "tools"])?;
        Ok(())
    }

    fn plug(&mut self, out: &mut Artifacts) -> Result<()> {
        self.guest()?.run("sync")?;
        self.ctl()?.ask(&["snapshot", "create", "disk", "before"])?;
        self.ctl()?.ask(&["clone", "disk", "before", "copy"])?;
        let (_, disk) = self.ctl()?.attach("copy", &[])?;
        let guest = self.guest()?;
        guest.plug(&mut guest.qmp()?, &disk, 2)?;
        guest.run("until [ -b /dev/vdb1 ]; do usleep 10000; done")?;
        guest.run("mkdir -p /tmp/c; mount -t ext4 /dev/vdb1 /tmp/c")?;
        guest.run("(cd /tmp/c && sha256sum -c -s first.sums && sha256sum -c -s killed.sums)")?;
        guest.run(
            "rm /tmp/c/first*; dd if=/dev/zero of=/tmp/c/own bs=1M count=2 conv=fsync 2>/dev/null",
        )?;
        guest.run("umount /tmp/c")?;
        guest.unplug(&mut guest.qmp()?, &disk.id)?;
        guest.run("until [ ! -b /dev/vdb ]; do usleep 10000; done")?;
        guest.run(&checking("first"))?;
        self.ctl()?.ask(&["detach", "copy"])?;
        self.ctl()?.ask(&["snapshot", "create", "copy", "after"])?;
        let changes = self.ctl()?.ask(&["diff", "copy", "after"])?;
        ensure!(
            changes.as_array().is_some_and(|all| !all.is_empty()),
            "no changes"
        );
        out.keep("clone", &self.ctl()?.ask(&["stat", "copy"])?)
    }

    fn resize(&mut self, out: &mut Artifacts) -> Result<()> {
        self.ctl()?.ask(&["resize", "disk", "128MiB"])?;
        let sectors = 128 * MIB / 512;
        let seen =
            format!("until [ $(cat /sys/block/vda/size) = {sectors} ]; do usleep 10000; done");
        self.guest()?.run(&seen)?;
        let shrunk = self.ctl()?.ask(&["resize", "disk", "4MiB"]);
        ensure!(shrunk.is_err(), "data was cut off: {shrunk:?}");
        out.keep("resized", &self.ctl()?.ask(&["stat", "disk"])?)
    }

    fn reset(&mut self) -> Result<()> {
        let guest = self.guest()?;
        guest.reset()?;
        guest.run(MOUNT)?;
        guest.run(&checking("drained"))?;
        Ok(())
    }

    fn kill_qemu(&mut self) -> Result<()> {
        self.guest()?.run("sync")?;
        self.guest.take().context("no guest runs")?.kill()?;
        let mut guest = self.machine.boot()?;
        guest.run(MOUNT)?;
        for name in ["first", "killed", "drained"] {
            guest.run(&checking(name))?;
        }
        self.guest = Some(guest);
        Ok(())
    }

    fn migrate(&mut self, out: &mut Artifacts) -> Result<()> {
        let (_, disk) = self.ctl()?.attach("disk", &["--access", "shared"])?;
        self.migrate_onto(disk, "there", "migration", out)
    }

    /// The other node has the same volume over NBD.
    fn migrate_to_other(&mut self, out: &mut Artifacts) -> Result<()> {
        let sockets = self.machine.dir.join("other");
        let other = self.start_node("data-of-other", &sockets)?;
        let nbd = ["attach", "disk", "--nbd", "--access", "shared"];
        let made = self.ctl()?.ask(&nbd)?;
        let socket = made["attachment"]["socket"].as_str().context("no socket")?;
        let endpoint = format!("unix:{socket}");
        let remote = ["remote", "attach", "theirs", &endpoint, "--queues", "2"];
        let made = other.1.ask(&remote)?;
        let socket = made["remote"]["socket"].as_str().context("no socket")?;
        let disk = Disk::new("disk", socket);
        out.keep("remote", &made)?;
        self.other = Some(other);
        self.migrate_onto(disk, "elsewhere", "migration_to_node", out)
    }

    /// Moves the guest onto this disk while it writes.
    fn migrate_onto(
        &mut self,
        disk: Disk,
        name: &str,
        fact: &str,
        out: &mut Artifacts,
    ) -> Result<()> {
        let incoming = self.machine.dir.join(format!("to-{name}"));
        let machine = Machine {
            name: name.to_owned(),
            disks: vec![disk],
            incoming: Some(incoming.clone()),
            ..self.machine.clone()
        };
        let mut there = machine.boot()?;
        // It listens for the migration when it answers.
        drop(there.qmp()?);
        let command = writing(name);
        let mut here = self.guest.take().context("no guest runs")?;
        here.begin(&command)?;
        let status = here.migrate(&mut here.qmp()?, &incoming)?;
        for (time, field) in [("total", "total-time"), ("downtime", "downtime")] {
            out.fact(&format!("{fact}_{time}_ms"), status[field].clone());
        }
        here.kill()?;
        there.finish(&command)?;
        for name in [name, "first", "killed"] {
            there.run(&checking(name))?;
        }
        self.guest = Some(there);
        Ok(())
    }

    /// To before the resize and the migration; the volume keeps its size then.
    fn roll_back(&mut self) -> Result<()> {
        let guest = self.guest.take().context("no guest runs")?;
        ensure!(guest.power_off()?.success(), "QEMU did not end well");
        if let Some((_process, ctl)) = self.other.take() {
            ctl.ask(&["remote", "detach", "theirs"])?;
        }
        let shown = self.ctl()?.ask(&["stat", "disk"])?;
        for attachment in shown["attachments"].as_array().into_iter().flatten() {
            self.ctl()?
                .ask(&["detach", "disk", "--id", &attachment["id"].to_string()])?;
        }
        self.ctl()?.ask(&["rollback", "disk", "before"])?;
        let (_, disk) = self.ctl()?.attach("disk", &[])?;
        self.machine.disks = vec![disk];
        let mut guest = self.machine.boot()?;
        guest.run(MOUNT)?;
        for name in ["first", "killed", "drained"] {
            guest.run(&checking(name))?;
        }
        guest.run("[ ! -e /mnt/there0 ]")?;
        self.guest = Some(guest);
        Ok(())
    }

    /// Who takes the volume over fences the guest that has it: its writes fail and change nothing.
    fn take_over(&mut self, out: &mut Artifacts) -> Result<()> {
        let (made, _) = self.ctl()?.attach("disk", &["--take-over"])?;
        out.keep("taken-over", &made)?;
        self.guest.take().context("no guest runs")?.kill()?;
        let shown = self.ctl()?.ask(&["stat", "disk"])?;
        let attachments = shown["attachments"].as_array().map_or(0, Vec::len);
        ensure!(
            attachments == 1,
            "{attachments} attachments are left: {shown}"
        );
        let (process, _) = self.node.take().context("the node does not run")?;
        let pid = process.id().to_string();
        process::run(Command::new("kill").args(["-TERM", &pid]))?;
        process.finish(DEADLINE).map(|_| ())
    }
}
