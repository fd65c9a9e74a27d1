//! Guests and front ends that lie: the ring or the request fails, and the next front end is served.

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo};

use crate::driver::{
    Connection, DATA_AT, Desc, EVENT_IDX, GUEST, Guest, INDIRECT, NEXT, RAM, SIZE, TABLE, WRITE,
    memfd, region, ring_at, started,
};
use crate::support::{Backend, Disk, image, until};
use crate::trial::{Patience, Trial};

const MIB: u64 = 1 << 20;

fn null() -> (tempfile::TempDir, PathBuf, Backend) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let backend = Backend::listen(Disk::Null(MIB), &socket);
    (dir, socket, backend)
}

/// The device serves a guest that behaves.
fn serves(socket: &Path) {
    let (mut guest, _connection) = started(socket, EVENT_IDX | INDIRECT);
    guest.request(0, 0, 0, (4096, WRITE));
    guest.kick();
    assert_eq!(guest.wait(1), [(0, 4097)]);
    assert_eq!(guest.status(0), 0);
}

/// What a guest does to its ring.
type Harm = fn(&mut Guest);

const WHOLE: Desc = Desc {
    addr: GUEST + DATA_AT,
    len: 512,
    flags: 0,
    next: 0,
};

#[test]
fn rings_that_lie_are_left_alone_and_the_device_serves_on() {
    let harms: [(&str, Harm); 13] = [
        ("a chain that is a circle", |guest| {
            let next = |next| Desc {
                flags: NEXT,
                next,
                ..WHOLE
            };
            guest.describe(0, 0, next(1));
            guest.describe(0, 1, next(0));
            guest.offer(0);
        }),
        ("a descriptor that follows itself", |guest| {
            guest.describe(
                0,
                0,
                Desc {
                    flags: NEXT,
                    ..WHOLE
                },
            );
            guest.offer(0);
        }),
        ("a head past the table", |guest| guest.offer(SIZE)),
        ("the last number there is", |guest| guest.offer(u16::MAX)),
        ("a next past the table", |guest| {
            guest.describe(
                0,
                0,
                Desc {
                    flags: NEXT,
                    next: SIZE,
                    ..WHOLE
                },
            );
            guest.offer(0);
        }),
        ("more offered than fits", |guest| guest.run_ahead(SIZE + 1)),
        ("a range past the memory", |guest| {
            guest.describe(
                0,
                0,
                Desc {
                    addr: GUEST + RAM - 8,
                    len: 16,
                    ..WHOLE
                },
            );
            guest.offer(0);
        }),
        ("a range that wraps around", |guest| {
            guest.describe(
                0,
                0,
                Desc {
                    addr: u64::MAX - 8,
                    len: u32::MAX,
                    ..WHOLE
                },
            );
            guest.offer(0);
        }),
        ("what is read behind what is written", |guest| {
            guest.chain(0, &[(0x4000, 16, 0), (0x5000, 1, WRITE), (0x6000, 512, 0)]);
            guest.offer(0);
        }),
        ("a table of half a descriptor", |guest| {
            guest.describe(
                0,
                0,
                Desc {
                    len: 24,
                    flags: TABLE,
                    ..WHOLE
                },
            );
            guest.offer(0);
        }),
        ("a table with a next", |guest| {
            let desc = Desc {
                len: 16,
                flags: TABLE | NEXT,
                next: 1,
                ..WHOLE
            };
            guest.describe(0, 0, desc);
            guest.offer(0);
        }),
        ("a table in a table", |guest| {
            guest.describe(
                DATA_AT,
                0,
                Desc {
                    len: 16,
                    flags: TABLE,
                    ..WHOLE
                },
            );
            guest.describe(
                0,
                0,
                Desc {
                    len: 16,
                    flags: TABLE,
                    ..WHOLE
                },
            );
            guest.offer(0);
        }),
        ("one descriptor named a thousand times", |guest| {
            for index in 0..1024 {
                let desc = Desc {
                    len: 1 << 20,
                    flags: WRITE | NEXT,
                    next: index + 1,
                    ..WHOLE
                };
                guest.describe(DATA_AT, index, desc);
            }
            guest.describe(
                0,
                0,
                Desc {
                    len: 16 << 10,
                    flags: TABLE,
                    ..WHOLE
                },
            );
            guest.offer(0);
        }),
    ];
    let (_dir, socket, backend) = null();
    for (number, (what, harm)) in harms.into_iter().enumerate() {
        let (mut guest, connection) = started(&socket, EVENT_IDX | INDIRECT);
        harm(&mut guest);
        guest.kick();
        backend.wait_for(what, |stats| stats.faults == number as u64 + 1);
        until(what, || guest.error.read().is_ok());
        // It is looked at no more, until its base is set again.
        guest.request(4, 0, 0, (512, WRITE));
        guest.kick();
        connection.frontend.get_vring_base(0).unwrap();
        assert_eq!(guest.used(), [], "{what}");
        drop(connection);
    }
    serves(&socket);
    backend.shutdown();
}

