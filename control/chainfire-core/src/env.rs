//! Where a member runs: its runtime, its disk, and where blocking work goes.

use std::future::Future;
use std::io;
use std::path::Path;

pub use openraft::async_runtime::AsyncRuntime;
pub use openraft::{Instant, TokioRuntime};

use crate::disk::{Disk, FileDisk};
use crate::wal::{Jobs, Writer};

/// What a member needs of the world besides other members.
pub trait Environment: Clone + Send + Sync + 'static {
    /// Tasks, timers and channels.
    type Runtime: AsyncRuntime + 'static;
    /// The log's directory.
    type Disk: Disk;

    /// The log's directory, for this member alone.
    fn log_disk(&self) -> Self::Disk;

    /// Lets the log's writer run until its queue is closed.
    ///
    /// # Errors
    /// No thread for it.
    fn start_writer(&self, writer: Writer<Self::Disk>, jobs: Jobs) -> io::Result<()>;

    /// Runs `work`, which may block on the disk, where it holds nobody up.
    fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = T> + Send;
}

/// Production: tokio, files, and a thread for the log.
#[derive(Debug, Clone)]
pub struct TokioEnvironment {
    disk: FileDisk,
}

impl TokioEnvironment {
    /// A member whose log is in `directory`.
    ///
    /// # Errors
    /// A directory that cannot be used, or that another process uses.
    pub fn open(directory: &Path) -> io::Result<Self> {
        Ok(Self {
            disk: FileDisk::open(directory)?,
        })
    }
}

impl Environment for TokioEnvironment {
    type Runtime = TokioRuntime;
    type Disk = FileDisk;

    fn log_disk(&self) -> FileDisk {
        self.disk.clone()
    }

    fn start_writer(&self, writer: Writer<FileDisk>, jobs: Jobs) -> io::Result<()> {
        let builder = std::thread::Builder::new().name("chainfire-log".to_owned());
        builder.spawn(move || writer.run(jobs)).map(drop)
    }

    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        match tokio::task::spawn_blocking(work).await {
            Ok(value) => value,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}
