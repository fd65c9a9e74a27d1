//! A call that does nothing, by gRPC and by REST.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use control_api::operations::v1::GetOperationRequest;
use control_api::operations::v1::operations_client::OperationsClient;
use hdrhistogram::Histogram;
use tokio::task::LocalSet;
use tonic::Request;

use super::server::{Kind, TOKEN};
use super::{ControlArgs, Found, Metric, rows};
use crate::chainfire::load::connect;
use crate::objects::script::{DONE, REPORT};
use crate::objects::wrk::{Load, Report};
use crate::proc;
use crate::process::{self, Process, SERVER_CPU, pinned};
use crate::report::{Limit, Row};

/// Connections, each with one call at a time.
const CONNECTIONS: usize = 16;
/// How long a server may take to serve.
const START_DEADLINE: Duration = Duration::from_secs(10);
/// The most that the kit may cost, beside the bare server.
const CPU_RATIO_MAX: f64 = 1.3;

/// The operation that is asked for.
const ID: &str = "0190a1b2-0000-7000-8000-000000000000";

/// Tells wrk what to send, and how to report.
fn script() -> String {
    format!(
        "local REPORT = '{REPORT}'\n\
         wrk.headers['authorization'] = 'Bearer {TOKEN}'\n\
         wrk.path = '/v1/operations/{ID}'\n\
         {DONE}"
    )
}

struct Served {
    kind: Kind,
    process: Process,
    addr: SocketAddr,
}

impl Served {
    fn start(kind: Kind, dir: &Path) -> Result<Served> {
        let this = std::env::current_exe().context("name this program")?;
        let mut command = pinned(SERVER_CPU, this);
        command.args(["control-server", kind.name()]);
        let dir = dir.join(kind.name());
        std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let mut process = Process::start(kind.name(), &mut command, &dir)?;
        let addr = process.until("serving", START_DEADLINE, |process| {
            let said = process.said()?;
            let line = said
                .lines()
                .find_map(|line| line.strip_prefix("serving on "));
            line.map(|addr| addr.parse().context("an address"))
                .transpose()
        })?;
        Ok(Served {
            kind,
            process,
            addr,
        })
    }
}

/// What a window gave: wall and CPU in microseconds a call, p50 and p99 in milliseconds.
fn values(calls: u64, wall: Duration, cpu: Duration, p50: f64, p99: f64) -> Vec<f64> {
    let each = |time: Duration| time.as_secs_f64() * 1e6 / calls as f64;
    vec![each(cpu), p99, p50, each(wall)]
}

macro_rules! metrics {
    ($name:literal) => {
        [
            Metric {
                bar: concat!($name, "/cpu"),
                unit: "us CPU/call",
                limit: Some(Limit::Ratio(CPU_RATIO_MAX)),
            },
            Metric {
                bar: concat!($name, "/p99"),
                unit: "ms",
                limit: None,
            },
            Metric {
                bar: concat!($name, "/p50"),
                unit: "ms",
                limit: None,
            },
            Metric {
                bar: concat!($name, "/wall"),
                unit: "us/call",
                limit: None,
            },
        ]
    };
}

/// Both fronts, each beside its bare peer.
pub fn run(args: &ControlArgs, dir: &Path) -> Result<Vec<Row>> {
    let wrk =
        process::on_path("wrk").context("wrk is not installed: `cargo xtask setup --bench`")?;
    let kit = Served::start(Kind::Kit, dir)?;
    let tonic = Served::start(Kind::Tonic, dir)?;
    let axum = Served::start(Kind::Axum, dir)?;
    let script = dir.join("noop.lua");
    std::fs::write(&script, self::script()).context("write wrk's script")?;
    let mut all = Vec::new();
    let grpc = interleaved(args, &[&kit, &tonic], |served, seconds| {
        by_grpc(served, seconds)
    })?;
    all.extend(rows(&metrics!("noop-grpc-c16"), &grpc)?);
    let rest = interleaved(args, &[&kit, &axum], |served, seconds| {
        by_rest(served, &wrk, &script, dir, seconds)
    })?;
    all.extend(rows(&metrics!("noop-rest-c16"), &rest)?);
    Ok(all)
}

/// Rounds in which each contender has its turn; the first, uncounted, warms them up.
fn interleaved(
    args: &ControlArgs,
    contenders: &[&Served],
    window: impl Fn(&Served, u64) -> Result<Vec<f64>>,
) -> Result<Vec<Found>> {
    let empty = |served: &&Served| Found {
        contender: served.kind.name(),
        rounds: Vec::new(),
    };
    let mut found: Vec<Found> = contenders.iter().map(empty).collect();
    for round in 0..=args.rounds as usize {
        for turn in 0..contenders.len() {
            let who = (round + turn) % contenders.len();
            let seconds = if round == 0 { 1 } else { args.seconds };
            let values = window(contenders[who], seconds)?;
            if round > 0 {
                found[who].rounds.push(values);
            }
        }
    }
    Ok(found)
}

fn by_rest(
    served: &Served,
    wrk: &PathBuf,
    script: &Path,
    dir: &Path,
    seconds: u64,
) -> Result<Vec<f64>> {
    let before = proc::tree_cpu(served.process.id())?;
    let load = Load {
        wrk,
        script,
        address: served.addr,
        connections: CONNECTIONS as u32,
        seconds,
        yields: false,
        dir,
    };
    let Report {
        requests,
        duration,
        p50,
        p99,
        ..
    } = load.run()?;
    let cpu = proc::tree_cpu(served.process.id())?.saturating_sub(before);
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    Ok(values(requests, duration, cpu, ms(p50), ms(p99)))
}

fn by_grpc(served: &Served, seconds: u64) -> Result<Vec<f64>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the load's runtime")?;
    let (latency, wall, cpu) = runtime.block_on(async {
        let url = format!("http://{}", served.addr);
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            clients.push(OperationsClient::new(connect(&url).await?));
        }
        let before = proc::tree_cpu(served.process.id())?;
        let started = Instant::now();
        let until = started + Duration::from_secs(seconds);
        let tasks = LocalSet::new();
        let calls: Vec<_> = clients
            .into_iter()
            .map(|client| tasks.spawn_local(ask(client, until)))
            .collect();
        tasks.await;
        let wall = started.elapsed();
        let mut all = Histogram::<u64>::new(3).context("make a histogram")?;
        for call in calls {
            let one = call.await.context("a client ended early")??;
            all.add(one).context("add up latencies")?;
        }
        let cpu = proc::tree_cpu(served.process.id())?.saturating_sub(before);
        Ok::<_, anyhow::Error>((all, wall, cpu))
    })?;
    let ms = |quantile| latency.value_at_quantile(quantile) as f64 / 1e6;
    Ok(values(latency.len(), wall, cpu, ms(0.5), ms(0.99)))
}

async fn ask(
    mut client: OperationsClient<tonic::transport::Channel>,
    until: Instant,
) -> Result<Histogram<u64>> {
    let mut latency = Histogram::<u64>::new(3).context("make a histogram")?;
    let bearer: tonic::metadata::MetadataValue<_> = format!("Bearer {TOKEN}").parse()?;
    while Instant::now() < until {
        let mut request = Request::new(GetOperationRequest { id: ID.to_owned() });
        request
            .metadata_mut()
            .insert("authorization", bearer.clone());
        let asked = Instant::now();
        let answer = client
            .get_operation(request)
            .await
            .context("a call failed")?;
        ensure!(answer.into_inner().id == ID, "a call gave another answer");
        let nanos = asked.elapsed().as_nanos() as u64;
        latency.record(nanos).context("keep a latency")?;
    }
    Ok(latency)
}
