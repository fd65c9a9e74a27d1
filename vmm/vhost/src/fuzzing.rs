//! Fuzz targets of what is private here: the walk of rings, and the messages with all that they reach.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::{LazyLock, Mutex, PoisonError};

use engine::{Engine, EngineConfig, GuestMem, SchedGroup, ShardId};
use futures_channel::mpsc::unbounded;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::blk::{Head, Request};
use crate::devices::NullDevice;
use crate::export::serve;
use crate::frontend::Terms;
use crate::inflight::{Inflight, Marked};
use crate::memory::Memory;
use crate::queue::Polling;
use crate::ring::{CHAIN_BYTES_MAX, Chain, Published, Ring, RingAddr, RingFeatures, RingSpec};
use crate::session::{self, Notice, Shard};

const GUEST: u64 = 0x1_0000;
const USER: u64 = 0x7000_0000;
const RAM: usize = 64 << 10;
/// Bytes of marks: enough for the largest ring here.
const MARKS: usize = 8 << 10;

/// A guest's memory as it likes: the first four bytes say which ring it is, the others are the memory,
/// in which the parts of the ring lie at its start.
pub fn ring(input: &[u8]) {
    let Some((how, bytes)) = input.split_at_checked(4) else {
        return;
    };
    let memory = GuestMem::anonymous(RAM).expect("memory");
    let taken = bytes.len().min(RAM);
    memory.copy_in(0, &bytes[..taken]).expect("inside");
    let features = RingFeatures {
        event_idx: how[0] & 1 != 0,
        indirect: how[0] & 2 != 0,
        packed: how[0] & 16 != 0,
    };
    let spec = RingSpec {
        memory: Rc::new(Memory::over(GUEST, USER, memory)),
        size: 1 << (how[1] % 8),
        addr: ring_at(how[0] & 8 != 0),
        features,
        base: u32::from_le_bytes([how[2], how[3], how[3], how[2]]),
        marked: false,
    };
    let size = spec.size;
    let mut ring = Ring::new(spec).expect("the ring is in the memory");
    let mut chain = Chain::default();
    for _ in 0..2 * size {
        match ring.pop(&mut chain) {
            Ok(true) => {
                let bytes = chain.readable.len() + chain.writable.len();
                assert!(bytes <= CHAIN_BYTES_MAX, "{bytes} bytes in one request");
                let token = chain.token;
                let room = chain.writable.len();
                if let Ok(head) = Head::parse(&chain) {
                    let request = Request::take(head, &mut chain);
                    assert_eq!(chain.status.len(), 1);
                    assert!(request.bytes() <= bytes);
                }
                ring.push(token, room as u32);
            }
            Ok(false) => break,
            Err(_) => return,
        }
        let published = ring.publish();
        assert_ne!(published, Published::Nothing);
        assert!(ring.dirty().len() <= 3);
        ring.silence();
    }
    ring.listen();
    let _ = ring.is_pending();
    assert_eq!(ring.publish(), Published::Nothing);
}

/// Marks of requests in progress as a front end likes them.
pub fn marks(input: &[u8]) {
    let Some((how, bytes)) = input.split_at_checked(3) else {
        return;
    };
    let memory = GuestMem::anonymous(MARKS).expect("memory");
    let taken = bytes.len().min(MARKS);
    memory.copy_in(0, &bytes[..taken]).expect("inside");
    let (size, packed) = (1 << (how[0] % 8), how[0] & 8 != 0);
    let of = Marked {
        queue: 0,
        size,
        packed,
    };
    // The ring is behind the marks, and as the front end likes it, too.
    let guest = GuestMem::anonymous(RAM).expect("memory");
    guest
        .copy_in(0, &bytes[taken..][..(bytes.len() - taken).min(RAM)])
        .expect("inside");
    let spec = RingSpec {
        memory: Rc::new(Memory::over(GUEST, USER, guest)),
        size,
        addr: ring_at(false),
        features: RingFeatures {
            event_idx: false,
            indirect: how[0] & 16 != 0,
            packed,
        },
        base: u32::from_le_bytes([how[1], how[2], how[1], how[2]]),
        marked: true,
    };
    let Ok(mut marks) = Inflight::open(&memory, size, of) else {
        return;
    };
    let mut ring = Ring::new(spec.clone()).expect("the ring is in the memory");
    let chains = marks.recover(&mut ring);
    assert!(chains.len() <= usize::from(size));
    if chains.iter().any(Result::is_err) {
        return;
    }
    for chain in chains.into_iter().flatten() {
        marks.giving(chain.token.mark);
        ring.push(chain.token, 1);
    }
    if !ring.is_shown() {
        marks.showing(ring.used());
        assert_ne!(ring.publish(), Published::Nothing);
        marks.given(ring.used());
    }
    let mut again = Inflight::open(&memory, size, of).expect("marks that were made right");
    let mut ring = Ring::new(spec).expect("the ring is in the memory");
    assert!(again.recover(&mut ring).is_empty());
}

