//! kill -9 at any moment: what was acknowledged is there, byte for byte.
//!
//! Fault model: the process dies between any two instructions; the kernel and the disk live on.
//! What must survive: every object whose PUT was answered 200. A PUT without an answer may or may
//! not have happened, but never by halves.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::support::{Node, connect, data_of, noise};

const ROUNDS: u64 = 6;
const WRITERS: u64 = 4;
/// Small, inline at the limit, streamed.
const SIZES: [usize; 4] = [100, 4096, 65_536, 600_000];

/// Length of a writer's `n`-th object.
fn size(n: u64) -> usize {
    SIZES[(n % SIZES.len() as u64) as usize]
}

fn seed(round: u64, writer: u64, n: u64) -> u64 {
    round << 40 | writer << 32 | n
}

#[test]
fn every_acknowledged_object_survives_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let data = data_of(&dir);
    let node = Node::start(&data);
    node.client().put("/crash", b"").expect(200);
    node.drain();
    let mut acknowledged: Vec<(u64, u64, u64)> = Vec::new();
    let mut dice = engine::Rng::new(0x00C0_FFEE);
    for round in 0..ROUNDS {
        let node = Node::start(&data);
        let kept: Arc<Mutex<Vec<(u64, u64, u64)>>> = Arc::default();
        let (stop, count) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (client, addr) = (node.client(), node.s3);
                let (kept, stop, count) =
                    (Arc::clone(&kept), Arc::clone(&stop), Arc::clone(&count));
                thread::spawn(move || {
                    let mut stream = connect(addr);
                    for n in 0.. {
                        let path = format!("/crash/{round}-{writer}-{n}");
                        let body = noise(seed(round, writer, n), size(n));
                        match client.try_put(&mut stream, &path, &body) {
                            Some(200) => kept.lock().unwrap().push((round, writer, n)),
                            Some(status) => panic!("{status} for {path}"),
                            None => return,
                        }
                        count.fetch_add(1, Ordering::SeqCst);
                        if stop.load(Ordering::SeqCst) {
                            return;
                        }
                    }
                })
            })
            .collect();
        // A moment that differs from round to round: after this many acknowledgements.
        let moment = 1 + dice.below(120);
        while count.load(Ordering::SeqCst) < moment {
            thread::yield_now();
        }
        node.kill();
        stop.store(true, Ordering::SeqCst);
        for writer in writers {
            writer.join().unwrap();
        }
        acknowledged.extend(kept.lock().unwrap().iter());
        let node = Node::start(&data);
        let mut client = node.client();
        for &(round, writer, n) in &acknowledged {
            let got = client
                .get(&format!("/crash/{round}-{writer}-{n}"))
                .expect(200);
            assert!(
                got.body == noise(seed(round, writer, n), size(n)),
                "{round}-{writer}-{n}"
            );
        }
        node.drain();
    }
    assert!(!acknowledged.is_empty());
}
