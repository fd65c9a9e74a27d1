//! `perf big-object`: one object far larger than memory goes up in parts and comes down in one GET,
//! every byte compared, while the kernel watches the server's memory.
//!
//! The bar is the memory of a node with one shard at its peak, less its buffer pool: a body is
//! streamed, so it must not depend on the object. Rates are told without a bar; they are those of
//! one client that makes and compares what it sends.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use super::client::Client;
use super::contenders::{Node, OURS, Setup};
use super::site::Endpoint;
use super::{body, page, show_facts, temporary};
use crate::machine::Facts;
use crate::proc::{self, Memory};
use crate::report::{Limit, Row, Spread};

const MIB: u64 = 1 << 20;
/// Bytes of every part.
const PART_BYTES: usize = 64 << 20;
/// Parts that are on their way at a time.
const UPLOADS: usize = 4;
/// What a shard may need beside its pool.
const SHARD_MIB_MAX: f64 = 64.0;
/// Space for more than the object: the log, and the growth of the data file.
const SPARE_BYTES: u64 = 1 << 30;
/// The node's own word for the bytes of its shards' pools.
const POOL_METRIC: &str = "uc_engine_pool_size_bytes";

/// Options of `perf big-object`.
#[derive(Args)]
pub struct BigObjectArgs {
    /// One JSON object per line in place of the table.
    #[arg(long)]
    pub json: bool,
    /// Fail when the bar is missed.
    #[arg(long)]
    pub strict: bool,
    /// Length of the object in MiB; a multiple of 64.
    #[arg(long, default_value_t = 6144, value_parser = clap::value_parser!(u64).range(64..=640_000))]
    mib: u64,
    /// Where the server keeps its data: a directory on a disk [default: the system's temporary directory].
    #[arg(long)]
    dir: Option<PathBuf>,
    /// A page in Markdown whose section on this object is replaced by this run's figures.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// Runs it and gives the rows.
pub fn run(args: &BigObjectArgs) -> Result<Vec<Row>> {
    let parts = usize::try_from(args.mib * MIB).context("a size past this machine's words")?;
    ensure!(
        parts.is_multiple_of(PART_BYTES),
        "--mib is a multiple of 64"
    );
    let parts = parts / PART_BYTES;
    let Some(program) = Node::find() else {
        bail!("the server is missing: name its binary in ULTRACLOUD_BIN");
    };
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let mut facts = vec![Facts::read()?.to_string(), show_facts(&parent)?];
    check_space(&parent, args.mib * MIB + SPARE_BYTES)?;
    // Removed with everything in it when the node below has ended.
    let dir = temporary(&parent)?;
    let node = Node::start(&program, dir.path(), &Setup::default())?;
    facts.push(format!("{OURS}: {}", node.site.version));
    let rows = measure(&node, parts);
    let rows = rows.with_context(|| format!("the server's words:{}", node.site.process.tail()))?;
    node.stop()?;
    if let Some(path) = &args.report {
        page::write(path, &page::BIG_OBJECT, &facts, &rows)?;
        eprintln!("written: {}", path.display());
    }
    Ok(rows)
}

fn check_space(dir: &Path, needed: u64) -> Result<()> {
    let free = free_bytes(dir)?;
    ensure!(
        free >= needed,
        "{} has {} MiB free, and {} are needed: name another directory with --dir",
        dir.display(),
        free / MIB,
        needed / MIB
    );
    Ok(())
}

/// A row of one value.
fn row(bar: &'static str, unit: &'static str, value: f64, limit: Option<f64>) -> Result<Row> {
    Ok(Row {
        bar,
        contender: OURS,
        unit,
        spread: Spread::of(&[value])?,
        peer: None,
        limit: limit.map(Limit::Value),
    })
}

/// Bytes in MiB.
fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB as f64
}

fn measure(node: &Node, parts: usize) -> Result<Vec<Row>> {
    let endpoint = &node.site.endpoint;
    let pool = node.metric(POOL_METRIC)?;
    let idle = look(node, "idle")?;
    ask(endpoint, &mut endpoint.client()?, "PUT", "/big", "", b"")?;
    let begun = Instant::now();
    upload(endpoint, parts)?;
    let up = begun.elapsed();
    let uploaded = look(node, "after the upload")?;
    let begun = Instant::now();
    compare(endpoint, parts)?;
    let down = begun.elapsed();
    let end = look(node, "after the download")?;
    let rate = |took: Duration| mib((parts * PART_BYTES) as u64) / took.as_secs_f64();
    let cpu = node.site.cpu()?.as_secs_f64();
    let above_pool = mib(end.peak.saturating_sub(pool));
    Ok(vec![
        row("memory/above-pool", "MiB", above_pool, Some(SHARD_MIB_MAX))?,
        row("memory/peak", "MiB", mib(end.peak), None)?,
        row("memory/pool", "MiB", mib(pool), None)?,
        row("memory/idle", "MiB", mib(idle.held), None)?,
        row("memory/uploaded", "MiB", mib(uploaded.held), None)?,
        row("memory/downloaded", "MiB", mib(end.held), None)?,
        row("upload", "MiB/s", rate(up), None)?,
        row("download", "MiB/s", rate(down), None)?,
        row("cpu", "CPU s", cpu, None)?,
    ])
}

