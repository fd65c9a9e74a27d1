//! A driver of our own over the `vhost` crate's front end, which can be told to lie.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use vhost::vhost_user::message::{
    VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

use crate::support::{PATIENCE, until};

pub const FLUSH: u64 = 1 << 9;
pub const CONFIG_WCE: u64 = 1 << 11;
pub const LOG_ALL: u64 = 1 << 26;
pub const INDIRECT: u64 = 1 << 28;
pub const EVENT_IDX: u64 = 1 << 29;
pub const PROTOCOL: u64 = 1 << 30;
pub const VERSION_1: u64 = 1 << 32;
pub const PACKED: u64 = 1 << 34;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const TABLE: u16 = 4;

/// Flags of a packed ring's descriptors, and of an index the counter of its round.
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
const WRAP: u16 = 1 << 15;

/// Entries of the ring.
pub const SIZE: u16 = 16;
/// Bytes of the guest's memory.
pub const RAM: u64 = 4 << 20;
/// Where the guest has its memory, and where the front end says that it has it.
pub const GUEST: u64 = 0x10_0000;
const USER: u64 = 0x7000_0000_0000;

const TABLE_AT: u64 = 0;
const DRIVER_AT: u64 = 0x1000;
const DEVICE_AT: u64 = 0x2000;
/// Where data may be.
pub const DATA_AT: u64 = 0x10_0000;

/// One descriptor; in a packed ring `next` is the buffer's id.
#[derive(Clone, Copy)]
pub struct Desc {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

/// Memory that is kept while backends come and go.
pub struct Guest {
    pub ram: File,
    pub kick: EventFd,
    pub call: EventFd,
    pub error: EventFd,
    /// The driver's index; in a packed ring its place and the counter of its round.
    avail: u16,
    /// How far the used ring was read, likewise.
    seen: u16,
    pub packed: bool,
    /// Chains of a packed ring by the id, which is their first descriptor's number.
    chains: BTreeMap<u16, Vec<Desc>>,
}

/// A place of a packed ring and the counter of its round, so many places later.
pub fn later(place: u16, by: u16) -> u16 {
    let index = (place & !WRAP) + by;
    if index < SIZE {
        return index | place & WRAP;
    }
    (index - SIZE) | (place & WRAP ^ WRAP)
}

pub fn memfd(bytes: u64) -> File {
    // SAFETY: memfd_create reads a NUL-terminated name and returns a new descriptor.
    let fd = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"guest".as_ptr(), 0)) };
    let file = File::from(fd);
    file.set_len(bytes).unwrap();
    file
}

pub fn event() -> EventFd {
    EventFd::new(libc::EFD_NONBLOCK).unwrap()
}

impl Guest {
    pub fn new() -> Guest {
        Guest::with(0)
    }

    /// With the ring that these features want.
    pub fn with(features: u64) -> Guest {
        let packed = features & PACKED != 0;
        let begin = if packed { WRAP } else { 0 };
        Guest {
            ram: memfd(RAM),
            kick: event(),
            call: event(),
            error: event(),
            avail: begin,
            seen: begin,
            packed,
            chains: BTreeMap::new(),
        }
    }

    /// The base of a new ring: a packed one begins in a round whose counter is 1, on both sides.
    pub fn begin(&self) -> u32 {
        let counter = if self.packed { WRAP } else { 0 };
        u32::from(counter) << 16 | u32::from(counter)
    }

    pub fn put(&self, at: u64, bytes: &[u8]) {
        self.ram.write_all_at(bytes, at).unwrap();
    }

