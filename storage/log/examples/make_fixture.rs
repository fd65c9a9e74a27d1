//! Writes the segment files of a small log, made under the simulator, into a directory: how
//! `tests/fixtures/v1` was made. A new format version gets a directory of its own; a fixture that
//! exists is never written again.

use std::path::Path;

use engine::EngineConfig;
use engine::sim::Sim;
use segment_log::{Log, LogConfig, Lsn};

#[allow(
    clippy::disallowed_methods,
    reason = "a tool of the developer, outside of any engine"
)]
fn main() {
    let target = std::env::args().nth(1).expect("the directory to write to");
    let sim = Sim::new(1);
    let node = sim.node("a");
    sim.start(node, EngineConfig::unpinned(1))
        .expect("a simulated engine");
    sim.run(node, 0, async {
        let config = LogConfig {
            segment_bytes: 32 << 10,
            spare_segments: 0,
            batch_bytes_max: 4096,
            record_bytes_max: 4096,
            ..LogConfig::default()
        };
        let opened = Log::open(Path::new("/log"), config, Lsn(0), 0, |_| Ok(())).await;
        let (log, _) = opened.expect("a new log");
        for number in 1..=6_u8 {
            let body = vec![number; usize::from(number) * 100];
            log.append(number, &[b"fixture ", &body])
                .await
                .expect("a record");
        }
        log.close().await.expect("a clean end");
    });
    let disk = sim.disk(node);
    for (path, _) in disk.files() {
        let segment = path.extension().is_some_and(|extension| extension == "seg");
        if let (true, Some(bytes), Some(name)) = (segment, disk.read_file(&path), path.file_name())
        {
            std::fs::write(Path::new(&target).join(name), bytes).expect("the fixture is written");
        }
    }
}
