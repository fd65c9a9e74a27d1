//! Operations and reservations on ChainFire: how many a second, and how many writes each costs.
#![forbid(unsafe_code)]

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use control_kit::metrics::Registry;
use control_kit::saga::{Begin, Definition, SagaConfig, SagaId, Sagas, State};
use control_kit::stop;
use control_kit::store::{Client, ClientConfig, Range, SharedStore};
use creditservice::{Ledger, Options, Quota, TransferId, Want};

use super::{ControlArgs, Found, Metric, rows};
use crate::chainfire::cluster::Cluster;
use crate::report::{Limit, Row};

/// Operations, or reservations, at a time.
const AT_ONCE: u64 = 64;
/// Steps of an operation.
const STEPS: [&str; 4] = ["one", "two", "three", "four"];
/// Writes that a step may cost.
const WRITES_MAX: f64 = 2.0;
/// What a reservation is held for.
const HELD_MS: NonZeroU64 = NonZeroU64::new(600_000).expect("not zero");

macro_rules! metrics {
    ($name:literal, $what:literal) => {
        [
            Metric {
                bar: concat!($name, "/rate"),
                unit: concat!($what, "s/s"),
                limit: None,
            },
            Metric {
                bar: concat!($name, "/writes"),
                unit: concat!("writes/", $what),
                limit: Some(Limit::Value(WRITES_MAX)),
            },
            Metric {
                bar: concat!($name, "/cpu"),
                unit: concat!("us CPU of ChainFire/", $what),
                limit: None,
            },
        ]
    };
}

/// Both, on a cluster.
pub fn run(args: &ControlArgs, members: u8, cluster: &Cluster) -> Result<Vec<Row>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the load's runtime")?;
    runtime.block_on(async {
        let store: SharedStore = Arc::new(Client::new(ClientConfig {
            endpoints: cluster.endpoints.clone(),
            namespace: "perf/".to_owned(),
            tls: None,
        })?);
        let steps = operations(args, &store, cluster).await?;
        let reservations = reservations(args, &store, cluster).await?;
        let metrics = if members == 1 {
            [
                metrics!("saga-n1", "step"),
                metrics!("reserve-n1", "reservation"),
            ]
        } else {
            [
                metrics!("saga-n3", "step"),
                metrics!("reserve-n3", "reservation"),
            ]
        };
        let mut all = rows(&metrics[0], &[steps])?;
        all.extend(rows(&metrics[1], &[reservations])?);
        Ok(all)
    })
}

/// Runs windows; each gives how much was done.
async fn windows(
    args: &ControlArgs,
    store: &SharedStore,
    cluster: &Cluster,
    contender: &'static str,
    window: impl AsyncFn(Instant) -> Result<u64>,
) -> Result<Found> {
    let revision = async || Ok::<_, anyhow::Error>(store.range(Range::key("none")).await?.revision);
    let mut found = Found {
        contender,
        rounds: Vec::new(),
    };
    for round in 0..=args.rounds {
        let (cpu, before, started) = (cluster.cpu()?, revision().await?, Instant::now());
        let seconds = if round == 0 { 1 } else { args.seconds };
        let done = window(started + Duration::from_secs(seconds)).await?;
        ensure!(
            done > 0,
            "nothing was done in the window: make it longer with --seconds"
        );
        let (wall, done) = (started.elapsed().as_secs_f64(), done as f64);
        let writes = (revision().await? - before) as f64;
        let cpu = cluster.cpu()?.saturating_sub(cpu).as_secs_f64();
        if round > 0 {
            found
                .rounds
                .push(vec![done / wall, writes / done, cpu * 1e6 / done]);
        }
    }
    Ok(found)
}

async fn operations(args: &ControlArgs, store: &SharedStore, cluster: &Cluster) -> Result<Found> {
    let nothing = |definition: Definition, step| definition.step(step, |_| async { Ok(()) });
    let definition = STEPS.into_iter().fold(Definition::new("perf"), nothing);
    let (stopper, stop) = stop::pair();
    let registry = Registry::default();
    let (sagas, running) = Sagas::start(
        store,
        SagaConfig::default(),
        vec![definition],
        &registry,
        stop,
    );
    sagas.ready().await;
    let window = async |until: Instant| {
        let one = async |lane: u64| {
            let mut steps = 0;
            while Instant::now() < until {
                let id = SagaId::new();
                let begin = Begin {
                    id,
                    kind: "perf".to_owned(),
                    object: format!("lane/{lane}"),
                    ..Begin::default()
                };
                sagas.begin(begin).await?;
                let record = sagas.wait(id, None, Duration::from_mins(1)).await?;
                ensure!(
                    record.state == State::Done,
                    "an operation is {}",
                    record.state.name()
                );
                steps += STEPS.len() as u64;
            }
            Ok::<u64, anyhow::Error>(steps)
        };
        let lanes = futures_util::future::try_join_all((0..AT_ONCE).map(one)).await?;
        Ok(lanes.into_iter().sum())
    };
    let found = windows(args, store, cluster, "kit", window).await?;
    stopper.stop();
    running.await.context("the executor panicked")?;
    Ok(found)
}

async fn reservations(args: &ControlArgs, store: &SharedStore, cluster: &Cluster) -> Result<Found> {
    let ledger = Ledger::open(Arc::clone(store), Options::default()).await?;
    let quota = Quota {
        tenant: "perf".parse()?,
        unit: "units".parse()?,
    };
    ledger
        .set_limit(TransferId::derive(["limit"]), &quota, u64::MAX >> 1)
        .await?;
    let window = async |until: Instant| {
        let one = async |_: u64| {
            let mut done = 0;
            while Instant::now() < until {
                let reservation = TransferId::derive([SagaId::new().to_string()]);
                let quota = quota.clone();
                let want = Want {
                    quota,
                    reservation,
                    amount: 1,
                };
                ledger.reserve(&[want], HELD_MS).await?;
                done += 1;
            }
            Ok::<u64, anyhow::Error>(done)
        };
        let lanes = futures_util::future::try_join_all((0..AT_ONCE).map(one)).await?;
        Ok(lanes.into_iter().sum())
    };
    windows(args, store, cluster, "ledger", window).await
}
