//! The form of a checkpoint: frames (`segment_log::frames`, magic `UCcp`) with every node that the maps
//! of volumes and snapshots consist of, each once however many share it, then the volumes and
//! snapshots. Sans-IO; `checkpoint::file` writes and reads it.
//!
//! Frames: kind 1 is the head (u32 format version 3, u32 partition, u64 start LSN, u64 newest number of
//! a volume or snapshot), kind 2 holds items, kind 3 is the end (u64 number of items). A file without
//! its end is no checkpoint.
//!
//! | item | bytes behind its u8 kind |
//! | --- | --- |
//! | 1 leaf | u8 slots, each u8 slot, u8 pieces, each u32 cluster, u16 mask |
//! | 2 inner node | u8 level (2 and up), u8 children, each u8 way, u32 number of the child |
//! | 3 volume | u64 id, u64 bytes, u64 created (ms), u64 origin (0 none), u64 generation, limits as in a record, owner, name, u64 key (0 none), u8 checksums (0 or 1), u32 root |
//! | 4 snapshot | u64 id, u64 volume, u64 bytes, u64 created (ms), name, u64 key (0 none), u8 checksums, u32 root |
//!
//! | 5, 6 | the image of the volume before: see [`crate::image::record`] |
//!
//! Format 2, which is read as well, had neither the last two nor pieces of zeros, and its volumes and snapshots
//! have no checksums, nor the byte that says so.
//! Nodes have numbers from 1 in the order of their items; a root or child of 0 is none, and a child
//! comes before its parent.

pub(crate) mod file;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::rc::Rc;

use segment_log::bytes::{Decode, Malformed, Reader, Writer};
use segment_log::frames;

use crate::image::record as image_record;
use crate::map::{HEIGHT_MAX, Leaf, Node, Tree};
use crate::record::{put_key, put_limits, take_key, take_limits, take_pieces};
use crate::state::{Frozen, Meta, Snapshot, State};
use crate::types::{SnapshotId, VolumeId};

const FORMAT: u32 = 3;
/// The oldest that is read.
const FORMAT_2: u32 = 2;
const PAYLOAD_MAX: usize = 1 << 20;
pub(crate) const FRAMES: frames::Format = frames::Format {
    magic: *b"UCcp",
    payload_bytes_max: PAYLOAD_MAX,
};
/// Largest item: an inner node, or a leaf whose slots all have 16 pieces.
const ITEM_BYTES_MAX: usize = 64 * (2 + 16 * 6) + 2;
const WAYS: usize = 64;

pub(crate) const HEAD: u8 = 1;
pub(crate) const ITEMS: u8 = 2;
pub(crate) const END: u8 = 3;

const _: () = assert!(
    ITEM_BYTES_MAX * 16 < PAYLOAD_MAX,
    "a frame holds many items"
);

/// A state that is to be written: volumes and snapshots, their maps shared.
#[derive(Default)]
pub(crate) struct Image {
    pub(crate) newest: u64,
    pub(crate) volumes: Vec<(VolumeId, Meta, Tree)>,
    pub(crate) snapshots: Vec<(SnapshotId, Snapshot)>,
}

impl Image {
    pub(crate) fn of(state: &State) -> Image {
        let volumes = state.volumes.iter();
        let snapshots = state.snapshots.iter();
        Image {
            newest: state.newest,
            volumes: volumes
                .map(|(id, volume)| {
                    let tree = volume.tree.borrow().clone();
                    (*id, volume.meta.borrow().clone(), tree)
                })
                .collect(),
            snapshots: snapshots.map(|(id, found)| (*id, found.clone())).collect(),
        }
    }

    /// The maps, for whoever takes them apart.
    pub(crate) fn into_trees(self) -> impl Iterator<Item = Tree> {
        let volumes = self.volumes.into_iter().map(|(_, _, tree)| tree);
        volumes.chain(
            self.snapshots
                .into_iter()
                .map(|(_, snapshot)| snapshot.frozen.tree),
        )
    }
}

pub(crate) fn head_payload(partition: u16, start_lsn: u64, newest: u64) -> Vec<u8> {
    let mut out = Writer::default();
    out.u32(FORMAT);
    out.u32(u32::from(partition));
    out.u64(start_lsn);
    out.u64(newest);
    out.bytes
}

