//! A remote device over a server of ours: what it does, and what it does when the connection breaks.

use std::cell::{Cell, RefCell};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine::net::Addr;
use engine::{Engine, EngineConfig, GuestIov, GuestList, GuestMem, Rng, SchedGroup, ShardId};
use nbd_export::{ConnectError, Export, LinkState, Listen, RemoteConfig, RemoteDevice};
use nbd_export::{Server, ServerConfig, fresh_token};
use nbd_wire::session::Token;
use shards::block::{BlockDevice, BlockError};

use crate::support::{KIB, MIB, MemoryDevice, PATIENCE, pattern};

const VERIFIER: Token = Token(7);

/// Memory that holds these bytes, and what names it.
fn memory(bytes: &[u8]) -> (GuestMem, GuestList) {
    let mem = GuestMem::anonymous(bytes.len()).unwrap();
    mem.copy_in(0, bytes).unwrap();
    let mut list = GuestList::new();
    let len = bytes.len() as u32;
    list.push(&mem, GuestIov { offset: 0, len }).unwrap();
    (mem, list)
}

pub async fn write(
    device: &RemoteDevice,
    offset: u64,
    bytes: &[u8],
    durable: bool,
) -> Result<(), BlockError> {
    let (_mem, list) = memory(bytes);
    device.write(offset, list, durable).await
}

pub async fn read(device: &RemoteDevice, offset: u64, len: usize) -> Result<Vec<u8>, BlockError> {
    let (mem, list) = memory(&vec![0xEE; len]);
    device.read(offset, list).await?;
    let mut bytes = vec![0; len];
    mem.copy_out(0, &mut bytes).unwrap();
    Ok(bytes)
}

/// Runs a story on a shard of its own, with a directory for sockets.
pub fn on_a_shard(story: impl AsyncFnOnce(&Path) + Send + 'static) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let engine = Engine::start(EngineConfig::unpinned(1)).unwrap();
    let told = engine.handle().call_blocking(ShardId(0), move |_| {
        Box::pin(async move { story(&path).await })
    });
    told.unwrap();
    engine.shutdown().unwrap();
}

/// Lets everything on the shard go on until it is so.
pub async fn until(what: &str, so: impl Fn() -> bool) {
    let end = engine::now();
    while !so() {
        let waited = engine::now().since(end);
        assert!(waited < PATIENCE, "{what}");
        engine::yield_now().await;
    }
}

fn serve(socket: &Path, device: &Rc<MemoryDevice>, verifier: Token) -> Server<MemoryDevice> {
    let server = Server::start(ServerConfig::new(Listen::Unix(socket.to_owned()))).unwrap();
    let export = Export {
        verifier: Some(verifier),
        ..Export::new("disk", Rc::clone(device))
    };
    server.add(export).unwrap();
    server
}

fn config(socket: &Path) -> RemoteConfig {
    let session = fresh_token().unwrap();
    RemoteConfig::new(Addr::Unix(socket.to_owned()), "disk", session)
}

async fn connect(socket: &Path) -> Rc<RemoteDevice> {
    let connected = RemoteDevice::connect(config(socket), None).await;
    Rc::new(connected.unwrap())
}

fn disk() -> Rc<MemoryDevice> {
    Rc::new(MemoryDevice::new(64 * MIB, false))
}

/// Something that runs beside the story.
fn beside<T: 'static>(work: impl Future<Output = T> + 'static) -> Rc<RefCell<Option<T>>> {
    let done = Rc::new(RefCell::new(None));
    let there = Rc::clone(&done);
    let task = engine::spawn_local(SchedGroup::FOREGROUND, async move {
        let outcome = work.await;
        there.replace(Some(outcome));
    });
    task.detach();
    done
}

/// Passes bytes between clients and a server, until it cuts them off.
struct Proxy {
    path: PathBuf,
    open: Arc<Mutex<Vec<UnixStream>>>,
}

