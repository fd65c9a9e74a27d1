//! Logical backups: every key as of one revision, in a file that can be read without ChainFire ([`file`]).
//!
//! A file is written beside its name and moved there when it is whole; a restore reads it all before it
//! writes the first key. A restore takes a snapshot of etcd, too: see [`etcd`].

mod etcd;
mod file;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use etcd_wire::etcdserverpb::kv_client::KvClient;
use etcd_wire::etcdserverpb::lease_client::LeaseClient;
use etcd_wire::etcdserverpb::request_op::Request as Operation;
use etcd_wire::etcdserverpb::{
    LeaseGrantRequest, LeaseTimeToLiveRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use serde::Serialize;
use tonic::transport::Channel;

use self::etcd::Accounts;
use self::file::{Backup, Line, Writer};
use super::{Session, failed};
use crate::failure::{Exit, Failure};
use crate::output::{Format, show};
use crate::progress::{Progress, StepState};

/// Keys of one answer, and of one transaction.
const PAGE_KEYS: usize = 100;
/// Bytes of one transaction, about.
const PAGE_BYTES: usize = 512 << 10;
/// Steps of a restore: reading the backup, its leases, its keys, its accounts.
const RESTORE_STEPS: u64 = 4;

/// What was written or read.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Summary {
    file: String,
    cluster_id: u64,
    /// What the backup is of.
    revision: i64,
    /// What a restore ended at.
    #[serde(skip_serializing_if = "Option::is_none")]
    restored_revision: Option<i64>,
    keys: u64,
    leases: u64,
    sha256: String,
}

impl Summary {
    fn text(&self, verb: &str) -> String {
        let (keys, leases, revision) = (self.keys, self.leases, self.revision);
        format!(
            "{verb} {keys} keys and {leases} leases of revision {revision}: {}\n",
            self.file
        )
    }
}

fn kv_client(session: &Session) -> KvClient<Channel> {
    KvClient::new(session.channel.clone()).max_decoding_message_size(usize::MAX)
}

/// A page of all keys, from one on, as of a revision (0: now).
async fn page(
    session: &Session,
    from: Bytes,
    revision: i64,
) -> Result<etcd_wire::etcdserverpb::RangeResponse> {
    let request = session.request(RangeRequest {
        key: from,
        range_end: Bytes::from_static(&[0]),
        limit: PAGE_KEYS as i64,
        revision,
        ..RangeRequest::default()
    });
    Ok(kv_client(session)
        .range(request)
        .await
        .map_err(failed)?
        .into_inner())
}

async fn granted_ttl_s(session: &Session, id: i64) -> Result<Option<i64>> {
    let request = session.request(LeaseTimeToLiveRequest { id, keys: false });
    let mut client = LeaseClient::new(session.channel.clone());
    let answer = client
        .lease_time_to_live(request)
        .await
        .map_err(failed)?
        .into_inner();
    Ok((answer.ttl >= 0).then_some(answer.granted_ttl))
}

pub async fn backup(session: &Session, file: &Path, format: Format) -> Result<()> {
    if file.exists() {
        let what = format!("{} is there already", file.display());
        let failure = Failure::new(Exit::Refused, "file-exists", what)
            .object(file.display().to_string())
            .next("name another file");
        return Err(failure.into());
    }
    let mut unfinished = file.as_os_str().to_owned();
    unfinished.push(".unfinished");
    let unfinished = Path::new(&unfinished);
    let out = File::create(unfinished)
        .with_context(|| format!("cannot write {}", unfinished.display()))?;
    let mut writer = Writer::new(BufWriter::new(out));
    let (cluster_id, revision) = write_keys(session, &mut writer).await?;
    let (out, keys, leases, sha256) = writer.finish()?;
    out.into_inner()
        .context("cannot write the backup")?
        .sync_all()?;
    // Refuses a file that came meanwhile, which a rename would replace.
    fs::hard_link(unfinished, file)
        .with_context(|| format!("cannot name the backup {}", file.display()))?;
    fs::remove_file(unfinished)?;
    let summary = Summary {
        file: file.display().to_string(),
        cluster_id,
        revision,
        restored_revision: None,
        keys,
        leases,
        sha256,
    };
    show(format, &summary, |summary| summary.text("backed up"))
}

