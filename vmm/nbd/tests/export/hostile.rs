//! Clients that mean harm, or do not know better: each of them ends its own connection, and nothing else.

use std::io::Write;
use std::time::Duration;

use nbd_export::Limits;
use nbd_wire::{ClientOption, Command, OPTION_MAGIC, Request};

use crate::raw::{Client, request};
use crate::support::{Backend, Setup};

fn strict() -> Backend {
    Backend::start(Setup {
        limits: Limits {
            connections_max: 8,
            handshake_max: Duration::from_millis(200),
            stall_max: Duration::from_millis(200),
            ..Limits::default()
        },
        ..Setup::default()
    })
}

/// A client that behaves is served.
fn is_well(backend: &Backend) {
    let mut client = Client::structured(backend.socket(), "disk", &[]);
    client.write(0, &[9; 4096]);
    assert_eq!(client.read(0, 4096), [9; 4096]);
}

/// Whether bytes in place of options end the connection.
fn ends_before_it_begins(bytes: &[u8]) {
    let backend = Backend::plain();
    let mut client = Client::greet(backend.socket());
    // The server may be gone before the end.
    let _ = client.stream.write_all(bytes);
    assert!(client.is_ended());
    backend.wait_for("a refusal", |stats| stats.refusals == 1);
    is_well(&backend);
    backend.stop();
}

#[test]
fn a_greeting_with_unknown_flags_is_the_end() {
    ends_before_it_begins(&[0xFF; 4]);
}

#[test]
fn something_else_than_an_option_is_the_end() {
    ends_before_it_begins(b"\0\0\0\x03GET / HTTP/1.1\r\n\r\n");
}

#[test]
fn an_option_without_an_end_is_the_end() {
    let mut bytes = 3_u32.to_be_bytes().to_vec();
    bytes.extend(OPTION_MAGIC.to_be_bytes());
    bytes.extend(7_u32.to_be_bytes());
    bytes.extend(u32::MAX.to_be_bytes());
    ends_before_it_begins(&bytes);
}

#[test]
fn options_that_never_end_are_the_end() {
    let mut bytes = 3_u32.to_be_bytes().to_vec();
    for _ in 0..1000 {
        bytes.extend(ClientOption::List.encode());
    }
    ends_before_it_begins(&bytes);
}

#[test]
fn a_request_without_its_magic_is_the_end() {
    let backend = Backend::plain();
    let mut client = Client::simple(backend.socket(), "disk");
    client.send(&[0; 28]);
    assert!(client.is_ended());
    backend.wait_for("a refusal", |stats| stats.refusals == 1);
    is_well(&backend);
    backend.stop();
}

#[test]
fn a_write_that_is_far_too_long_is_the_end() {
    let backend = Backend::plain();
    let mut client = Client::simple(backend.socket(), "disk");
    client.begin(request(Command::Write, 0, u32::MAX), &[]);
    assert!(client.is_ended());
    backend.wait_for("a refusal", |stats| stats.refusals == 1);
    is_well(&backend);
    backend.stop();
}

#[test]
fn who_stops_in_the_middle_is_not_waited_for() {
    let backend = strict();
    let mut refusals = 0;
    let mut refused = || {
        refusals += 1;
        backend.wait_for("a refusal", |stats| stats.refusals == refusals);
    };
    let silent = Client::greet(backend.socket());
    refused();
    let mut client = Client::simple(backend.socket(), "disk");
    client.send(&[0x25; 1]);
    refused();
    let mut writer = Client::simple(backend.socket(), "disk");
    writer.begin(request(Command::Write, 0, 4 << 20), &vec![1; 1 << 20]);
    refused();
    for mut client in [silent, client, writer] {
        assert!(client.is_ended());
    }
    is_well(&backend);
    backend.stop();
}

#[test]
fn who_does_not_read_what_it_asked_for_is_not_waited_for() {
    let backend = strict();
    let mut client = Client::simple(backend.socket(), "disk");
    let mut requests = Vec::new();
    for cookie in 0..64 {
        let read = Request {
            cookie,
            ..request(Command::Read, 0, 1 << 20)
        };
        requests.extend(read.encode());
    }
    client.send(&requests);
    backend.wait_for("a refusal", |stats| stats.refusals == 1);
    is_well(&backend);
    backend.stop();
}

#[test]
fn there_are_so_many_clients_and_no_more() {
    let backend = strict();
    let mut clients: Vec<Client> = (0..8)
        .map(|_| Client::simple(backend.socket(), "disk"))
        .collect();
    let stream = std::os::unix::net::UnixStream::connect(backend.socket()).unwrap();
    backend.wait_for("one too many", |stats| stats.turned_away == 1);
    drop(stream);
    for client in &mut clients {
        assert_eq!(client.read(0, 512), [0; 512]);
    }
    clients.pop();
    // There is room again as soon as the server has seen it.
    let mut tries = 0;
    loop {
        let stream = std::os::unix::net::UnixStream::connect(backend.socket()).unwrap();
        let mut first = [0; 1];
        if std::io::Read::read(&mut &stream, &mut first).unwrap_or(0) == 1 {
            break;
        }
        tries += 1;
        assert!(tries < 10_000, "the place of one that is gone");
    }
    drop(clients);
    backend.stop();
}

#[test]
fn clients_that_vanish_leave_nothing_behind() {
    let backend = Backend::plain();
    for cut in [0, 1, 4, 20, 40, 60] {
        let mut client = Client::greet(backend.socket());
        let go = ClientOption::Go {
            export: "disk".into(),
            wanted: vec![],
        };
        let mut bytes = 3_u32.to_be_bytes().to_vec();
        bytes.extend(go.encode());
        bytes.extend(request(Command::Write, 0, 1 << 20).encode());
        bytes.truncate(cut);
        client.send(&bytes);
    }
    let mut client = Client::simple(backend.socket(), "disk");
    for _ in 0..20 {
        client.begin(request(Command::Read, 0, 1 << 20), &[]);
    }
    drop(client);
    is_well(&backend);
    backend.stop();
}