/// A node that is being written, its children first.
struct Open {
    node: Rc<Node>,
    level: u8,
    next: usize,
    children: Vec<(u8, u32)>,
}

/// Writes an image, some items at a time.
pub(crate) struct ImageWriter<'a> {
    image: &'a Image,
    next_volume: usize,
    next_snapshot: usize,
    /// Numbers of the nodes that more than one refers to, by address: the image keeps them alive.
    shared: BTreeMap<usize, u32>,
    nodes: u32,
    open: Vec<Open>,
    /// The root of the map that is next, once its nodes are written.
    root: Option<u32>,
    /// The chunk from which on those of the volume before are to be written.
    next_chunk: Option<u64>,
    pub(crate) items: u64,
}

impl<'a> ImageWriter<'a> {
    pub(crate) fn new(image: &'a Image) -> ImageWriter<'a> {
        ImageWriter {
            image,
            next_volume: 0,
            next_snapshot: 0,
            shared: BTreeMap::new(),
            nodes: 0,
            open: Vec::new(),
            root: None,
            next_chunk: None,
            items: 0,
        }
    }

    /// Appends items until `bytes` are reached; false when there are no more.
    pub(crate) fn write(&mut self, out: &mut Writer, bytes: usize) -> bool {
        while out.bytes.len() < bytes {
            if !self.open.is_empty() {
                self.step(out);
                continue;
            }
            if let Some(chunk) = self.next_chunk {
                self.put_chunk(out, chunk);
                continue;
            }
            let tree = match self.image.volumes.get(self.next_volume) {
                Some((_, _, tree)) => tree,
                None => match self.image.snapshots.get(self.next_snapshot) {
                    Some((_, snapshot)) => &snapshot.frozen.tree,
                    None => return false,
                },
            };
            match self.root.take() {
                Some(root) => self.put_owner(out, root),
                None => match tree.root() {
                    Some(root) => self.begin(Rc::clone(root), tree.height()),
                    None => self.root = Some(0),
                },
            }
        }
        true
    }

    /// Begins a node, unless it is written: then it is its parent's child.
    fn begin(&mut self, node: Rc<Node>, level: u8) {
        match self.shared.get(&address(&node)) {
            Some(number) => self.give(*number),
            None => self.open.push(Open {
                node,
                level,
                next: 0,
                children: Vec::new(),
            }),
        }
    }

    /// The node just written, or found, is its parent's child, or the root.
    fn give(&mut self, number: u32) {
        match self.open.last_mut() {
            Some(parent) => {
                if number != 0 {
                    parent.children.push((parent.next as u8 - 1, number));
                }
            }
            None => self.root = Some(number),
        }
    }

    fn step(&mut self, out: &mut Writer) {
        let Some(open) = self.open.last_mut() else {
            return;
        };
        if let Node::Inner(children) = &*open.node {
            while open.next < WAYS {
                open.next += 1;
                if let Some(child) = &children[open.next - 1] {
                    let (child, level) = (Rc::clone(child), open.level - 1);
                    return self.begin(child, level);
                }
            }
        }
        let Some(done) = self.open.pop() else { return };
        let written = match &*done.node {
            Node::Leaf(leaf) => put_leaf(out, leaf),
            Node::Inner(_) => put_inner(out, done.level, &done.children),
        };
        let number = if written {
            self.nodes += 1;
            self.items += 1;
            self.nodes
        } else {
            0
        };
        // The one of our own goes with `done`.
        if Rc::strong_count(&done.node) > 2 {
            self.shared.insert(address(&done.node), number);
        }
        self.give(number);
    }

    fn put_owner(&mut self, out: &mut Writer, root: u32) {
        self.items += 1;
        if let Some((id, meta, _)) = self.image.volumes.get(self.next_volume) {
            self.next_volume += 1;
            out.u8(3);
            out.u64(id.0);
            out.u64(meta.bytes);
            out.u64(meta.created_ms);
            out.u64(meta.origin.map_or(0, |origin| origin.0));
            out.u64(meta.generation);
            put_limits(out, meta.limits);
            out.text(&meta.owner);
            out.text(&meta.name);
            put_key(out, meta.key);
            out.u8(u8::from(meta.checksums));
            out.u32(root);
            if let Some(image) = &meta.image {
                self.items += 1;
                image_record::put_state(out, *id, image);
                self.next_chunk = Some(0);
            }
        } else if let Some((id, snapshot)) = self.image.snapshots.get(self.next_snapshot) {
            self.next_snapshot += 1;
            out.u8(4);
            out.u64(id.0);
            out.u64(snapshot.volume.0);
            out.u64(snapshot.bytes);
            out.u64(snapshot.created_ms);
            out.text(&snapshot.name);
            put_key(out, snapshot.key);
            out.u8(u8::from(snapshot.checksums));
            out.u32(root);
        }
    }

    /// Writes the next chunk of the volume before, when it has one.
    fn put_chunk(&mut self, out: &mut Writer, from: u64) {
        let before = self.next_volume.checked_sub(1);
        let volume = before.and_then(|at| self.image.volumes.get(at));
        let next = volume.and_then(|(id, meta, _)| {
            let (chunk, hash) = meta.image.as_ref()?.fetched.range(from..).next()?;
            Some((*id, *chunk, hash))
        });
        self.next_chunk = next.map(|(id, chunk, hash)| {
            self.items += 1;
            image_record::put_fetched(out, id, chunk, hash);
            chunk + 1
        });
    }
}

fn address(node: &Rc<Node>) -> usize {
    Rc::as_ptr(node).addr()
}

/// False when there is nothing to write.
fn put_leaf(out: &mut Writer, leaf: &Leaf) -> bool {
    let used = (0..WAYS).filter(|slot| leaf.first(*slot).mask != 0);
    let count = used.clone().count();
    if count == 0 {
        return false;
    }
    out.u8(1);
    out.u8(count as u8);
    for slot in used {
        out.u8(slot as u8);
        out.u8(leaf.pieces(slot).count() as u8);
        for piece in leaf.pieces(slot) {
            out.u32(piece.cluster);
            out.u16(piece.mask);
        }
    }
    true
}

fn put_inner(out: &mut Writer, level: u8, children: &[(u8, u32)]) -> bool {
    if children.is_empty() {
        return false;
    }
    out.u8(2);
    out.u8(level);
    out.u8(children.len() as u8);
    for (way, number) in children {
        out.u8(*way);
        out.u32(*number);
    }
    true
}

/// What a checkpoint holds.
pub(crate) struct Loaded {
    pub(crate) partition: u32,
    pub(crate) start_lsn: u64,
    pub(crate) state: State,
}

/// Builds a state from frames in order.
#[derive(Default)]
pub(crate) struct Loader {
    head: Option<(u32, u64)>,
    format: u32,
    state: State,
    /// Nodes and their levels.
    nodes: Vec<(Rc<Node>, u8)>,
    frames: u32,
    items: u64,
    ended: bool,
}

impl Loader {
    /// Takes the next frame; true when it was the last.
    pub(crate) fn take(&mut self, frame: &[u8]) -> Decode<bool> {
        let (kind, payload) = FRAMES.decode(frame, self.frames)?;
        self.frames += 1;
        let mut from = Reader::new(payload);
        match (kind as u8, self.head) {
            (HEAD, None) => {
                self.format = from.u32("format version")?;
                if ![FORMAT, FORMAT_2].contains(&self.format) {
                    return Err(from.bad("format version"));
                }
                self.head = Some((from.u32("partition")?, from.u64("start LSN")?));
                self.state.newest = from.u64("newest number")?;
            }
            (ITEMS, Some(_)) => {
                while from.left() > 0 {
                    self.take_item(&mut from)?;
                    self.items += 1;
                }
            }
            (END, Some(_)) => {
                if from.u64("item count")? != self.items {
                    return Err(from.bad("item count"));
                }
                self.ended = true;
            }
            _ => {
                return Err(Malformed {
                    what: "frame kind",
                    at: 4,
                });
            }
        }
        from.end("frame")?;
        Ok(self.ended)
    }

