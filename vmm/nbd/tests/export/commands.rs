//! Every command, as it should be and refused.

use nbd_wire::command_flag::{FAST_ZERO, FUA, NO_HOLE, REQ_ONE};
use nbd_wire::{Command, NbdError, Request};

use crate::raw::{Client, request};
use crate::support::{Backend, DISK, Disk, MIB, Setup, pattern};

fn clients(backend: &Backend) -> [Client; 2] {
    let contexts = ["base:allocation"];
    let structured = Client::structured(backend.socket(), "disk", &contexts);
    [Client::simple(backend.socket(), "disk"), structured]
}

fn with(flags: u16, request: Request) -> Request {
    Request { flags, ..request }
}

#[test]
fn what_was_written_is_read_and_what_was_zeroed_reads_as_zeros() {
    let backend = Backend::plain();
    for (seed, mut client) in clients(&backend).into_iter().enumerate() {
        let mut model = pattern(2 << 20, seed as u32);
        client.write(0, &model);
        let part = pattern(70_144, 9);
        client.write(60_928, &part);
        model[60_928..131_072].copy_from_slice(&part);
        for (command, flags, offset, len) in [
            (Command::Trim, 0, 8192, 4096),
            (Command::Trim, FUA, 16_384, 8192),
            (Command::WriteZeroes, 0, 1 << 20, 65_536),
            (Command::WriteZeroes, NO_HOLE, 512, 512),
            (Command::WriteZeroes, FUA | FAST_ZERO, 1_200_128, 12_800),
        ] {
            let asked = with(flags, request(command, offset, len));
            assert_eq!(client.call(asked, &[]).error, None, "{asked:?}");
            model[offset as usize..][..len as usize].fill(0);
        }
        assert!(client.read(0, model.len()) == model);
        for (offset, len) in [(0, 512), (60_416, 1024), (1 << 20, 1 << 20)] {
            let read = client.read(offset as u64, len);
            assert!(read == model[offset..offset + len], "{len} at {offset}");
        }
    }
    backend.stop();
}

#[test]
fn flushes_and_durable_changes_reach_the_device() {
    let backend = Backend::plain();
    let mut client = Client::simple(backend.socket(), "disk");
    let mut flushes = 0;
    for (command, flags, len, durable) in [
        (Command::Write, 0, 512, false),
        (Command::Write, FUA, 512, true),
        (Command::Trim, FUA, 4096, true),
        (Command::WriteZeroes, FUA, 4096, true),
        (Command::Flush, 0, 0, true),
    ] {
        let data = if command == Command::Write {
            vec![1; 512]
        } else {
            vec![]
        };
        let answer = client.call(with(flags, request(command, 0, len)), &data);
        assert_eq!(answer.error, None, "{command:?}");
        flushes += u64::from(durable);
        assert_eq!(backend.flushes(), flushes, "{command:?}");
    }
    backend.stop();
}

#[test]
fn the_largest_transfers_come_whole() {
    let backend = Backend::plain();
    let model = pattern(32 << 20, 5);
    let [mut simple, mut structured] = clients(&backend);
    simple.write(4096, &model);
    assert!(simple.read(4096, model.len()) == model);
    assert!(structured.read(4096, model.len()) == model);
    // On all connections together.
    let writer = std::thread::spawn(move || structured.write(0, &pattern(32 << 20, 6)));
    assert_eq!(simple.read(40 << 20, 16 << 20), vec![0; 16 << 20]);
    writer.join().unwrap();
    assert!(simple.read(0, 32 << 20) == pattern(32 << 20, 6));
    backend.stop();
}

#[test]
fn what_cannot_be_done_is_refused_by_number_and_the_next_is_done() {
    let backend = Backend::plain();
    for mut client in clients(&backend) {
        let end = 64 * MIB;
        for (command, flags, offset, len, error) in [
            (Command::Read, 0, end, 512, NbdError::INVALID),
            (Command::Read, 0, u64::MAX - 511, 512, NbdError::INVALID),
            (Command::Read, 0, 1, 512, NbdError::INVALID),
            (Command::Read, 0, 0, (32 << 20) + 512, NbdError::INVALID),
            (Command::Read, NO_HOLE, 0, 512, NbdError::INVALID),
            (Command::Write, 0, end, 512, NbdError::NO_SPACE),
            (Command::Write, 0, 0, 513, NbdError::INVALID),
            (Command::WriteZeroes, 0, end - 512, 1024, NbdError::NO_SPACE),
            (Command::Trim, 0, end - 512, 1024, NbdError::INVALID),
            (Command::Trim, FAST_ZERO, 0, 512, NbdError::INVALID),
            (Command::Flush, 0, 0, 512, NbdError::INVALID),
            (Command::Cache, 0, 0, 512, NbdError::INVALID),
            (Command::BlockStatus, 0, 0, 0, NbdError::INVALID),
            (Command::BlockStatus, 0, end, 512, NbdError::INVALID),
            (Command::Unknown(8), 0, 0, 512, NbdError::INVALID),
        ] {
            let data = match command {
                Command::Write => vec![1; len as usize],
                _ => vec![],
            };
            let asked = with(flags, request(command, offset, len));
            assert_eq!(client.refused(asked, &data), error, "{asked:?}");
        }
        client.write(0, &[3; 512]);
        assert_eq!(client.read(0, 1024), [[3; 512], [0; 512]].concat());
        for (command, len) in [
            (Command::Read, 0),
            (Command::Write, 0),
            (Command::Trim, 0),
            (Command::WriteZeroes, 0),
        ] {
            let answer = client.call(request(command, 0, len), &[]);
            assert_eq!((answer.error, answer.data.len()), (None, 0));
        }
    }
    backend.stop();
}

