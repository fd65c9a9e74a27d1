//! A backup's file: lines of JSON. A head, one line for each lease and each key, and a foot with counts
//! and the SHA-256 of everything before it.
//!
//! | line | fields |
//! | --- | --- |
//! | head | `format`, `version`, `cluster_id`, `revision` |
//! | lease | `lease`, `ttl_s` |
//! | key | `key`, `value` (base64), `lease` when it hangs on one |
//! | foot | `keys`, `leases`, `sha256` |

use std::io::{BufRead, Write};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use etcd_wire::mvccpb::KeyValue;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

const FORMAT: &str = "ultracloud-chainfire-backup";
const VERSION: u32 = 1;

/// A line.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Line {
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

impl Line {
    /// The head of a backup as of a revision.
    pub fn head(cluster_id: u64, revision: i64) -> Line {
        Line::Head {
            format: FORMAT.into(),
            version: VERSION,
            cluster_id,
            revision,
        }
    }
}

/// Lines of a file, and the digest of what they are.
pub struct Writer<W> {
    out: W,
    digest: Sha256,
    keys: u64,
    leases: u64,
}

impl<W: Write> Writer<W> {
    /// An empty file.
    pub fn new(out: W) -> Writer<W> {
        Writer {
            out,
            digest: Sha256::new(),
            keys: 0,
            leases: 0,
        }
    }

    /// Adds a line.
    pub fn line(&mut self, line: &Line) -> Result<()> {
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

    /// Ends the file; its keys, leases and digest.
    pub fn finish(mut self) -> Result<(W, u64, u64, String)> {
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

/// A backup, read whole.
#[derive(Debug)]
pub struct Backup {
    pub cluster_id: u64,
    pub revision: i64,
    /// Each lease and its seconds.
    pub leases: Vec<(i64, i64)>,
    pub kvs: Vec<KeyValue>,
    pub sha256: String,
}

/// Reads a whole backup; errors call it `name`.
///
/// # Errors
/// The first line that is damaged or out of its place, or a foot that does not fit what is before it.
pub fn read(file: impl BufRead, name: &str) -> Result<Backup> {
    let mut digest = Sha256::new();
    let mut backup: Option<Backup> = None;
    for (number, text) in file.lines().enumerate() {
        let text = text.with_context(|| format!("cannot read {name}"))?;
        let place = || format!("{name}, line {}", number + 1);
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
                    leases: Vec::new(),
                    kvs: Vec::new(),
                    sha256: String::new(),
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
        _ => bail!("{name} is cut off: its foot is missing"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written() -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        for line in [
            Line::head(7, 9),
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
        read(bytes, "backup")
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
