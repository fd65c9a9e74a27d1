//! The two files of a run: written once, read block by block, mended from each other.
//!
//! A block that does not match its CRC, or cannot be read, is taken from the other file and written
//! back; only when both are bad is it an error. A file that is missing or has a bad foot is done
//! without, until a merge writes the run's slots anew.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use crc_fast::{CrcAlgorithm, Digest};
use engine::fs::{self, File, OpenOptions};

use super::{
    ALIGN, BLOCK_BYTES, Block, BlockBuilder, BlockMeta, Bloom, FOOT_BYTES, Foot, RunRef, Section,
    decode_table, encode_table, hash_of,
};
use crate::store::bytes::{Malformed, Reader};
use crate::store::error::{INDEX_RUN, StoreError};
use crate::store::index::{NamePosition, ObjectEntry, Rank};
use crate::store::types::Version;

/// Files of a run.
const COPIES: usize = 2;
const SUFFIXES: [&str; COPIES] = ["a", "b"];
const PREFIX: &str = "run-";
/// Bytes of one read or write.
const PIECE: usize = 256 << 10;
/// How long a write waits for a buffer: it can.
const BUF_WAIT: Duration = Duration::from_secs(2);

const OPTIONS: OpenOptions = OpenOptions {
    write: true,
    create: false,
    create_new: false,
    direct: true,
    mode: 0,
};

pub(in crate::store) fn path_of(dir: &Path, number: u64, copy: usize) -> PathBuf {
    dir.join(format!("{PREFIX}{number:08}.{}", SUFFIXES[copy]))
}

/// The run that a file of this name belongs to.
pub(in crate::store) fn number_of(name: &str) -> Option<u64> {
    let (number, suffix) = name.strip_prefix(PREFIX)?.split_once('.')?;
    let plain = number.len() >= 8 && number.bytes().all(|b| b.is_ascii_digit());
    number
        .parse()
        .ok()
        .filter(|_| plain && SUFFIXES.contains(&suffix))
}

fn failed(what: &str, error: &std::io::Error) -> StoreError {
    StoreError::of_new_file(what, error)
}

/// Reads whole blocks of 4 KiB; `None` when the file ends before.
async fn read_range(file: &File, offset: u64, len: usize) -> Result<Option<Vec<u8>>, StoreError> {
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let padded = (len - bytes.len()).next_multiple_of(ALIGN).min(PIECE);
        let buf = engine::take_buf(padded)?;
        let at = offset + bytes.len() as u64;
        let (read, slice) = file.read_at(buf.slice(0..padded), at).await;
        let read = read.map_err(|e| failed("cannot read a run of the index", &e))?;
        if read < padded.min(len - bytes.len()) {
            return Ok(None);
        }
        let take = padded.min(len - bytes.len());
        bytes.extend_from_slice(&slice.into_inner()[..take]);
    }
    Ok(Some(bytes))
}

async fn read_section(file: &File, section: Section) -> Result<Option<Vec<u8>>, StoreError> {
    let end = section.offset.checked_add(u64::from(section.len));
    if end.is_none_or(|end| end > file.opened_len()) {
        return Ok(None);
    }
    let bytes = read_range(file, section.offset, section.len as usize).await?;
    Ok(bytes.filter(|bytes| crc_fast::crc64_nvme(bytes) == section.crc))
}

/// What stands in a run's file beside its blocks.
struct Frame {
    foot: Foot,
    bloom: Bloom,
    blocks: Vec<BlockMeta>,
}

impl Frame {
    /// `None` when the file is damaged.
    async fn read(file: &File, number: u64, partition: u16) -> Result<Option<Frame>, StoreError> {
        let Some(at) = file.opened_len().checked_sub(ALIGN as u64) else {
            return Ok(None);
        };
        let Some(bytes) = read_range(file, at, ALIGN).await? else {
            return Ok(None);
        };
        let Ok(foot) = Foot::decode(&bytes[..FOOT_BYTES]) else {
            return Ok(None);
        };
        if foot.number != number || foot.partition != u32::from(partition) {
            return Ok(None);
        }
        let bloom = read_section(file, foot.bloom).await?;
        let Some(bloom) = bloom.and_then(|bytes| Bloom::decode(&bytes)) else {
            return Ok(None);
        };
        let table = read_section(file, foot.table).await?;
        let decode = |bytes: Vec<u8>| decode_table(&bytes, foot.bloom.offset).ok();
        let Some(blocks) = table.and_then(decode) else {
            return Ok(None);
        };
        Ok(Some(Frame {
            foot,
            bloom,
            blocks,
        }))
    }
}

