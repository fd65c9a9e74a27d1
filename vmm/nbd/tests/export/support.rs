//! An engine with a server, and a device in memory.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use engine::sync::Notify;
use engine::{Engine, EngineConfig, GuestList, LocalFut, ShardId, Sharded};
use nbd_export::{
    ChangedRanges, ChangedSince, Changes, Export, Limits, Listen, Server, ServerConfig, Stats, Tls,
};
use nbd_wire::session::Token;
use shards::block::{BlockDevice, BlockError, EXTENTS_MAX, Extent, Geometry};

/// How long a test waits for something that must come.
pub const PATIENCE: Duration = Duration::from_mins(1);
pub const KIB: u64 = 1024;
pub const MIB: u64 = 1024 * KIB;
const BLOCK: u64 = 4096;

/// A thin device in memory. What begins with a byte of 0xEE is refused by an error of its number.
pub struct MemoryDevice {
    bytes: Cell<u64>,
    read_only: bool,
    blocks: RefCell<BTreeMap<u64, Vec<u8>>>,
    /// Written since the last snapshot, by block.
    changed: RefCell<BTreeSet<u64>>,
    flushes: Cell<u64>,
    /// While it is shut, flushes do not end.
    pub shut: Cell<bool>,
    /// The next write waits until the gate opens before it does anything.
    pub holds_next: Cell<bool>,
    held: Cell<bool>,
    opened: Notify,
    resized: Notify,
}

impl MemoryDevice {
    pub fn new(bytes: u64, read_only: bool) -> MemoryDevice {
        MemoryDevice {
            bytes: Cell::new(bytes),
            read_only,
            blocks: RefCell::default(),
            changed: RefCell::default(),
            flushes: Cell::new(0),
            shut: Cell::new(false),
            holds_next: Cell::new(false),
            held: Cell::new(false),
            opened: Notify::default(),
            resized: Notify::default(),
        }
    }

    pub fn open_gate(&self) {
        self.shut.set(false);
        self.held.set(false);
        self.opened.notify_all();
    }

    /// Gives it another size.
    pub fn resize(&self, bytes: u64) {
        self.bytes.set(bytes);
        self.resized.notify_all();
    }

    /// Whether a write waits.
    pub fn is_holding(&self) -> bool {
        self.held.get()
    }

    fn each(offset: u64, len: u64) -> impl Iterator<Item = (u64, usize, usize, usize)> {
        let end = offset + len;
        (offset / BLOCK..end.div_ceil(BLOCK)).map(move |block| {
            let from = offset.max(block * BLOCK);
            let to = end.min((block + 1) * BLOCK);
            let within = (from - block * BLOCK) as usize;
            (
                block,
                within,
                (from - offset) as usize,
                (to - from) as usize,
            )
        })
    }

    fn put(&self, offset: u64, bytes: &[u8]) {
        let mut blocks = self.blocks.borrow_mut();
        for (block, within, at, len) in Self::each(offset, bytes.len() as u64) {
            let kept = blocks
                .entry(block)
                .or_insert_with(|| vec![0; BLOCK as usize]);
            kept[within..within + len].copy_from_slice(&bytes[at..at + len]);
            self.changed.borrow_mut().insert(block);
        }
    }

    fn forget(&self, offset: u64, len: u64) {
        for (block, within, _, len) in Self::each(offset, len) {
            let mut blocks = self.blocks.borrow_mut();
            if len == BLOCK as usize {
                blocks.remove(&block);
            } else if let Some(kept) = blocks.get_mut(&block) {
                kept[within..within + len].fill(0);
            }
            self.changed.borrow_mut().insert(block);
        }
    }
}

impl BlockDevice for MemoryDevice {
    fn geometry(&self) -> Geometry {
        Geometry {
            bytes: self.bytes.get(),
            block_bytes: 512,
            physical_bytes: BLOCK as u32,
            optimal_bytes: 0,
            discard_granularity: BLOCK as u32,
            read_only: self.read_only,
            serial: [0; 20],
        }
    }

    async fn read(&self, offset: u64, into: GuestList) -> Result<(), BlockError> {
        self.geometry().check(offset, into.len(), false)?;
        let mut bytes = vec![0; into.len() as usize];
        for (block, within, at, len) in Self::each(offset, into.len()) {
            if let Some(kept) = self.blocks.borrow().get(&block) {
                bytes[at..at + len].copy_from_slice(&kept[within..within + len]);
            }
        }
        if let [0xEE, number, ..] = bytes[..] {
            return Err(error(number));
        }
        into.copy_in(0, &bytes)?;
        Ok(())
    }

