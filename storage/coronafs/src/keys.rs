//! The keys of encrypted volumes: file `keys`, in slots, each wrapped by the master key that the
//! configuration gives. They are never on disk in clear.
//!
//! | offset in a slot | field |
//! | --- | --- |
//! | 0 | u32 magic, u32 format 1 |
//! | 8 | u64 the key's number |
//! | 16 | 80 bytes: the number and the 64 bytes of the key, wrapped (AES-KW, RFC 3394) |
//! | 96 | u32 CRC32C of bytes 0 to 96 |
//! | 100 | zeros, to 512 |
//!
//! A slot of zeros is empty. Numbers are little-endian.
//!
//! Invariants: a key is durable before a volume that has it is, and its slot is zeros, durably, before the
//! removal of the last volume or snapshot that has it returns. A start empties what nobody has, and before
//! that refuses to go on unless it can open every key that somebody has. Changes come one at a time: their
//! callers have the partition's turn.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::rc::Rc;

use aes_kw::KwAes256;
use aes_kw::cipher::KeyInit;
use engine::fs::{File, OpenOptions};
use segment_log::bytes::Writer;
use segment_log::durable::{Poison, is_full};
use xts::{Cipher, KeyBytes};
use zeroize::Zeroizing;

use crate::error::VolumeError;
use crate::types::KeyId;

const MAGIC: u32 = u32::from_le_bytes(*b"UCky");
const FORMAT: u32 = 1;
const SLOT: usize = 512;
/// Slots that are read at once.
const READ_SLOTS: usize = 128;
/// Bytes before the wrapped ones, of those, and of what is wrapped.
const HEAD: usize = 16;
const WRAPPED: usize = OPENED + 8;
const OPENED: usize = 8 + 64;

/// What wraps the keys of volumes. It is not stored, and its memory is zeroed when it is dropped.
#[derive(Clone)]
pub struct MasterKey(Zeroizing<[u8; 32]>);

impl std::fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MasterKey")
    }
}

impl MasterKey {
    /// A key of 256 bits, from a secret source.
    pub fn new(bytes: [u8; 32]) -> MasterKey {
        MasterKey(Zeroizing::new(bytes))
    }

    fn wrapper(&self) -> KwAes256 {
        KwAes256::new_from_slice(&*self.0).expect("32 bytes are a key")
    }

    fn wrap(&self, id: KeyId, key: &KeyBytes) -> [u8; WRAPPED] {
        let mut opened = Zeroizing::new([0; OPENED]);
        opened[..8].copy_from_slice(&id.0.to_le_bytes());
        opened[8..].copy_from_slice(&**key);
        let mut wrapped = [0; WRAPPED];
        let done = self.wrapper().wrap_key(&*opened, &mut wrapped);
        done.expect("the lengths are right");
        wrapped
    }

    /// `None` when another master key has wrapped it.
    fn open(&self, id: KeyId, wrapped: &[u8; WRAPPED]) -> Option<KeyBytes> {
        let mut opened = Zeroizing::new([0; OPENED]);
        self.wrapper().unwrap_key(wrapped, &mut *opened).ok()?;
        let mut key = KeyBytes::new([0; 64]);
        key.copy_from_slice(&opened[8..]);
        (opened[..8] == id.0.to_le_bytes()).then_some(key)
    }
}

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Empty,
    Key(KeyId, [u8; WRAPPED]),
    /// A key that was being written when the machine went down, or what a disk has made of one.
    Damaged,
}

fn encode(id: KeyId, wrapped: &[u8; WRAPPED]) -> Vec<u8> {
    let mut out = Writer::default();
    out.u32(MAGIC);
    out.u32(FORMAT);
    out.u64(id.0);
    out.raw(wrapped);
    out.u32(crc_fast::crc32_iscsi(&out.bytes));
    out.bytes.resize(SLOT, 0);
    out.bytes
}