fn ring_at(logged: bool) -> RingAddr {
    RingAddr {
        descriptors: USER,
        driver: USER + 0x800,
        device: USER + 0xC00,
        log: logged.then_some(GUEST),
    }
}

/// A shard that never ends, and the way to it.
static SHARD: LazyLock<Mutex<Shard>> = LazyLock::new(|| {
    let engine = Engine::start(EngineConfig::unpinned(1)).expect("an engine");
    let (events, inbox) = unbounded();
    let started = engine.handle().call_blocking(ShardId(0), move |_| {
        Box::pin(async move {
            let terms = Terms {
                name: "fuzzed".into(),
                queues: 2,
                group: SchedGroup::FOREGROUND,
                polling: Polling::default(),
                guest_bytes_max: 1 << 30,
                counters: Rc::default(),
                durability: Rc::default(),
            };
            let device = Rc::new(NullDevice::new(1 << 20));
            let served = serve(device, terms, inbox, Notice::default());
            engine::spawn_local(SchedGroup::FOREGROUND, served).detach();
        })
    });
    started.expect("the shard serves");
    std::mem::forget(engine);
    Mutex::new(Shard::new(events))
});

/// Most messages of an input: what they are answered must fit into the socket, as nobody reads it.
const MESSAGES_MAX: usize = 24;

/// Messages as a front end likes them. Each is a code, flags, the length of its body and the body; the
/// descriptors that belong to it are made here.
pub fn messages(input: &[u8]) {
    let (ours, theirs) = UnixStream::pair().expect("sockets");
    let mut left = input;
    for _ in 0..MESSAGES_MAX {
        let [code, flags, len, rest @ ..] = left else {
            break;
        };
        let (body, rest) = rest.split_at(usize::from(*len).min(rest.len()));
        left = rest;
        send(&ours, *code, *flags, body);
    }
    ours.shutdown(std::net::Shutdown::Write).expect("a socket");
    let shard = SHARD.lock().unwrap_or_else(PoisonError::into_inner);
    // However it ends, it ends, and nothing is in progress.
    let _ = session::serve(&shard, theirs, 2, &Notice::default());
}

fn send(socket: &UnixStream, code: u8, flags: u8, body: &[u8]) {
    const MEMORY: [u8; 4] = [5, 6, 32, 37];
    const EVENTS: [u8; 3] = [12, 13, 14];
    let mut message = u32::from(code).to_ne_bytes().to_vec();
    message.extend((u32::from(flags & 15) ^ 1).to_ne_bytes());
    let bytes = body.len() as u32 + u32::from(flags & 16 != 0);
    message.extend(bytes.to_ne_bytes());
    message.extend_from_slice(body);
    let bare = flags & 32 != 0;
    let file = match code {
        _ if bare => None,
        code if MEMORY.contains(&code) => Some(memory()),
        code if EVENTS.contains(&code) => Some(event()),
        21 => UnixStream::pair()
            .ok()
            .map(|(one, _)| File::from(std::os::fd::OwnedFd::from(one))),
        _ => None,
    };
    let count = if code == 5 {
        body.first().map_or(1, |regions| usize::from(regions % 9))
    } else {
        1
    };
    let files: Vec<RawFd> = file
        .iter()
        .flat_map(|file| vec![file.as_raw_fd(); count])
        .collect();
    // A front end that sends too much is not heard to its end.
    let _ = socket.send_with_fds(&[&message[..]], &files);
}

fn memory() -> File {
    // SAFETY: memfd_create reads a NUL-terminated name and returns a new descriptor.
    let file = unsafe { File::from_raw_fd(libc::memfd_create(c"fuzzed".as_ptr(), 0)) };
    file.set_len(RAM as u64).expect("memory");
    file
}

fn event() -> File {
    // SAFETY: eventfd takes integers; the descriptor is new.
    unsafe { File::from_raw_fd(libc::eventfd(1, libc::EFD_NONBLOCK)) }
}
