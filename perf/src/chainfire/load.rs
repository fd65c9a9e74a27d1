//! Load on a cluster: clients that each wait for an answer before they ask again, on one thread.
//!
//! Every answer is looked at: a wrong one, or one that failed, ends the run.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use control_kit::client;
use etcd_wire::etcdserverpb::kv_client::KvClient;
use etcd_wire::etcdserverpb::{PutRequest, RangeRequest};
use hdrhistogram::Histogram;
use tokio::task::LocalSet;
use tonic::transport::Channel;

/// Bytes of a value.
pub const VALUE_BYTES: usize = 256;
/// Keys that are written and read.
pub const KEYS: u64 = 10_000;
/// How long a connection may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// What clients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// Writes a key.
    Put,
    /// Reads a key, linearizably.
    Get,
    /// Reads a key as the asked member has it.
    GetSerializable,
}

/// What one window gave.
#[derive(Debug, Clone)]
pub struct Report {
    /// Answers.
    pub answers: u64,
    /// How long it took.
    pub wall: Duration,
    /// Latencies in nanoseconds.
    pub latency: Histogram<u64>,
}

/// The key of this number.
pub fn key(number: u64) -> Bytes {
    format!("/perf/key-{number:010}").into()
}

/// The value of this number: no two are alike.
pub fn value(number: u64) -> Bytes {
    let mut value = vec![b'.'; VALUE_BYTES];
    value[..8].copy_from_slice(&number.to_be_bytes());
    value.into()
}

/// A connection to a member. A request leaves in one piece, as etcd's own client
/// sends it: whoever is measured is not to pay for two.
pub async fn connect(endpoint: &str) -> Result<Channel> {
    let options = client::Options {
        connect_timeout: CONNECT_DEADLINE,
        ..client::Options::default()
    };
    let channel = client::connected(endpoint, None, options).await;
    channel.context("connect to a member")
}

/// Runs clients, a connection each, spread over the members, for so long.
pub async fn run(
    endpoints: &[String],
    job: Job,
    clients: usize,
    window: Duration,
) -> Result<Report> {
    let mut channels = Vec::new();
    for client in 0..clients {
        channels.push(connect(&endpoints[client % endpoints.len()]).await?);
    }
    let latency = Histogram::new_with_bounds(1000, 60_000_000_000, 3).context("a histogram")?;
    let latency = Rc::new(RefCell::new(latency));
    let started = Instant::now();
    let end = started + window;
    let tasks = LocalSet::new();
    let mut handles = Vec::new();
    for (client, channel) in channels.into_iter().enumerate() {
        let latency = Rc::clone(&latency);
        let mut kv = KvClient::new(channel);
        handles.push(tasks.spawn_local(async move {
            let mut number = client as u64 * 7919;
            while Instant::now() < end {
                number = (number + 104_729) % KEYS;
                let asked = Instant::now();
                ask(&mut kv, job, number).await?;
                let took = asked.elapsed().as_nanos() as u64;
                latency.borrow_mut().saturating_record(took);
            }
            Ok::<(), anyhow::Error>(())
        }));
    }
    tasks.await;
    let wall = started.elapsed();
    for handle in handles {
        handle.await.context("a client ended early")??;
    }
    let latency = latency.borrow().clone();
    Ok(Report {
        answers: latency.len(),
        wall,
        latency,
    })
}

async fn ask(kv: &mut KvClient<Channel>, job: Job, number: u64) -> Result<()> {
    if job == Job::Put {
        let put = PutRequest {
            key: key(number),
            value: value(number),
            ..PutRequest::default()
        };
        let answer = kv.put(put).await.context("a put failed")?.into_inner();
        let revision = answer.header.map_or(0, |header| header.revision);
        ensure!(revision > 0, "a put was answered without a revision");
        return Ok(());
    }
    let range = RangeRequest {
        key: key(number),
        serializable: job == Job::GetSerializable,
        ..RangeRequest::default()
    };
    let answer = kv.range(range).await.context("a get failed")?.into_inner();
    let found = answer
        .kvs
        .first()
        .context("a key that was put is not there")?;
    ensure!(
        found.value == value(number),
        "a get of {number} gave another value"
    );
    Ok(())
}

/// Puts keys `from` to `to` over some connections, as fast as they go.
pub async fn fill(endpoints: &[String], from: u64, to: u64) -> Result<()> {
    const FILLERS: u64 = 64;
    let tasks = LocalSet::new();
    let mut handles = Vec::new();
    for filler in 0..FILLERS {
        let endpoint = &endpoints[filler as usize % endpoints.len()];
        let mut kv = KvClient::new(connect(endpoint).await?);
        handles.push(tasks.spawn_local(async move {
            let mut number = from + filler;
            while number < to {
                ask(&mut kv, Job::Put, number).await?;
                number += FILLERS;
            }
            Ok::<(), anyhow::Error>(())
        }));
    }
    tasks.await;
    for handle in handles {
        handle.await.context("a filler ended early")??;
    }
    Ok(())
}