fn decode(bytes: &[u8]) -> Slot {
    if bytes.iter().all(|byte| *byte == 0) {
        return Slot::Empty;
    }
    let id = bytes.get(8..HEAD).and_then(|id| id.try_into().ok());
    let wrapped = bytes.get(HEAD..HEAD + WRAPPED);
    let wrapped = wrapped.and_then(|wrapped| wrapped.try_into().ok());
    match (id.map(u64::from_le_bytes), wrapped) {
        (Some(id), Some(wrapped)) if encode(KeyId(id), &wrapped) == bytes => {
            Slot::Key(KeyId(id), wrapped)
        }
        _ => Slot::Damaged,
    }
}

/// The open file.
pub(crate) struct Keys {
    file: File,
    poison: Rc<Poison>,
    master: Option<MasterKey>,
    slots: RefCell<Vec<Slot>>,
    ciphers: RefCell<BTreeMap<KeyId, Rc<Cipher>>>,
    /// Keys that nobody has and that are not overwritten yet.
    erasing: RefCell<BTreeSet<KeyId>>,
}

impl Keys {
    /// Opens or makes the file, whose name is durable after a `sync_dir` of the caller's, and makes the
    /// keys ready that are in use.
    ///
    /// # Errors
    /// `Key` when one that is in use cannot be had; nothing was changed then. `Full`, `Internal`.
    pub(crate) async fn open(
        dir: &Path,
        master: Option<&MasterKey>,
        in_use: &BTreeSet<KeyId>,
        poison: Rc<Poison>,
    ) -> Result<Keys, VolumeError> {
        let failed = |e: &io::Error| VolumeError::internal("cannot read the keys", e);
        let options = OpenOptions {
            write: true,
            create: true,
            ..OpenOptions::default()
        };
        let file = File::open(dir.join("keys"), options).await;
        let file = file.map_err(|e| failed(&e))?;
        let slots = read(&file).await.map_err(|e| failed(&e))?;
        let keys = Keys {
            file,
            poison,
            master: master.cloned(),
            slots: RefCell::default(),
            ciphers: RefCell::new(unwrap(&slots, master, in_use)?),
            erasing: RefCell::default(),
        };
        keys.slots.replace(slots);
        let left = |(_, slot): &(usize, &Slot)| match slot {
            Slot::Empty => false,
            Slot::Key(id, _) => !in_use.contains(id),
            Slot::Damaged => true,
        };
        let orphans: Vec<usize> = {
            let slots = keys.slots.borrow();
            let found = slots.iter().enumerate().filter(left);
            found.map(|(place, _)| place).collect()
        };
        for place in orphans {
            keys.put(place, Slot::Empty, vec![0; SLOT]).await?;
        }
        Ok(keys)
    }

    /// A key that is in use.
    pub(crate) fn cipher(&self, id: KeyId) -> Option<Rc<Cipher>> {
        self.ciphers.borrow().get(&id).cloned()
    }

    /// Makes a key; it is durable when this returns.
    ///
    /// # Errors
    /// `Invalid` without a master key, `Full`, `Busy`, `Poisoned`, `Internal`.
    pub(crate) async fn make(&self, id: KeyId) -> Result<(), VolumeError> {
        let master = self.master.as_ref().ok_or_else(|| VolumeError::Invalid {
            what: "an encrypted volume".to_owned(),
            allowed: "where a master key is configured",
        })?;
        let mut key = KeyBytes::new([0; 64]);
        let filled = engine::fill_secret(&mut *key);
        filled.map_err(|e| VolumeError::internal("no random bytes for a key", &e))?;
        if key[..32] == key[32..] {
            return Err(VolumeError::Internal(
                "random bytes are not random".to_owned(),
            ));
        }
        let wrapped = master.wrap(id, &key);
        let place = {
            let slots = self.slots.borrow();
            let empty = slots.iter().position(|slot| *slot == Slot::Empty);
            empty.unwrap_or(slots.len())
        };
        self.put(place, Slot::Key(id, wrapped), encode(id, &wrapped))
            .await?;
        self.ciphers
            .borrow_mut()
            .insert(id, Rc::new(Cipher::new(&key)));
        Ok(())
    }

