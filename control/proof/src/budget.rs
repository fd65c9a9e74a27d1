//! How much disk the work root takes, and how much it may.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde::Serialize;

use crate::error::{Error, ErrorKind};
use crate::root::WorkRoot;

/// Says how much the work root may take, in GiB.
pub const BUDGET_GIB_VARIABLE: &str = "ULTRACLOUD_WORK_BUDGET_GIB";
/// A few dozen runs of the lanes that there are, and room for images of virtual machines.
const BUDGET_GIB_DEFAULT: u64 = 20;
const GIB: u64 = 1 << 30;
/// What `stat` counts blocks in.
const BLOCK_BYTES: u64 = 512;

/// How much the work root may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Budget {
    /// In bytes on disk.
    pub bytes: u64,
}

impl Budget {
    /// What is given, else what the environment says, else 20 GiB.
    ///
    /// # Errors
    /// When the environment names no number of GiB.
    pub fn of(given_gib: Option<u64>) -> Result<Budget, Error> {
        let said = std::env::var(BUDGET_GIB_VARIABLE).ok();
        let said = said.filter(|text| !text.is_empty());
        let gib = match (given_gib, said) {
            (Some(gib), _) => gib,
            (None, None) => BUDGET_GIB_DEFAULT,
            (None, Some(text)) => text.parse().map_err(|_| {
                let what = format!("{BUDGET_GIB_VARIABLE} is {text:?}; it is a number of GiB");
                Error::new(ErrorKind::Environment, what)
            })?,
        };
        let bytes = gib.saturating_mul(GIB);
        Ok(Budget { bytes })
    }
}

/// What lies in the work root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Each lane's.
    pub lanes: Vec<LaneUsage>,
    /// Bytes on disk of what belongs to no run.
    pub other_bytes: u64,
    /// All of it, in bytes on disk.
    pub bytes: u64,
}

/// What lies in one lane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LaneUsage {
    /// Its name.
    pub lane: String,
    /// Its runs.
    pub proofs: usize,
    /// Bytes on disk of its runs.
    pub bytes: u64,
}

impl WorkRoot {
    /// Measures everything.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn usage(&self) -> Result<Usage, Error> {
        let mut lanes = Vec::new();
        for lane in self.lanes()? {
            let proofs = self.proofs(&lane)?;
            let mut bytes = 0;
            for proof in &proofs {
                bytes += bytes_below(&proof.dir)?;
            }
            lanes.push(LaneUsage {
                lane,
                proofs: proofs.len(),
                bytes,
            });
        }
        let bytes = if self.dir().is_dir() {
            bytes_below(self.dir())?
        } else {
            0
        };
        let in_lanes: u64 = lanes.iter().map(|lane| lane.bytes).sum();
        Ok(Usage {
            lanes,
            // A running lane may have written between the two sums.
            other_bytes: bytes.saturating_sub(in_lanes),
            bytes,
        })
    }
}

/// Bytes on disk of a file, or of a directory with all below it. A link counts as a link, and what
/// vanishes meanwhile as nothing.
pub(crate) fn bytes_below(path: &Path) -> Result<u64, Error> {
    let Some(metadata) = unless_gone(path, fs::symlink_metadata(path))? else {
        return Ok(0);
    };
    let mut bytes = metadata.blocks() * BLOCK_BYTES;
    if metadata.is_dir()
        && let Some(entries) = unless_gone(path, fs::read_dir(path))?
    {
        for entry in entries {
            bytes += bytes_below(&entry.map_err(Error::io("read", path))?.path())?;
        }
    }
    Ok(bytes)
}

fn unless_gone<T>(path: &Path, found: io::Result<T>) -> Result<Option<T>, Error> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}
