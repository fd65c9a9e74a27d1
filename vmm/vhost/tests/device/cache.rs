//! The driver's choice of cache: whoever takes a backend's place must never answer a write before it is
//! durable to a driver that counts on that.

use std::os::fd::AsRawFd;
use std::path::Path;

use vhost::vhost_user::message::VhostUserConfigFlags;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost_blk::{Cache, Endpoint};

use crate::driver::{CONFIG_WCE, Connection, FLUSH, Guest};
use crate::messages::config;
use crate::support::{Backend, Disk, Setup};
use crate::trial::{Patience, Trial};

const MIB: u64 = 1 << 20;
const CHOOSES: u64 = FLUSH | CONFIG_WCE;

fn backend(socket: &Path, cache: Option<Cache>) -> Backend {
    let endpoint = Endpoint::Listen(socket.to_owned());
    Backend::start(Setup {
        cache,
        ..Setup::at(Disk::Trial(MIB, Patience::None), endpoint)
    })
}

fn choose(frontend: &mut Frontend, writeback: u8) {
    let flags = VhostUserConfigFlags::WRITABLE;
    frontend.set_config(32, flags, &[writeback]).unwrap();
}

/// Writes; whether that was to be durable.
fn is_durable(backend: &Backend, guest: &mut Guest) -> bool {
    let (before, _) = backend.trial(Trial::counts);
    guest.request(0, 1, 0, (512, 0));
    guest.kick();
    assert_eq!(guest.wait(1), [(0, 1)]);
    backend.trial(Trial::counts).0 > before
}

/// A front end that comes back with a driver that goes on at `base`, and has no marks.
fn back(socket: &Path, features: u64, guest: &Guest, base: u32) -> Connection {
    let mut connection = Connection::open(socket, features);
    connection.share(guest);
    connection.start(guest, base);
    connection
}

#[test]
fn a_driver_of_whose_choice_nothing_is_known_is_written_through_until_it_chooses() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let mut guest = Guest::new();
    let first = backend(&socket, None);
    // A new driver begins with a cache.
    let mut connection = back(&socket, CHOOSES, &guest, 0);
    assert!(!is_durable(&first, &mut guest));
    choose(&mut connection.frontend, 0);
    // What was answered before is durable, too: no flush will come.
    assert_eq!(first.trial(Trial::counts), (0, 1));
    assert!(is_durable(&first, &mut guest));
    // The same front end on the same backend, and then on another.
    drop(connection);
    let connection = back(&socket, CHOOSES, &guest, 2);
    assert!(is_durable(&first, &mut guest));
    drop(connection);
    first.shutdown();
    let second = backend(&socket, None);
    let mut connection = back(&socket, CHOOSES, &guest, 3);
    assert!(is_durable(&second, &mut guest));
    assert_eq!(config(&mut connection, 32, 1), [0]);
    choose(&mut connection.frontend, 1);
    assert!(!is_durable(&second, &mut guest));
    assert_eq!(config(&mut connection, 32, 1), [1]);
    // It may choose elsewhere between two connections.
    drop(connection);
    let connection = back(&socket, CHOOSES, &guest, 5);
    assert!(is_durable(&second, &mut guest));
    drop(connection);
    second.shutdown();
}

#[test]
fn a_driver_that_cannot_choose_and_one_that_is_vouched_for_keep_their_cache() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let mut guest = Guest::new();
    let first = backend(&socket, None);
    let connection = back(&socket, FLUSH, &guest, 0);
    assert!(!is_durable(&first, &mut guest));
    drop(connection);
    let connection = back(&socket, FLUSH, &guest, 1);
    assert!(!is_durable(&first, &mut guest));
    drop(connection);
    first.shutdown();
    let second = backend(&socket, Some(Cache::WriteBack));
    let connection = back(&socket, CHOOSES, &guest, 2);
    assert!(!is_durable(&second, &mut guest));
    drop(connection);
    second.shutdown();
}

#[test]
fn write_through_that_was_chosen_before_the_marks_came_is_kept_in_them() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let first = backend(&socket, None);
    let mut connection = Connection::open(&socket, CHOOSES);
    choose(&mut connection.frontend, 0);
    let (shape, marks) = connection.marks();
    assert_eq!(config(&mut connection, 32, 1), [0]);
    drop(connection);
    first.shutdown();
    let second = backend(&socket, None);
    let mut connection = Connection::open(&socket, CHOOSES);
    assert_eq!(config(&mut connection, 32, 1), [1]);
    let set = connection
        .frontend
        .set_inflight_fd(&shape, marks.as_raw_fd());
    set.unwrap();
    assert_eq!(config(&mut connection, 32, 1), [0]);
    second.shutdown();
}
