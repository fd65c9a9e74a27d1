//! What must hold, while a scenario runs and after it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::async_runtime::AsyncRuntime as _;
use openraft_rt_sim::SimRuntime;

use crate::node::Role;
use crate::sim::cluster::{Members, SimNode, World};
use crate::types::{Entry, NodeId};
use crate::wal::lock;

/// At most one leader in a term; terms and applied positions of a run never go back.
pub async fn watch<M: Members>(world: Arc<World<M>>) {
    let mut seen = std::collections::BTreeMap::new();
    while !world.over.load(Ordering::Relaxed) {
        for id in world.up() {
            let Some((node, run)) = world.running(id) else {
                continue;
            };
            let status = node.status();
            if status.role == Role::Leader {
                let mut leaders = lock(&world.leaders);
                let leader = *leaders.entry(status.term).or_insert(id);
                assert_eq!(leader, id, "two leaders in term {}", status.term);
            }
            let now = (status.term, status.applied);
            let before = seen.insert((id, run), now).unwrap_or(now);
            assert!(before.0 <= now.0, "the term of member {id} went back");
            assert!(before.1 <= now.1, "member {id} has un-applied an entry");
        }
        SimRuntime::sleep(Duration::from_millis(7)).await;
    }
}

/// Committed entries are the same in all logs.
pub fn logs_match<M: Members>(nodes: &[(NodeId, SimNode<M>)]) {
    let committed = nodes
        .iter()
        .filter_map(|(_, node)| node.status().committed)
        .min();
    let Some(committed) = committed else { return };
    let logs: Vec<(NodeId, Vec<Entry>)> = nodes
        .iter()
        .map(|(id, node)| {
            (
                *id,
                node.log().read(0..committed + 1).expect("the log reads"),
            )
        })
        .collect();
    for (id, log) in &logs {
        for entry in log {
            for (other, other_log) in &logs {
                let same = other_log
                    .iter()
                    .find(|one| one.log_id.index() == entry.log_id.index());
                if let Some(same) = same {
                    let index = entry.log_id.index();
                    assert_eq!(same, entry, "entry {index} of members {id} and {other}");
                }
            }
        }
    }
}

/// Panics of tasks, which the runtime itself swallows.
pub mod panics {
    use std::cell::RefCell;
    use std::sync::Once;

    thread_local! {
        static CAUGHT: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    }

    static HOOK: Once = Once::new();

    /// Begins to note this thread's panics.
    pub fn catch_from_now() {
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                CAUGHT.with_borrow_mut(|caught| caught.push(panic.to_string()));
                before(panic);
            }));
        });
        CAUGHT.with_borrow_mut(Vec::clear);
    }

    /// What was noted.
    pub fn caught() -> Vec<String> {
        CAUGHT.take()
    }
}