/// Memory of the node now, which is also told.
fn look(node: &Node, when: &str) -> Result<Memory> {
    let memory = proc::memory(node.site.process.id())?;
    let Memory {
        held,
        anonymous,
        file,
        shared,
        peak,
    } = memory;
    eprintln!(
        "{when}: {} MiB held ({} anonymous, {} of files, {} shared), {} at most so far",
        held / MIB,
        anonymous / MIB,
        file / MIB,
        shared / MIB,
        peak / MIB
    );
    Ok(memory)
}

/// Sends the parts, several at a time, and puts them together. What comes before and after the parts
/// has connections of its own: the server ends one that is idle as long as the parts may take.
fn upload(endpoint: &Endpoint, parts: usize) -> Result<()> {
    let mut client = endpoint.client()?;
    let begun = ask(
        endpoint,
        &mut client,
        "POST",
        "/big/object",
        "uploads=",
        b"",
    )?;
    let id = elements(&begun, "UploadId")
        .pop()
        .context("an upload without id")?;
    thread::scope(|scope| {
        let send = |first: usize| {
            let id = &id;
            scope.spawn(move || -> Result<()> {
                let mut client = endpoint.client()?;
                for number in (first..=parts).step_by(UPLOADS) {
                    let query = format!("partNumber={number}&uploadId={id}");
                    let part = body::stored(number as u64, PART_BYTES);
                    ask(endpoint, &mut client, "PUT", "/big/object", &query, &part)?;
                }
                Ok(())
            })
        };
        let senders: Vec<_> = (1..=UPLOADS).map(send).collect();
        senders.into_iter().try_for_each(|sender| {
            let ended = sender.join();
            ended.unwrap_or_else(|_| bail!("a thread that uploads panicked"))
        })
    })?;
    let mut client = endpoint.client()?;
    let query = format!("uploadId={id}");
    let listed = ask(endpoint, &mut client, "GET", "/big/object", &query, b"")?;
    let tags = elements(&listed, "ETag");
    ensure!(
        tags.len() == parts,
        "{} parts are listed, {parts} were sent",
        tags.len()
    );
    let mut list = "<CompleteMultipartUpload>".to_owned();
    for (number, tag) in (1..).zip(tags) {
        // Writing to a String cannot fail.
        let _ = write!(
            list,
            "<Part><PartNumber>{number}</PartNumber><ETag>{tag}</ETag></Part>"
        );
    }
    list += "</CompleteMultipartUpload>";
    let list = list.as_bytes();
    ask(endpoint, &mut client, "POST", "/big/object", &query, list).map(drop)
}

/// Reads the object once and compares every byte with what was sent.
fn compare(endpoint: &Endpoint, parts: usize) -> Result<()> {
    let target = endpoint.target("GET", "/big/object", "")?;
    let (mut number, mut at) = (1, 0);
    let mut part = body::stored(number, PART_BYTES);
    let mut check = |mut bytes: &[u8]| -> Result<()> {
        while !bytes.is_empty() {
            if at == PART_BYTES {
                number += 1;
                part = body::stored(number, PART_BYTES);
                at = 0;
            }
            let (now, later) = bytes.split_at(bytes.len().min(PART_BYTES - at));
            ensure!(
                part[at..at + now.len()] == *now,
                "part {number} differs from what was sent after byte {at}"
            );
            at += now.len();
            bytes = later;
        }
        Ok(())
    };
    let length = endpoint.client()?.download(&target, &mut check)?;
    let sent = (parts * PART_BYTES) as u64;
    ensure!(length == sent, "{length} bytes came back of {sent}");
    Ok(())
}

fn ask(
    endpoint: &Endpoint,
    client: &mut Client,
    method: &str,
    path: &str,
    query: &str,
    body: &[u8],
) -> Result<String> {
    let target = endpoint.target(method, path, query)?;
    let answer = client.request(method, &target, body)?.ok()?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// The texts of an XML element, in order.
fn elements(xml: &str, name: &str) -> Vec<String> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let pieces = xml.split(&open).skip(1);
    let texts = pieces.map(|piece| piece.split(&close).next().unwrap_or_default());
    texts.map(str::to_owned).collect()
}

/// What unprivileged writers find free below a directory.
fn free_bytes(dir: &Path) -> Result<u64> {
    let output = Command::new("df")
        .args(["--output=avail", "-B1"])
        .arg(dir)
        .output();
    let said = String::from_utf8_lossy(&output.context("run df")?.stdout).into_owned();
    let last = said.lines().last().unwrap_or_default().trim();
    last.parse().with_context(|| format!("df said {said:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_found_in_order() {
        let xml = "<a><b>1</b><c/><b>2</b></a>";
        assert_eq!(elements(xml, "b"), ["1", "2"]);
        assert!(elements(xml, "d").is_empty());
    }

    #[test]
    fn the_free_space_of_a_disk_is_a_number() {
        assert!(free_bytes(&std::env::temp_dir()).unwrap() > 0);
    }
}
