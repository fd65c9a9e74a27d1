//! Hears of shards that end.

use std::future::pending;

use engine::{EngineHandle, ShardId};
use tokio::task::JoinSet;

/// One waiting call on each shard: it has no answer for as long as the shard lives.
#[derive(Debug)]
pub struct ShardDeaths(JoinSet<ShardId>);

impl ShardDeaths {
    /// Watches all shards, from within a tokio runtime.
    pub fn watch(engine: &EngineHandle) -> ShardDeaths {
        let mut deaths = JoinSet::new();
        for shard in engine.shard_ids() {
            let engine = engine.clone();
            deaths.spawn(async move {
                let ended = engine.call(shard, |_| Box::pin(pending::<()>())).await;
                tracing::debug!(shard = shard.0, ?ended, "the watch on a shard ended");
                shard
            });
        }
        ShardDeaths(deaths)
    }

    /// The first shard that ends, and then the next; never returns when none is left. Cancel-safe.
    pub async fn next(&mut self) -> ShardId {
        match self.0.join_next().await {
            Some(Ok(shard)) => shard,
            Some(Err(_)) | None => pending().await,
        }
    }
}
