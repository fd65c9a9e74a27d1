//! Nobody waits for whoever does not move: not the end of an export, not a ring without kicks, not a
//! migration of a volume with limits.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost_blk::Endpoint;

use crate::driver::{Connection, EVENT_IDX, FLUSH, PACKED, WRITE, started};
use crate::support::{Backend, Disk, Setup, image, until};
use crate::trial::Patience;

const MIB: u64 = 1 << 20;

#[test]
fn an_export_ends_while_its_front_end_reads_no_notices() {
    let (dir, path) = image(MIB);
    let socket = dir.path().join("s");
    let backend = Backend::listen(Disk::File(path), &socket);
    let mut connection = Connection::open(&socket, FLUSH);
    let (ours, theirs) = UnixStream::pair().unwrap();
    connection.frontend.set_backend_request_fd(&theirs).unwrap();
    // Both sides of a socket that was handed over set its options.
    theirs.set_write_timeout(None).unwrap();
    theirs.set_nonblocking(false).unwrap();
    // More than the socket holds.
    for size in 1..=1000 {
        backend.grow(MIB + size * 512);
    }
    backend.stop_export();
    drop(ours);
    backend.shutdown();
}

#[test]
fn an_export_ends_while_its_front_end_reads_no_answers() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let backend = Backend::listen(Disk::Null(MIB), &socket);
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream.set_nonblocking(true).unwrap();
    // GET_FEATURES, version 1, no body; again and again.
    let question = [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
    let mut refusals = 0;
    until("it stops to read, as nobody reads what it says", || {
        let full = stream.write(&question).is_err();
        refusals = if full { refusals + 1 } else { 0 };
        refusals == 10_000
    });
    backend.stop_export();
    backend.shutdown();
}

#[test]
fn an_export_ends_while_its_front_end_accepts_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let addr = SocketAddrUnix::new(&path).unwrap();
    let socket = || {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (unix, stream) = (AddressFamily::UNIX, SocketType::STREAM);
        rustix::net::socket_with(unix, stream, flags, None).unwrap()
    };
    let listener = socket();
    rustix::net::bind(&listener, &addr).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let mut waiting = Vec::new();
    until("the listener's queue is full", || {
        let socket = socket();
        let connected = rustix::net::connect(&socket, &addr);
        waiting.push(socket);
        connected.is_err()
    });
    let endpoint = Endpoint::Connect(path);
    let backend = Backend::start(Setup::at(Disk::Null(MIB), endpoint));
    backend.stop_export();
    backend.shutdown();
}

/// Waits until no ring is polled.
fn is_at_rest(backend: &Backend) {
    let mut same = 0;
    let mut last = backend.stats().polled_ns;
    until("nothing is polled", || {
        let polled = backend.stats().polled_ns;
        same = if polled == last { same + 1 } else { 0 };
        last = polled;
        same == 20
    });
}

#[test]
fn a_ring_without_kicks_is_looked_at_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let backend = Backend::listen(Disk::Null(MIB), &socket);
    for features in [0, EVENT_IDX, PACKED, PACKED | EVENT_IDX] {
        let (mut guest, mut connection) = started(&socket, features);
        connection.frontend.get_vring_base(0).unwrap();
        // SET_VRING_KICK of ring 0, without a descriptor.
        connection.say(12, 0x100);
        for _ in 0..3 {
            is_at_rest(&backend);
            guest.request(0, 0, 0, (512, WRITE));
            assert_eq!(guest.wait(1), [(0, 513)]);
        }
        connection.frontend.get_vring_base(0).unwrap();
    }
    assert_eq!(backend.stats().kicks, 0);
    backend.shutdown();
}

/// Requests are held back by the device when the ring is to be drained.
fn held(socket: &Path, drain: impl FnOnce(&mut Connection)) -> Backend {
    let backend = Backend::listen(Disk::Trial(MIB, Patience::Hurry), socket);
    let (mut guest, mut connection) = started(socket, FLUSH);
    let heads = [0, 3, 6, 9];
    for first in heads {
        guest.request(first, 1, 0, (512, 0));
    }
    guest.kick();
    backend.wait_for("all are taken", |stats| stats.requests == 4);
    drain(&mut connection);
    // Those that were refused as the device was busy were tried again, and hurried again.
    assert_eq!(guest.wait(4).len(), 4);
    assert!(heads.iter().all(|first| guest.status(*first) == 0));
    backend
}

#[test]
fn requests_that_a_device_holds_back_do_not_hold_up_who_takes_the_base() {
    let dir = tempfile::tempdir().unwrap();
    let backend = held(&dir.path().join("s"), |connection| {
        assert_eq!(connection.frontend.get_vring_base(0).unwrap(), 4);
    });
    backend.stop_export();
    backend.shutdown();
}

#[test]
fn requests_that_a_device_holds_back_do_not_hold_up_a_reset_or_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let reset = held(&dir.path().join("r"), |connection| {
        connection.frontend.reset_device().unwrap();
    });
    reset.shutdown();
    let socket = dir.path().join("e");
    let backend = Backend::listen(Disk::Trial(MIB, Patience::Hurry), &socket);
    let (mut guest, _connection) = started(&socket, FLUSH);
    guest.request(0, 1, 0, (512, 0));
    guest.kick();
    backend.wait_for("it is taken", |stats| stats.requests == 1);
    backend.stop_export();
    assert_eq!(guest.wait(1), [(0, 1)]);
    backend.shutdown();
}
