//! A small Linux guest under QEMU, for tests and proofs: Debian's kernel and busybox in an initramfs, driven
//! line by line from its serial console, and QEMU itself over QMP.
//!
//! The guest runs under QEMU's own emulation (TCG), which needs no KVM. It waits for commands: each line
//! that the host writes is a shell command, whose output and exit status come back. All waits are
//! bounded. A guest ends with the value that stands for it.

#![forbid(unsafe_code)]

mod initramfs;
mod qmp;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

pub use qmp::Qmp;

/// Longest that the guest may be silent: it is emulated, on a machine that does other things.
const SILENCE_MAX: Duration = Duration::from_mins(3);
/// Slots into which disks can be plugged while the guest runs, beside those of its first disks.
const SPARE_PORTS: usize = 2;
/// Between two looks at a QEMU that starts.
const PAUSE: Duration = Duration::from_millis(10);
/// The guest's memory: no multiple of 256 KiB. Of whole pieces of that size QEMU before 9.0 loses stores that
/// the emulated CPU makes during a migration (it clears marks of changed pages and not its own cache of them).
const MEMORY: &str = "196616K";

const READY: &str = "@READY";
const DONE: &str = "@DONE ";

/// A disk of the guest's.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The socket of a vhost-user-blk device.
    pub socket: PathBuf,
    /// Rings that the guest uses.
    pub queues: u16,
    /// Whether the guest uses packed rings.
    pub packed: bool,
}

impl Disk {
    /// A disk with one split ring.
    pub fn at(socket: impl Into<PathBuf>) -> Disk {
        Disk {
            socket: socket.into(),
            queues: 1,
            packed: false,
        }
    }

    /// QEMU's chardev of the socket, which is connected to again when the other side was away.
    pub fn chardev(&self, id: &str) -> String {
        let path = self.socket.display().to_string().replace(',', ",,");
        format!("socket,id={id},path={path},reconnect=1")
    }

    fn device(&self, id: &str, chardev: &str, port: &str) -> String {
        let queues = self.queues;
        let packed = if self.packed { ",packed=on" } else { "" };
        format!(
            "vhost-user-blk-pci,id={id},chardev={chardev},num-queues={queues},queue-size=128,bus={port}{packed}"
        )
    }
}

/// How a guest is started.
#[derive(Clone, Debug)]
pub struct Boot {
    /// Directory with `vmlinux` and `modules`.
    pub kernel: PathBuf,
    /// Directory for the guest's sockets and initramfs; short, as the kernel bounds paths of sockets.
    pub work: PathBuf,
    /// Tells guests in one directory apart.
    pub name: String,
    /// The disks, as /dev/vda and so on.
    pub disks: Vec<Disk>,
    /// Waits for another guest to migrate to it, at this socket.
    pub incoming: Option<PathBuf>,
}