impl Proxy {
    fn start(dir: &Path, server: &Path) -> Proxy {
        let (path, server) = (dir.join("proxy"), server.to_owned());
        let listener = UnixListener::bind(&path).unwrap();
        let open: Arc<Mutex<Vec<UnixStream>>> = Arc::default();
        let all = Arc::clone(&open);
        // It ends with the test's process.
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), UnixStream::connect(&server));
                // A server that is not there ends the client.
                let Ok(server) = server else { continue };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    all.lock().unwrap().push(from.try_clone().unwrap());
                    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(std::net::Shutdown::Both);
                    });
                }
            }
        });
        Proxy { path, open }
    }

    fn cut(&self) {
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

#[test]
fn what_one_device_writes_another_reads() {
    on_a_shard(async |dir| {
        let (socket, disk) = (dir.join("nbd"), disk());
        let server = serve(&socket, &disk, VERIFIER);
        let (here, there) = (connect(&socket).await, connect(&socket).await);
        let geometry = here.geometry();
        assert_eq!(geometry, disk.geometry());
        let mut model = vec![0; 64 * MIB as usize];
        let mut rng = Rng::new(3);
        for round in 0..200 {
            let len = [512, 4 * KIB, 100 * KIB, 3 * MIB][rng.below(4) as usize] as usize;
            let offset = rng.below((64 * MIB - len as u64) / 512) * 512;
            let (from, to) = (offset as usize, offset as usize + len);
            let (one, other) = if round % 2 == 0 {
                (&here, &there)
            } else {
                (&there, &here)
            };
            match rng.below(4) {
                0 => {
                    one.write_zeroes(offset, len as u64, round % 3 == 0, false)
                        .await
                        .unwrap();
                    model[from..to].fill(0);
                }
                1 => {
                    one.discard(offset, len as u64).await.unwrap();
                    model[from..to].fill(0);
                }
                _ => {
                    let bytes = pattern(len, round);
                    write(one, offset, &bytes, round % 5 == 0).await.unwrap();
                    model[from..to].copy_from_slice(&bytes);
                }
            }
            assert!(read(other, offset, len).await.unwrap() == model[from..to]);
        }
        assert!(read(&here, 0, model.len()).await.unwrap() == model);
        here.flush().await.unwrap();
        let extents = here.extents(0, 64 * MIB).await.unwrap();
        let known = disk.extents(0, 64 * MIB).await.unwrap();
        assert_eq!(extents, known);
        server.stop().await;
    });
}

#[test]
fn what_the_server_refuses_is_told() {
    on_a_shard(async |dir| {
        let (socket, disk) = (dir.join("nbd"), disk());
        let server = serve(&socket, &disk, VERIFIER);
        let device = connect(&socket).await;
        write(
            &device,
            0,
            &[[0xEE, 1].as_slice(), &[0; 510]].concat(),
            false,
        )
        .await
        .unwrap();
        let full = read(&device, 0, 512).await.unwrap_err();
        assert!(matches!(full, BlockError::Full), "{full:?}");
        let past = read(&device, 64 * MIB, 512).await.unwrap_err();
        assert!(matches!(past, BlockError::OutOfRange { .. }));
        // One that was fenced is never asked again.
        write(
            &device,
            0,
            &[[0xEE, 2].as_slice(), &[0; 510]].concat(),
            false,
        )
        .await
        .unwrap();
        let fenced = read(&device, 0, 512).await.unwrap_err();
        assert!(matches!(fenced, BlockError::Fenced), "{fenced:?}");
        until("it is lost", || {
            matches!(device.state(), LinkState::Lost(_))
        })
        .await;
        device.flush().await.unwrap_err();
        server.stop().await;
    });
}

#[test]
fn what_was_not_answered_is_done_after_the_connection_broke() {
    on_a_shard(async |dir| {
        let (socket, disk) = (dir.join("nbd"), disk());
        let server = serve(&socket, &disk, VERIFIER);
        let proxy = Proxy::start(dir, &socket);
        let device = connect(&proxy.path).await;
        let failed = Rc::new(Cell::new(0));
        let written: Vec<_> = (0..8_u64)
            .map(|lane| {
                let (device, failed) = (Rc::clone(&device), Rc::clone(&failed));
                beside(async move {
                    for round in 0..40 {
                        // Odd: the device refuses what begins with 0xEE.
                        let seed = (lane * 1000 + round) as u32 * 2 + 1;
                        let bytes = pattern(64 << 10, seed);
                        let offset = lane * MIB + round * 64 * KIB % MIB;
                        let done = write(&device, offset, &bytes, false).await;
                        let read = read(&device, offset, bytes.len()).await;
                        let good = done.is_ok() && read.is_ok_and(|read| read == bytes);
                        failed.set(failed.get() + u64::from(!good));
                    }
                })
            })
            .collect();
        while written.iter().any(|lane| lane.borrow().is_none()) {
            let connections = device.stats().connections;
            let done = server.export_stats("disk").unwrap().requests;
            until("it goes on", || {
                let now = server.export_stats("disk").unwrap().requests;
                let over = written.iter().all(|lane| lane.borrow().is_some());
                over || (device.stats().connections >= connections && now > done + 30)
            })
            .await;
            proxy.cut();
        }
        assert_eq!(failed.get(), 0);
        let stats = device.stats();
        assert!(stats.connections > 3 && stats.sent_again > 0, "{stats:?}");
        server.stop().await;
    });
}

#[test]
fn a_write_of_an_old_connection_never_overtakes_a_later_one() {
    on_a_shard(async |dir| {
        let (socket, disk) = (dir.join("nbd"), disk());
        let server = serve(&socket, &disk, VERIFIER);
        let proxy = Proxy::start(dir, &socket);
        let device = connect(&proxy.path).await;
        disk.holds_next.set(true);
        let (first, second) = (pattern(4096, 1), pattern(4096, 2));
        let (asks, bytes) = (Rc::clone(&device), first);
        let done = beside(async move { write(&asks, 0, &bytes, false).await });
        until("the write is held", || disk.is_holding()).await;
        proxy.cut();
        let stats = || server.export_stats("disk").unwrap();
        until("the next connection", || stats().connections == 2).await;
        // The same write on the new connection waits for the old one.
        for _ in 0..1000 {
            engine::yield_now().await;
        }
        assert_eq!(stats().requests, 1);
        assert!(done.borrow().is_none());
        disk.open_gate();
        until("the write", || done.borrow().is_some()).await;
        done.borrow_mut().take().unwrap().unwrap();
        write(&device, 0, &second, false).await.unwrap();
        assert_eq!(read(&device, 0, 4096).await.unwrap(), second);
        server.stop().await;
    });
}

#[test]
fn a_server_that_comes_back_whole_is_gone_on_with_and_any_other_is_not() {
    on_a_shard(async |dir| {
        let (socket, disk) = (dir.join("nbd"), disk());
        let server = serve(&socket, &disk, VERIFIER);
        let device = connect(&socket).await;
        let bytes = pattern(4096, 1);
        write(&device, 0, &bytes, false).await.unwrap();
        server.stop().await;
        let (asks, reads) = (Rc::clone(&device), Rc::clone(&device));
        let wrote = beside(async move { write(&asks, 4096, &pattern(4096, 2), true).await });
        let server = serve(&socket, &disk, VERIFIER);
        assert_eq!(read(&device, 0, 4096).await.unwrap(), bytes);
        until("the write", || wrote.borrow().is_some()).await;
        wrote.borrow_mut().take().unwrap().unwrap();
        // What it had acknowledged may be lost.
        server.stop().await;
        let waits = beside(async move { read(&reads, 0, 4096).await.map(drop) });
        let server = serve(&socket, &disk, Token(8));
        until("the read ends", || waits.borrow().is_some()).await;
        let why = waits.borrow_mut().take().unwrap().unwrap_err();
        let BlockError::Io(why) = why else {
            panic!("{why:?}")
        };
        assert!(why.to_string().contains("may be lost"), "{why}");
        device.flush().await.unwrap_err();
        server.stop().await;
        // For ever, whatever is there.
        let server = serve(&socket, &disk, VERIFIER);
        device.flush().await.unwrap_err();
        assert!(matches!(device.state(), LinkState::Lost(_)));
        // A later process is told the same, and one for another guest is not.
        let known = device.known();
        let again = RemoteDevice::connect(config(&socket), Some(&known)).await;
        again.unwrap().flush().await.unwrap();
        server.stop().await;
        let server = serve(&socket, &disk, Token(8));
        let again = RemoteDevice::connect(config(&socket), Some(&known)).await;
        assert!(matches!(again, Err(ConnectError::Lost(_))));
        connect(&socket).await.flush().await.unwrap();
        server.stop().await;
        let absent = RemoteDevice::connect(config(&socket), Some(&known)).await;
        assert!(matches!(absent, Err(ConnectError::Absent(_))));
    });
}

#[test]
fn an_export_that_has_ended_fails_its_devices_at_once() {
    on_a_shard(async |dir| {
        let (socket, disk) = (dir.join("nbd"), disk());
        let server = serve(&socket, &disk, VERIFIER);
        let device = connect(&socket).await;
        let started = engine::now();
        server.stop_for_good().await;
        let why = device.flush().await.unwrap_err();
        until("it is lost", || {
            matches!(device.state(), LinkState::Lost(_))
        })
        .await;
        let BlockError::Io(why) = why else {
            panic!("{why:?}")
        };
        assert!(why.to_string().contains("detached"), "{why}");
        let patience = RemoteConfig::new(Addr::Unix(socket), "", VERIFIER).patience;
        assert!(engine::now().since(started) < patience);
    });
}

#[test]
fn patience_ends_in_errors_and_a_server_that_comes_back_ends_those() {
    on_a_shard(async |dir| {
        let (socket, disk) = (dir.join("nbd"), disk());
        let server = serve(&socket, &disk, VERIFIER);
        let config = RemoteConfig {
            patience: Duration::from_millis(50),
            ..config(&socket)
        };
        let device = RemoteDevice::connect(config, None).await.unwrap();
        let bytes = pattern(4096, 1);
        write(&device, 0, &bytes, false).await.unwrap();
        server.stop().await;
        write(&device, 4096, &bytes, false).await.unwrap_err();
        assert!(matches!(device.state(), LinkState::Connecting(_)));
        let server = serve(&socket, &disk, VERIFIER);
        until("it is connected", || device.state() == LinkState::Connected).await;
        assert_eq!(read(&device, 0, 4096).await.unwrap(), bytes);
        // A server that answers nothing.
        disk.shut.set(true);
        drop(device);
        let config = RemoteConfig {
            patience: Duration::from_millis(50),
            answer_max: Duration::from_millis(20),
            ..self::config(&socket)
        };
        let device = RemoteDevice::connect(config, None).await.unwrap();
        device.flush().await.unwrap_err();
        disk.open_gate();
        while device.flush().await.is_err() {
            engine::yield_now().await;
        }
        server.stop().await;
    });
}

#[test]
fn a_resize_is_seen_at_once_and_over_a_reconnect() {
    on_a_shard(async |dir| {
        let (socket, disk) = (dir.join("nbd"), disk());
        let server = serve(&socket, &disk, VERIFIER);
        let device = connect(&socket).await;
        let changed = device.changed();
        disk.resize(128 * MIB);
        changed.await;
        assert_eq!(device.geometry().bytes, 128 * MIB);
        write(&device, 100 * MIB, &pattern(512, 1), false)
            .await
            .unwrap();
        server.stop().await;
        let changed = device.changed();
        disk.resize(256 * MIB);
        let server = serve(&socket, &disk, VERIFIER);
        changed.await;
        assert_eq!(device.geometry().bytes, 256 * MIB);
        server.stop().await;
    });
}
