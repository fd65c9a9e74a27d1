//! Packed rings: a driver of our own that can lie, and virtio-driver, a stranger's.

use std::path::{Path, PathBuf};

use vhost::VhostBackend;

use crate::driver::{
    Connection, DATA_AT, Desc, EVENT_IDX, FLUSH, GUEST, Guest, INDIRECT, NEXT, PACKED, RAM, SIZE,
    TABLE, WRITE, started,
};
use crate::support::{Backend, Disk, image, until};
use crate::trial::{Patience, Trial};

const MIB: u64 = 1 << 20;

/// When a driver wants to be called.
const ALWAYS: u16 = 0;
const NEVER: u16 = 1;
const AT_EVENT: u16 = 2;

fn null() -> (tempfile::TempDir, PathBuf, Backend) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let backend = Backend::listen(Disk::Null(MIB), &socket);
    (dir, socket, backend)
}

fn serves(socket: &Path) {
    let (mut guest, _connection) = started(socket, EVENT_IDX | INDIRECT | PACKED);
    guest.request(0, 0, 0, (4096, WRITE));
    guest.kick();
    assert_eq!(guest.wait(1), [(0, 4097)]);
    assert_eq!(guest.status(0), 0);
}

#[test]
fn requests_go_round_a_packed_ring_many_times_and_cross_its_end_anywhere() {
    let (dir, path) = image(4 * MIB);
    let socket = dir.path().join("s");
    let backend = Backend::listen(Disk::File(path.clone()), &socket);
    for features in [0, EVENT_IDX] {
        let (mut guest, _connection) = started(&socket, features | FLUSH | PACKED);
        let mut written = [0_u8; 5];
        for round in 0..100_u32 {
            // One to five at a time, in places that three do not divide.
            let count = 1 + round as usize % 5;
            for (number, slot) in written.iter_mut().enumerate().take(count) {
                let (first, value) = (3 * number as u16, (round + number as u32) as u8);
                *slot = value;
                guest.put(Guest::data(first), &[value; 8192]);
                guest.request(first, 1, number as u64 * 16, (8192, 0));
            }
            guest.kick();
            let mut given = guest.wait(count);
            given.sort_unstable();
            let all: Vec<(u32, u32)> = (0..count as u32).map(|n| (3 * n, 1)).collect();
            assert_eq!(given, all);
            guest.request(0, 4, 0, (0, 0));
            guest.kick();
            assert_eq!(guest.wait(1), [(0, 1)]);
        }
        let stored = std::fs::read(&path).unwrap();
        for (number, value) in written.iter().enumerate() {
            assert_eq!(stored[number * 8192..][..8192], [*value; 8192]);
            let first = 3 * number as u16;
            guest.request(first, 0, number as u64 * 16, (8192, WRITE));
            guest.kick();
            assert_eq!(guest.wait(1), [(u32::from(first), 8193)]);
            assert_eq!(guest.get(Guest::data(first), 8192), [*value; 8192]);
        }
    }
    assert_eq!(backend.stats().faults, 0);
    backend.shutdown();
}

#[test]
fn all_of_a_table_is_one_request_of_a_packed_ring() {
    let (_dir, socket, backend) = null();
    let (mut guest, _connection) = started(&socket, INDIRECT | PACKED);
    let table = Guest::data(9);
    let parts: [(u64, u32, u16); 4] = [
        (Guest::data(0), 16, 0),
        (Guest::data(1), 512, WRITE),
        (Guest::data(2), 512, WRITE),
        (Guest::data(3), 1, WRITE),
    ];
    for (number, (at, len, flags)) in parts.into_iter().enumerate() {
        let mut bytes = (GUEST + at).to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend([0; 2]);
        bytes.extend(flags.to_le_bytes());
        guest.put(table + 16 * number as u64, &bytes);
    }
    for _ in 0..2 * SIZE {
        guest.chain(5, &[(table, 64, TABLE)]);
        guest.offer(5);
        guest.kick();
        assert_eq!(guest.wait(1), [(5, 1025)]);
    }
    backend.shutdown();
}

#[test]
fn a_driver_is_called_when_it_wants_to_be() {
    let (_dir, socket, backend) = null();
    let (mut guest, _connection) = started(&socket, EVENT_IDX | PACKED);
    guest.hears_a_call("due at the start");
    let calls = |backend: &Backend| backend.stats().calls;
    let serve = |guest: &mut Guest| {
        guest.request(0, 0, 0, (512, WRITE));
        guest.kick();
        assert_eq!(guest.wait(1), [(0, 513)]);
    };
    guest.wants_calls(NEVER, 0);
    let before = calls(&backend);
    (0..10).for_each(|_| serve(&mut guest));
    assert_eq!(calls(&backend), before);
    guest.wants_calls(ALWAYS, 0);
    serve(&mut guest);
    guest.hears_a_call("for each");
    // At the last place of the third from here, also where that is past the ring's end.
    for _ in 0..2 * SIZE {
        let event = (0..8).fold(guest.next_place(), |place, _| {
            crate::driver::later(place, 1)
        });
        guest.wants_calls(AT_EVENT, event);
        let before = calls(&backend);
        serve(&mut guest);
        serve(&mut guest);
        assert_eq!(calls(&backend), before, "not yet");
        serve(&mut guest);
        guest.hears_a_call("for the third");
        assert_eq!(calls(&backend), before + 1);
    }
    backend.shutdown();
}