/// A running guest. Dropping it ends QEMU.
pub struct Guest {
    child: Child,
    console: Receiver<String>,
    keys: ChildStdin,
    qmp: PathBuf,
    /// What it has said and nobody has waited for.
    seen: String,
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Guest {
    /// Starts QEMU; returns when the guest waits for commands, or for a migration.
    ///
    /// # Errors
    /// When QEMU is not installed, ends, or the guest does not come up.
    pub fn boot(boot: &Boot) -> Result<Guest> {
        let initrd = boot.work.join(format!("{}.initrd", boot.name));
        initramfs::build(&boot.kernel, &initrd)?;
        let qmp = boot.work.join(format!("{}.qmp", boot.name));
        let mut command = qemu(boot, &initrd, &qmp);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run qemu-system-x86_64")?;
        let keys = child.stdin.take().context("QEMU has no stdin")?;
        let stdout = child.stdout.take().context("QEMU has no stdout")?;
        let mut guest = Guest {
            child,
            console: read_lines(stdout),
            keys,
            qmp,
            seen: String::new(),
        };
        match &boot.incoming {
            None => {
                guest.wait_for(READY)?;
            }
            Some(socket) => {
                let uri = format!("unix:{}", socket.display());
                let mut qmp = guest.first_qmp()?;
                qmp.run("migrate-incoming", &serde_json::json!({ "uri": uri }))?;
            }
        }
        Ok(guest)
    }

    /// Runs a shell command; what it printed.
    ///
    /// # Errors
    /// When it fails, or the guest dies or is silent for too long.
    pub fn run(&mut self, command: &str) -> Result<String> {
        self.begin(command)?;
        self.end(command)
    }

    /// Begins a shell command, whose end [`Guest::end`] waits for.
    ///
    /// # Errors
    /// When the guest is gone.
    pub fn begin(&mut self, command: &str) -> Result<()> {
        ensure!(!command.contains('\n'), "a command is one line");
        self.seen.clear();
        let line = format!("{command}\n");
        self.keys
            .write_all(line.as_bytes())
            .context("the guest is gone")
    }

    /// Waits until a command has ended; what it printed.
    ///
    /// # Errors
    /// When it fails, or the guest dies or is silent for too long.
    pub fn end(&mut self, command: &str) -> Result<String> {
        let status = self.wait_for(DONE)?;
        let printed = std::mem::take(&mut self.seen);
        ensure!(status == "0", "`{command}` ended with {status}: {printed}");
        Ok(printed.trim().to_owned())
    }

    /// Waits for a line that begins so, as [`Guest::begin`]'s command prints; the rest of it.
    ///
    /// # Errors
    /// When the guest dies or is silent for too long.
    pub fn wait_for(&mut self, what: &str) -> Result<String> {
        loop {
            let line = match self.console.recv_timeout(SILENCE_MAX) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => bail!("no {what}, and silence: {}", self.seen),
                Err(RecvTimeoutError::Disconnected) => bail!("QEMU ended: {}", self.seen),
            };
            let line = line.trim();
            ensure!(!line.contains("Kernel panic"), "{}{line}", self.seen);
            if let Some(rest) = line.strip_prefix(what) {
                return Ok(rest.trim().to_owned());
            }
            self.seen.push_str(line);
            self.seen.push('\n');
        }
    }

