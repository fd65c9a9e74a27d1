//! Whether a shard of the engine starts here: the engine itself is asked, with what a node gives it.

use engine::{Engine, EngineConfig};

use super::Check;

/// Starts one shard, asks what the kernel granted, and ends it.
pub fn check() -> Check {
    let config = EngineConfig::with_shards(1);
    let pool_mib = config.pool_bytes >> 20;
    let engine = match Engine::start(config) {
        Ok(engine) => engine,
        Err(error) => {
            let error = anyhow::Error::new(error);
            let next = "a node's shards need io_uring; the line above says what forbids it";
            return Check::fail("io_uring", format!("no shard starts: {error:#}"), next);
        }
    };
    let missing = engine.capabilities().missing.clone();
    let ended = engine.shutdown();
    if let Err(error) = ended {
        let error = anyhow::Error::new(error);
        let next = "start a node and see whether its log says the same";
        return Check::fail("io_uring", format!("a shard does not end: {error:#}"), next);
    }
    if missing.is_empty() {
        let found = format!(
            "a shard ran with {pool_mib} MiB of registered buffers, files and a receive ring"
        );
        return Check::ok("io_uring", found);
    }
    let found = format!("a shard ran, but without: {}", missing.join("; "));
    Check::warn("io_uring", found, "a node works without them, and slower")
}
