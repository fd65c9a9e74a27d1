//! What a function that was sent to a shard sees of it.

use std::rc::Rc;

use super::{ShardCore, ShardId};
use crate::metrics::ShardMetrics;

/// A shard as seen by functions sent to it.
pub struct Shard {
    core: Rc<ShardCore>,
}

impl Shard {
    pub(crate) fn new(core: &Rc<ShardCore>) -> Shard {
        Shard {
            core: Rc::clone(core),
        }
    }

    /// Its number.
    pub fn id(&self) -> ShardId {
        self.core.id()
    }

    /// Its counters and histograms.
    pub fn metrics(&self) -> ShardMetrics {
        self.core.metrics()
    }
}
