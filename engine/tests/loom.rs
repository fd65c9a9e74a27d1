//! Every interleaving of the cross-thread parts, under loom:
//! `RUSTFLAGS="--cfg loom" cargo test -p engine --test loom`.
#![cfg(loom)]

use engine::mailbox::{Doorbell, RemoteWakes, ReturnNode, ReturnStack, SpscRing};
use loom::sync::Arc;
use loom::thread;

#[test]
fn a_ring_delivers_every_message_once_and_in_order() {
    loom::model(|| {
        let ring = Arc::new(SpscRing::new(2));
        let sender = Arc::clone(&ring);
        let thread = thread::spawn(move || {
            // SAFETY: this thread is the only sender.
            (0..3_u32)
                .filter(|n| unsafe { sender.push(*n) }.is_ok())
                .collect::<Vec<_>>()
        });
        let mut got = Vec::new();
        for _ in 0..2 {
            // SAFETY: this thread is the only receiver.
            got.extend(unsafe { ring.pop() });
        }
        let sent = thread.join().unwrap();
        // SAFETY: as above; the sender has ended.
        while let Some(n) = unsafe { ring.pop() } {
            got.push(n);
        }
        assert_eq!(got, sent);
    });
}

/// The sleeper either sees the message before it sleeps, or the sender rings.
#[test]
fn a_message_to_a_falling_asleep_shard_is_seen_or_rung() {
    loom::model(|| {
        let shared = Arc::new((SpscRing::new(2), Doorbell::default()));
        let sender = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            // SAFETY: this thread is the only sender.
            unsafe { sender.0.push(1_u32) }.unwrap();
            sender.1.must_ring()
        });
        shared.1.announce_sleep();
        let seen = shared.0.has_messages();
        let rung = thread.join().unwrap();
        assert!(seen || rung, "the shard sleeps on a message");
    });
}

#[test]
fn a_wake_to_a_falling_asleep_shard_is_seen_or_rung() {
    loom::model(|| {
        let shared = Arc::new((RemoteWakes::new(64), Doorbell::default()));
        let waker = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            waker.0.set(5);
            waker.1.must_ring()
        });
        shared.1.announce_sleep();
        let seen = shared.0.any();
        let rung = thread.join().unwrap();
        assert!(seen || rung, "the shard sleeps on a wake");
        let mut woken = Vec::new();
        shared.0.take(|task| woken.push(task));
        assert_eq!(woken, [5]);
    });
}

#[test]
fn no_wake_is_lost_between_two_wakers_and_a_taker() {
    loom::model(|| {
        let wakes = Arc::new(RemoteWakes::new(64));
        let threads: Vec<_> = [3, 4]
            .map(|task| {
                let wakes = Arc::clone(&wakes);
                thread::spawn(move || wakes.set(task))
            })
            .into();
        let mut woken = Vec::new();
        wakes.take(|task| woken.push(task));
        for thread in threads {
            thread.join().unwrap();
        }
        wakes.take(|task| woken.push(task));
        woken.sort_unstable();
        woken.dedup();
        assert_eq!(woken, [3, 4]);
    });
}

#[test]
fn buffers_come_home_once_each() {
    loom::model(|| {
        let stack = Arc::new(ReturnStack::default());
        let threads: Vec<_> = [1_u8, 2]
            .map(|order| {
                let stack = Arc::clone(&stack);
                thread::spawn(move || {
                    let memory = Box::into_raw(Box::new([0_u64; 4]));
                    // SAFETY: the box is ours, large enough and aligned for a node.
                    unsafe { stack.push(memory.cast::<ReturnNode>(), order) };
                })
            })
            .into();
        let mut got = Vec::new();
        let mut take = || {
            stack.take_all(|node, order| {
                got.push(order);
                // SAFETY: the node is the box that `push` was given, and is ours again.
                drop(unsafe { Box::from_raw(node.cast::<[u64; 4]>()) });
            });
        };
        take();
        for thread in threads {
            thread.join().unwrap();
        }
        take();
        got.sort_unstable();
        assert_eq!(got, [1, 2]);
    });
}
