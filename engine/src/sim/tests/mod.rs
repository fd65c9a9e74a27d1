//! The simulator under the engine's own file and network calls: what it promises, what it breaks,
//! and that a seed decides everything.

mod disk;
mod disk_laws;
mod mapped;
mod net;
mod pages;
mod world;

use std::cell::RefCell;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;

use super::{NodeId, Sim};
use crate::EngineConfig;
use crate::backend::{Addr, OpenOptions};
use crate::fs::File;

/// A world with one node of two shards.
fn one_node(seed: u64) -> (Sim, NodeId) {
    let sim = Sim::new(seed);
    let node = sim.node("a");
    start(&sim, node);
    (sim, node)
}

/// A world with two nodes of one engine each.
fn two_nodes(seed: u64) -> (Sim, NodeId, NodeId) {
    let sim = Sim::new(seed);
    let (a, b) = (sim.node("a"), sim.node("b"));
    start(&sim, a);
    start(&sim, b);
    (sim, a, b)
}

fn start(sim: &Sim, node: NodeId) {
    let mut config = EngineConfig::unpinned(2);
    config.pool_bytes = 2 << 20;
    sim.start(node, config).unwrap();
}

fn addr(node: NodeId, port: u16) -> Addr {
    Addr::Inet(SocketAddr::new(node.ip().into(), port))
}

fn writable() -> OpenOptions {
    OpenOptions {
        write: true,
        create: true,
        ..OpenOptions::default()
    }
}

/// Opens a file in the root whose name survives a crash.
async fn durable_file(path: &str) -> File {
    let file = File::open(path, writable()).await.unwrap();
    crate::fs::sync_dir("/").await.unwrap();
    file
}

/// Runs `f` on the node with a cell that keeps what it said, also when the node goes down.
fn logged<T: 'static, F: Future + 'static>(
    sim: &Sim,
    node: NodeId,
    f: impl FnOnce(Rc<RefCell<Vec<T>>>) -> F,
) -> Rc<RefCell<Vec<T>>> {
    let log = Rc::new(RefCell::new(Vec::new()));
    let _detached = sim.spawn(node, 0, f(Rc::clone(&log)));
    log
}