    pub fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    fn number(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.get(at, 2).try_into().unwrap())
    }

    pub fn describe(&self, table: u64, index: u16, desc: Desc) {
        let mut bytes = desc.addr.to_le_bytes().to_vec();
        bytes.extend(desc.len.to_le_bytes());
        bytes.extend(desc.flags.to_le_bytes());
        bytes.extend(desc.next.to_le_bytes());
        self.put(table + 16 * u64::from(index), &bytes);
    }

    /// Writes a descriptor at a place of a packed ring, with flags for its round.
    pub fn place(&self, place: u16, desc: Desc) {
        let round = if place & WRAP != 0 { AVAIL } else { USED };
        let mut bytes = desc.addr.to_le_bytes().to_vec();
        bytes.extend(desc.len.to_le_bytes());
        bytes.extend(desc.next.to_le_bytes());
        bytes.extend((desc.flags | round).to_le_bytes());
        self.put(TABLE_AT + 16 * u64::from(place & !WRAP), &bytes);
    }

    /// Where the next chain of a packed ring begins.
    pub fn next_place(&self) -> u16 {
        self.avail
    }

    /// What the driver says of when it wants to be called: with a packed ring its part, else its flags
    /// and the index of the event.
    pub fn wants_calls(&self, when: u16, at: u16) {
        if self.packed {
            self.put(DRIVER_AT, &[at.to_le_bytes(), when.to_le_bytes()].concat());
        } else {
            self.put(DRIVER_AT, &when.to_le_bytes());
            self.put(DRIVER_AT + 4 + 2 * u64::from(SIZE), &at.to_le_bytes());
        }
    }

    /// Makes a chain of descriptors from `first` on.
    pub fn chain(&mut self, first: u16, parts: &[(u64, u32, u16)]) {
        if self.packed {
            let desc = |(place, &(at, len, flags)): (usize, &(u64, u32, u16))| Desc {
                addr: GUEST + at,
                len,
                flags: flags | if place + 1 == parts.len() { 0 } else { NEXT },
                next: first,
            };
            let chain = parts.iter().enumerate().map(desc).collect();
            self.chains.insert(first, chain);
            return;
        }
        for (place, &(at, len, flags)) in parts.iter().enumerate() {
            let index = first + place as u16;
            let last = place + 1 == parts.len();
            let desc = Desc {
                addr: GUEST + at,
                len,
                flags: flags | if last { 0 } else { NEXT },
                next: index + 1,
            };
            self.describe(TABLE_AT, index, desc);
        }
    }

    /// Offers a chain, without a kick.
    pub fn offer(&mut self, head: u16) {
        if self.packed {
            // The first is written last: it offers all of them.
            let chain = &self.chains[&head];
            for (number, desc) in chain.iter().enumerate().rev() {
                self.place(later(self.avail, number as u16), *desc);
            }
            self.avail = later(self.avail, chain.len() as u16);
            return;
        }
        let place = u64::from(self.avail % SIZE);
        self.put(DRIVER_AT + 4 + 2 * place, &head.to_le_bytes());
        self.avail = self.avail.wrapping_add(1);
        self.put(DRIVER_AT + 2, &self.avail.to_le_bytes());
    }

    pub fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// Waits for a call, and forgets it.
    pub fn hears_a_call(&self, what: &str) {
        until(what, || self.call.read().is_ok());
    }

    /// Says that more is offered than is.
    pub fn run_ahead(&mut self, by: u16) {
        self.avail = self.avail.wrapping_add(by);
        self.put(DRIVER_AT + 2, &self.avail.to_le_bytes());
    }

    /// What was given back since the last time: heads and bytes written.
    pub fn used(&mut self) -> Vec<(u32, u32)> {
        if self.packed {
            return std::iter::from_fn(|| self.used_place()).collect();
        }
        let shown = self.number(DEVICE_AT + 2);
        let mut given = Vec::new();
        while self.seen != shown {
            let at = DEVICE_AT + 4 + 8 * u64::from(self.seen % SIZE);
            let entry = self.get(at, 8);
            let number = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().unwrap());
            given.push((number(0), number(4)));
            self.seen = self.seen.wrapping_add(1);
        }
        given
    }

    /// What was given back at the next place of a packed ring.
    fn used_place(&mut self) -> Option<(u32, u32)> {
        let at = TABLE_AT + 16 * u64::from(self.seen & !WRAP);
        let flags = self.number(at + 14);
        let round = self.seen & WRAP != 0;
        if (flags & AVAIL != 0) != round || (flags & USED != 0) != round {
            return None;
        }
        let id = self.number(at + 12);
        let written = u32::from_le_bytes(self.get(at + 8, 4).try_into().unwrap());
        self.seen = later(self.seen, self.chains[&id].len() as u16);
        Some((u32::from(id), written))
    }

    /// Waits for so many to be given back.
    pub fn wait(&mut self, count: usize) -> Vec<(u32, u32)> {
        let deadline = Instant::now() + PATIENCE;
        let mut given = Vec::new();
        while given.len() < count {
            assert!(Instant::now() < deadline, "{given:?} of {count}");
            given.extend(self.used());
            std::thread::yield_now();
        }
        given
    }

    /// A request at the descriptors from `first` on: head, data, status. Its data is at
    /// [`Guest::data`].
    pub fn request(&mut self, first: u16, code: u32, sector: u64, data: (u32, u16)) {
        let at = Guest::head(first);
        let mut head = code.to_le_bytes().to_vec();
        head.extend([0; 4]);
        head.extend(sector.to_le_bytes());
        self.put(at, &head);
        self.put(at + 16, &[0xFF]);
        let (len, flags) = data;
        let mut parts = vec![(at, 16, 0)];
        if len > 0 {
            parts.push((Guest::data(first), len, flags));
        }
        parts.push((at + 16, 1, WRITE));
        self.chain(first, &parts);
        self.offer(first);
    }

    fn head(first: u16) -> u64 {
        0x4000 + 64 * u64::from(first)
    }

    pub fn data(first: u16) -> u64 {
        DATA_AT + (64 << 10) * u64::from(first)
    }

    pub fn status(&self, first: u16) -> u8 {
        self.get(Guest::head(first) + 16, 1)[0]
    }
}

