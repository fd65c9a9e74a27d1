//! The backends of a run: each a process on the server's CPU that is killed with the run, with a device of
//! its own that is full of data, and with its socket below the run's directories.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::cells::{Contender, Place, SNAPSHOTS};
use super::front::{BLOCK, Target, stamp};
use crate::proc;
use crate::process::{self, Process, SERVER_CPU};

/// The peer's program.
pub const QEMU: &str = "qemu-storage-daemon";

/// How long a backend may take until it listens: it fills its device first.
const START: Duration = Duration::from_mins(5);

/// A contender at a place.
pub struct Backend {
    pub contender: Contender,
    pub place: Place,
    process: Option<Process>,
    socket: PathBuf,
    /// The peer's file, which a load without a backend reads.
    file: PathBuf,
}

impl Backend {
    /// Starts it, in a directory of its own below `dir`.
    pub fn start(contender: Contender, place: Place, dir: &Path, bytes: u64) -> Result<Backend> {
        let name = contender.name();
        let files = dir.join(format!("{place:?}"));
        let own = files.join(name);
        std::fs::create_dir_all(&own).with_context(|| format!("make {}", own.display()))?;
        let mut backend = Backend {
            contender,
            place,
            process: None,
            socket: own.join("socket"),
            file: files.join("peer.raw"),
        };
        let mut command = match contender {
            Contender::Plain => return Ok(backend),
            Contender::Qemu => backend.qemu(bytes)?,
            ours => {
                let mut command = process::pinned(SERVER_CPU, std::env::current_exe()?);
                command.args(["volume-server", "--bytes", &bytes.to_string()]);
                command.arg("--socket").arg(&backend.socket);
                if place != Place::Null {
                    command.arg("--dir").arg(own.join("partition"));
                }
                match ours {
                    Contender::Snapshots => {
                        command.args(["--snapshots", &SNAPSHOTS.to_string()]);
                    }
                    Contender::Encrypted => {
                        command.arg("--encrypted");
                    }
                    Contender::Sleeps => {
                        command.arg("--sleeps");
                    }
                    _ => {}
                }
                command
            }
        };
        let mut process = Process::start(name, &mut command, &own)?;
        process.until("listening", START, |_| {
            Ok(backend.socket.exists().then_some(()))
        })?;
        proc::check_pinned(process.id(), SERVER_CPU)?;
        backend.process = Some(process);
        Ok(backend)
    }

    /// The peer, with the cache and the flushes that ours has: data goes by direct I/O, and is durable
    /// when a flush has returned.
    fn qemu(&self, bytes: u64) -> Result<std::process::Command> {
        let mut command = process::pinned(SERVER_CPU, QEMU);
        if self.place == Place::Null {
            let null = format!("driver=null-co,node-name=d0,size={bytes},read-zeroes=off");
            command.args(["--blockdev", &null]);
        } else {
            fill(&self.file, bytes)?;
            let file = format!(
                "driver=file,node-name=f0,filename={},cache.direct=on,aio=io_uring,discard=unmap",
                self.file.display()
            );
            command.args(["--blockdev", &file]);
            command.args(["--blockdev", "driver=raw,node-name=d0,file=f0"]);
        }
        let export = format!(
            "type=vhost-user-blk,id=e0,node-name=d0,addr.type=unix,addr.path={},writable=on,writethrough=off,num-queues=1,iothread=io0",
            self.socket.display()
        );
        command.args(["--object", "iothread,id=io0", "--export", &export]);
        Ok(command)
    }

    /// Where a load of it goes.
    pub fn target(&self, polls: bool) -> Target<'_> {
        if self.process.is_some() {
            Target::Backend(&self.socket, polls)
        } else {
            Target::File(&self.file)
        }
    }

    /// CPU that its process has used, kernel workers included.
    pub fn cpu(&self) -> Result<Option<Duration>> {
        let process = self.process.as_ref();
        process
            .map(|process| proc::tree_cpu(process.id()))
            .transpose()
    }

    /// The end of its words, to be put behind an error.
    pub fn tail(&self) -> String {
        self.process.as_ref().map(Process::tail).unwrap_or_default()
    }
}

/// A file in which every block has its stamp, durable.
fn fill(path: &Path, bytes: u64) -> Result<()> {
    let fill = || {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
        let mut block = [0; BLOCK];
        for place in (0..bytes).step_by(BLOCK) {
            let stamp = stamp(place);
            block[..stamp.len()].copy_from_slice(&stamp);
            file.write_all(&block)?;
        }
        file.into_inner()?.sync_all()
    };
    fill().with_context(|| format!("fill {}", path.display()))
}