#[test]
fn a_packed_rings_base_has_both_places_and_goes_on_elsewhere() {
    let (dir, path) = image(MIB);
    let socket = dir.path().join("s");
    let backend = Backend::listen(Disk::File(path), &socket);
    let (mut guest, mut connection) = started(&socket, PACKED);
    for round in 0..20_u32 {
        for first in [0, 3, 6, 9] {
            guest.put(Guest::data(first), &[round as u8; 16_384]);
            guest.request(first, 1, u64::from(first) * 32, (16_384, 0));
        }
        guest.kick();
        let base = connection.frontend.get_vring_base(0).unwrap();
        assert_eq!(base as u16, (base >> 16) as u16, "all was given back");
        let given = guest.used().len();
        if round % 2 == 0 {
            drop(connection);
            connection = Connection::open(&socket, PACKED);
            connection.share(&guest);
        }
        connection.start(&guest, base);
        guest.kick();
        guest.wait(4 - given);
    }
    let base = connection.frontend.get_vring_base(0).unwrap();
    assert_eq!(base as u16, guest.next_place());
    backend.shutdown();
}

/// What a guest does to its ring.
type Harm = fn(&mut Guest);

const WHOLE: Desc = Desc {
    addr: GUEST + DATA_AT,
    len: 512,
    flags: 0,
    next: 0,
};

/// Places one descriptor.
fn place(guest: &mut Guest, desc: Desc) {
    guest.place(guest.next_place(), desc);
}

#[test]
fn packed_rings_that_lie_are_left_alone_and_the_device_serves_on() {
    let harms: [(&str, Harm); 8] = [
        ("a chain without an end", |guest| {
            let endless = Desc {
                flags: NEXT,
                ..WHOLE
            };
            (0..SIZE)
                .rev()
                .for_each(|at| guest.place(at | 1 << 15, endless));
        }),
        ("a range past the memory", |guest| {
            let addr = GUEST + RAM - 8;
            place(guest, Desc { addr, ..WHOLE });
        }),
        ("a range that wraps around", |guest| {
            let addr = u64::MAX - 8;
            place(guest, Desc { addr, ..WHOLE });
        }),
        ("what is read behind what is written", |guest| {
            guest.chain(0, &[(0x4000, 16, 0), (0x5000, 1, WRITE), (0x6000, 512, 0)]);
            guest.offer(0);
        }),
        ("a table of half a descriptor", |guest| {
            let (len, flags) = (24, TABLE);
            place(
                guest,
                Desc {
                    len,
                    flags,
                    ..WHOLE
                },
            );
        }),
        ("a table with a next", |guest| {
            let (len, flags) = (16, TABLE | NEXT);
            place(
                guest,
                Desc {
                    len,
                    flags,
                    ..WHOLE
                },
            );
        }),
        ("a table behind a descriptor", |guest| {
            guest.chain(0, &[(0x4000, 16, 0), (DATA_AT, 16, TABLE)]);
            guest.offer(0);
        }),
        ("a table in a table", |guest| {
            guest.put(DATA_AT + 14, &TABLE.to_le_bytes());
            let (len, flags) = (16, TABLE);
            place(
                guest,
                Desc {
                    len,
                    flags,
                    ..WHOLE
                },
            );
        }),
    ];
    let (_dir, socket, backend) = null();
    for (number, (what, harm)) in harms.into_iter().enumerate() {
        let (mut guest, connection) = started(&socket, EVENT_IDX | INDIRECT | PACKED);
        harm(&mut guest);
        guest.kick();
        backend.wait_for(what, |stats| stats.faults == number as u64 + 1);
        until(what, || guest.error.read().is_ok());
        connection.frontend.get_vring_base(0).unwrap();
        drop(connection);
    }
    serves(&socket);
    backend.shutdown();
}

#[test]
fn places_that_are_in_progress_cannot_be_offered_again() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let backend = Backend::listen(Disk::Trial(MIB, Patience::Gate), &socket);
    let (mut guest, connection) = started(&socket, PACKED);
    guest.request(0, 1, 0, (512, 0));
    guest.kick();
    backend.wait_for("it is taken", |stats| stats.requests == 1);
    // All places behind it and, in the next round, two of its own.
    let chained = Desc {
        flags: NEXT,
        ..WHOLE
    };
    guest.place(1, WHOLE);
    guest.place(0, chained);
    let behind = (3..SIZE).rev();
    behind.for_each(|at| guest.place(at | 1 << 15, chained));
    guest.kick();
    backend.wait_for("more than there is", |stats| stats.faults == 1);
    backend.trial(Trial::open_gate);
    connection.frontend.get_vring_base(0).unwrap();
    drop(connection);
    serves(&socket);
    backend.shutdown();
}
