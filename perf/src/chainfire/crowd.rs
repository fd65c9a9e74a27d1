//! Crowds: many watchers of one key, and many leases.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use etcd_wire::etcdserverpb::kv_client::KvClient;
use etcd_wire::etcdserverpb::lease_client::LeaseClient;
use etcd_wire::etcdserverpb::watch_client::WatchClient;
use etcd_wire::etcdserverpb::{
    LeaseGrantRequest, PutRequest, WatchCreateRequest, WatchRequest, WatchResponse, watch_request,
};
use tokio::sync::mpsc;
use tokio::task::{JoinSet, LocalSet};
use tonic::Streaming;

use super::load::{connect, key, value};

/// Streams that share a connection.
const STREAMS_PER_CONNECTION: usize = 100;
/// Tasks that grant leases at a time.
const GRANTERS: u64 = 64;
/// How long a lease lasts: more than a run.
const TTL_S: i64 = 3600;
/// How long an event may take to reach all.
const EVENT_DEADLINE: Duration = Duration::from_secs(30);

/// Watchers on streams of their own.
pub struct Watchers {
    streams: Vec<Streaming<WatchResponse>>,
    /// Dropping one ends its stream.
    senders: Vec<mpsc::Sender<WatchRequest>>,
    puts: u64,
}

impl Watchers {
    /// Starts so many watchers of key 0.
    pub async fn start(endpoints: &[String], count: usize) -> Result<Self> {
        let mut watchers = Self {
            streams: Vec::new(),
            senders: Vec::new(),
            puts: 0,
        };
        while watchers.streams.len() < count {
            let index = watchers.streams.len() / STREAMS_PER_CONNECTION;
            let channel = connect(&endpoints[index % endpoints.len()]).await?;
            let left = count - watchers.streams.len();
            for _ in 0..left.min(STREAMS_PER_CONNECTION) {
                watchers.add(WatchClient::new(channel.clone())).await?;
            }
        }
        Ok(watchers)
    }

    async fn add(&mut self, mut client: WatchClient<tonic::transport::Channel>) -> Result<()> {
        let (sender, requests) = mpsc::channel(1);
        let create = WatchCreateRequest {
            key: key(0),
            ..WatchCreateRequest::default()
        };
        let create = watch_request::RequestUnion::CreateRequest(create);
        sender
            .send(WatchRequest {
                request_union: Some(create),
            })
            .await
            .context("a watch that does not begin")?;
        let requests = futures_util::stream::unfold(requests, |mut requests| async move {
            requests.recv().await.map(|request| (request, requests))
        });
        let mut stream = client.watch(requests).await?.into_inner();
        let first = stream.message().await?.context("a watch that ended")?;
        ensure!(first.created && !first.canceled, "a watch was refused");
        self.streams.push(stream);
        self.senders.push(sender);
        Ok(())
    }

    /// Puts the key once and waits until every watcher has the event; how long that took.
    pub async fn event(&mut self, endpoint: &str) -> Result<Duration> {
        self.puts += 1;
        let mut kv = KvClient::new(connect(endpoint).await?);
        let expected = value(self.puts);
        let put = PutRequest {
            key: key(0),
            value: expected.clone(),
            ..PutRequest::default()
        };
        let asked = Instant::now();
        kv.put(put).await.context("a put failed")?;
        let all = async {
            for stream in &mut self.streams {
                let answer = stream.message().await?.context("a watch ended")?;
                let event = answer.events.first().and_then(|event| event.kv.as_ref());
                let event = event.context("a watch answered without an event")?;
                ensure!(event.value == expected, "a watcher saw another value");
            }
            Ok(())
        };
        let all = tokio::time::timeout(EVENT_DEADLINE, all);
        all.await.context("an event did not reach all watchers")??;
        Ok(asked.elapsed())
    }
}

/// Grants so many leases; how long that took.
pub async fn grant(endpoints: &[String], count: u64) -> Result<Duration> {
    let tasks = LocalSet::new();
    let mut clients = Vec::new();
    for granter in 0..GRANTERS {
        let endpoint = &endpoints[granter as usize % endpoints.len()];
        clients.push(LeaseClient::new(connect(endpoint).await?));
    }
    let started = Instant::now();
    tasks
        .run_until(async {
            let mut set = JoinSet::new();
            for (granter, mut client) in (0..GRANTERS).zip(clients) {
                set.spawn_local(async move {
                    for _ in (granter..count).step_by(GRANTERS as usize) {
                        let grant = LeaseGrantRequest { ttl: TTL_S, id: 0 };
                        let lease = client.lease_grant(grant).await?.into_inner();
                        ensure!(lease.id != 0 && lease.error.is_empty(), "{}", lease.error);
                    }
                    Ok::<(), anyhow::Error>(())
                });
            }
            while let Some(ended) = set.join_next().await {
                ended.context("a granter ended early")??;
            }
            Ok::<(), anyhow::Error>(())
        })
        .await?;
    Ok(started.elapsed())
}
