//! How a partition makes room for more unflushed changes: it makes durable what the older half holds.

use std::rc::Rc;

use engine::SchedGroup;

use super::Room;
use crate::error::VolumeError;
use crate::partition::{For, Inner};
use crate::volume::Volume;

impl Inner {
    /// Space for as many entries, when there is some. When that begins the last half, the other one is
    /// made void meanwhile.
    pub(crate) fn try_room(self: &Rc<Inner>, entries: usize) -> Option<Room<'_>> {
        let was_void = self.unflushed.is_older_void();
        let room = self.unflushed.try_room(entries);
        if was_void && !self.unflushed.is_older_void() {
            let inner = Rc::clone(self);
            let body = async move {
                if let Err(error) = inner.void_older(For::Space).await {
                    tracing::warn!(%error, "unflushed changes are not made durable");
                }
            };
            // Who finds no room does it, when there is no task for it.
            if let Ok(task) = engine::try_spawn_own(SchedGroup::BACKGROUND, body) {
                task.detach();
            }
        }
        room
    }

    /// Space for as many entries; waits until enough is durable. A full log does not refuse what gives
    /// space back. Nobody that waits here may have a
    /// volume's turn to commit, or be inside of its gate. Cancel-safe.
    ///
    /// # Errors
    /// Those of a commit.
    pub(crate) async fn room(
        self: &Rc<Inner>,
        entries: usize,
        what: For,
    ) -> Result<Room<'_>, VolumeError> {
        loop {
            self.poison.check()?;
            if let Some(room) = self.try_room(entries) {
                return Ok(room);
            }
            if self.unflushed.is_older_void() {
                self.unflushed.released.notified().await;
            } else {
                self.void_older(what).await?;
            }
        }
    }

    /// Makes everything durable that is dirty, and with it what the older half holds.
    async fn void_older(self: &Rc<Inner>, what: For) -> Result<(), VolumeError> {
        let _turn = self.unflushed.voiding.acquire(1).await?;
        if self.unflushed.is_older_void() {
            return Ok(());
        }
        let volumes: Vec<Rc<Volume>> = self.state.borrow().volumes.values().cloned().collect();
        let mut outcome = Ok(());
        for volume in volumes {
            match self.commit_changes(&volume, what).await {
                // Others of them may free something.
                Err(VolumeError::Full) => outcome = Err(VolumeError::Full),
                committed => committed?,
            }
            engine::yield_if_needed().await;
        }
        if outcome.is_ok() {
            self.unflushed.void_older();
        }
        outcome
    }
}
