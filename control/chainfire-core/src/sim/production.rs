//! The production environment: real files, real threads, tokio's clock, and calls within the
//! process.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;

use crate::env::TokioEnvironment;
use crate::node::{Node, Options};
use crate::rpc::Method;
use crate::sim::cluster::member;
use crate::sim::disk::SimDisk;
use crate::sim::machine::{Ledger, Machine, Write};
use crate::transport::{SnapshotChunks, Transport, TransportError};
use crate::types::{Member, NodeId};
use crate::wal::lock;

type LocalNode = Node<TokioEnvironment, Local, Machine>;

/// Calls members of this process.
#[derive(Clone, Default)]
struct Local(Arc<Mutex<BTreeMap<NodeId, LocalNode>>>);

impl Local {
    fn node(&self, id: NodeId) -> Result<LocalNode, TransportError> {
        let node = lock(&self.0).get(&id).cloned();
        node.ok_or_else(|| TransportError::Unreachable("not started".to_owned()))
    }
}

impl Transport for Local {
    async fn call(
        &self,
        to: NodeId,
        _member: &Member,
        method: Method,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, TransportError> {
        let node = self.node(to)?;
        let called = tokio::time::timeout(deadline, node.receive(method, body)).await;
        let answer = called.map_err(|_| TransportError::Timeout)?;
        answer.map_err(|error| TransportError::Failed(error.to_string()))
    }

    async fn send_snapshot(
        &self,
        to: NodeId,
        _member: &Member,
        head: Bytes,
        chunks: SnapshotChunks,
        _deadline: Duration,
    ) -> Result<Bytes, TransportError> {
        let chunks: Vec<io::Result<Bytes>> = chunks.collect();
        let chunks = futures_util::stream::iter(chunks);
        let answer = self.node(to)?.receive_snapshot(head, chunks).await;
        answer.map_err(|error| TransportError::Failed(error.to_string()))
    }
}

/// Opens a directory as soon as the last task of the run before has let go of it.
async fn open(path: &Path) -> TokioEnvironment {
    loop {
        match TokioEnvironment::open(path) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tokio::task::yield_now().await;
            }
            opened => return opened.unwrap(),
        }
    }
}

/// Starts three members with their logs below `path`.
async fn start(path: &Path, states: &[SimDisk], ledger: &Ledger) -> Local {
    let local = Local::default();
    for id in 1..=3 {
        let environment = open(&path.join(id.to_string())).await;
        let state = states[id as usize - 1].reopened();
        let machine = Machine::open(state, ledger.clone()).unwrap();
        let options = Options::new(id);
        let node = Node::start(environment, local.clone(), machine, options)
            .await
            .unwrap();
        lock(&local.0).insert(id, node);
    }
    local
}

async fn stop(local: Local) {
    let nodes = std::mem::take(&mut *lock(&local.0));
    for node in nodes.into_values() {
        node.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_over_real_files_keep_what_they_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let states = [SimDisk::new(), SimDisk::new(), SimDisk::new()];
    let ledger = Ledger::default();
    let local = start(directory.path(), &states, &ledger).await;
    let members: BTreeMap<NodeId, Member> = (1..=3).map(|id| (id, member(id))).collect();
    for id in 1..=3 {
        local
            .node(id)
            .unwrap()
            .initialize(members.clone())
            .await
            .unwrap();
    }
    let writes = (0..200u32).map(|number| {
        let node = local.node(1 + NodeId::from(number % 3)).unwrap();
        let write = Write::Set {
            key: (number % 100) as u8,
            to: number,
        };
        tokio::spawn(async move { node.propose(write.encode()).await })
    });
    for write in writes.collect::<Vec<_>>() {
        assert!(write.await.unwrap().unwrap());
    }
    stop(local).await;
    let local = start(directory.path(), &states, &ledger).await;
    for id in 1..=3 {
        let node = local.node(id).unwrap();
        node.read_barrier().await.unwrap();
        assert_eq!(node.reader().all().len(), 100);
        assert!(node.initialize(members.clone()).await.is_err());
    }
    stop(local).await;
}

#[test]
fn a_log_in_use_is_not_opened_again() {
    let directory = tempfile::tempdir().unwrap();
    let first = TokioEnvironment::open(directory.path()).unwrap();
    let second = TokioEnvironment::open(directory.path()).unwrap_err();
    assert_eq!(second.kind(), io::ErrorKind::WouldBlock);
    drop(first);
    assert!(TokioEnvironment::open(directory.path()).is_ok());
}