    /// Reboots by QEMU's reset, as a button; returns when the guest waits for commands again.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn reset(&mut self) -> Result<()> {
        self.qmp()?.run("system_reset", &serde_json::json!({}))?;
        self.wait_for(READY).map(|_| ())
    }

    /// QEMU's own control, of a QEMU that has just been started.
    fn first_qmp(&mut self) -> Result<Qmp> {
        let until = Instant::now() + SILENCE_MAX;
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("QEMU ended with {status}");
            }
            match self.qmp() {
                Err(_) if Instant::now() < until => std::thread::sleep(PAUSE),
                reached => return reached,
            }
        }
    }

    /// QEMU's own control.
    ///
    /// # Errors
    /// When QEMU is gone.
    pub fn qmp(&self) -> Result<Qmp> {
        Qmp::connect(&self.qmp)
    }

    /// Plugs a disk in, into a spare slot: 0 or 1.
    ///
    /// # Errors
    /// When QEMU refuses.
    pub fn plug(&self, disk: &Disk, slot: usize) -> Result<()> {
        let mut qmp = self.qmp()?;
        let (chardev, id) = (format!("spare{slot}-c"), format!("spare{slot}"));
        let path = disk.socket.display().to_string();
        qmp.run(
            "chardev-add",
            &serde_json::json!({
                "id": chardev,
                "backend": { "type": "socket", "data": {
                    "addr": { "type": "unix", "data": { "path": path } },
                    "server": false, "reconnect": 1,
                } },
            }),
        )?;
        qmp.run(
            "device_add",
            &serde_json::json!({
                "driver": "vhost-user-blk-pci", "id": id, "chardev": chardev,
                "num-queues": disk.queues, "bus": format!("spare-port{slot}"),
                "packed": disk.packed,
            }),
        )?;
        Ok(())
    }

    /// Unplugs the disk of a spare slot; returns when the guest has let it go.
    ///
    /// # Errors
    /// When QEMU refuses, or the guest does not let go.
    pub fn unplug(&self, slot: usize) -> Result<()> {
        let mut qmp = self.qmp()?;
        let (chardev, id) = (format!("spare{slot}-c"), format!("spare{slot}"));
        qmp.run("device_del", &serde_json::json!({ "id": id }))?;
        qmp.event("DEVICE_DELETED", |data| data["device"] == *id)?;
        qmp.run("chardev-remove", &serde_json::json!({ "id": chardev }))?;
        Ok(())
    }

    /// Migrates the guest, while it runs, to one that was booted with [`Boot::incoming`]; returns when it has
    /// stopped here.
    ///
    /// # Errors
    /// When the migration fails.
    pub fn migrate(&self, to: &Path) -> Result<()> {
        let mut qmp = self.qmp()?;
        let events = serde_json::json!({
            "capabilities": [{ "capability": "events", "state": true }]
        });
        qmp.run("migrate-set-capabilities", &events)?;
        let uri = format!("unix:{}", to.display());
        qmp.run("migrate", &serde_json::json!({ "uri": uri }))?;
        let ended = qmp.event("MIGRATION", |data| {
            data["status"] == "completed" || data["status"] == "failed"
        })?;
        if ended["status"] == "failed" {
            let status = qmp.run("query-migrate", &serde_json::json!({}))?;
            bail!("the migration failed: {status}");
        }
        Ok(())
    }

    /// Ends the guest's operating system and waits for QEMU.
    ///
    /// # Errors
    /// When the guest is gone already.
    pub fn power_off(mut self) -> Result<ExitStatus> {
        self.begin("sync; poweroff -f")?;
        Ok(self.child.wait()?)
    }

    /// Kills QEMU.
    pub fn kill(self) {}

    /// QEMU's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

fn qemu(boot: &Boot, initrd: &Path, qmp: &Path) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-accel", "tcg,thread=multi,tb-size=256", "-m", MEMORY]);
    command.args(["-M", "q35,memory-backend=mem", "-nodefaults"]);
    let object = format!("memory-backend-memfd,id=mem,size={MEMORY},share=on");
    command.args(["-object", &object, "-display", "none", "-serial", "stdio"]);
    command.arg("-kernel").arg(boot.kernel.join("vmlinux"));
    command.arg("-initrd").arg(initrd);
    command.args(["-append", "console=ttyS0 panic=-1 quiet reboot=t tsc=reliable no_timer_check mitigations=off nokaslr random.trust_cpu=on"]);
    let qmp = format!("unix:{},server=on,wait=off", qmp.display());
    command.args(["-qmp", &qmp]);
    for (number, disk) in boot.disks.iter().enumerate() {
        let (chardev, port) = (format!("c{number}"), format!("port{number}"));
        command.args(["-chardev", &disk.chardev(&chardev)]);
        let slot = format!("pcie-root-port,id={port},chassis={}", number + 1);
        command.args(["-device", &slot]);
        let device = disk.device(&format!("disk{number}"), &chardev, &port);
        command.args(["-device", &device]);
    }
    for spare in 0..SPARE_PORTS {
        let slot = format!(
            "pcie-root-port,id=spare-port{spare},chassis={}",
            spare + 100
        );
        command.args(["-device", &slot]);
    }
    if boot.incoming.is_some() {
        command.args(["-incoming", "defer"]);
    }
    command
}

/// Lines as they come; the channel ends with the guest.
fn read_lines(stdout: std::process::ChildStdout) -> Receiver<String> {
    let (lines, receiver) = channel();
    std::thread::spawn(move || {
        let mut stdout = BufReader::new(stdout);
        loop {
            let mut line = Vec::new();
            match stdout.read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            let line = String::from_utf8_lossy(&line).into_owned();
            if lines.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
