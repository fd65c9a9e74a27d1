//! Logical backups: every key as of one revision, in a file that can be read without ChainFire.
//!
//! A file is lines of JSON: a head, one line for each lease and each key, and a foot with counts and the
//! SHA-256 of everything before it. It is written beside its name and moved there when it is whole; a
//! restore reads it all before it writes the first key.
//!
//! | line | fields |
//! | --- | --- |
//! | head | `format`, `version`, `cluster_id`, `revision` |
//! | lease | `lease`, `ttl_s` |
//! | key | `key`, `value` (base64), `lease` when it hangs on one |
//! | foot | `keys`, `leases`, `sha256` |
//!
//! A restore takes a snapshot of etcd, too: see [`etcd`].

mod etcd;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use etcd_wire::etcdserverpb::kv_client::KvClient;
use etcd_wire::etcdserverpb::lease_client::LeaseClient;
use etcd_wire::etcdserverpb::request_op::Request as Operation;
use etcd_wire::etcdserverpb::{
    LeaseGrantRequest, LeaseTimeToLiveRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use etcd_wire::mvccpb::KeyValue;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tonic::transport::Channel;

use self::etcd::Accounts;
use super::{Session, failed};
use crate::output::{Format, show};

const FORMAT: &str = "ultracloud-chainfire-backup";
const VERSION: u32 = 1;
/// Keys of one answer, and of one transaction.
const PAGE_KEYS: usize = 100;
/// Bytes of one transaction, about.
const PAGE_BYTES: usize = 512 << 10;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Line {
    Head {
        format: String,
        version: u32,
        cluster_id: u64,
        revision: i64,
    },
    Key {
        key: String,
        value: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lease: Option<i64>,
    },
    Lease {
        lease: i64,
        ttl_s: i64,
    },
    Foot {
        keys: u64,
        leases: u64,
        sha256: String,
    },
}

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

/// Lines of a file, and the digest of what they are.
struct Writer<W> {
    out: W,
    digest: Sha256,
    keys: u64,
    leases: u64,
}

impl<W: Write> Writer<W> {
    fn line(&mut self, line: &Line) -> Result<()> {
        match line {
            Line::Key { .. } => self.keys += 1,
            Line::Lease { .. } => self.leases += 1,
            Line::Head { .. } | Line::Foot { .. } => {}
        }
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        self.digest.update(&text);
        self.out.write_all(text.as_bytes())?;
        Ok(())
    }

    fn finish(mut self) -> Result<(W, u64, u64, String)> {
        let (keys, leases) = (self.keys, self.leases);
        let sha256 = hex::encode(self.digest.clone().finalize());
        self.line(&Line::Foot {
            keys,
            leases,
            sha256: sha256.clone(),
        })?;
        Ok((self.out, keys, leases, sha256))
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
    ensure!(
        !file.exists(),
        "{} is there already; name another file",
        file.display()
    );
    let mut unfinished = file.as_os_str().to_owned();
    unfinished.push(".unfinished");
    let unfinished = Path::new(&unfinished);
    let out = File::create(unfinished)
        .with_context(|| format!("cannot write {}", unfinished.display()))?;
    let mut writer = Writer {
        out: BufWriter::new(out),
        digest: Sha256::new(),
        keys: 0,
        leases: 0,
    };
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
            writer.line(&Line::Head {
                format: FORMAT.into(),
                version: VERSION,
                cluster_id,
                revision,
            })?;
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

/// A backup, read whole.
#[derive(Debug, Default)]
struct Backup {
    cluster_id: u64,
    revision: i64,
    leases: Vec<(i64, i64)>,
    kvs: Vec<KeyValue>,
    /// Only a snapshot of etcd has them.
    accounts: Accounts,
    sha256: String,
}

/// Reads a backup, or a snapshot of etcd.
fn read_either(file: &Path) -> Result<Backup> {
    let open = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    if !etcd::is_snapshot(&open) {
        return read(file);
    }
    etcd::read(&open).with_context(|| format!("cannot read the snapshot {}", file.display()))
}

fn read(file: &Path) -> Result<Backup> {
    let open = OpenOptions::new().read(true).open(file);
    let open = open.with_context(|| format!("cannot read {}", file.display()))?;
    let mut digest = Sha256::new();
    let mut backup: Option<Backup> = None;
    for (number, text) in BufReader::new(open).lines().enumerate() {
        let text = text.with_context(|| format!("cannot read {}", file.display()))?;
        let place = || format!("{}, line {}", file.display(), number + 1);
        let line: Line = serde_json::from_str(&text).with_context(place)?;
        let seen = hex::encode(digest.clone().finalize());
        digest.update(&text);
        digest.update("\n");
        match (line, &mut backup) {
            (
                Line::Head {
                    format,
                    version,
                    cluster_id,
                    revision,
                },
                None,
            ) => {
                ensure!(
                    format == FORMAT && version == VERSION,
                    "{}: this is {format} of version {version}, not {FORMAT} of version {VERSION}",
                    place()
                );
                backup = Some(Backup {
                    cluster_id,
                    revision,
                    ..Backup::default()
                });
            }
            (Line::Key { key, value, lease }, Some(backup)) if backup.sha256.is_empty() => {
                backup.kvs.push(KeyValue {
                    key: BASE64.decode(key).with_context(place)?.into(),
                    value: BASE64.decode(value).with_context(place)?.into(),
                    lease: lease.unwrap_or_default(),
                    ..KeyValue::default()
                });
            }
            (Line::Lease { lease, ttl_s }, Some(backup)) if backup.sha256.is_empty() => {
                backup.leases.push((lease, ttl_s));
            }
            (
                Line::Foot {
                    keys,
                    leases,
                    sha256,
                },
                Some(backup),
            ) if backup.sha256.is_empty() => {
                let counted = (backup.kvs.len() as u64, backup.leases.len() as u64);
                ensure!(
                    counted == (keys, leases) && sha256 == seen,
                    "{}: the backup is damaged: its checksum or its counts differ",
                    place()
                );
                backup.sha256 = sha256;
            }
            _ => bail!("{}: the line is out of its place", place()),
        }
    }
    match backup {
        Some(backup) if !backup.sha256.is_empty() => Ok(backup),
        _ => bail!("{} is cut off: its foot is missing", file.display()),
    }
}

pub async fn restore(session: &Session, file: &Path, format: Format) -> Result<()> {
    let backup = read_either(file)?;
    let there = page(session, Bytes::from_static(&[0]), 0).await?;
    ensure!(
        there.kvs.is_empty(),
        "the cluster holds {} keys; a restore needs an empty one: `ultractl chainfire del --prefix \
         ''` empties it",
        there.count
    );
    let mut leases = LeaseClient::new(session.channel.clone());
    for (id, ttl) in &backup.leases {
        let request = session.request(LeaseGrantRequest { id: *id, ttl: *ttl });
        leases.lease_grant(request).await.map_err(failed)?;
    }
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
    backup.accounts.restore(session).await?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn written() -> Vec<u8> {
        let mut writer = Writer {
            out: Vec::new(),
            digest: Sha256::new(),
            keys: 0,
            leases: 0,
        };
        for line in [
            Line::Head {
                format: FORMAT.into(),
                version: VERSION,
                cluster_id: 7,
                revision: 9,
            },
            Line::Lease {
                lease: 5,
                ttl_s: 60,
            },
            Line::Key {
                key: BASE64.encode("a"),
                value: BASE64.encode([0, 255]),
                lease: Some(5),
            },
        ] {
            writer.line(&line).unwrap();
        }
        writer.finish().unwrap().0
    }

    fn read_bytes(bytes: &[u8]) -> Result<Backup> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("backup");
        fs::write(&file, bytes).unwrap();
        read(&file)
    }

    #[test]
    fn what_was_written_is_read() {
        let backup = read_bytes(&written()).unwrap();
        assert_eq!((backup.cluster_id, backup.revision), (7, 9));
        assert_eq!(backup.leases, [(5, 60)]);
        assert_eq!(backup.kvs.len(), 1);
        assert_eq!(backup.kvs[0].value.as_ref(), [0, 255]);
        assert_eq!(backup.kvs[0].lease, 5);
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_found() {
        let whole = written();
        for length in 0..whole.len() - 1 {
            assert!(read_bytes(&whole[..length]).is_err(), "cut at {length}");
        }
        for place in 0..whole.len() - 1 {
            let mut changed = whole.clone();
            changed[place] ^= 1;
            assert!(read_bytes(&changed).is_err(), "byte {place}");
        }
    }
}
