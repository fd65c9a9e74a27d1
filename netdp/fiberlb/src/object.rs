//! Where the program's object is found.
//!
//! It is built apart from the workspace, by `cargo xtask bpf`, with a compiler that few machines have.
//! So it is a file that is read at start, not bytes inside of the binary: a build of the workspace needs
//! neither that compiler nor the file, and a server that does not balance never looks for it.

use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};

/// The variable that names the object when the configuration does not.
pub const OBJECT_VARIABLE: &str = "ULTRACLOUD_FIBERLB_OBJECT";
/// Where a package has it.
pub const OBJECT_INSTALLED: &str = "/usr/lib/ultracloud/fiberlb.o";

/// Reads the object: the configured file, else the one that the environment names, else the installed.
///
/// # Errors
///
/// [`ErrorKind::Object`] when the file cannot be read.
pub fn read(configured: Option<&Path>) -> Result<Vec<u8>> {
    let path = match configured {
        Some(path) => path.to_owned(),
        None => std::env::var_os(OBJECT_VARIABLE)
            .map_or_else(|| PathBuf::from(OBJECT_INSTALLED), PathBuf::from),
    };
    std::fs::read(&path).map_err(|error| {
        let what = format!(
            "cannot read FiberLB's program {}; `cargo xtask bpf` builds it and prints its path, \
             {OBJECT_VARIABLE} names it",
            path.display()
        );
        Error::with(ErrorKind::Object, what, error)
    })
}