#[test]
fn errors_of_the_device_are_told_by_their_numbers() {
    let backend = Backend::plain();
    for mut client in clients(&backend) {
        for (number, error) in [
            (1, NbdError::NO_SPACE),
            (2, NbdError::SHUTDOWN),
            (3, NbdError::UNSUPPORTED),
            (4, NbdError::IO),
        ] {
            client.write(0, &[[0xEE, number]; 256].concat());
            let refused = client.refused(request(Command::Read, 0, 512), &[]);
            assert_eq!(refused, error);
        }
    }
    assert_eq!(backend.stats().errors, 8);
    backend.stop();
}

#[test]
fn nothing_changes_what_is_read_only() {
    let backend = Backend::start(Setup {
        disks: vec![Disk {
            read_only: true,
            ..DISK
        }],
        ..Setup::default()
    });
    for mut client in clients(&backend) {
        for command in [Command::Write, Command::WriteZeroes, Command::Trim] {
            let data = match command {
                Command::Write => vec![1; 4096],
                _ => vec![],
            };
            let refused = client.refused(request(command, 0, 4096), &data);
            assert_eq!(refused, NbdError::PERMISSION, "{command:?}");
        }
        assert_eq!(client.call(request(Command::Flush, 0, 0), &[]).error, None);
        assert_eq!(client.read(0, 4096), [0; 4096]);
    }
    backend.stop();
}

#[test]
fn extents_say_what_is_allocated_and_what_has_changed() {
    let backend = Backend::plain();
    let contexts = ["base:allocation", "ultracloud:changed-since:monday"];
    let mut client = Client::structured(backend.socket(), "disk", &contexts);
    client.write(4096, &[1; 8192]);
    client.call(request(Command::WriteZeroes, 4096, 4096), &[]);
    let answer = client.call(request(Command::BlockStatus, 0, 1 << 20), &[]);
    let rest = (1 << 20) - 12_288;
    let allocated = vec![(8192, 3), (4096, 0), (rest, 3)];
    let changed = vec![(4096, 0), (8192, 1), (rest, 0)];
    assert_eq!(answer.status, [(0, allocated), (1, changed)]);
    let one = with(REQ_ONE, request(Command::BlockStatus, 512, 1 << 20));
    let answer = client.call(one, &[]);
    assert_eq!(answer.status, [(0, vec![(7680, 3)]), (1, vec![(3584, 0)])]);
    // More extents than an answer has: what it has is right.
    for block in 0..1100 {
        client.write(8192 * block, &[2; 512]);
    }
    let answer = client.call(request(Command::BlockStatus, 0, 16 << 20), &[]);
    let (_, allocated) = &answer.status[0];
    assert_eq!(allocated.len(), 1024);
    assert!(allocated.iter().all(|(len, _)| *len == 4096));
    backend.stop();
}

#[test]
fn answers_come_when_they_are_ready() {
    let backend = Backend::plain();
    let mut client = Client::simple(backend.socket(), "disk");
    let shut = |shut| {
        backend.on_shard(async move |running| {
            if shut {
                running.devices[0].shut.set(true);
            } else {
                running.devices[0].open_gate();
            }
        });
    };
    shut(true);
    let flush = client.begin(request(Command::Flush, 0, 0), &[]);
    let write = client.begin(request(Command::Write, 0, 512), &[1; 512]);
    assert_eq!(client.answer(0, 0).cookie, write);
    let read = client.begin(request(Command::Read, 0, 512), &[]);
    let answer = client.answer(0, 512);
    assert_eq!((answer.cookie, answer.data), (read, vec![1; 512]));
    shut(false);
    assert_eq!(client.answer(0, 0).cookie, flush);
    backend.stop();
}

#[test]
fn an_export_that_is_removed_waits_for_what_is_in_progress() {
    let backend = Backend::plain();
    let mut client = Client::simple(backend.socket(), "disk");
    backend.on_shard(async |running| running.devices[0].shut.set(true));
    let flush = client.begin(request(Command::Flush, 0, 0), &[]);
    backend.wait_for("the flush", |stats| stats.requests == 1);
    let early = backend.on_shard(async |running| {
        let removal = running.server.remove("disk");
        let limit = std::time::Duration::from_millis(20);
        engine::timeout(limit, removal).await
    });
    assert_eq!(early, None, "a flush is in progress");
    let mut late = Client::connect(backend.socket());
    let listed = late.ask(&nbd_wire::ClientOption::List);
    assert_eq!(listed, [nbd_wire::OptionReply::Ack]);
    let holders = backend.on_shard(async |running| {
        running.devices[0].open_gate();
        assert!(running.server.remove("disk").await);
        assert!(!running.server.remove("disk").await);
        std::rc::Rc::strong_count(&running.devices[0])
    });
    assert_eq!(holders, 1, "nobody else has the device any more");
    assert_eq!(client.answer(0, 0).cookie, flush);
    assert!(client.is_ended());
    backend.stop();
}

#[test]
fn what_was_done_is_counted() {
    let backend = Backend::plain();
    let mut client = Client::simple(backend.socket(), "disk");
    client.write(0, &[1; 8192]);
    client.read(0, 4096);
    client.refused(request(Command::Read, 1, 1), &[]);
    client.begin(request(Command::Disconnect, 0, 0), &[]);
    assert!(client.is_ended());
    let stats = backend.stats();
    let counted = [
        stats.connections,
        stats.requests,
        stats.errors,
        stats.read_bytes,
        stats.written_bytes,
        stats.refusals,
    ];
    // The server and the export count the connection, each on its own.
    assert_eq!(counted, [2, 3, 1, 4096, 8192, 0]);
    backend.stop();
}
