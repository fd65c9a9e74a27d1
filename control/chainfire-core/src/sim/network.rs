//! The simulated network.
//!
//! Fault model. A message is delayed, dropped, or (where the transport's contract allows it)
//! delivered twice, each way on its own; messages overtake each other. A direction between two members
//! can be cut. What a member said before it crashed may still arrive; a member that crashed neither sends nor answers.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::AsyncRuntime as _;
use openraft_rt_sim::SimRuntime;

use crate::rpc::Method;
use crate::sim::cluster::{Members, World};
use crate::sim::runtime::on;
use crate::transport::{SnapshotChunks, Transport, TransportError};
use crate::types::{Member, NodeId};
use crate::wal::lock;

/// How bad the network is now.
#[derive(Debug, Clone, Default)]
pub struct Links {
    /// Cut directions, from and to.
    pub cut: BTreeSet<(NodeId, NodeId)>,
    /// Messages that are lost.
    pub drop_percent: u64,
    /// Calls that arrive twice.
    pub duplicate_percent: u64,
    /// The longest usual delay.
    pub delay_us_max: u64,
}

/// One run of one member, sending.
pub struct SimTransport<M: Members> {
    pub(crate) world: Arc<World<M>>,
    pub(crate) from: NodeId,
    pub(crate) run: u64,
}

impl<M: Members> Clone for SimTransport<M> {
    fn clone(&self) -> Self {
        Self {
            world: self.world.clone(),
            from: self.from,
            run: self.run,
        }
    }
}

impl<M: Members> SimTransport<M> {
    /// The world it carries in.
    pub fn world(&self) -> &Arc<World<M>> {
        &self.world
    }

    /// Who sends.
    pub fn from(&self) -> NodeId {
        self.from
    }

    /// Carries one message; whether it arrives.
    pub async fn carry(&self, from: NodeId, to: NodeId) -> bool {
        let (delay, arrives) = {
            let links = lock(&self.world.links);
            let mut random = lock(&self.world.random);
            let usual = random.below(links.delay_us_max.max(1));
            let delay = if random.chance(2) { usual * 20 } else { usual };
            (delay, !random.chance(links.drop_percent))
        };
        SimRuntime::sleep(Duration::from_micros(50 + delay)).await;
        arrives && !lock(&self.world.links).cut.contains(&(from, to))
    }

    fn check_sender(&self) -> Result<(), TransportError> {
        if self.world.run(self.from) != Some(self.run) {
            return Err(TransportError::Unreachable(
                "the sender has crashed".to_owned(),
            ));
        }
        Ok(())
    }

    async fn exchange(
        &self,
        to: NodeId,
        method: Method,
        body: Bytes,
    ) -> Result<Bytes, TransportError> {
        let lost = std::future::pending::<Result<Bytes, TransportError>>;
        self.check_sender()?;
        if !self.carry(self.from, to).await {
            return lost().await;
        }
        let Some((node, run)) = self.world.running(to) else {
            return Err(TransportError::Unreachable("connection refused".to_owned()));
        };
        let twice = {
            let percent = lock(&self.world.links).duplicate_percent;
            let once = matches!(method, Method::Propose | Method::Change);
            !once && lock(&self.world.random).chance(percent)
        };
        if twice {
            let (this, node, body) = (self.clone(), node.clone(), body.clone());
            drop(SimRuntime::spawn(async move {
                if this.carry(this.from, to).await {
                    // The second answer has nobody to read it.
                    let _ = on(to, node.receive(method, body)).await;
                }
            }));
        }
        let answer = on(to, node.receive(method, body)).await;
        if self.world.run(to) != Some(run) || !self.carry(to, self.from).await {
            return lost().await;
        }
        if self.check_sender().is_err() {
            return lost().await;
        }
        answer.map_err(|error| TransportError::Failed(error.to_string()))
    }

    async fn exchange_snapshot(
        &self,
        to: NodeId,
        head: Bytes,
        chunks: SnapshotChunks,
    ) -> Result<Bytes, TransportError> {
        self.check_sender()?;
        let mut sent = Vec::new();
        for chunk in chunks {
            if !self.carry(self.from, to).await {
                return Err(TransportError::Failed("the connection broke".to_owned()));
            }
            sent.push(chunk);
        }
        let Some((node, run)) = self.world.running(to) else {
            return Err(TransportError::Unreachable("connection refused".to_owned()));
        };
        let chunks = futures_util::stream::iter(sent);
        let answer = on(to, node.receive_snapshot(head, chunks)).await;
        if self.world.run(to) != Some(run) || !self.carry(to, self.from).await {
            return Err(TransportError::Failed("the connection broke".to_owned()));
        }
        answer.map_err(|error| TransportError::Failed(error.to_string()))
    }
}

impl<M: Members> Transport for SimTransport<M> {
    async fn call(
        &self,
        to: NodeId,
        _member: &Member,
        method: Method,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, TransportError> {
        let exchange = self.exchange(to, method, body);
        SimRuntime::timeout(deadline, exchange)
            .await
            .unwrap_or(Err(TransportError::Timeout))
    }

    async fn send_snapshot(
        &self,
        to: NodeId,
        _member: &Member,
        head: Bytes,
        chunks: SnapshotChunks,
        deadline: Duration,
    ) -> Result<Bytes, TransportError> {
        let exchange = self.exchange_snapshot(to, head, chunks);
        SimRuntime::timeout(deadline, exchange)
            .await
            .unwrap_or(Err(TransportError::Timeout))
    }
}
