//! From an export into an image.

use std::path::{Path, PathBuf};

use futures_util::stream::StreamExt;
use tokio::sync::mpsc;

use super::content::{ContentDigest, IN_FLIGHT, Piece, content, split};
use super::sink::{Part, Sink};
use super::source::Source;
use super::{Format, ImageError, Phase, Progress, Summary};
use crate::client::Client;

/// Where an image goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    /// A file, which appears under its name when it is whole, and read back if that is wanted. It is
    /// written beside that, with `.part` at its end.
    File {
        /// Its name.
        path: PathBuf,
        /// Whether one that is there is replaced.
        overwrite: bool,
    },
    /// The standard output, as a raw image with all its zeros.
    Stdout,
}

/// What is exported, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Where the image goes to.
    pub to: To,
    /// What it is written as.
    pub format: Format,
    /// Whether the file is read back and compared.
    pub verify: bool,
}

impl Export {
    /// A file that is not there yet, read back.
    pub fn new(path: impl Into<PathBuf>, format: Format) -> Export {
        let path = path.into();
        let overwrite = false;
        Export {
            to: To::File { path, overwrite },
            format,
            verify: true,
        }
    }

    fn path(&self) -> &Path {
        match &self.to {
            To::File { path, .. } => path,
            To::Stdout => Path::new("standard output"),
        }
    }

    fn open(&self, bytes: u64) -> Result<Sink, ImageError> {
        match &self.to {
            To::File { path, overwrite } => Sink::file(path, self.format, bytes, *overwrite),
            To::Stdout if self.format == Format::Raw && !self.verify => {
                Ok(Sink::Stream(Box::new(std::io::stdout())))
            }
            To::Stdout => {
                let why = "what is written to a stream is raw, and cannot be read back";
                Err(ImageError::image(self.path(), 0, why))
            }
        }
    }
}

/// Copies an export into an image. The export must not change meanwhile: take a snapshot, or detach it.
///
/// # Errors
/// When the file is there or cannot be written, either side fails, or what is read back is something else.
/// Nothing has the name then but what had it before.
///
/// # Panics
/// Outside of a tokio runtime.
pub async fn export(
    client: &Client,
    export: &Export,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Summary, ImageError> {
    let bytes = client.bytes();
    let (outbox, inbox) = mpsc::channel(IN_FLIGHT);
    let job = export.clone();
    let writer = tokio::task::spawn_blocking(move || write(&job, bytes, inbox));
    let read = read(client, &outbox, progress).await;
    if read.is_ok() {
        // A writer that has failed says so below.
        let _ = outbox.send(None).await;
    }
    drop(outbox);
    let written = writer.await;
    let written = written.map_err(|e| ImageError::thread(export.path(), "writing", e))?;
    read?;
    let (digest, data_bytes, part) = written?;
    let part = match part {
        Some(part) if export.verify => {
            Some(verified(part, export.format, &digest, bytes, progress).await?)
        }
        part => part,
    };
    if let Some(part) = part {
        let named = tokio::task::spawn_blocking(move || part.name()).await;
        named.map_err(|e| ImageError::thread(export.path(), "finishing", e))??;
    }
    Ok(Summary {
        bytes,
        data_bytes,
        digest,
        verified: export.verify,
    })
}

/// The export's side. It stops without an error when the writer has.
async fn read(
    client: &Client,
    outbox: &mpsc::Sender<Option<Piece>>,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<(), ImageError> {
    let mut pieces = std::pin::pin!(content(client));
    let (phase, total) = (Phase::Copy, Some(client.bytes()));
    let mut done = 0;
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        done += piece.len();
        let parts = match &piece {
            Piece::Zeros { .. } => vec![piece],
            Piece::Data { offset, data } => split(*offset, data),
        };
        for part in parts {
            if outbox.send(Some(part)).await.is_err() {
                return Ok(());
            }
        }
        progress(Progress { phase, done, total });
    }
    Ok(())
}

/// The writer's thread. `None` is the end; without it there is no file.
fn write(
    export: &Export,
    bytes: u64,
    mut inbox: mpsc::Receiver<Option<Piece>>,
) -> Result<(String, u64, Option<Part>), ImageError> {
    let mut sink = export.open(bytes)?;
    let mut digest = ContentDigest::default();
    while let Some(piece) = inbox.blocking_recv() {
        let Some(piece) = piece else {
            let part = sink.end(export.path())?;
            let (digest, data_bytes) = digest.finish();
            return Ok((digest, data_bytes, part));
        };
        digest.update(&piece);
        sink.write(export.path(), &piece)?;
    }
    let gone = std::io::Error::from(std::io::ErrorKind::Interrupted);
    Err(ImageError::file(export.path(), "writing", 0, gone))
}

/// The file, when it reads as what was written.
async fn verified(
    part: Part,
    format: Format,
    wanted: &str,
    bytes: u64,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Part, ImageError> {
    let path = part.unfinished().to_owned();
    let (outbox, mut inbox) = mpsc::channel(IN_FLIGHT);
    let reader = tokio::task::spawn_blocking(move || {
        read_back(part.unfinished(), format, &outbox).map(|found| (part, found))
    });
    let (phase, total) = (Phase::Verify, Some(bytes));
    while let Some(done) = inbox.recv().await {
        progress(Progress { phase, done, total });
    }
    let found = reader.await;
    let (part, found) = found.map_err(|e| ImageError::thread(&path, "reading", e))??;
    if found == wanted {
        return Ok(part);
    }
    let wanted = wanted.to_owned();
    Err(ImageError::Differs { wanted, found })
}

/// Reads a file, tells how far it is, and gives its digest.
fn read_back(
    path: &Path,
    format: Format,
    outbox: &mpsc::Sender<u64>,
) -> Result<String, ImageError> {
    let mut digest = ContentDigest::default();
    let source = Source::file(path, Some(format), None)?;
    source.read(path, &mut |piece| {
        digest.update(&piece);
        outbox.blocking_send(piece.offset() + piece.len()).is_ok()
    })?;
    Ok(digest.finish().0)
}
