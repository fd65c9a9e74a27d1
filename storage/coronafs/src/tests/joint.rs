//! Transfers of an encrypted volume that are done together.

use std::future::poll_fn;
use std::os::fd::AsFd;
use std::task::Poll;

use futures_util::future::{join, join_all};

use super::*;

const PART: usize = 64 * 1024;
const SECTORS: usize = PART / SECTOR;

/// A volume of whole parts, all of them written, in one piece.
async fn filled(store: &Partition, parts: u64) -> Attachment {
    let new = NewVolume {
        encrypted: true,
        ..new_volume("v", parts * PART as u64)
    };
    let made = store.create(new).await.unwrap();
    let device = attach(store, made.id).await;
    let bytes = sectors(1, SECTORS * parts as usize);
    write(&device, 0, &bytes).await.unwrap();
    device
}

/// Writes parts at once, each with its own stamp.
async fn put(device: &Attachment, parts: &[u64]) -> Vec<Result<(), BlockError>> {
    let writes = parts.iter().map(async |part| {
        let bytes = sectors(100 + part, SECTORS);
        write(device, part * PART as u64, &bytes).await
    });
    join_all(writes).await
}

/// Reads parts at once.
async fn get(device: &Attachment, parts: &[u64]) -> Vec<Result<Vec<u64>, BlockError>> {
    let reads = parts.iter().map(async |part| {
        let bytes = read(device, part * PART as u64, PART).await?;
        Ok(stamps(&bytes))
    });
    join_all(reads).await
}

/// The transfers that shared an operation meanwhile.
async fn joined<T>(store: &Partition, work: impl Future<Output = T>) -> (u64, T) {
    let before = store.joined_bounces();
    let done = work.await;
    (store.joined_bounces() - before, done)
}

#[test]
fn what_lies_side_by_side_goes_together_in_any_order() {
    let (sim, node) = world(1);
    sim.run(node, 0, async move {
        let store = open().await;
        let device = filled(&store, 16).await;
        // Three side by side, one alone, and more than a buffer holds.
        let parts = [1, 3, 2, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15];
        let (count, wrote) = joined(&store, put(&device, &parts)).await;
        assert!(wrote.iter().all(Result::is_ok), "{wrote:?}");
        assert_eq!(count, 3 + 8);
        let (count, seen) = joined(&store, get(&device, &parts)).await;
        assert_eq!(count, 3 + 8);
        for (part, seen) in parts.into_iter().zip(seen) {
            assert_eq!(seen.unwrap(), [100 + part; SECTORS]);
        }
        let others = (0..16).filter(|part| !parts.contains(part));
        for part in others {
            let seen = get(&device, &[part]).await.remove(0);
            assert_eq!(seen.unwrap(), [1; SECTORS]);
        }
        // One behind the other has nobody to go with.
        let alone = async {
            for part in 7..10 {
                put(&device, &[part]).await.remove(0).unwrap();
            }
        };
        assert_eq!(joined(&store, alone).await.0, 0);
        device.flush().await.unwrap();
    });
}

#[test]
fn reads_and_writes_of_one_place_at_once_are_whole() {
    let (sim, node) = world(2);
    sim.run(node, 0, async move {
        let store = open().await;
        let device = filled(&store, 4).await;
        let twice = join(put(&device, &[0, 1, 1, 2]), get(&device, &[0, 1, 2, 3]));
        let (wrote, seen) = twice.await;
        assert!(wrote.iter().all(Result::is_ok), "{wrote:?}");
        for (part, seen) in (0..4).zip(seen) {
            let seen = seen.unwrap();
            assert!(seen.iter().all(|stamp| [1, 100 + part].contains(stamp)));
        }
        let seen = get(&device, &[0, 1, 2]).await;
        for (part, seen) in (0..3).zip(seen) {
            assert_eq!(seen.unwrap(), [100 + part; SECTORS]);
        }
    });
}

#[test]
fn reads_that_fail_together_are_tried_alone() {
    let (sim, node) = world(3);
    let disk = sim.disk(node);
    sim.run(node, 0, async move {
        let store = open().await;
        let device = filled(&store, 4).await;
        disk.fail_next_read();
        let seen = get(&device, &[0, 1, 2]).await;
        assert!(seen.iter().all(Result::is_ok), "{seen:?}");
        // The second for one of them alone.
        disk.fail_next_read();
        disk.fail_next_read();
        let seen = get(&device, &[0, 1, 2]).await;
        assert_eq!(seen.iter().filter(|seen| seen.is_err()).count(), 1);
        assert_eq!(store.poisoned(), None);
    });
}

#[test]
fn a_write_that_fails_ends_writing_for_all() {
    let (sim, node) = world(4);
    let disk = sim.disk(node);
    sim.run(node, 0, async move {
        let store = open().await;
        let device = filled(&store, 4).await;
        disk.fail_next_write();
        let wrote = put(&device, &[0, 1, 2]).await;
        assert!(wrote.iter().all(Result::is_err), "{wrote:?}");
        assert!(store.poisoned().is_some());
    });
}

/// Memory of a guest that is no longer there.
fn cut_short() -> GuestList {
    let file = tempfile::tempfile().unwrap();
    file.set_len(PART as u64).unwrap();
    let mem = GuestMem::map(file.as_fd(), 0, PART).unwrap();
    let list = list_over(&mem, 0, PART);
    file.set_len(0).unwrap();
    list
}

