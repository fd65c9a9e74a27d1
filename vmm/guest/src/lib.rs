//! Real guests for tests and lanes: QEMU with Debian's kernel and busybox, commands on its console, and
//! QMP. QEMU emulates the CPU, so that a guest runs where there is no KVM.
//!
//! A guest waits for one line on its serial console, runs it in a shell, and says how it ended. Every wait
//! has a deadline, and an error carries what the console said. A guest that is dropped is killed.
#![forbid(unsafe_code)]

mod console;
mod initramfs;
pub mod programs;
mod qmp;
pub mod stories;

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

pub use console::Console;
pub use initramfs::initramfs;
pub use qmp::Qmp;
pub use serde_json::{Value, json};

/// How long anything may take: an emulated guest on a machine that is busy.
pub const PATIENCE: Duration = Duration::from_mins(2);

/// Between two looks at what nobody tells of.
const LOOK: Duration = Duration::from_millis(10);

/// What did not work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuestError {
    /// A program or a file.
    #[error("{what}")]
    Io {
        /// What was done.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The guest ended or did not answer, and this is what it had said.
    #[error("{what}; the console:\n{said}")]
    Console {
        /// What was waited for.
        what: String,
        /// The console since the last command.
        said: String,
    },
    /// A command ended with an error in the guest.
    #[error("{command}: status {status}; the console:\n{said}")]
    Failed {
        /// The command.
        command: String,
        /// How it ended.
        status: i32,
        /// What it printed.
        said: String,
    },
    /// QEMU refused something.
    #[error("{command}: {answer}")]
    Qmp {
        /// What was asked.
        command: String,
        /// What it said.
        answer: String,
    },
}

impl GuestError {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> GuestError {
        let what = what.into();
        |source| GuestError::Io { what, source }
    }
}

/// A disk by vhost-user.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The device's name in QEMU.
    pub id: String,
    /// The backend's socket.
    pub socket: PathBuf,
    /// Whether its rings are packed ones.
    pub packed: bool,
}

/// A machine to boot.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The directory with `vmlinux` and `modules`, as `cargo xtask setup` makes it.
    pub vm: PathBuf,
    /// Where the machine's files go: its initramfs and its QMP socket, by its name.
    pub dir: PathBuf,
    /// Names it there.
    pub name: String,
    /// Disks from the start; `/dev/vda` is the first.
    pub disks: Vec<Disk>,
    /// Waits for a migration that comes to this socket instead of booting.
    pub incoming: Option<PathBuf>,
    /// Whether a reboot of the guest boots it again; else it ends QEMU.
    pub reboots: bool,
}

/// The guest's memory: no multiple of 256 KiB. Of whole pieces of that size QEMU before 9.0 loses stores that
/// the emulated CPU makes during a migration: it clears the marks of changed pages, and not its CPU's cache of
/// them.
const MEMORY: &str = "196616K";

/// Root ports that disks can be plugged into, those from the start included.
pub const PORTS: usize = 4;

impl Disk {
    /// A disk with split rings.
    pub fn new(id: &str, socket: impl Into<PathBuf>) -> Disk {
        Disk {
            id: id.to_owned(),
            socket: socket.into(),
            packed: false,
        }
    }
}

impl Machine {
    /// A machine without disks.
    pub fn new(vm: &Path, dir: &Path, name: &str) -> Machine {
        Machine {
            vm: vm.to_owned(),
            dir: dir.to_owned(),
            name: name.to_owned(),
            disks: Vec::new(),
            incoming: None,
            reboots: false,
        }
    }

    /// The same with one more disk.
    #[must_use]
    pub fn with_disk(mut self, id: &str, socket: &Path) -> Machine {
        self.disks.push(Disk::new(id, socket));
        self
    }

    fn file(&self, suffix: &str) -> PathBuf {
        self.dir.join(format!("{}.{suffix}", self.name))
    }

    fn command(&self, initrd: &Path) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-accel", "tcg,thread=multi,tb-size=256", "-m", MEMORY]);
        command.args(["-M", "q35,memory-backend=mem", "-nodefaults"]);
        let memory = format!("memory-backend-memfd,id=mem,size={MEMORY},share=on");
        command.args(["-object", &memory]);
        command.args(["-display", "none", "-serial", "stdio"]);
        if !self.reboots {
            command.arg("-no-reboot");
        }
        command.arg("-kernel").arg(self.vm.join("vmlinux"));
        command.arg("-initrd").arg(initrd);
        command.args(["-append", "console=ttyS0 panic=-1 quiet reboot=t tsc=reliable no_timer_check mitigations=off nokaslr random.trust_cpu=on"]);
        let qmp = format!("unix:{},server=on,wait=off", self.file("qmp").display());
        command.args(["-qmp", &qmp]);
        for port in 0..PORTS {
            let port = format!("pcie-root-port,id=rp{port},chassis={}", port + 1);
            command.args(["-device", &port]);
        }
        for (port, disk) in self.disks.iter().enumerate() {
            let Disk { id, socket, packed } = disk;
            let (socket, packed) = (socket.display(), if *packed { "on" } else { "off" });
            let chardev = format!("socket,id=c-{id},path={socket},reconnect=1");
            command.args(["-chardev", &chardev]);
            let device = format!(
                "vhost-user-blk-pci,id={id},chardev=c-{id},num-queues=2,queue-size=128,bus=rp{port},packed={packed}"
            );
            command.args(["-device", &device]);
        }
        if let Some(socket) = &self.incoming {
            command.args(["-incoming", &format!("unix:{}", socket.display())]);
        }
        command
    }

    /// Starts it, and waits until its shell answers, or until it waits for a migration.
    ///
    /// # Errors
    /// When QEMU does not start, or the guest does not boot.
    pub fn boot(&self) -> Result<Guest, GuestError> {
        let initrd = self.file("initrd");
        std::fs::write(&initrd, initramfs(&self.vm)?)
            .map_err(GuestError::io(format!("write {}", initrd.display())))?;
        let mut child = self
            .command(&initrd)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(GuestError::io("start qemu-system-x86_64"))?;
        let (said, keys) = (child.stdout.take(), child.stdin.take());
        let pipes = said.zip(keys).ok_or_else(|| io::Error::other("no pipes"));
        let (said, keys) = pipes.map_err(GuestError::io("open the console"))?;
        let mut guest = Guest {
            child,
            console: Console::new(said, keys)?,
            qmp: self.file("qmp"),
        };
        if self.incoming.is_none() {
            guest.console.is_ready()?;
        }
        Ok(guest)
    }
}

