//! Structured reads: holes, one chunk, errors in the middle.

use nbd_wire::command_flag::DF;
use nbd_wire::{Command, NbdError, Request};

use crate::raw::{Client, request};
use crate::support::Backend;

#[test]
fn holes_are_sent_as_such() {
    let backend = Backend::plain();
    let mut client = Client::structured(backend.socket(), "disk", &[]);
    client.write(1 << 20, &[5; 4096]);
    let answer = client.call(request(Command::Read, 0, 4 << 20), &[]);
    let mut model = vec![0; 4 << 20];
    model[1 << 20..][..4096].fill(5);
    assert!(answer.data == model);
    assert_eq!(answer.holes, (4 << 20) - 4096);
    assert_eq!(backend.stats().read_bytes, 4096);
    backend.stop();
}

#[test]
fn a_read_that_must_not_be_cut_comes_in_one_chunk_or_not_at_all() {
    let backend = Backend::plain();
    let mut client = Client::structured(backend.socket(), "disk", &[]);
    client.write(1 << 20, &[5; 4096]);
    let whole = |len| Request {
        flags: DF,
        ..request(Command::Read, 1 << 20, len)
    };
    let answer = client.call(whole(1 << 20), &[]);
    assert_eq!((answer.holes, answer.data.len()), (0, 1 << 20));
    assert_eq!(client.refused(whole(2 << 20), &[]), NbdError::OVERFLOW);
    backend.stop();
}

#[test]
fn a_simple_read_that_fails_in_the_middle_ends_the_connection() {
    let backend = Backend::plain();
    let mut writer = Client::simple(backend.socket(), "disk");
    writer.write(2 << 20, &[0xEE; 4096]);
    let mut structured = Client::structured(backend.socket(), "disk", &[]);
    let far = request(Command::Read, 1 << 20, 2 << 20);
    assert_eq!(structured.refused(far, &[]), NbdError::IO);
    let mut simple = Client::simple(backend.socket(), "disk");
    simple.begin(far, &[]);
    assert!(simple.is_ended());
    assert_eq!(writer.read(0, 512), [0; 512]);
    backend.stop();
}
