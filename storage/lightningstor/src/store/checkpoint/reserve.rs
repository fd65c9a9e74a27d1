//! Space that is kept for checkpoints: on a full disk removals go on, and it takes a checkpoint to
//! let log segments go and bring their space back.
//!
//! The reserve is a file of allocated blocks that are never written. Who finds the disk full
//! shortens it and tries again; whoever has room next makes it whole.

use engine::fs::{File, OpenOptions};

use crate::store::partition::Inner;

const NAME: &str = "reserve";

impl Inner {
    async fn open_reserve(&self) -> std::io::Result<File> {
        let options = OpenOptions {
            write: true,
            create: true,
            ..OpenOptions::default()
        };
        File::open(self.dir.join(NAME), options).await
    }

    /// Makes the reserve whole, as far as there is room.
    pub(in crate::store) async fn fill_reserve(&self) {
        let held = &self.checkpoints.reserve_held;
        let bytes = self.config.checkpoint_reserve_bytes;
        if held.get() || bytes == 0 {
            return;
        }
        let filled = async {
            let file = self.open_reserve().await?;
            file.allocate(0, bytes).await
        };
        match filled.await {
            Ok(()) => held.set(true),
            // A file system without allocation has no reserve; a full one gets it later.
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::StorageFull | std::io::ErrorKind::Unsupported
                ) => {}
            Err(error) => tracing::warn!(
                partition = self.id.0, %error,
                "no space is kept for checkpoints on a full disk"
            ),
        }
    }

    /// Gives the reserve up; false when there was none.
    pub(super) async fn spend_reserve(&self) -> bool {
        if !self.checkpoints.reserve_held.replace(false) {
            return false;
        }
        let spent = async { self.open_reserve().await?.set_len(0).await };
        let spent = spent.await;
        if let Err(error) = &spent {
            tracing::warn!(partition = self.id.0, %error, "the reserve cannot be used");
        }
        spent.is_ok()
    }
}