    fn take_item(&mut self, from: &mut Reader<'_>) -> Decode<()> {
        let before = from.bad("item kind");
        match from.u8("item kind")? {
            1 => {
                let leaf = take_leaf(from)?;
                self.nodes.push((Rc::new(Node::Leaf(leaf)), 1));
            }
            2 => {
                let (node, level) = self.take_inner(from)?;
                self.nodes.push((Rc::new(node), level));
            }
            3 => {
                let id = VolumeId(from.u64("volume")?);
                let (bytes, created_ms) = (from.u64("bytes")?, from.u64("created")?);
                let origin = Some(SnapshotId(from.u64("origin")?)).filter(|origin| origin.0 != 0);
                let meta = Meta {
                    bytes,
                    created_ms,
                    origin,
                    generation: from.u64("generation")?,
                    limits: take_limits(from)?,
                    owner: from.text("owner")?.to_owned(),
                    name: from.text("name")?.to_owned(),
                    key: take_key(from)?,
                    image: None,
                    checksums: self.take_checksums(from)?,
                };
                let map = self.take_root(from)?;
                self.state.add_volume(id, meta, map);
            }
            4 => {
                let id = SnapshotId(from.u64("snapshot")?);
                let snapshot = Snapshot {
                    volume: VolumeId(from.u64("volume")?),
                    bytes: from.u64("bytes")?,
                    created_ms: from.u64("created")?,
                    name: from.text("name")?.to_owned(),
                    key: take_key(from)?,
                    checksums: self.take_checksums(from)?,
                    frozen: self.take_root(from)?,
                };
                self.state.add_snapshot(id, snapshot);
            }
            5 => {
                let (id, image) = image_record::take_state(from)?;
                let volume = self.state.volumes.get(&id).ok_or(before)?;
                volume.set_image(image);
            }
            6 => {
                let (id, chunk, hash) = image_record::take_fetched(from)?;
                let volume = self.state.volumes.get(&id).ok_or(before)?;
                volume.apply_image(image_record::ImageChange::Fetched { chunk, hash });
            }
            _ => return Err(before),
        }
        Ok(())
    }

