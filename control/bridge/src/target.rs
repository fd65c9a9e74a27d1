//! Where a call goes.

use engine::{ServiceGroup, ShardId, Sharded};
use shards::{PartitionId, Router};

/// Which shard's value a call runs on.
#[derive(Debug)]
pub enum Target<T> {
    /// That of a certain shard.
    Shard(Sharded<T>, ShardId),
    /// That of some shard, in turn: for what every shard can answer.
    Any(Sharded<T>),
    /// That of the shard which owns a partition. While the partition moves the call waits for its new
    /// owner, until the deadline.
    Owner {
        /// Finds the owner.
        router: Router<T>,
        /// Bounds and level of the hop to it, from the shard where the call comes in.
        group: ServiceGroup,
        /// What is owned.
        partition: PartitionId,
    },
}

impl<T> Clone for Target<T> {
    fn clone(&self) -> Self {
        match self {
            Target::Shard(values, shard) => Target::Shard(values.clone(), *shard),
            Target::Any(values) => Target::Any(values.clone()),
            Target::Owner {
                router,
                group,
                partition,
            } => Target::Owner {
                router: router.clone(),
                group: *group,
                partition: *partition,
            },
        }
    }
}
