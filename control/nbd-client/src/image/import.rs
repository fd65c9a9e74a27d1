//! From an image into an export.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::mpsc;

use super::content::{ContentDigest, IN_FLIGHT, Piece, content};
use super::source::Source;
use super::{Format, ImageError, Phase, Progress, Summary};
use crate::client::Client;
use crate::error::ClientError;

/// Where an image comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    /// A file, or a disk.
    File(PathBuf),
    /// The standard input, as a raw image.
    Stdin,
}

/// What is imported, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    /// Where the image comes from.
    pub from: From,
    /// Its format; told by its first bytes when absent, which whoever made the image decides.
    pub format: Option<Format>,
    /// The file that a qcow2 image is based on, raw or qcow2. What the image itself names is not opened.
    pub backing: Option<PathBuf>,
    /// Whether the export is all zeros, as a new volume is: then zeros are not written.
    pub target_is_zero: bool,
    /// Whether the export is read back and compared.
    pub verify: bool,
}

impl Import {
    /// A file into a new volume, read back.
    pub fn new(path: impl std::convert::Into<PathBuf>) -> Import {
        Import {
            from: From::File(path.into()),
            format: None,
            backing: None,
            target_is_zero: true,
            verify: true,
        }
    }

    fn path(&self) -> &Path {
        match &self.from {
            From::File(path) => path,
            From::Stdin => Path::new("standard input"),
        }
    }

    /// It may block.
    fn open(&self) -> Result<Source, ImageError> {
        match &self.from {
            From::File(path) => Source::file(path, self.format, self.backing.as_deref()),
            From::Stdin if self.format == Some(Format::Qcow2) || self.backing.is_some() => {
                let why = "a qcow2 image cannot be read from a stream: import its file";
                Err(ImageError::image(self.path(), 0, why))
            }
            From::Stdin => Ok(Source::Stream(Box::new(std::io::stdin()))),
        }
    }
}

/// Copies an image into an export. What lies behind the image's end becomes zeros. The export is flushed
/// when this returns; when it fails, some of the image may be there.
///
/// # Errors
/// When the image is not sound, larger than the export, or either side fails.
///
/// # Panics
/// Outside of a tokio runtime.
pub async fn import(
    client: &Client,
    import: &Import,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Summary, ImageError> {
    let volume = client.bytes();
    let (outbox, inbox) = mpsc::channel(IN_FLIGHT);
    let job = import.clone();
    let reader = tokio::task::spawn_blocking(move || read(&job, volume, &outbox));
    let copied = copy(client, inbox, import.target_is_zero, progress).await;
    // The reader's error is the reason where both have one.
    let read = reader.await;
    let read = read.map_err(|e| ImageError::thread(import.path(), "reading", e))?;
    let (bytes, digest) = match (read, copied) {
        (Err(error), _) | (Ok(_), Err(error)) => return Err(error),
        (Ok(read), Ok(())) => read,
    };
    if !import.target_is_zero && bytes < volume {
        let unit = u64::from(client.block_sizes().minimum);
        let end = bytes.next_multiple_of(unit).min(volume);
        client.write_zeroes(end, volume - end).await?;
    }
    client.flush().await?;
    let (digest, data_bytes) = digest.finish();
    if import.verify {
        verify(client, &digest, progress).await?;
    }
    Ok(Summary {
        bytes,
        data_bytes,
        digest,
        verified: import.verify,
    })
}

/// What the reader tells of the image beside its pieces.
enum Sent {
    /// Size of the disk, where it is known.
    Total(Option<u64>),
    Piece(Piece),
}

/// The reader's thread.
fn read(
    import: &Import,
    volume: u64,
    outbox: &mpsc::Sender<Sent>,
) -> Result<(u64, ContentDigest), ImageError> {
    let source = import.open()?;
    let too_large = |image| ImageError::TooLarge { image, volume };
    let total = source.bytes();
    if let Some(bytes) = total.filter(|bytes| *bytes > volume) {
        return Err(too_large(bytes));
    }
    let mut digest = ContentDigest::default();
    let mut past = None;
    let mut into = |piece: Piece| {
        let end = piece.offset() + piece.len();
        if end > volume {
            past = Some(end);
            return false;
        }
        digest.update(&piece);
        outbox.blocking_send(Sent::Piece(piece)).is_ok()
    };
    // Nobody listens any more only when the other side has failed.
    let _ = outbox.blocking_send(Sent::Total(total));
    let bytes = source.read(import.path(), &mut into)?;
    match past {
        Some(end) => Err(too_large(end)),
        None => Ok((bytes, digest)),
    }
}

/// The export's side.
async fn copy(
    client: &Client,
    mut inbox: mpsc::Receiver<Sent>,
    target_is_zero: bool,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<(), ImageError> {
    let mut total = None;
    let mut done = 0;
    let mut writes = FuturesUnordered::new();
    while let Some(sent) = inbox.recv().await {
        match sent {
            Sent::Total(bytes) => total = bytes,
            Sent::Piece(piece) => writes.push(write(client, piece, target_is_zero)),
        }
        while writes.len() >= IN_FLIGHT {
            let Some(wrote) = writes.next().await else {
                break;
            };
            done += wrote?;
            report(progress, Phase::Copy, done, total);
        }
    }
    while let Some(wrote) = writes.next().await {
        done += wrote?;
        report(progress, Phase::Copy, done, total);
    }
    Ok(())
}

fn report(
    progress: &mut (dyn FnMut(Progress) + Send),
    phase: Phase,
    done: u64,
    total: Option<u64>,
) {
    progress(Progress { phase, done, total });
}

async fn write(client: &Client, piece: Piece, target_is_zero: bool) -> Result<u64, ClientError> {
    let len = piece.len();
    match piece {
        Piece::Zeros { .. } if target_is_zero => {}
        Piece::Zeros { offset, len } => {
            // What is no whole block at the image's end is followed by zeros.
            let unit = u64::from(client.block_sizes().minimum);
            client
                .write_zeroes(offset, len.next_multiple_of(unit))
                .await?;
        }
        Piece::Data { offset, data } => client.write(offset, padded(client, data)).await?,
    }
    Ok(len)
}

/// Data with zeros up to the next whole block, as an image may end inside of one.
fn padded(client: &Client, data: Bytes) -> Bytes {
    let unit = client.block_sizes().minimum as usize;
    if data.len().is_multiple_of(unit) {
        return data;
    }
    let mut whole = data.to_vec();
    whole.resize(data.len().next_multiple_of(unit), 0);
    whole.into()
}

/// Reads all of an export, whose digest is to be the one that is wanted.
async fn verify(
    client: &Client,
    wanted: &str,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<(), ImageError> {
    let mut digest = ContentDigest::default();
    let mut pieces = std::pin::pin!(content(client));
    let mut done = 0;
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        digest.update(&piece);
        done += piece.len();
        report(progress, Phase::Verify, done, Some(client.bytes()));
    }
    let (found, _) = digest.finish();
    if found == wanted {
        return Ok(());
    }
    let wanted = wanted.to_owned();
    Err(ImageError::Differs { wanted, found })
}
