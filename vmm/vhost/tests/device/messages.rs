//! The messages, as the `vhost` crate's front end sends them.

use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Instant;

use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;
use vhost::{VhostBackend, VhostUserDirtyLogRegion};
use vhost_blk::Endpoint;

use crate::driver::{
    CONFIG_WCE, Connection, Desc, EVENT_IDX, FLUSH, GUEST, Guest, INDIRECT, LOG_ALL, NEXT, RAM,
    TABLE, WRITE, event, memfd, started,
};
use crate::support::{Backend, Disk, PATIENCE, Setup, image};

const MIB: u64 = 1 << 20;

pub fn config(connection: &mut Connection, offset: u32, len: usize) -> Vec<u8> {
    let flags = VhostUserConfigFlags::WRITABLE;
    let asked = connection
        .frontend
        .get_config(offset, len as u32, flags, &vec![0; len]);
    asked.unwrap().1
}

#[test]
fn the_configuration_tells_size_shape_and_queues() {
    let (dir, path) = image(4 * MIB);
    let socket = dir.path().join("s");
    let backend = Backend::listen(Disk::File(path), &socket);
    let mut connection = Connection::open(&socket, FLUSH);
    let space = config(&mut connection, 0, 60);
    let number = |at: usize| u32::from_le_bytes(space[at..at + 4].try_into().unwrap());
    assert_eq!(number(0), (4 * MIB / 512) as u32);
    assert_eq!((number(12), number(20)), (126, 512));
    // Four kilobytes by 512, write-back, four queues.
    assert_eq!((space[24], space[32], space[34]), (3, 1, 4));
    assert_eq!(config(&mut connection, 0x100, 60), space);
    assert_eq!(config(&mut connection, 34, 2), [4, 0]);
    assert_eq!(config(&mut connection, 200, 8), [0; 8]);
    assert_eq!(connection.frontend.get_queue_num().unwrap(), 4);
    assert!(connection.frontend.get_max_mem_slots().unwrap() >= 32);
    backend.shutdown();
}

#[test]
fn the_identity_is_the_devices_and_flushes_flush() {
    let (dir, path) = image(MIB);
    let socket = dir.path().join("s");
    let backend = Backend::listen(Disk::File(path), &socket);
    let (mut guest, _connection) = started(&socket, FLUSH | EVENT_IDX);
    guest.hears_a_call("due at the start");
    guest.request(0, 8, 0, (20, WRITE));
    guest.kick();
    assert_eq!(guest.wait(1), [(0, 21)]);
    assert_eq!(guest.get(Guest::data(0), 20), b"a-serial-number\0\0\0\0\0");
    guest.hears_a_call("for what was given back");
    // What was not written is not told as written: the status is at the end, behind a gap.
    guest.request(0, 8, 0, (64, WRITE));
    guest.kick();
    assert_eq!(guest.wait(1), [(0, 20)]);
    assert_eq!(guest.status(0), 0);
    guest.request(0, 0, MIB / 512, (4096, WRITE));
    guest.kick();
    assert_eq!(guest.wait(1), [(0, 0)]);
    assert_eq!(guest.status(0), 1);
    guest.request(0, 4, 0, (0, 0));
    guest.kick();
    assert_eq!(guest.wait(1), [(0, 1)]);
    assert_eq!(guest.status(0), 0);
    backend.shutdown();
}

#[test]
fn a_table_may_be_said_to_be_writable() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let backend = Backend::listen(Disk::Null(MIB), &socket);
    let (mut guest, _connection) = started(&socket, INDIRECT);
    for (number, flags) in [TABLE, TABLE | WRITE].into_iter().enumerate() {
        let table = Guest::data(9);
        let parts = [
            (Guest::data(0), 16, NEXT),
            (Guest::data(1), 512, WRITE | NEXT),
            (Guest::data(2), 1, WRITE),
        ];
        for (index, (at, len, flags)) in (0_u16..).zip(parts) {
            let (addr, next) = (GUEST + at, index + 1);
            let desc = Desc {
                addr,
                len,
                flags,
                next,
            };
            guest.describe(table, index, desc);
        }
        let desc = Desc {
            addr: GUEST + table,
            len: 48,
            flags,
            next: 0,
        };
        guest.describe(0, number as u16, desc);
        guest.offer(number as u16);
        guest.kick();
        assert_eq!(guest.wait(1), [(number as u32, 513)]);
    }
    backend.shutdown();
}

