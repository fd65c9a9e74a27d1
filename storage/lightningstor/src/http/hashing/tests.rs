//! Bodies in company, in haste and given up, under the simulator.

use engine::EngineConfig;
use engine::sim::Sim;
use md5::Digest as _;

use super::*;

fn on_a_shard<F>(seed: u64, test: impl FnOnce(Rc<Hashing>) -> F)
where
    F: Future<Output = ()> + 'static,
{
    let sim = Sim::new(seed);
    let config = EngineConfig {
        pool_bytes: 16 << 20,
        ..EngineConfig::unpinned(1)
    };
    let node = sim.node("hashing");
    sim.start(node, config).unwrap();
    sim.run(node, 0, test(Hashing::new()));
}

fn buf(number: u8, len: usize) -> DmaBuf {
    let mut buf = engine::take_buf(len).unwrap();
    for (at, byte) in buf.iter_mut().enumerate() {
        *byte = number.wrapping_mul(31) ^ (at % 251) as u8;
    }
    buf
}

/// Hashes `count` pieces of a body and compares the sum.
async fn body(hashing: Rc<Hashing>, number: u8, count: usize, len: usize) {
    let (mut md5, mut expected) = (Md5::new(), md5::Md5::new());
    for _ in 0..count {
        let (hurry, hurried) = oneshot::channel();
        let buf = buf(number, len);
        expected.update(&*buf);
        let hash = Rc::clone(&hashing).update(md5, buf, hurried);
        let task = engine::spawn_local(SchedGroup::FOREGROUND, hash);
        engine::yield_now().await;
        drop(hurry);
        (md5, _) = task.await.unwrap();
    }
    assert_eq!(md5.finish(), <[u8; 16]>::from(expected.finalize()));
}

#[test]
fn bodies_in_company_have_their_own_sums() {
    for seed in 0..8 {
        on_a_shard(seed, |hashing| async move {
            let bodies = (1..=11).map(|number| {
                let (count, len) = (usize::from(number) % 4 + 1, 30_011 * usize::from(number));
                body(Rc::clone(&hashing), number, count, len)
            });
            futures_util::future::join_all(bodies).await;
            assert!(hashing.jobs.borrow().is_empty());
        });
    }
}

#[test]
fn one_without_haste_waits_for_company() {
    on_a_shard(1, |hashing| async move {
        let (hurry, hurried) = oneshot::channel();
        let hash = Rc::clone(&hashing).update(Md5::new(), buf(1, 4096), hurried);
        let task = engine::spawn_local(SchedGroup::FOREGROUND, hash);
        for _ in 0..100 {
            engine::yield_now().await;
        }
        assert!(!task.is_finished(), "a lane alone was not asked for");
        for number in 2..=LANES_ENOUGH as u8 {
            body(Rc::clone(&hashing), number, 1, 4096).await;
        }
        drop(hurry);
        task.await.unwrap();
    });
}

#[test]
fn a_body_given_up_leaves_nothing_behind() {
    on_a_shard(2, |hashing| async move {
        let (hurry, hurried) = oneshot::channel();
        let hash = Rc::clone(&hashing).update(Md5::new(), buf(1, 200_000), hurried);
        let task = engine::spawn_local(SchedGroup::FOREGROUND, hash);
        for _ in 0..10 {
            engine::yield_now().await;
        }
        assert_eq!(hashing.jobs.borrow().len(), 1);
        drop(task);
        drop(hurry);
        body(Rc::clone(&hashing), 2, 3, 100_000).await;
        assert!(hashing.jobs.borrow().is_empty());
    });
}

#[test]
fn haste_waits_a_moment_for_bodies_that_are_coming_and_no_longer() {
    on_a_shard(3, |hashing| async move {
        let (first, second) = (hashing.open(), hashing.open());
        let begun = engine::now();
        body(Rc::clone(&hashing), 1, 1, 100_000).await;
        let alone = engine::now() - begun;
        assert!(alone >= GATHER_WAIT, "the second might have come");
        let begun = engine::now();
        let both = [1, 2].map(|number| body(Rc::clone(&hashing), number, 1, 100_000));
        futures_util::future::join_all(both).await;
        assert!(engine::now() - begun < GATHER_WAIT, "all are there");
        let begun = engine::now();
        body(Rc::clone(&hashing), 1, 1, 1000).await;
        assert!(engine::now() - begun < GATHER_WAIT, "it is short");
        drop(second);
        let begun = engine::now();
        body(Rc::clone(&hashing), 1, 3, 200_000).await;
        assert!(engine::now() - begun < GATHER_WAIT, "nobody else comes");
        drop(first);
    });
}