    /// Overwrites a key that nobody has any more: what it has encrypted cannot be read again.
    ///
    /// # Errors
    /// As [`Keys::erase_left`].
    pub(crate) async fn erase(&self, id: KeyId) -> Result<(), VolumeError> {
        self.ciphers.borrow_mut().remove(&id);
        self.erasing.borrow_mut().insert(id);
        self.erase_left().await
    }

    /// Overwrites the keys that an earlier call could not overwrite. One call at a time.
    ///
    /// # Errors
    /// `Full`, `Busy`: the next call does it. `Poisoned`: the next start does.
    pub(crate) async fn erase_left(&self) -> Result<(), VolumeError> {
        loop {
            let first = self.erasing.borrow().first().copied();
            let Some(id) = first else { return Ok(()) };
            self.overwrite(id).await?;
            self.erasing.borrow_mut().remove(&id);
        }
    }

    async fn overwrite(&self, id: KeyId) -> Result<(), VolumeError> {
        let place = {
            let slots = self.slots.borrow();
            let has = |slot: &Slot| matches!(slot, Slot::Key(of, _) if *of == id);
            slots.iter().position(has)
        };
        match place {
            Some(place) => self.put(place, Slot::Empty, vec![0; SLOT]).await,
            None => Ok(()),
        }
    }

    /// Overwrites a slot in place, durably.
    async fn put(&self, place: usize, slot: Slot, bytes: Vec<u8>) -> Result<(), VolumeError> {
        self.poison.check()?;
        let (wrote, _) = self
            .file
            .write_then_datasync(bytes, (place * SLOT) as u64)
            .await;
        wrote.map_err(|error| match error.kind() {
            io::ErrorKind::ResourceBusy => VolumeError::Busy,
            // It may hold a part of the key, which the next key there overwrites.
            _ if is_full(&error) => VolumeError::Full,
            _ => self.poison.set(&error.to_string()).into(),
        })?;
        let mut slots = self.slots.borrow_mut();
        if place == slots.len() {
            slots.push(slot);
        } else {
            slots[place] = slot;
        }
        Ok(())
    }
}

async fn read(file: &File) -> io::Result<Vec<Slot>> {
    let mut slots = Vec::new();
    let mut offset = 0;
    while offset < file.opened_len() {
        let (read, bytes) = file.read_at(vec![0; READ_SLOTS * SLOT], offset).await;
        let read = read?;
        slots.extend(bytes[..read].chunks(SLOT).map(decode));
        offset += (READ_SLOTS * SLOT) as u64;
        engine::yield_if_needed().await;
    }
    Ok(slots)
}

fn unwrap(
    slots: &[Slot],
    master: Option<&MasterKey>,
    in_use: &BTreeSet<KeyId>,
) -> Result<BTreeMap<KeyId, Rc<Cipher>>, VolumeError> {
    let mut ciphers = BTreeMap::new();
    for slot in slots {
        let Slot::Key(id, wrapped) = slot else {
            continue;
        };
        if !in_use.contains(id) {
            continue;
        }
        let refused = |why| VolumeError::Key { id: *id, why };
        let master = master.ok_or_else(|| refused("no master key is configured"))?;
        let key = master.open(*id, wrapped);
        let key = key.ok_or_else(|| refused("another master key has wrapped it"))?;
        ciphers.insert(*id, Rc::new(Cipher::new(&key)));
    }
    match in_use.iter().find(|id| !ciphers.contains_key(id)) {
        Some(id) => Err(VolumeError::Key {
            id: *id,
            why: "it is missing or damaged",
        }),
        None => Ok(ciphers),
    }
}
