//! Servers with an export of 64 MiB: a volume on a shard, and qemu-nbd.

#![expect(
    clippy::disallowed_methods,
    reason = "the shard is the test's own, and holds the export that a client is tried on"
)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coronafs::{Access, Attach, Attachment, NewVolume, Partition, VolumeConfig};
use engine::{Engine, EngineConfig, ShardId, Sharded};
use nbd_client::{Address, Client, Options, Target};
use nbd_export::{Export, Listen, Server, ServerConfig, Tls};
use shards::placement::PartitionId;
use tempfile::TempDir;

pub const MIB: u64 = 1 << 20;
pub const BYTES: u64 = 64 * MIB;
const PATIENCE: Duration = Duration::from_mins(1);

/// A volume on a shard, exported.
pub struct Volume {
    engine: Option<Engine>,
    running: Sharded<Running>,
    dir: TempDir,
}

pub struct Running {
    pub server: Server<Attachment>,
    pub partition: Partition,
}

async fn run(dir: PathBuf, tls: Tls) -> Running {
    let config = VolumeConfig::default();
    let root = dir.join("partition");
    let partition = Partition::open(&root, PartitionId(0), &config);
    let partition = partition.await.unwrap();
    let new = NewVolume {
        owner: "me".into(),
        name: "disk".into(),
        bytes: BYTES,
        ..NewVolume::default()
    };
    let volume = partition.create(new).await.unwrap().id;
    let how = Attach {
        access: Access::Exclusive,
        take_over: false,
    };
    let device = Rc::new(partition.attach(volume, how).await.unwrap());
    let server = Server::start(ServerConfig {
        tls,
        ..ServerConfig::new(Listen::Unix(dir.join("nbd")))
    });
    let server = server.unwrap();
    let frozen = Export {
        read_only: true,
        ..Export::new("frozen", Rc::clone(&device))
    };
    server.add(frozen).unwrap();
    server.add(Export::new("disk", device)).unwrap();
    Running { server, partition }
}

impl Volume {
    pub fn start() -> Volume {
        Volume::with_tls(Tls::None)
    }

    pub fn with_tls(tls: Tls) -> Volume {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("partition")).unwrap();
        let engine = Engine::start(EngineConfig::unpinned(1)).unwrap();
        let running: Sharded<Running> = Sharded::new(&engine.handle());
        let (place, path) = (running.clone(), dir.path().to_owned());
        let started = engine.handle().call_blocking(ShardId(0), move |_| {
            Box::pin(async move { place.set_local(Rc::new(run(path, tls).await)) })
        });
        started.unwrap();
        Volume {
            engine: Some(engine),
            running,
            dir,
        }
    }

    pub fn target(&self, export: &str) -> Target {
        Target::new(Address::Unix(self.socket()), export)
    }

    /// For clients that others wrote.
    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket().display())
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("nbd")
    }

    /// Bytes that the volume has in the data file.
    pub fn mapped_bytes(&self) -> u64 {
        self.on_shard(async |running| {
            let volume = running.partition.find("me", "disk").unwrap();
            running.partition.stat(volume).unwrap().mapped_bytes
        })
    }

    pub fn on_shard<R: Send + 'static>(
        &self,
        f: impl AsyncFnOnce(Rc<Running>) -> R + Send + 'static,
    ) -> R {
        let running = self.running.clone();
        let handle = self.engine.as_ref().unwrap().handle();
        let done = handle.call_blocking(ShardId(0), move |_| {
            Box::pin(async move { f(running.local()).await })
        });
        done.unwrap()
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        self.on_shard(async |running| {
            running.server.stop().await;
            running.partition.close().await.unwrap();
        });
        self.engine.take().unwrap().shutdown().unwrap();
    }
}

/// qemu-nbd with a raw file, or an image.
pub struct QemuNbd {
    child: Child,
    socket: PathBuf,
    pub dir: TempDir,
}

impl QemuNbd {
    pub fn start() -> QemuNbd {
        let dir = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(dir.path().join("disk")).unwrap();
        file.set_len(BYTES).unwrap();
        let socket = dir.path().join("nbd");
        let mut command = Command::new("qemu-nbd");
        command.args([
            "--persistent",
            "--shared=8",
            "-f",
            "raw",
            "-x",
            "disk",
            "-k",
        ]);
        command.arg(&socket).arg(dir.path().join("disk"));
        let child = command.stdin(Stdio::null()).spawn();
        let child = child.expect("qemu-nbd; `cargo xtask setup` installs it");
        let end = Instant::now() + PATIENCE;
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(Instant::now() < end, "qemu-nbd listens");
            std::thread::yield_now();
        }
        QemuNbd { child, socket, dir }
    }

    pub fn target(&self) -> Target {
        Target::new(Address::Unix(self.socket.clone()), "disk")
    }

    pub fn kill(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }
}

impl Drop for QemuNbd {
    fn drop(&mut self) {
        self.kill();
    }
}

pub async fn connect(target: &Target) -> Arc<Client> {
    Arc::new(Client::connect(target, Options::default()).await.unwrap())
}

/// What a program says, when it succeeds.
pub fn run_program(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let output =
        output.unwrap_or_else(|e| panic!("{program}: {e}; `cargo xtask setup` installs it"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {args:?}: {said}{errors}"
    );
    said
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Bytes that differ everywhere.
pub fn pattern(len: usize, seed: u32) -> Vec<u8> {
    let words = (0..len.div_ceil(4) as u32).map(|at| at.wrapping_mul(0x9E37_79B9) ^ seed);
    let mut bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
    bytes.truncate(len);
    bytes
}

/// A raw file with data, zeros that are stored, and holes.
pub fn raw_image(path: &Path, bytes: u64) {
    let file = std::fs::File::create(path).unwrap();
    file.set_len(bytes).unwrap();
    let write = |at, bytes: &[u8]| {
        std::os::unix::fs::FileExt::write_all_at(&file, bytes, at).unwrap();
    };
    write(0, &pattern(2 << 20, 1));
    write(5 << 20, &vec![0; 1 << 20]);
    write(8 << 20, &vec![0x42; 3 << 20]);
    write(15 << 20, &pattern(70_144, 2));
}