/// An open run.
pub(in crate::store) struct Run {
    of: RunRef,
    copies: [Option<File>; COPIES],
    slots: u64,
    bytes: u64,
    bloom: Bloom,
    blocks: Vec<BlockMeta>,
    mended: Cell<u64>,
}

impl Run {
    /// Opens a run that a checkpoint names.
    ///
    /// # Errors
    /// `Corrupt` when neither file has a foot that holds; `Busy`.
    pub(in crate::store) async fn open(
        dir: &Path,
        of: RunRef,
        partition: u16,
    ) -> Result<Run, StoreError> {
        let mut copies = [None, None];
        let mut frame = None;
        let mut bytes = 0;
        for (copy, place) in copies.iter_mut().enumerate() {
            let path = path_of(dir, of.number, copy);
            let opened = File::open(&path, OPTIONS).await;
            let Ok(file) = opened.inspect_err(|error| {
                tracing::error!(path = %path.display(), %error, "a run's file cannot be opened");
            }) else {
                continue;
            };
            match Frame::read(&file, of.number, partition).await? {
                Some(found) => {
                    bytes = file.opened_len();
                    frame = frame.or(Some(found));
                    *place = Some(file);
                }
                None => {
                    tracing::error!(path = %path.display(), "a run's file is damaged, it is not used");
                }
            }
        }
        let Some(Frame {
            foot,
            bloom,
            blocks,
        }) = frame
        else {
            return Err(StoreError::Corrupt {
                what: format!("run {} of the index (both files)", of.number),
                segment: INDEX_RUN,
                offset: 0,
            });
        };
        Ok(Run {
            of,
            copies,
            slots: foot.slots,
            bytes,
            bloom,
            blocks,
            mended: Cell::new(0),
        })
    }

    pub(in crate::store) fn of(&self) -> RunRef {
        self.of
    }

    /// Slots, those that say nothing included.
    pub(in crate::store) fn slots(&self) -> u64 {
        self.slots
    }

    /// Bytes of disk that its files take.
    pub(in crate::store) fn disk_bytes(&self) -> u64 {
        self.bytes * COPIES as u64
    }

    /// Memory that it takes, about.
    pub(in crate::store) fn memory_bytes(&self) -> usize {
        let keys: usize = self.blocks.iter().map(|block| block.key.len()).sum();
        self.bloom.bytes() + self.blocks.len() * size_of::<BlockMeta>() + keys
    }

    /// How often a block was mended from the other file.
    pub(in crate::store) fn mended(&self) -> u64 {
        self.mended.get()
    }

    /// Number of blocks.
    pub(in crate::store) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// The block that has the name, if any has.
    pub(in crate::store) fn block_of(&self, rank: Rank<'_>, hash: u64) -> Option<usize> {
        if !self.bloom.may_have(hash) {
            return None;
        }
        let behind = self.blocks.partition_point(|block| block.rank() <= rank);
        behind.checked_sub(1)
    }

    /// The block in which a walk from a position on begins.
    pub(in crate::store) fn block_from(&self, at: &NamePosition) -> usize {
        let behind = self
            .blocks
            .partition_point(|block| at.is_past(block.rank()));
        behind.saturating_sub(1)
    }

    /// Reads a block.
    ///
    /// # Errors
    /// `Corrupt` when both files are damaged there, `Busy` (no buffer), `Internal`.
    pub(in crate::store) async fn read_block(&self, number: usize) -> Result<Block, StoreError> {
        let meta = &self.blocks[number];
        let mut bad = [false; COPIES];
        for (copy, file) in self.copies.iter().enumerate() {
            let Some(file) = file else { continue };
            let bytes = match read_range(file, meta.offset(), meta.len as usize).await {
                Err(StoreError::Busy) => return Err(StoreError::Busy),
                Err(_) | Ok(None) => None,
                Ok(bytes) => bytes,
            };
            let block = bytes.and_then(|bytes| meta.check(bytes));
            if let Some(block) = block {
                self.mend(number, bad, copy).await;
                return Ok(block);
            }
            bad[copy] = true;
        }
        Err(StoreError::Corrupt {
            what: format!("run {} of the index", self.of.number),
            segment: INDEX_RUN,
            offset: meta.offset(),
        })
    }

    /// Writes a block that is good in one file over what is bad in the other.
    async fn mend(&self, number: usize, bad: [bool; COPIES], good: usize) {
        let meta = &self.blocks[number];
        for (copy, file) in self.copies.iter().enumerate() {
            let (true, Some(file), Some(source)) = (bad[copy], file, &self.copies[good]) else {
                continue;
            };
            let path = file.path().display();
            let offset = meta.offset();
            tracing::error!(%path, offset, "a block of the index is damaged; its copy is used");
            match copy_block(source, file, offset, meta.len as usize).await {
                Ok(()) => self.mended.set(self.mended.get() + 1),
                Err(error) => tracing::error!(%path, offset, %error, "it is not mended"),
            }
        }
    }

