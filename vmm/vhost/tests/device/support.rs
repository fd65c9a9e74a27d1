//! An engine with a device on a socket.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use engine::fs::OpenOptions;
use engine::sync::Notify;
use engine::{Engine, EngineConfig, GuestList, ShardId, Sharded};
use shards::block::{BlockDevice, BlockError, Geometry};
use vhost_blk::devices::{FileDevice, NullDevice};
use vhost_blk::{Endpoint, Export, ExportConfig, Stats};

/// How long a test waits for something that must come.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// What is exported.
#[derive(Clone)]
pub enum Disk {
    Null(u64),
    File(PathBuf),
    ReadOnly(PathBuf),
    /// Ends no write before [`Backend::open_gate`], and refuses the first after that: it is busy.
    Gated(u64),
}

/// How to export it.
pub struct Setup {
    pub disk: Disk,
    pub queues: u16,
    pub endpoint: Endpoint,
}

/// The backend: an engine of one shard and its export.
pub struct Backend {
    engine: Engine,
    export: Sharded<Running>,
}

struct Running {
    export: Export,
    grow: Option<Rc<FileDevice>>,
    gate: Option<Rc<Gate>>,
}

impl Backend {
    pub fn start(setup: Setup) -> Backend {
        let engine = Engine::start(EngineConfig::unpinned(1)).unwrap();
        let handle = engine.handle();
        let export: Sharded<Running> = Sharded::new(&handle);
        let place = export.clone();
        let started = handle.call_blocking(ShardId(0), move |_| {
            Box::pin(async move { place.set_local(Rc::new(run(setup).await)) })
        });
        started.unwrap();
        Backend { engine, export }
    }

    pub fn listen(disk: Disk, socket: &Path) -> Backend {
        Backend::start(Setup {
            disk,
            queues: 4,
            endpoint: Endpoint::Listen(socket.to_owned()),
        })
    }

    fn on_shard<R: Send + 'static>(
        &self,
        f: impl AsyncFnOnce(Rc<Running>) -> R + Send + 'static,
    ) -> R {
        let export = self.export.clone();
        let done = self.engine.handle().call_blocking(ShardId(0), move |_| {
            Box::pin(async move { f(export.local()).await })
        });
        done.unwrap()
    }

    pub fn stats(&self) -> Stats {
        self.on_shard(async |running| running.export.stats())
    }

    pub fn grow(&self, bytes: u64) {
        self.on_shard(async move |running| {
            let device = running.grow.as_ref().unwrap();
            device.grow(bytes).await.unwrap();
        });
    }

    pub fn open_gate(&self) {
        self.on_shard(async |running| running.gate.as_ref().unwrap().open());
    }

    /// Waits until the counts say so.
    pub fn wait_for(&self, what: &str, said: impl Fn(&Stats) -> bool) {
        until(what, || said(&self.stats()));
    }

    pub fn shutdown(self) {
        self.engine.shutdown().unwrap();
    }
}

async fn run(setup: Setup) -> Running {
    let config = ExportConfig {
        endpoint: setup.endpoint,
        queues: setup.queues,
        ..ExportConfig::listen("", "test")
    };
    match setup.disk {
        Disk::Null(bytes) => exported(Rc::new(NullDevice::new(bytes)), config),
        Disk::File(path) => {
            let device = Rc::new(open(&path, true).await);
            Running {
                grow: Some(Rc::clone(&device)),
                ..exported(device, config)
            }
        }
        Disk::Gated(bytes) => {
            let gate = Rc::new(Gate::default());
            let device = Gated(NullDevice::new(bytes), Rc::clone(&gate));
            Running {
                gate: Some(gate),
                ..exported(Rc::new(device), config)
            }
        }
        Disk::ReadOnly(path) => exported(Rc::new(open(&path, false).await), config),
    }
}

#[derive(Default)]
struct Gate {
    is_open: Cell<bool>,
    refused: Cell<u32>,
    opened: Notify,
}

impl Gate {
    fn open(&self) {
        self.is_open.set(true);
        self.opened.notify_all();
    }

    async fn pass(&self) -> Result<(), BlockError> {
        const REFUSED: u32 = 4;
        while !self.is_open.get() {
            self.opened.notified().await;
        }
        if self.refused.get() < REFUSED {
            self.refused.set(self.refused.get() + 1);
            return Err(BlockError::Busy);
        }
        Ok(())
    }
}

/// A device whose writes wait at a gate.
struct Gated(NullDevice, Rc<Gate>);

impl BlockDevice for Gated {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    async fn read(&self, offset: u64, into: GuestList) -> Result<(), BlockError> {
        self.0.read(offset, into).await
    }

    async fn write(&self, offset: u64, from: GuestList, durable: bool) -> Result<(), BlockError> {
        self.1.pass().await?;
        self.0.write(offset, from, durable).await
    }

    async fn flush(&self) -> Result<(), BlockError> {
        self.0.flush().await
    }

    async fn discard(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        self.0.discard(offset, len).await
    }

    async fn write_zeroes(&self, at: u64, len: u64, a: bool, b: bool) -> Result<(), BlockError> {
        self.0.write_zeroes(at, len, a, b).await
    }

    async fn changed(&self) {
        self.0.changed().await;
    }
}

fn exported<D: BlockDevice>(device: Rc<D>, config: ExportConfig) -> Running {
    Running {
        export: Export::start(device, config).unwrap(),
        grow: None,
        gate: None,
    }
}

async fn open(path: &Path, write: bool) -> FileDevice {
    let options = OpenOptions {
        write,
        direct: true,
        ..OpenOptions::default()
    };
    FileDevice::open(path, options, "a-serial-number")
        .await
        .unwrap()
}

/// Waits for a state, and fails when it does not come.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "still not: {what}");
        std::thread::yield_now();
    }
}

/// A directory with an image of `bytes` in it.
pub fn image(bytes: u64) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    std::fs::File::create(&path)
        .unwrap()
        .set_len(bytes)
        .unwrap();
    (dir, path)
}