async fn write_keys<W: Write>(session: &Session, writer: &mut Writer<W>) -> Result<(u64, i64)> {
    let mut from = Bytes::from_static(&[0]);
    let mut revision = 0;
    let mut cluster_id = 0;
    let mut ttls: BTreeMap<i64, Option<i64>> = BTreeMap::new();
    loop {
        let page = page(session, from, revision).await?;
        if revision == 0 {
            let header = page.header.unwrap_or_default();
            (cluster_id, revision) = (header.cluster_id, header.revision);
            writer.line(&Line::head(cluster_id, revision))?;
        }
        for kv in &page.kvs {
            let lease = match kv.lease {
                0 => None,
                id => lease_line(session, writer, &mut ttls, id).await?,
            };
            writer.line(&Line::Key {
                key: BASE64.encode(&kv.key),
                value: BASE64.encode(&kv.value),
                lease,
            })?;
        }
        let Some(last) = page.kvs.last().filter(|_| page.more) else {
            return Ok((cluster_id, revision));
        };
        let mut next = last.key.to_vec();
        next.push(0);
        from = next.into();
    }
}

/// Writes a lease when it is first met. `None` for one that has ended since the backup's revision: its
/// keys are then kept without it.
async fn lease_line<W: Write>(
    session: &Session,
    writer: &mut Writer<W>,
    ttls: &mut BTreeMap<i64, Option<i64>>,
    id: i64,
) -> Result<Option<i64>> {
    if let Some(known) = ttls.get(&id) {
        return Ok(known.map(|_| id));
    }
    let known = granted_ttl_s(session, id).await?;
    ttls.insert(id, known);
    if let Some(ttl_s) = known {
        writer.line(&Line::Lease { lease: id, ttl_s })?;
    }
    Ok(known.map(|_| id))
}

/// Reads a backup, or a snapshot of etcd, which alone has users and roles.
fn read_either(file: &Path) -> Result<(Backup, Accounts)> {
    let open = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    if !etcd::is_snapshot(&open) {
        let backup = file::read(BufReader::new(open), &file.display().to_string())?;
        return Ok((backup, Accounts::default()));
    }
    etcd::read(&open).with_context(|| format!("cannot read the snapshot {}", file.display()))
}

pub async fn restore(session: &Session, file: &Path, format: Format) -> Result<()> {
    let mut progress = Progress::new("restore", RESTORE_STEPS, format);
    progress.update("backup", StepState::Running);
    let (backup, accounts) = read_either(file)?;
    let there = page(session, Bytes::from_static(&[0]), 0).await?;
    if !there.kvs.is_empty() {
        let keys = there.count;
        let what = format!("the cluster holds {keys} keys; a restore needs an empty one");
        let failure = Failure::new(Exit::Refused, "not-empty", what)
            .next("`ultractl chainfire del --prefix ''` empties it");
        return Err(failure.into());
    }
    progress.update("backup", StepState::Done);
    progress.update("leases", StepState::Running);
    let mut leases = LeaseClient::new(session.channel.clone());
    for (id, ttl) in &backup.leases {
        let request = session.request(LeaseGrantRequest { id: *id, ttl: *ttl });
        leases.lease_grant(request).await.map_err(failed)?;
    }
    progress.update("leases", StepState::Done);
    progress.update("keys", StepState::Running);
    let mut revision = there.header.unwrap_or_default().revision;
    let (mut operations, mut bytes) = (Vec::new(), 0);
    let (keys, leases) = (backup.kvs.len() as u64, backup.leases.len() as u64);
    for kv in backup.kvs {
        bytes += kv.key.len() + kv.value.len();
        operations.push(RequestOp {
            request: Some(Operation::RequestPut(PutRequest {
                key: kv.key,
                value: kv.value,
                lease: kv.lease,
                ..PutRequest::default()
            })),
        });
        if operations.len() == PAGE_KEYS || bytes >= PAGE_BYTES {
            revision = write(session, std::mem::take(&mut operations)).await?;
            bytes = 0;
        }
    }
    if !operations.is_empty() {
        revision = write(session, operations).await?;
    }
    progress.update("keys", StepState::Done);
    progress.update("accounts", StepState::Running);
    accounts.restore(session).await?;
    progress.update("accounts", StepState::Done);
    drop(progress);
    let summary = Summary {
        file: file.display().to_string(),
        cluster_id: backup.cluster_id,
        revision: backup.revision,
        restored_revision: Some(revision),
        keys,
        leases,
        sha256: backup.sha256,
    };
    show(format, &summary, |summary| summary.text("restored"))
}

async fn write(session: &Session, success: Vec<RequestOp>) -> Result<i64> {
    let request = session.request(TxnRequest {
        success,
        ..TxnRequest::default()
    });
    let answer = kv_client(session)
        .txn(request)
        .await
        .map_err(failed)?
        .into_inner();
    Ok(answer.header.unwrap_or_default().revision)
}
