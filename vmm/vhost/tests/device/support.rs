//! An engine with a device on a socket.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use engine::fs::OpenOptions;
use engine::{Engine, EngineConfig, ShardId, Sharded};
use shards::block::BlockDevice;
use vhost_blk::devices::{FileDevice, NullDevice};
use vhost_blk::{Cache, Endpoint, Export, ExportConfig, Stats};

use crate::trial::{Patience, Trial};

/// How long a test waits for something that must come.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// What is exported.
#[derive(Clone)]
pub enum Disk {
    Null(u64),
    File(PathBuf),
    ReadOnly(PathBuf),
    /// A null device that counts, and is patient with its writes.
    Trial(u64, Patience),
}

/// How to export it.
pub struct Setup {
    pub disk: Disk,
    pub queues: u16,
    pub endpoint: Endpoint,
    pub cache: Option<Cache>,
}

impl Setup {
    pub fn at(disk: Disk, endpoint: Endpoint) -> Setup {
        Setup {
            disk,
            queues: 4,
            endpoint,
            cache: None,
        }
    }
}

/// The backend: an engine of one shard and its export.
pub struct Backend {
    engine: Engine,
    export: Sharded<Running>,
}

struct Running {
    export: RefCell<Option<Export>>,
    grow: Option<Rc<FileDevice>>,
    trial: Option<Rc<Trial>>,
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
        Backend::start(Setup::at(disk, Endpoint::Listen(socket.to_owned())))
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
        self.on_shard(async |running| running.export.borrow().as_ref().unwrap().stats())
    }

    pub fn grow(&self, bytes: u64) {
        self.on_shard(async move |running| {
            let device = running.grow.as_ref().unwrap();
            device.grow(bytes).await.unwrap();
        });
    }

    /// Does something with the device that counts.
    pub fn trial<R: Send + 'static>(&self, f: impl FnOnce(&Trial) -> R + Send + 'static) -> R {
        self.on_shard(async |running| f(running.trial.as_ref().unwrap()))
    }

    /// Ends the export, which must not depend on its front end.
    pub fn stop_export(&self) {
        let (export, handle) = (self.export.clone(), self.engine.handle());
        let (done, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let stopped = handle.call_blocking(ShardId(0), move |_| {
                Box::pin(async move {
                    let export = export.local().export.take().unwrap();
                    export.stop().await;
                })
            });
            done.send(stopped).unwrap();
        });
        ended.recv_timeout(PATIENCE).unwrap().unwrap();
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
        cache: setup.cache,
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
        Disk::Trial(bytes, patience) => {
            let device = Rc::new(Trial::new(bytes, patience));
            Running {
                trial: Some(Rc::clone(&device)),
                ..exported(device, config)
            }
        }
        Disk::ReadOnly(path) => exported(Rc::new(open(&path, false).await), config),
    }
}

fn exported<D: BlockDevice>(device: Rc<D>, config: ExportConfig) -> Running {
    Running {
        export: RefCell::new(Some(Export::start(device, config).unwrap())),
        grow: None,
        trial: None,
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