#[test]
fn a_call_that_comes_late_tells_of_what_was_given_back_before() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let backend = Backend::listen(Disk::Null(MIB), &socket);
    let (mut guest, connection) = started(&socket, EVENT_IDX);
    guest.hears_a_call("due at the start");
    guest.request(0, 0, 0, (512, WRITE));
    guest.kick();
    assert_eq!(guest.wait(1), [(0, 513)]);
    guest.hears_a_call("for what was given back");
    // Nobody listened at the one before.
    guest.call = event();
    connection.frontend.set_vring_call(0, &guest.call).unwrap();
    guest.hears_a_call("by the new event");
    backend.shutdown();
}

#[test]
fn a_ring_in_which_everything_is_used_calls_when_it_starts() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let backend = Backend::listen(Disk::Null(MIB), &socket);
    let (mut guest, mut connection) = started(&socket, EVENT_IDX);
    guest.request(0, 0, 0, (512, WRITE));
    guest.kick();
    assert_eq!(guest.wait(1), [(0, 513)]);
    assert_eq!(connection.frontend.get_vring_base(0).unwrap(), 1);
    // Who gave it back died before it called.
    guest.call = event();
    connection.start(&guest, 1);
    guest.hears_a_call("by who comes after");
    backend.shutdown();
}

#[test]
fn a_base_is_answered_when_nothing_is_in_progress_and_goes_on_elsewhere() {
    let (dir, path) = image(MIB);
    let socket = dir.path().join("s");
    let backend = Backend::listen(Disk::File(path), &socket);
    let (mut guest, mut connection) = started(&socket, 0);
    let mut base = 0;
    for round in 1..=20_u16 {
        for first in [0, 3, 6, 9] {
            guest.put(Guest::data(first), &[round as u8; 16_384]);
            guest.request(first, 1, u64::from(first) * 32, (16_384, 0));
        }
        guest.kick();
        base = connection.frontend.get_vring_base(0).unwrap();
        // What was not taken by then is still offered.
        let given = guest.used().len();
        let taken = base - u32::from(round - 1) * 4;
        assert_eq!(given, taken as usize, "round {round}");
        connection.start(&guest, base);
        guest.kick();
        guest.wait(4 - given);
        base = u32::from(round) * 4;
    }
    assert_eq!(connection.frontend.get_vring_base(0).unwrap(), base);
    // Another front end, and so another session, goes on where this one was.
    drop(connection);
    let mut connection = Connection::open(&socket, 0);
    connection.share(&guest);
    connection.start(&guest, base);
    guest.request(0, 0, 0, (512, WRITE));
    guest.kick();
    assert_eq!(guest.wait(1), [(0, 513)]);
    assert_eq!(guest.get(Guest::data(0), 4), [20; 4]);
    backend.shutdown();
}

#[test]
fn status_and_reset_take_the_device_back_to_its_start() {
    let (dir, path) = image(MIB);
    let socket = dir.path().join("s");
    let backend = Backend::listen(Disk::File(path), &socket);
    let (mut guest, mut connection) = started(&socket, FLUSH | CONFIG_WCE);
    let flags = VhostUserConfigFlags::WRITABLE;
    connection.frontend.set_config(32, flags, &[0]).unwrap();
    assert_eq!(config(&mut connection, 32, 1), [0]);
    // Written through: the write is durable when it is answered, without a flush.
    guest.request(0, 1, 0, (4096, 0));
    guest.kick();
    assert_eq!(guest.wait(1), [(0, 1)]);
    connection.frontend.reset_device().unwrap();
    // QEMU asks for it after its reset, and starts again from there when its guest was only paused.
    assert_eq!(connection.frontend.get_vring_base(0).unwrap(), 1);
    // The driver has chosen write-through, and a reset may be a pause that it knows nothing of.
    assert_eq!(config(&mut connection, 32, 1), [0]);
    guest.request(0, 1, 0, (4096, 0));
    guest.kick();
    connection.frontend.set_features(FLUSH).unwrap();
    assert_eq!(guest.used(), [], "a ring that was reset takes nothing");
    // QEMU 7.2 resets first, and asks then how far the ring was.
    assert_eq!(connection.frontend.get_vring_base(0).unwrap(), 1);
    let again = FLUSH | CONFIG_WCE | 1 << 30 | 1 << 32;
    connection.frontend.set_features(again).unwrap();
    connection.frontend.set_config(32, flags, &[1]).unwrap();
    assert_eq!(config(&mut connection, 32, 1), [1]);
    backend.shutdown();
}