    fn take_checksums(&self, from: &mut Reader<'_>) -> Decode<bool> {
        Ok(self.format != FORMAT_2 && from.flag("checksums")?)
    }

    fn node(&self, number: u32) -> Option<&(Rc<Node>, u8)> {
        self.nodes.get((number as usize).checked_sub(1)?)
    }

    fn take_inner(&self, from: &mut Reader<'_>) -> Decode<(Node, u8)> {
        let before = from.bad("inner node");
        let level = from.u8("level")?;
        let count = from.u8("children")?;
        let mut node = Node::inner();
        for _ in 0..count {
            let way = usize::from(from.u8("way")?);
            let child = self.node(from.u32("child")?);
            match (&mut node, child) {
                (Node::Inner(children), Some((child, below)))
                    if way < WAYS && *below + 1 == level && children[way].is_none() =>
                {
                    children[way] = Some(Rc::clone(child));
                }
                _ => return Err(before),
            }
        }
        if !(2..=HEIGHT_MAX).contains(&level) || count == 0 {
            return Err(before);
        }
        Ok((node, level))
    }

    fn take_root(&self, from: &mut Reader<'_>) -> Decode<Frozen> {
        let before = from.bad("root");
        let number = from.u32("root")?;
        if number == 0 {
            return Ok(Frozen::default());
        }
        let (root, height) = self.node(number).ok_or(before)?;
        Ok(Frozen {
            tree: Tree::new(Some(Rc::clone(root)), *height),
            // Counted when everything is played.
            mapped_blocks: 0,
        })
    }

    /// What it holds, when the end was seen.
    pub(crate) fn finish(self) -> Option<Loaded> {
        let (partition, start_lsn) = self.head.filter(|_| self.ended)?;
        Some(Loaded {
            partition,
            start_lsn,
            state: self.state,
        })
    }
}

fn take_leaf(from: &mut Reader<'_>) -> Decode<Leaf> {
    let before = from.bad("leaf");
    let mut leaf = Leaf::default();
    let count = from.u8("slots")?;
    for _ in 0..count {
        let slot = usize::from(from.u8("slot")?);
        let pieces = take_pieces(from)?;
        if slot >= WAYS || pieces.is_empty() || leaf.first(slot).mask != 0 {
            return Err(before);
        }
        leaf.put(slot, &pieces);
    }
    Ok(leaf)
}