    /// Decodes the entry of a slot.
    ///
    /// # Errors
    /// `Corrupt`: the block is as it was written, and the writer was wrong.
    pub(in crate::store) fn decode(&self, entry: &[u8]) -> Result<ObjectEntry, StoreError> {
        let mut from = Reader::new(entry);
        let decoded = ObjectEntry::decode(&mut from).and_then(|entry| {
            from.end("entry")?;
            Ok(entry)
        });
        decoded.map_err(|malformed| self.malformed(malformed))
    }

    pub(in crate::store) fn malformed(&self, malformed: Malformed) -> StoreError {
        StoreError::Corrupt {
            what: format!("run {} of the index ({malformed})", self.of.number),
            segment: INDEX_RUN,
            offset: 0,
        }
    }

    /// Reads blocks from `first` on, of together at most about `bytes_max`, which may be 256 KiB.
    ///
    /// # Errors
    /// As [`Run::read_block`].
    pub(in crate::store) async fn read_ahead(
        &self,
        first: usize,
        bytes_max: usize,
    ) -> Result<Vec<Block>, StoreError> {
        let begin = self.blocks[first].offset();
        let rest = self.blocks[first..].iter();
        let count = rest
            .take_while(|block| block.end() - begin <= bytes_max.min(PIECE) as u64)
            .count();
        let span = first..first + count.max(1);
        let len = self.blocks[span.end - 1].end() - begin;
        let file = self.copies.iter().flatten().next();
        let read = match file {
            Some(file) => read_range(file, begin, len as usize).await,
            None => Ok(None),
        };
        let bytes = match read {
            Err(StoreError::Busy) => return Err(StoreError::Busy),
            read => read.ok().flatten().unwrap_or_default(),
        };
        let mut found = Vec::with_capacity(span.len());
        for number in span {
            let meta = &self.blocks[number];
            let at = (meta.offset() - begin) as usize;
            let block = bytes.get(at..at + meta.len as usize);
            match block.and_then(|bytes| meta.check(bytes.to_vec())) {
                Some(block) => found.push(block),
                None => found.push(self.read_block(number).await?),
            }
            engine::yield_if_needed().await;
        }
        Ok(found)
    }
}

impl BlockMeta {
    /// The block, when the bytes are those that were written.
    fn check(&self, bytes: Vec<u8>) -> Option<Block> {
        if crc_fast::crc64_nvme(&bytes) != self.crc {
            return None;
        }
        Block::parse(bytes.into()).ok()
    }
}

async fn copy_block(from: &File, to: &File, offset: u64, len: usize) -> Result<(), StoreError> {
    let bytes = read_range(from, offset, len).await?;
    let mut bytes = bytes.ok_or(StoreError::Gone)?;
    bytes.resize(len.next_multiple_of(ALIGN), 0);
    write_all(to, &bytes, offset).await?;
    let synced = to.datasync().await;
    synced.map_err(|e| failed("cannot flush a run of the index", &e))
}

/// Writes whole blocks of 4 KiB.
async fn write_all(file: &File, bytes: &[u8], offset: u64) -> Result<(), StoreError> {
    let mut at = offset;
    for piece in bytes.chunks(PIECE) {
        let mut buf = engine::take_buf_until(piece.len(), engine::now() + BUF_WAIT).await?;
        buf.copy_from_slice(piece);
        let (wrote, _) = file.write_at(buf.slice(0..piece.len()), at).await;
        wrote.map_err(|e| failed("cannot write a run of the index", &e))?;
        at += piece.len() as u64;
    }
    Ok(())
}

/// Writes a run, slot by slot in order. What is written of one that is given up is for the caller to
/// [`remove`]; a restart does so as well.
pub(in crate::store) struct RunWriter {
    of: RunRef,
    dir: PathBuf,
    partition: u16,
    copies: [File; COPIES],
    /// Bytes that are not written yet, and where they go.
    pending: Vec<u8>,
    offset: u64,
    block: BlockBuilder,
    first: Option<NamePosition>,
    blocks: Vec<BlockMeta>,
    bloom: Bloom,
    slots: u64,
}