#[test]
fn what_is_written_while_migrating_is_logged() {
    let (dir, path) = image(MIB);
    let socket = dir.path().join("s");
    let backend = Backend::listen(Disk::File(path), &socket);
    let (mut guest, connection) = started(&socket, FLUSH);
    let pages = (GUEST + RAM) / 4096;
    let log = memfd(pages.div_ceil(8));
    let region = VhostUserDirtyLogRegion {
        mmap_size: pages.div_ceil(8),
        mmap_offset: 0,
        mmap_handle: log.as_raw_fd(),
    };
    connection.frontend.set_log_base(0, Some(region)).unwrap();
    let marked = |at: u64| {
        let page = (GUEST + at) / 4096;
        let mut byte = [0];
        log.read_exact_at(&mut byte, page / 8).unwrap();
        byte[0] & 1 << (page % 8) != 0
    };
    let protocol = 1 << 30 | 1 << 32;
    let read = |guest: &mut Guest, first: u16| {
        guest.request(first, 0, 0, (8192, WRITE));
        guest.kick();
        guest.wait(1);
    };
    read(&mut guest, 0);
    assert!(!marked(Guest::data(0)), "nobody asked for a log");
    connection
        .frontend
        .set_features(FLUSH | LOG_ALL | protocol)
        .unwrap();
    read(&mut guest, 3);
    assert!(marked(Guest::data(3)) && marked(Guest::data(3) + 4096));
    assert!(marked(0x4000), "the status is written, too");
    assert!(!marked(Guest::data(3) + 8192));
    connection.frontend.set_features(FLUSH | protocol).unwrap();
    read(&mut guest, 6);
    assert!(!marked(Guest::data(6)), "the log was switched off");
    backend.shutdown();
}

#[test]
fn a_front_end_that_listens_hears_of_a_new_size() {
    let (dir, path) = image(MIB);
    let socket = dir.path().join("s");
    let backend = Backend::listen(Disk::File(path), &socket);
    let mut connection = Connection::open(&socket, FLUSH);
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    connection.frontend.set_backend_request_fd(&theirs).unwrap();
    backend.grow(2 * MIB);
    let mut message = [0; 12];
    ours.read_exact(&mut message).unwrap();
    // CONFIG_CHANGE_MSG, version 1, no body.
    assert_eq!(message, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    let sectors = config(&mut connection, 0, 8);
    assert_eq!(sectors, (2 * MIB / 512).to_le_bytes());
    backend.shutdown();
}

#[test]
fn a_backend_that_connects_comes_back_when_the_front_end_does() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let endpoint = Endpoint::Connect(socket.clone());
    let backend = Backend::start(Setup::at(Disk::Null(MIB), endpoint));
    for _ in 0..2 {
        let listener = UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let deadline = Instant::now() + PATIENCE;
        let stream = loop {
            match listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::yield_now();
        };
        stream.set_nonblocking(false).unwrap();
        let mut guest = Guest::new();
        let mut connection = Connection::over(stream, 0);
        connection.share(&guest);
        connection.start(&guest, 0);
        guest.request(0, 0, 0, (512, WRITE));
        guest.kick();
        assert_eq!(guest.wait(1), [(0, 513)]);
        drop((connection, listener));
        std::fs::remove_file(&socket).unwrap();
    }
    backend.shutdown();
}