    async fn write(&self, offset: u64, from: GuestList, durable: bool) -> Result<(), BlockError> {
        self.geometry().check(offset, from.len(), true)?;
        let mut bytes = vec![0; from.len() as usize];
        from.copy_out(0, &mut bytes)?;
        if self.holds_next.take() {
            self.held.set(true);
            while self.held.get() {
                self.opened.notified().await;
            }
        }
        self.put(offset, &bytes);
        if durable {
            self.flush().await?;
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), BlockError> {
        while self.shut.get() {
            self.opened.notified().await;
        }
        self.flushes.set(self.flushes.get() + 1);
        Ok(())
    }

    async fn discard(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        self.geometry().check(offset, len, true)?;
        self.forget(offset, len);
        Ok(())
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        may_unmap: bool,
        durable: bool,
    ) -> Result<(), BlockError> {
        self.geometry().check(offset, len, true)?;
        if may_unmap {
            self.forget(offset, len);
        } else {
            self.put(offset, &vec![0; len as usize]);
        }
        if durable {
            self.flush().await?;
        }
        Ok(())
    }

    async fn extents(&self, offset: u64, len: u64) -> Result<Vec<Extent>, BlockError> {
        self.geometry().check(offset, len, false)?;
        let mut found: Vec<Extent> = Vec::new();
        for (block, _, _, len) in Self::each(offset, len) {
            let (bytes, hole) = (len as u64, !self.blocks.borrow().contains_key(&block));
            let last = found.last_mut().filter(|last| last.hole == hole);
            if let Some(last) = last {
                last.bytes += bytes;
            } else if found.len() == EXTENTS_MAX {
                break;
            } else {
                found.push(Extent { bytes, hole });
            }
        }
        Ok(found)
    }

    fn changed(&self) -> impl Future<Output = ()> {
        self.resized.notified()
    }
}

fn error(number: u8) -> BlockError {
    match number {
        1 => BlockError::Full,
        2 => BlockError::Fenced,
        3 => BlockError::Unsupported,
        _ => BlockError::Io(std::io::Error::other("the disk is made of memory")),
    }
}

/// What a device wrote since its beginning.
struct Written(Rc<MemoryDevice>);

impl Changes for Written {
    fn changed(&self, _offset: u64, _len: u64) -> LocalFut<Result<ChangedRanges, BlockError>> {
        let changed = self.0.changed.borrow();
        let ranges = changed
            .iter()
            .map(|block| block * BLOCK..(block + 1) * BLOCK);
        let found = ChangedRanges {
            ranges: ranges.collect(),
            end: self.0.bytes.get(),
        };
        Box::pin(std::future::ready(Ok(found)))
    }
}

/// A device and its name.
#[derive(Clone)]
pub struct Disk {
    pub name: &'static str,
    pub bytes: u64,
    pub read_only: bool,
}

pub const DISK: Disk = Disk {
    name: "disk",
    bytes: 64 * MIB,
    read_only: false,
};

/// A server with its engine.
pub struct Backend {
    engine: Engine,
    running: Sharded<Running>,
    socket: PathBuf,
    _dir: tempfile::TempDir,
}

pub struct Running {
    pub server: Server<MemoryDevice>,
    pub devices: Vec<Rc<MemoryDevice>>,
}

/// How a server is started.
pub struct Setup {
    pub disks: Vec<Disk>,
    pub tls: Tls,
    pub limits: Limits,
    pub verifier: Option<Token>,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            disks: vec![DISK],
            tls: Tls::None,
            limits: Limits::default(),
            verifier: None,
        }
    }
}

impl Backend {
    pub fn start(setup: Setup) -> Backend {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("nbd");
        let engine = Engine::start(EngineConfig::unpinned(1)).unwrap();
        let running: Sharded<Running> = Sharded::new(&engine.handle());
        let (place, path) = (running.clone(), socket.clone());
        let started = engine.handle().call_blocking(ShardId(0), move |_| {
            Box::pin(async move { place.set_local(Rc::new(run(setup, path))) })
        });
        started.unwrap();
        Backend {
            engine,
            running,
            socket,
            _dir: dir,
        }
    }

    /// With one disk, in the clear.
    pub fn plain() -> Backend {
        Backend::start(Setup::default())
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// An address for clients that others wrote.
    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }

    pub fn on_shard<R: Send + 'static>(
        &self,
        f: impl AsyncFnOnce(Rc<Running>) -> R + Send + 'static,
    ) -> R {
        let running = self.running.clone();
        let done = self.engine.handle().call_blocking(ShardId(0), move |_| {
            Box::pin(async move { f(running.local()).await })
        });
        done.unwrap()
    }

    /// Of the server and all exports together.
    pub fn stats(&self) -> Stats {
        self.on_shard(async |running| {
            let mut all = running.server.stats();
            all += running.server.export_stats("disk").unwrap_or_default();
            all
        })
    }

    /// Waits until the counts say so.
    pub fn wait_for(&self, what: &str, said: impl Fn(&Stats) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !said(&self.stats()) {
            assert!(Instant::now() < end, "{what}: {:?}", self.stats());
            std::thread::yield_now();
        }
    }

    pub fn flushes(&self) -> u64 {
        self.on_shard(async |running| running.devices[0].flushes.get())
    }

    pub fn stop(self) {
        self.on_shard(async |running| running.server.stop().await);
        assert!(!self.socket.exists());
        self.engine.shutdown().unwrap();
    }
}

fn run(setup: Setup, socket: PathBuf) -> Running {
    let config = ServerConfig {
        tls: setup.tls,
        limits: setup.limits,
        ..ServerConfig::new(Listen::Unix(socket))
    };
    let server = Server::start(config).unwrap();
    let mut devices = Vec::new();
    for disk in setup.disks {
        let device = Rc::new(MemoryDevice::new(disk.bytes, disk.read_only));
        let changes: Rc<dyn Changes> = Rc::new(Written(Rc::clone(&device)));
        let export = Export {
            description: format!("{} of memory", disk.name),
            verifier: setup.verifier,
            changed_since: vec![ChangedSince {
                name: "monday".to_owned(),
                changes,
            }],
            ..Export::new(disk.name, Rc::clone(&device))
        };
        server.add(export).unwrap();
        devices.push(device);
    }
    Running { server, devices }
}

/// Bytes that differ everywhere.
pub fn pattern(len: usize, seed: u32) -> Vec<u8> {
    let words = (0..len.div_ceil(4) as u32).map(|at| at.wrapping_mul(0x9E37_79B9) ^ seed);
    let mut bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
    bytes.truncate(len);
    bytes
}