/// The front end's side of the messages.
pub struct Connection {
    pub frontend: Frontend,
    /// For messages that `frontend` does not send.
    stream: UnixStream,
}

pub fn all_protocol() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::INFLIGHT_SHMFD
        | VhostUserProtocolFeatures::RESET_DEVICE
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        | VhostUserProtocolFeatures::LOG_SHMFD
        | VhostUserProtocolFeatures::BACKEND_REQ
        | VhostUserProtocolFeatures::STATUS
}

impl Connection {
    /// Connects and agrees on features; waits for the backend to be there.
    pub fn open(socket: &Path, features: u64) -> Connection {
        let deadline = Instant::now() + PATIENCE;
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::yield_now();
        };
        Connection::over(stream, features)
    }

    pub fn over(stream: UnixStream, features: u64) -> Connection {
        let mut frontend = Frontend::from_stream(stream.try_clone().unwrap(), 4);
        frontend.set_owner().unwrap();
        let offered = frontend.get_features().unwrap();
        let wanted = features | PROTOCOL | VERSION_1;
        assert_eq!(wanted & !offered, 0, "offered {offered:#x}");
        let protocol = frontend.get_protocol_features().unwrap();
        assert!(protocol.contains(all_protocol()), "{protocol:?}");
        frontend.set_protocol_features(all_protocol()).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        frontend.set_features(wanted).unwrap();
        Connection { frontend, stream }
    }

    /// The same for two numbers.
    fn say_two(&mut self, request: u32, one: u32, two: u32) {
        self.say(request, u64::from(two) << 32 | u64::from(one));
    }

    /// Sends a message of one number as it is, and waits for the acknowledgement.
    pub fn say(&mut self, request: u32, number: u64) {
        const WANTS_ANSWER: u32 = 8;
        let mut message = Vec::new();
        for word in [request, 1 | WANTS_ANSWER, 8] {
            message.extend(word.to_ne_bytes());
        }
        message.extend(number.to_ne_bytes());
        self.stream.write_all(&message).unwrap();
        let mut answer = [0; 20];
        self.stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer[12..], [0; 8], "refused");
    }

    pub fn share(&self, guest: &Guest) {
        self.frontend.set_mem_table(&[region(guest)]).unwrap();
    }

    /// New marks of requests in progress, already in use.
    pub fn marks(&mut self) -> (VhostUserInflight, File) {
        let wanted = VhostUserInflight::new(0, 0, 1, SIZE);
        let (marks, file) = self.frontend.get_inflight_fd(&wanted).unwrap();
        self.frontend
            .set_inflight_fd(&marks, file.as_raw_fd())
            .unwrap();
        (marks, file)
    }

    /// Sets up and starts the ring.
    pub fn start(&mut self, guest: &Guest, base: u32) {
        // SET_VRING_BASE: the front end's own call has room for 16 bits.
        self.say_two(10, 0, base);
        let frontend = &mut self.frontend;
        frontend.set_vring_num(0, SIZE).unwrap();
        frontend.set_vring_addr(0, &ring_at(0)).unwrap();
        frontend.set_vring_call(0, &guest.call).unwrap();
        frontend.set_vring_err(0, &guest.error).unwrap();
        frontend.set_vring_kick(0, &guest.kick).unwrap();
        frontend.set_vring_enable(0, true).unwrap();
    }
}

pub fn region(guest: &Guest) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: GUEST,
        memory_size: RAM,
        userspace_addr: USER,
        mmap_offset: 0,
        mmap_handle: guest.ram.as_raw_fd(),
    }
}

pub fn ring_at(offset: u64) -> VringConfigData {
    VringConfigData {
        queue_max_size: SIZE,
        queue_size: SIZE,
        flags: 0,
        desc_table_addr: USER + offset + TABLE_AT,
        used_ring_addr: USER + offset + DEVICE_AT,
        avail_ring_addr: USER + offset + DRIVER_AT,
        log_addr: None,
    }
}

/// A guest with a ring at work.
pub fn started(socket: &Path, features: u64) -> (Guest, Connection) {
    let guest = Guest::with(features);
    let mut connection = Connection::open(socket, features);
    connection.share(&guest);
    connection.start(&guest, guest.begin());
    (guest, connection)
}