/// A running machine.
pub struct Guest {
    child: Child,
    console: Console,
    qmp: PathBuf,
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Guest {
    /// Runs a line in the guest's shell; what it printed.
    ///
    /// # Errors
    /// When it fails, or does not end in time.
    pub fn run(&mut self, line: &str) -> Result<String, GuestError> {
        self.console.run(line)
    }

    /// Begins a line, of which [`Guest::finish`] tells the end.
    ///
    /// # Errors
    /// When the guest is gone.
    pub fn begin(&mut self, line: &str) -> Result<(), GuestError> {
        self.console.begin(line)
    }

    /// Waits for the end of what was begun, here or before a migration.
    ///
    /// # Errors
    /// As [`Guest::run`].
    pub fn finish(&mut self, line: &str) -> Result<String, GuestError> {
        self.console.finish(line)
    }

    /// Waits until the shell is there again, as after a reset.
    ///
    /// # Errors
    /// When it does not come.
    pub fn is_ready(&mut self) -> Result<(), GuestError> {
        self.console.is_ready()
    }

    /// A connection to QEMU's monitor.
    ///
    /// # Errors
    /// When QEMU does not answer.
    pub fn qmp(&self) -> Result<Qmp, GuestError> {
        Qmp::connect(&self.qmp)
    }

    /// Plugs a disk into a free root port.
    ///
    /// # Errors
    /// When QEMU refuses it.
    pub fn plug(&self, qmp: &mut Qmp, disk: &Disk, port: usize) -> Result<(), GuestError> {
        let (id, path) = (&disk.id, disk.socket.display().to_string());
        let addr = json!({"type": "unix", "data": {"path": path}});
        let backend = json!({"addr": addr, "server": false, "reconnect": 1});
        let backend = json!({"type": "socket", "data": backend});
        let chardev = json!({"id": format!("c-{id}"), "backend": backend});
        qmp.run("chardev-add", &chardev)?;
        let device = json!({
            "driver": "vhost-user-blk-pci", "id": id, "chardev": format!("c-{id}"),
            "num-queues": 2, "queue-size": 128, "packed": disk.packed,
            "bus": format!("rp{port}"),
        });
        qmp.run("device_add", &device).map(drop)
    }

    /// Unplugs a disk, and waits until the guest has let it go.
    ///
    /// # Errors
    /// When QEMU refuses it, or the guest does not let it go.
    pub fn unplug(&self, qmp: &mut Qmp, id: &str) -> Result<(), GuestError> {
        qmp.run("device_del", &json!({"id": id}))?;
        qmp.event("DEVICE_DELETED", |data| data["device"] == id)?;
        let chardev = json!({"id": format!("c-{id}")});
        qmp.run("chardev-remove", &chardev).map(drop)
    }

    /// Migrates it to a machine that waits at a socket; this one has stopped then.
    ///
    /// # Errors
    /// When the migration fails.
    pub fn migrate(&self, qmp: &mut Qmp, socket: &Path) -> Result<Value, GuestError> {
        // A guest that writes all the time comes to an end, too.
        let limits = json!({"max-bandwidth": 1_u64 << 30, "downtime-limit": 2000});
        qmp.run("migrate-set-parameters", &limits)?;
        let uri = format!("unix:{}", socket.display());
        qmp.run("migrate", &json!({"uri": uri}))?;
        let end = Instant::now() + PATIENCE;
        loop {
            let info = qmp.run("query-migrate", &json!({}))?;
            let status = info["status"].as_str().unwrap_or_default();
            if status == "completed" {
                return Ok(info);
            }
            if status == "failed" || status == "cancelled" || Instant::now() > end {
                return Err(GuestError::Qmp {
                    command: "migrate".to_owned(),
                    answer: info.to_string(),
                });
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Resets the machine, as by its button, and waits until its shell is there again.
    ///
    /// # Errors
    /// When it does not come.
    pub fn reset(&mut self) -> Result<(), GuestError> {
        self.qmp()?.run("system_reset", &json!({}))?;
        self.is_ready()
    }

    /// Ends the guest's operating system, and waits for QEMU.
    ///
    /// # Errors
    /// When it does not end.
    pub fn power_off(mut self) -> Result<ExitStatus, GuestError> {
        self.begin("sync; poweroff -f")?;
        self.wait()
    }

    /// Ends QEMU as a power cut ends a machine.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill(mut self) -> Result<(), GuestError> {
        self.child.kill().map_err(GuestError::io("kill QEMU"))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end.
    pub fn wait(mut self) -> Result<ExitStatus, GuestError> {
        let end = Instant::now() + PATIENCE;
        loop {
            let ended = self.child.try_wait();
            match ended.map_err(GuestError::io("look after QEMU"))? {
                Some(status) => return Ok(status),
                None if Instant::now() > end => {
                    return Err(self.console.silent("QEMU does not end"));
                }
                None => std::thread::sleep(LOOK),
            }
        }
    }
}
