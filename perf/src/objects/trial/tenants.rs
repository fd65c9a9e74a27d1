//! Two tenants on one shard: one asks as it always does, the other floods it with PUT and LIST over
//! many connections (contract BY-1).
//!
//! Both are users of the node's config, each with a bucket of its own. All loads share one CPU, on
//! which the flood's give way, so that the shard and not the load generator is what they fight for.
//! Windows with and without the flood take turns; the flood begins before a window and outlasts it.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Lab, Window, row, row_beside};
use crate::objects::body;
use crate::objects::cell::{PAGE_KEYS, SMALL_BYTES};
use crate::objects::contenders::{Node, Setup};
use crate::objects::fill::{Fill, Method};
use crate::objects::script::Body;
use crate::objects::site::{Endpoint, Keys};
use crate::objects::wrk::Report;
use crate::report::Row;

/// Connections of the tenant that is looked at.
const CONNECTIONS: u32 = 16;
/// Connections over which the other one writes, and over which it lists.
const FLOOD_PUT_CONNECTIONS: u32 = 256;
const FLOOD_LIST_CONNECTIONS: u32 = 64;
const READ_KEYS: u32 = 4_000;
const LISTED_KEYS: u32 = 10_000;
const READ_BUCKET: &str = "/perf-reader";
const FLOOD_BUCKET: &str = "/perf-flood";
/// How long the flood runs before and after a window.
const FLOOD_EDGE: Duration = Duration::from_secs(1);

/// Everything that both ask for.
struct Tenants {
    reader: Endpoint,
    flood: Endpoint,
    reads: PathBuf,
    puts: PathBuf,
    lists: PathBuf,
    pool: PathBuf,
}

/// One round.
struct Sample {
    alone: Report,
    beside: Report,
    flood_puts: Report,
    flood_lists: Report,
}

fn keys(name: &str) -> Keys {
    Keys {
        access: format!("PERFOBJECTS{}", name.to_uppercase()),
        secret: format!("{name}-secret-of-a-run-on-loopback"),
    }
}

/// Runs the trial.
pub(super) fn run(lab: &Lab<'_>) -> Result<Vec<Row>> {
    let users = [("reader", keys("reader")), ("flood", keys("flood"))];
    let node = lab.node(&Setup {
        users: &users,
        ..Setup::default()
    })?;
    let tenants = Tenants::new(lab, &node, &users)?;
    let mut samples = Vec::new();
    for round in lab.rounds() {
        samples.push(tenants.sample(lab, round)?);
    }
    node.stop()?;
    rows(&samples)
}

impl Tenants {
    fn new(lab: &Lab<'_>, node: &Node, users: &[(&'static str, Keys); 2]) -> Result<Self> {
        let [reader, flood] = [0, 1].map(|at: usize| node.site.endpoint.signed_by(&users[at].1));
        reader.ask("PUT", READ_BUCKET, "")?;
        flood.ask("PUT", FLOOD_BUCKET, "")?;
        let read_path = |number: u32| format!("{READ_BUCKET}/small-{number:08}");
        let listed_path = |number: u32| format!("{FLOOD_BUCKET}/key-{number:08}");
        let bytes = |bytes: usize| move |number: u32| body::stored(number.into(), bytes);
        put(&reader, READ_KEYS, &read_path, &bytes(SMALL_BYTES))?;
        put(&flood, LISTED_KEYS, &listed_path, &bytes(16))?;
        let denied = flood.ask("GET", &read_path(0), "");
        ensure!(denied.is_err(), "a tenant may read what another owns");
        let reads = (0..READ_KEYS).map(|number| reader.target("GET", &read_path(number), ""));
        let puts = (0..READ_KEYS).map(|number| {
            let path = format!("{FLOOD_BUCKET}/put-{number:08}");
            flood.target("PUT", &path, "")
        });
        let lists = (0..LISTED_KEYS).step_by(PAGE_KEYS as usize).map(|first| {
            let query = format!("list-type=2&start-after=key-{first:08}");
            flood.target("GET", FLOOD_BUCKET, &query)
        });
        let pool = lab.dir.join("pool");
        std::fs::write(&pool, body::pool())?;
        Ok(Self {
            reads: lab.targets("reads", reads)?,
            puts: lab.targets("puts", puts)?,
            lists: lab.targets("lists", lists)?,
            pool,
            reader,
            flood,
        })
    }

    fn sample(&self, lab: &Lab<'_>, round: u32) -> Result<Sample> {
        let reads = Window {
            name: "reads",
            endpoint: &self.reader,
            targets: &self.reads,
            body: Body::None,
            connections: CONNECTIONS,
            seconds: lab.args.seconds,
            yields: false,
        };
        let flooding = |name, targets: &'_ Path, connections, body| {
            lab.start(&Window {
                name,
                endpoint: &self.flood,
                targets,
                body,
                connections,
                seconds: lab.args.seconds + 2 * FLOOD_EDGE.as_secs(),
                yields: true,
            })
        };
        let written = Body::Put {
            bytes: SMALL_BYTES,
            pool: &self.pool,
            window: round + 1,
        };
        let alone = lab.run(&reads)?;
        let puts = flooding("puts", &self.puts, FLOOD_PUT_CONNECTIONS, written)?;
        let lists = flooding("lists", &self.lists, FLOOD_LIST_CONNECTIONS, Body::None)?;
        thread::sleep(FLOOD_EDGE);
        let beside = lab.run(&reads)?;
        Ok(Sample {
            alone,
            beside,
            flood_puts: puts.finish()?,
            flood_lists: lists.finish()?,
        })
    }
}

fn put(
    endpoint: &Endpoint,
    count: u32,
    path: &(dyn Fn(u32) -> String + Sync),
    body: &(dyn Fn(u32) -> Vec<u8> + Sync),
) -> Result<()> {
    let fill = Fill {
        method: Method::Put,
        count,
        path,
        body,
    };
    fill.run(endpoint)
}

fn rows(samples: &[Sample]) -> Result<Vec<Row>> {
    let of = |value: &dyn Fn(&Sample) -> f64| samples.iter().map(value).collect::<Vec<_>>();
    let p99 = |report: &Report| report.p99.as_secs_f64() * 1e3;
    let p50 = |report: &Report| report.p50.as_secs_f64() * 1e3;
    let rate = |report: &Report| report.requests as f64 / report.duration.as_secs_f64();
    let alone = row("tenants/get-p99-alone", "ms", &of(&|s| p99(&s.alone)), None)?;
    let beside = of(&|s| p99(&s.beside));
    let share = of(&|s| 100.0 * rate(&s.beside) / rate(&s.alone));
    Ok(vec![
        row_beside("tenants/get-p99-flooded", &beside, &alone, None)?,
        alone,
        row(
            "tenants/get-p50-flooded",
            "ms",
            &of(&|s| p50(&s.beside)),
            None,
        )?,
        row(
            "tenants/get-rate-alone",
            "ops/s",
            &of(&|s| rate(&s.alone)),
            None,
        )?,
        row(
            "tenants/get-rate-flooded",
            "ops/s",
            &of(&|s| rate(&s.beside)),
            None,
        )?,
        row("tenants/get-rate-kept", "% of alone", &share, None)?,
        row(
            "tenants/flood-put-rate",
            "ops/s",
            &of(&|s| rate(&s.flood_puts)),
            None,
        )?,
        row(
            "tenants/flood-list-rate",
            "pages/s",
            &of(&|s| rate(&s.flood_lists)),
            None,
        )?,
    ])
}
