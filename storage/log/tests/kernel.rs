//! The same log on the real kernel, io_uring and disk: it opens, commits, rolls over, recycles,
//! reads back and opens again.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::path::PathBuf;
use std::rc::Rc;

use engine::{Engine, EngineConfig, ShardId};
use segment_log::{Log, LogConfig, LogError, Lsn};

async fn replayed(dir: PathBuf, config: LogConfig) -> (Rc<Log>, bool, Vec<Vec<u8>>) {
    let mut seen = Vec::new();
    let (log, recovered) = Log::open(&dir, config, Lsn(0), 0, |record| {
        seen.push(record.payload.to_vec());
        Ok(())
    })
    .await
    .unwrap();
    (log, recovered.clean, seen)
}

#[test]
fn the_log_works_on_the_real_kernel() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let engine = Engine::start(EngineConfig::unpinned(1)).unwrap();
    let handle = engine.handle();
    let answer = handle.call_blocking(ShardId(0), move |_| {
        Box::pin(async move {
            let config = LogConfig {
                segment_bytes: 1 << 20,
                record_bytes_max: 100_000,
                ..LogConfig::default()
            };
            let (log, clean, seen) = replayed(path.clone(), config.clone()).await;
            assert!(clean && seen.is_empty());
            for round in 0..20_u8 {
                let body = vec![round; 20_000];
                let parts = [&body[..10_000], &body[10_000..]];
                let together = (0..10).map(|_| log.append(round, &parts));
                for done in futures_util::future::join_all(together).await {
                    let done = done.unwrap();
                    let read = log.read(done.position, done.len, 512).await.unwrap();
                    assert!(read.payload.start >= 512);
                    assert_eq!((read.lsn, &read.buf[read.payload]), (done.lsn, &body[..]));
                }
            }
            assert!(log.segments().len() > 3);
            let second = replayed_error(&path, &config).await;
            assert!(matches!(second, LogError::Locked { .. }), "{second}");
            log.close().await.unwrap();
            let oldest = log.segments()[0].number;
            log.release(oldest).await.unwrap();
            let kept = log.segments()[0].first;
            drop(log);
            let (log, clean, seen) = replayed(path.clone(), config).await;
            assert!(clean);
            assert_eq!(seen.len() as u64, 200 - (kept.0 - 1));
            assert_eq!(log.append(1, &[b"on"]).await.unwrap().lsn, Lsn(201));
        })
    });
    answer.unwrap();
    engine.shutdown().unwrap();
}

async fn replayed_error(dir: &std::path::Path, config: &LogConfig) -> LogError {
    Log::open(dir, config.clone(), Lsn(0), 0, |_| Ok(()))
        .await
        .map(drop)
        .unwrap_err()
}