#[test]
fn requests_that_are_none_fail_and_the_ring_works_on() {
    let (_dir, socket, backend) = null();
    let (mut guest, _connection) = started(&socket, INDIRECT);
    let frames: [&[(u64, u32, u16)]; 4] = [
        // No head, half a head, no place for the status, nothing at all.
        &[(0x6000, 1, WRITE)],
        &[(0x4000, 15, 0), (0x6000, 1, WRITE)],
        &[(0x4000, 16, 0)],
        &[(0x4000, 0, 0)],
    ];
    for parts in frames {
        guest.chain(0, parts);
        guest.offer(0);
        guest.kick();
        assert_eq!(guest.wait(1), [(0, 0)]);
    }
    // Kinds that are unknown, positions that wrap or are past the end, sizes that are no sectors.
    for (code, sector, len, status) in [
        (2, 0, 512, 2),
        (99, 0, 512, 2),
        (0, u64::MAX, 512, 1),
        (0, u64::MAX / 512, 512, 1),
        (0, MIB / 512, 512, 1),
        (0, 0, 511, 1),
    ] {
        guest.request(0, code, sector, (len, if code == 0 { WRITE } else { 0 }));
        guest.kick();
        assert_eq!(guest.wait(1).len(), 1);
        assert_eq!(guest.status(0), status, "{code} {sector} {len}");
    }
    // Segments: too many, half a one, past the end, with flags that nobody knows.
    let segment = |sector: u64, sectors: u32, flags: u32| {
        let mut bytes = sector.to_le_bytes().to_vec();
        bytes.extend(sectors.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes
    };
    for (code, bytes, status) in [
        (11, segment(0, 8, 0), 0),
        (11, segment(0, 8, 1), 2),
        (13, segment(0, 8, 1), 0),
        (13, segment(0, 8, 2), 2),
        (13, segment(u64::MAX / 512, 8, 0), 1),
        (13, segment(u64::MAX, 8, 0), 1),
        (11, segment(0, u32::MAX, 0), 1),
        (11, vec![0; 15], 1),
        (11, vec![0; 16 * 65], 1),
    ] {
        guest.put(Guest::data(0), &bytes);
        guest.request(0, code, 0, (bytes.len() as u32, 0));
        guest.kick();
        assert_eq!(guest.wait(1).len(), 1);
        assert_eq!(guest.status(0), status, "{code} {bytes:?}");
    }
    assert_eq!(backend.stats().faults, 0);
    backend.shutdown();
}

#[test]
fn memory_that_is_cut_short_ends_the_ring_and_nothing_else() {
    let (dir, path) = image(MIB);
    let socket = dir.path().join("s");
    let backend = Backend::listen(Disk::File(path), &socket);
    // First the data's memory goes, then the ring's.
    let (mut guest, connection) = started(&socket, 0);
    guest.ram.set_len(DATA_AT).unwrap();
    guest.request(0, 1, 0, (4096, 0));
    guest.kick();
    assert_eq!(guest.wait(1), [(0, 1)]);
    assert_eq!(guest.status(0), 1);
    guest.ram.set_len(0).unwrap();
    guest.kick();
    backend.wait_for("the ring is left alone", |stats| stats.faults == 1);
    drop(connection);
    serves(&socket);
    backend.shutdown();
}

#[test]
fn memory_may_go_and_come_while_requests_are_in_progress() {
    let (dir, path) = image(MIB);
    let socket = dir.path().join("s");
    let backend = Backend::listen(Disk::File(path), &socket);
    let (mut guest, mut connection) = started(&socket, 0);
    for round in 0..50 {
        guest.request(0, 1, 0, (65_536, 0));
        guest.request(3, 0, 128, (65_536, WRITE));
        guest.kick();
        if round % 2 == 0 {
            connection.share(&guest);
        } else {
            let slot = region(&guest);
            connection.frontend.remove_mem_region(&slot).unwrap();
            connection.frontend.add_mem_region(&slot).unwrap();
        }
        // A ring that lost its memory is started again by its place.
        connection.frontend.set_vring_addr(0, &ring_at(0)).unwrap();
        assert_eq!(guest.wait(2).len(), 2);
        assert_eq!((guest.status(0), guest.status(3)), (0, 0));
    }
    assert_eq!(backend.stats().faults, 0);
    backend.shutdown();
}

#[test]
fn a_ring_has_no_more_bytes_in_progress_than_are_worth_waiting_for() {
    const HEADS: [u16; 5] = [0, 3, 6, 9, 12];
    const LEN: u32 = 3 << 20;
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let backend = Backend::listen(Disk::Trial(u64::from(LEN), Patience::Gate), &socket);
    let (mut guest, connection) = started(&socket, 0);
    // The data of all of them is in one place.
    let head = 0x4000;
    guest.put(head, &1_u128.to_le_bytes());
    for first in HEADS {
        let status = head + 64 + u64::from(first);
        guest.chain(
            first,
            &[(head, 16, 0), (DATA_AT, LEN, 0), (status, 1, WRITE)],
        );
        guest.offer(first);
    }
    guest.kick();
    backend.wait_for("more than eight megabytes", |stats| stats.requests == 3);
    let kicks = backend.stats().kicks;
    guest.kick();
    backend.wait_for("another look at the ring", |stats| stats.kicks > kicks);
    assert_eq!(backend.stats().requests, 3);
    backend.trial(Trial::open_gate);
    assert_eq!(guest.wait(HEADS.len()).len(), HEADS.len());
    assert_eq!(connection.frontend.get_vring_base(0).unwrap(), 5);
    // That the device was busy at first is not the guest's to see.
    assert_eq!(backend.stats().errors, 0);
    backend.shutdown();
}

/// Asks for something; whether it was refused.
type Question<'a> = &'a dyn Fn(&mut Connection, &Guest) -> bool;

#[test]
fn messages_that_ask_for_what_cannot_be_are_refused() {
    let (_dir, socket, backend) = null();
    let regular = tempfile::tempfile().unwrap();
    regular.set_len(RAM).unwrap();
    let refused: [(&str, Question<'_>); 14] = [
        ("a queue that is not there", &|c, _| {
            c.frontend.set_vring_num(5, SIZE).is_err()
        }),
        ("a ring of no entries", &|c, _| {
            c.frontend.set_vring_num(0, 0).is_err()
        }),
        ("a ring past the largest", &|c, _| {
            c.frontend.set_vring_num(0, 2048).is_err()
        }),
        ("features that were not offered", &|c, _| {
            c.frontend.set_features(1 << 50).is_err()
        }),
        ("memory past the file", &|c, guest| {
            let mut past = region(guest);
            past.memory_size += 1;
            c.frontend.set_mem_table(&[past]).is_err()
        }),
        ("memory twice", &|c, guest| {
            let (one, two) = (region(guest), region(guest));
            c.frontend.set_mem_table(&[one, two]).is_err()
        }),
        ("memory on a disk", &|c, guest| {
            let mut disk = region(guest);
            disk.mmap_handle = regular.as_raw_fd();
            c.frontend.set_mem_table(&[disk]).is_err()
        }),
        ("memory that was not there", &|c, guest| {
            c.frontend.remove_mem_region(&region(guest)).is_err()
        }),
        ("more memory than a guest may have", &|c, guest| {
            c.share(guest);
            let huge = memfd(4 << 40);
            let more = VhostUserMemoryRegionInfo {
                guest_phys_addr: GUEST + RAM,
                memory_size: 4 << 40,
                mmap_handle: huge.as_raw_fd(),
                ..region(guest)
            };
            c.frontend.add_mem_region(&more).is_err()
        }),
        ("a log of more than a gigabyte", &|c, _| {
            let log = memfd(2 << 30);
            let region = VhostUserDirtyLogRegion {
                mmap_size: 2 << 30,
                mmap_offset: 0,
                mmap_handle: log.as_raw_fd(),
            };
            c.frontend.set_log_base(0, Some(region)).is_err()
        }),
        ("a ring outside of the memory", &|c, guest| {
            c.share(guest);
            c.start(guest, 0);
            c.frontend.set_vring_addr(0, &ring_at(RAM)).is_err()
        }),
        ("marks that are too short", &|c, _| {
            let (mut marks, file) = c.marks();
            marks.mmap_size -= 1;
            c.frontend
                .set_inflight_fd(&marks, file.as_raw_fd())
                .is_err()
        }),
        ("marks of something else", &|c, guest| {
            let (marks, _) = c.marks();
            let other = memfd(marks.mmap_size);
            std::os::unix::fs::FileExt::write_all_at(&other, &[7; 64], 0).unwrap();
            c.frontend
                .set_inflight_fd(&marks, other.as_raw_fd())
                .unwrap();
            c.share(guest);
            c.frontend.set_vring_num(0, SIZE).unwrap();
            c.frontend.set_vring_addr(0, &ring_at(0)).unwrap();
            c.frontend.set_vring_kick(0, &guest.kick).unwrap();
            c.frontend.set_vring_enable(0, true).is_err()
        }),
        ("a change of the capacity", &|c, _| {
            let flags = vhost::vhost_user::message::VhostUserConfigFlags::WRITABLE;
            c.frontend.set_config(0, flags, &[1; 8]).is_err()
        }),
    ];
    for (what, ask) in refused {
        let mut connection = Connection::open(&socket, 0);
        assert!(ask(&mut connection, &Guest::new()), "{what}");
    }
    serves(&socket);
    backend.shutdown();
}

#[test]
fn marks_in_a_file_of_a_petabyte_take_the_room_of_marks() {
    let (_dir, socket, backend) = null();
    let mut connection = Connection::open(&socket, 0);
    let (mut marks, _) = connection.marks();
    marks.mmap_size = 1 << 50;
    let file = memfd(marks.mmap_size);
    let set = connection
        .frontend
        .set_inflight_fd(&marks, file.as_raw_fd());
    set.unwrap();
    drop(connection);
    serves(&socket);
    backend.shutdown();
}
