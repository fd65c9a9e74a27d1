//! The ballast of a partition: space that it holds so that it finds its way out of a full disk.
//!
//! Log segments come back only behind checkpoints, and a checkpoint takes space before it gives any.
//! So a file keeps what the next checkpoints need. It is thrown off when a checkpoint meets a full
//! disk; from then on until it is whole again, only what gives space back may take any.
//!
//! Its content means nothing, and so does its absence after a crash: it is made again.

use std::cell::Cell;
use std::io;
use std::path::PathBuf;

use engine::fs::{File, OpenOptions};
use segment_log::durable::is_full;

/// Whether the ballast is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It was not looked for in this life.
    Unknown,
    Whole,
    /// There is less than there should be.
    Spent,
    /// The file system cannot hold space for a file.
    Unsupported,
}

/// A partition's ballast.
#[derive(Debug)]
pub(super) struct Ballast {
    path: PathBuf,
    state: Cell<State>,
    bytes: Cell<u64>,
}

impl Ballast {
    pub(super) fn new(path: PathBuf) -> Ballast {
        Ballast {
            path,
            state: Cell::new(State::Unknown),
            bytes: Cell::new(0),
        }
    }

    pub(super) fn is_spent(&self) -> bool {
        self.state.get() == State::Spent
    }

    /// Bytes that it holds, as far as is known.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    async fn open(&self) -> io::Result<File> {
        let options = OpenOptions {
            write: true,
            create: true,
            ..OpenOptions::default()
        };
        let file = File::open(&self.path, options).await?;
        self.bytes.set(file.opened_len());
        Ok(file)
    }

    /// Makes it hold `wanted` bytes at least, and twice that at most. A full disk is no error: it is
    /// spent then.
    pub(super) async fn fill(&self, wanted: u64) -> io::Result<()> {
        let state = self.state.get();
        let fits = (wanted..=2 * wanted).contains(&self.bytes.get());
        if state == State::Unsupported || (state == State::Whole && fits) {
            return Ok(());
        }
        let file = self.open().await?;
        if self.bytes.get() > 2 * wanted {
            file.set_len(wanted).await?;
            self.bytes.set(wanted);
        }
        let have = self.bytes.get();
        let grown = match wanted.checked_sub(have) {
            None | Some(0) => Ok(()),
            Some(missing) => file.allocate(have, missing).await,
        };
        match grown {
            Ok(()) => {
                self.bytes.set(have.max(wanted));
                self.state.set(State::Whole);
            }
            Err(error) if is_full(&error) => self.state.set(State::Spent),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                self.state.set(State::Unsupported);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Throws off `share` bytes, or what there is; false when there was nothing.
    pub(super) async fn spend(&self, share: u64) -> io::Result<bool> {
        if self.state.get() == State::Unsupported {
            return Ok(false);
        }
        let file = self.open().await?;
        let have = self.bytes.get();
        self.state.set(State::Spent);
        let left = have.saturating_sub(share);
        file.set_len(left).await?;
        self.bytes.set(left);
        Ok(left < have)
    }
}
