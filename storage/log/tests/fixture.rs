//! Logs of every format version there was must open for ever.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod support;

use engine::fs::{self, File, OpenOptions};
use segment_log::Lsn;
use support::{World, open, segment_path, small};

#[test]
fn a_log_of_format_version_1_opens_and_goes_on() {
    let world = World::new(1);
    world.run(async {
        fs::create_dir_all(support::DIR).await.unwrap();
        let segments: [&'static [u8]; 2] = [
            include_bytes!("fixtures/v1/00000001.seg"),
            include_bytes!("fixtures/v1/00000002.seg"),
        ];
        for (number, bytes) in (1..).zip(segments) {
            let options = OpenOptions {
                write: true,
                create: true,
                ..OpenOptions::default()
            };
            let file = File::open(segment_path(number), options).await.unwrap();
            file.write_then_datasync(bytes, 0).await.0.unwrap();
        }
    });
    let (log, recovered, seen) = world.open(small()).unwrap();
    assert!(recovered.clean);
    assert_eq!((recovered.last, recovered.torn_bytes), (Lsn(6), 0));
    for (number, record) in (1..=6_u8).zip(&seen) {
        let body = [
            b"fixture ",
            vec![number; usize::from(number) * 100].as_slice(),
        ]
        .concat();
        assert_eq!((record.lsn, record.kind), (u64::from(number), number));
        assert_eq!(record.payload, body);
    }
    assert!(log.segments()[0].sealed);
    world.run(async move {
        assert_eq!(log.append(7, &[b"new"]).await.unwrap().lsn, Lsn(7));
        log.close().await.unwrap();
    });
    let (_, recovered, _) = world.run(open(small(), Lsn(0), 0)).unwrap();
    assert_eq!(recovered.last, Lsn(7));
}