#[test]
fn memory_that_is_gone_fails_nobody_else() {
    let (sim, node) = world(5);
    sim.run(node, 0, async move {
        let store = open().await;
        let device = filled(&store, 4).await;
        let lost = device.write(PART as u64, cut_short(), false);
        let (wrote, lost) = join(put(&device, &[0, 2]), lost).await;
        assert!(wrote.iter().all(Result::is_ok), "{wrote:?}");
        assert!(lost.is_err());
        let lost = device.read(PART as u64, cut_short());
        let (seen, lost) = join(get(&device, &[0, 2]), lost).await;
        assert!(lost.is_err());
        for (part, seen) in [0, 2].into_iter().zip(seen) {
            assert_eq!(seen.unwrap(), [100 + part; SECTORS]);
        }
        let seen = get(&device, &[1]).await.remove(0);
        assert_eq!(seen.unwrap(), [1; SECTORS]);
        assert_eq!(store.poisoned(), None);
    });
}

/// When a transfer is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dropped {
    /// The first, when others have come.
    LeadWaits,
    /// The same, when the kernel has the transfer.
    LeadWorks,
    /// Another, before the first goes on.
    OtherWaits,
    /// The same, when the kernel has the transfer.
    OtherWorks,
}

/// Drops one of three parts that are asked for at once. What became of the others.
async fn dropping<T>(
    when: Dropped,
    one: impl Future,
    others: impl Future<Output = Vec<T>>,
) -> Vec<T> {
    let (polls, at_once) = match when {
        Dropped::LeadWaits | Dropped::OtherWorks => (1, false),
        Dropped::LeadWorks => (2, false),
        Dropped::OtherWaits => (1, true),
    };
    let mut one = Some(Box::pin(one));
    let mut left = polls;
    let dropped = poll_fn(|cx| {
        if let Some(future) = one.as_mut().filter(|_| left > 0) {
            left -= 1;
            assert!(future.as_mut().poll(cx).is_pending());
            cx.waker().wake_by_ref();
            if left > 0 || !at_once {
                return Poll::Pending;
            }
        }
        one = None;
        Poll::Ready(())
    });
    match when {
        Dropped::LeadWaits | Dropped::LeadWorks => join(dropped, others).await.1,
        Dropped::OtherWaits | Dropped::OtherWorks => join(others, dropped).await.0,
    }
}

impl Dropped {
    /// The part that is dropped, beside the parts 1 and 2: the first of a run does all of it.
    fn part(self) -> u64 {
        match self {
            Dropped::LeadWaits | Dropped::LeadWorks => 0,
            Dropped::OtherWaits | Dropped::OtherWorks => 3,
        }
    }
}

const ALL: [Dropped; 4] = [
    Dropped::LeadWaits,
    Dropped::LeadWorks,
    Dropped::OtherWaits,
    Dropped::OtherWorks,
];

#[test]
fn reads_go_on_without_one_that_is_dropped() {
    for when in ALL {
        let (sim, node) = world(6);
        sim.run(node, 0, async move {
            let store = open().await;
            let device = filled(&store, 4).await;
            let seen = dropping(when, get(&device, &[when.part()]), get(&device, &[1, 2])).await;
            for seen in seen {
                assert_eq!(seen.unwrap(), [1; SECTORS], "{when:?}");
            }
            assert_eq!(store.poisoned(), None);
        });
    }
}

#[test]
fn memory_of_a_reader_that_is_gone_is_left_alone() {
    for when in ALL {
        let (sim, node) = world(8);
        sim.run(node, 0, async move {
            let store = open().await;
            let device = filled(&store, 4).await;
            let list = list_of(&sectors(9, SECTORS), 0);
            let read = device.read(when.part() * PART as u64, list.clone());
            dropping(when, read, get(&device, &[1, 2])).await;
            // Behind what was asked for then.
            get(&device, &[0]).await.remove(0).unwrap();
            let mut bytes = vec![0; PART];
            list.copy_out(0, &mut bytes).unwrap();
            assert_eq!(stamps(&bytes), [9; SECTORS], "{when:?}");
        });
    }
}

#[test]
fn a_write_that_is_dropped_ends_writing_when_it_was_begun() {
    for when in ALL {
        let (sim, node) = world(7);
        sim.run(node, 0, async move {
            let store = open().await;
            let device = filled(&store, 4).await;
            let wrote = dropping(when, put(&device, &[when.part()]), put(&device, &[1, 2])).await;
            let begun = matches!(when, Dropped::LeadWorks | Dropped::OtherWorks);
            assert_eq!(store.poisoned().is_some(), begun, "{when:?}");
            let parts = [1, 2].into_iter().zip(wrote);
            for (part, wrote) in parts {
                let seen = get(&device, &[part]).await.remove(0).unwrap();
                match wrote {
                    Ok(()) => assert_eq!(seen, [100 + part; SECTORS], "{when:?}"),
                    Err(error) => assert!(begun, "{when:?}: {error}"),
                }
            }
            if !begun {
                let seen = get(&device, &[when.part()]).await.remove(0);
                assert_eq!(seen.unwrap(), [1; SECTORS], "{when:?}");
            }
        });
    }
}
