//! Fuzz targets over this crate's decoders: replicated commands, and snapshots of other members.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

use bytes::{Buf as _, Bytes};
use prost::Message as _;
use redb::backends::InMemoryBackend;

use crate::error::Error;
use crate::snapshot::{Snapshot, fuzzing::put_right};
use crate::store::{Options, Store};
use crate::{AppliedMeta, Command, Durable};

/// Commands of one input.
const COMMANDS_MAX: u64 = 16;
const CHUNK_BYTES: usize = 4096;

/// A store of one input. It is used again for the next one, in which a snapshot of an empty store takes
/// the place of all that it holds: that is faster than another store.
struct Scratch(Option<Store>);

thread_local! {
    static STORES: RefCell<Vec<Store>> = const { RefCell::new(Vec::new()) };
    static EMPTY: Vec<Bytes> = chunks(&new_store());
}

fn new_store() -> Store {
    let options = Options {
        cache_bytes: 1 << 20,
        ..Options::default()
    };
    Store::open(InMemoryBackend::new(), options).expect("memory is a store")
}

impl Scratch {
    /// A store with whatever the last input left.
    fn used() -> Scratch {
        let store = STORES.with_borrow_mut(Vec::pop);
        Scratch(Some(store.unwrap_or_else(new_store)))
    }

    /// An empty store.
    fn empty() -> Scratch {
        let mut scratch = Scratch::used();
        let emptied = EMPTY.with(|empty| restore(&mut scratch, empty));
        emptied.expect("an empty store is a store");
        scratch
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let store = self.0.take().filter(|store| store.check_alive().is_ok());
        STORES.with_borrow_mut(|stores| stores.extend(store));
    }
}

impl Deref for Scratch {
    type Target = Store;

    fn deref(&self) -> &Store {
        self.0.as_ref().expect("it is there until it is dropped")
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut Store {
        self.0.as_mut().expect("it is there until it is dropped")
    }
}

/// The hashes of all that there is: etcd's, and that of the whole state.
fn hashes(store: &Store) -> (u32, u32) {
    let view = store.view();
    let keys = view.hash_kv(0).expect("the versions can be read");
    (keys.hash, view.hash().expect("the state can be read"))
}

/// The commands of an input, each behind its length.
fn decoded(input: &[u8]) -> Vec<Command> {
    let mut input = Bytes::copy_from_slice(input);
    let mut commands = Vec::new();
    while input.has_remaining() && (commands.len() as u64) < COMMANDS_MAX {
        let Ok(command) = Command::decode_length_delimited(&mut input) else {
            break;
        };
        let again = Command::decode(Bytes::from(command.encode_to_vec()));
        assert_eq!(again.expect("what was encoded decodes"), command);
        // Without one that this version knows, it is a newer version's, and the member stops.
        if command.op.is_some() {
            commands.push(command);
        }
    }
    commands
}

/// Commands, applied one after the other: in one batch and each alone. They are answered or refused in
/// the same way by both stores, which end in the same state; a snapshot of it is the same.
pub fn commands(input: &[u8]) {
    let commands = decoded(input);
    if commands.is_empty() {
        return;
    }
    let (mut first, mut second) = (Scratch::empty(), Scratch::empty());
    let mut batch = first.batch();
    for (index, command) in (1..).zip(&commands) {
        let outcome = batch.apply(command, index);
        let outcome = outcome.expect("a command is answered or refused");
        let mut alone = second.batch();
        let same = alone.apply(command, index);
        let same = same.expect("a command is answered or refused");
        assert_eq!(outcome, same, "a command alone and in a batch");
        alone
            .commit(AppliedMeta::default(), Durable::No)
            .expect("memory does not fail");
    }
    batch
        .commit(AppliedMeta::default(), Durable::No)
        .expect("memory does not fail");
    assert_eq!(hashes(&first), hashes(&second), "one batch and many");
    same_again(&first);
}

/// A snapshot of a store is the same store.
fn same_again(store: &Store) {
    let mut again = Scratch::used();
    restore(&mut again, &chunks(store)).expect("a snapshot is restored");
    assert_eq!(hashes(store), hashes(&again), "a snapshot of a state");
}

fn chunks(store: &Store) -> Vec<Bytes> {
    let chunks: Result<_, _> = Snapshot::new(store.view(), CHUNK_BYTES).collect();
    chunks.expect("what was written can be read")
}

fn restore<C: AsRef<[u8]>>(store: &mut Store, chunks: &[C]) -> Result<(), Error> {
    let mut restore = store.restore().expect("memory does not fail");
    for chunk in chunks {
        restore.push(chunk.as_ref()).inspect_err(|error| {
            let what = error.to_string();
            assert!(what.contains("chunk"), "which chunk is damaged? {what}");
        })?;
    }
    restore.finish()
}

/// The pieces of an input, each behind its length in two bytes.
fn pieces(mut input: &[u8]) -> Vec<Vec<u8>> {
    let mut pieces = Vec::new();
    while input.len() > 2 {
        let len = usize::from(input.get_u16()).min(input.len());
        pieces.push(input[..len].to_vec());
        input.advance(len);
    }
    pieces
}

/// Chunks of a snapshot, as they are, and with numbers, checksums and end put right. What is taken is
/// a whole state: it can be read, and is the same after another snapshot of it.
pub fn snapshot(input: &[u8]) {
    let chunks = pieces(input);
    let right = put_right(&chunks);
    for chunks in [&chunks, &right] {
        let mut store = Scratch::used();
        if restore(&mut store, chunks).is_ok() {
            same_again(&store);
        }
    }
}