impl RunWriter {
    /// Begins a run of at most `slots_max` slots.
    ///
    /// # Errors
    /// `Full`, `Internal`.
    pub(in crate::store) async fn create(
        dir: &Path,
        of: RunRef,
        partition: u16,
        slots_max: u64,
    ) -> Result<RunWriter, StoreError> {
        let options = OpenOptions {
            create: true,
            ..OPTIONS
        };
        let open = async |copy| {
            let opened = File::open(path_of(dir, of.number, copy), options).await;
            opened.map_err(|e| failed("cannot make a run of the index", &e))
        };
        Ok(RunWriter {
            of,
            dir: dir.to_owned(),
            partition,
            copies: [open(0).await?, open(1).await?],
            pending: Vec::new(),
            offset: 0,
            block: BlockBuilder::default(),
            first: None,
            blocks: Vec::new(),
            bloom: Bloom::for_names(slots_max),
            slots: 0,
        })
    }

    pub(in crate::store) fn number(&self) -> u64 {
        self.of.number
    }

    /// Adds a slot behind all others; writes nothing.
    pub(in crate::store) fn push(&mut self, rank: Rank<'_>, entry: Option<&[u8]>) {
        self.bloom.add(hash_of(rank));
        self.slots += 1;
        if self.first.is_none() {
            let mut first = NamePosition::start();
            first.pass(rank);
            self.first = Some(first);
        }
        self.block.push(rank, entry);
        if self.block.len() >= BLOCK_BYTES {
            self.end_block();
        }
    }

    /// Whether there is enough to be written.
    pub(in crate::store) fn is_due(&self) -> bool {
        self.pending.len() >= PIECE
    }

    fn end_block(&mut self) {
        let Some(first) = self.first.take() else {
            return;
        };
        let begin = self.pending.len();
        self.block.finish(&mut self.pending);
        let bytes = &self.pending[begin..];
        self.blocks.push(BlockMeta {
            offset: ((self.offset + begin as u64) / ALIGN as u64) as u32,
            len: bytes.len() as u32,
            crc: crc_fast::crc64_nvme(bytes),
            bucket: first.bucket,
            version: Version(first.version),
            key: first.key.into(),
        });
        self.pad();
    }

    fn pad(&mut self) {
        let padded = self.pending.len().next_multiple_of(ALIGN);
        self.pending.resize(padded, 0);
    }

    /// Writes what is due.
    ///
    /// # Errors
    /// `Full`, `Busy`, `Internal`; the run can only be given up then.
    pub(in crate::store) async fn write_due(&mut self) -> Result<(), StoreError> {
        for copy in &self.copies {
            write_all(copy, &self.pending, self.offset).await?;
        }
        self.offset += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    /// Writes a section that comes in pieces, giving way to others between them.
    async fn section(
        &mut self,
        pieces: impl Iterator<Item = Vec<u8>>,
    ) -> Result<Section, StoreError> {
        let offset = self.offset + self.pending.len() as u64;
        let mut crc = Digest::new(CrcAlgorithm::Crc64Nvme);
        let mut len = 0;
        for piece in pieces {
            crc.update(&piece);
            len += piece.len();
            self.pending.extend_from_slice(&piece);
            engine::yield_if_needed().await;
        }
        self.pad();
        self.write_due().await?;
        Ok(Section {
            offset,
            len: len as u32,
            crc: crc.finalize(),
        })
    }

    /// Ends the run: it is durable, but for its names, which are durable after a flush of the
    /// directory. `None` when it has no slot.
    ///
    /// # Errors
    /// `Full`, `Busy`, `Internal`; the run can only be given up then.
    pub(in crate::store) async fn finish(mut self) -> Result<Option<Rc<Run>>, StoreError> {
        if !self.block.is_empty() {
            self.end_block();
        }
        if self.slots == 0 {
            remove(&self.dir, self.of.number).await?;
            return Ok(None);
        }
        self.write_due().await?;
        let (filter, blocks) = (
            std::mem::take(&mut self.bloom),
            std::mem::take(&mut self.blocks),
        );
        let bloom = self.section(filter.encode()).await?;
        let table = self.section(encode_table(&blocks)).await?;
        let foot = Foot {
            number: self.of.number,
            partition: u32::from(self.partition),
            slots: self.slots,
            bloom,
            table,
        };
        self.pending.extend_from_slice(&foot.encode());
        self.pad();
        self.write_due().await?;
        for copy in &self.copies {
            let synced = copy.datasync().await;
            synced.map_err(|e| failed("cannot flush a run of the index", &e))?;
        }
        Ok(Some(Rc::new(Run {
            of: self.of,
            copies: self.copies.map(Some),
            slots: self.slots,
            bytes: self.offset,
            bloom: filter,
            blocks,
            mended: Cell::new(0),
        })))
    }
}

/// Removes the files of a run, as far as they are there.
pub(in crate::store) async fn remove(dir: &Path, number: u64) -> Result<(), StoreError> {
    for copy in 0..COPIES {
        match fs::remove_file(path_of(dir, number, copy)).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed("cannot remove a run of the index", &error));
            }
            _ => {}
        }
    }
    Ok(())
}
