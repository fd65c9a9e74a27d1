//! What is attached, as a file: it is written before a user is told, and read at the next start.
//!
//! `attachments.json` is complete or the one before: it is written under another name, synced and renamed.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use coronafs::Access;
use serde::{Deserialize, Serialize};

const NAME: &str = "attachments.json";
const TEMPORARY: &str = "attachments.json.tmp";
const VERSION: u32 = 1;

/// What an attachment may do, as it is written down and asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AccessName {
    /// Writes, and nobody else does.
    Exclusive,
    /// Writes, beside others that said so too.
    Shared,
    /// Only reads.
    ReadOnly,
}

impl AccessName {
    /// All of them, by name.
    pub const ALL: [(&str, AccessName); 3] = [
        ("exclusive", AccessName::Exclusive),
        ("shared", AccessName::Shared),
        ("read-only", AccessName::ReadOnly),
    ];

    /// What it is called.
    pub fn name(self) -> &'static str {
        let found = AccessName::ALL.iter().find(|(_, access)| *access == self);
        found.map_or("", |(name, _)| name)
    }
}

impl From<Access> for AccessName {
    fn from(access: Access) -> AccessName {
        match access {
            Access::Exclusive => AccessName::Exclusive,
            Access::Shared => AccessName::Shared,
            Access::ReadOnly => AccessName::ReadOnly,
        }
    }
}

impl From<AccessName> for Access {
    fn from(name: AccessName) -> Access {
        match name {
            AccessName::Exclusive => Access::Exclusive,
            AccessName::Shared => Access::Shared,
            AccessName::ReadOnly => Access::ReadOnly,
        }
    }
}

/// How a volume is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// As a disk of a guest on the node.
    VhostUser,
    /// To tools and other hosts.
    Nbd,
}

impl Kind {
    /// All of them, by name.
    pub const ALL: [(&str, Kind); 2] = [("vhost-user", Kind::VhostUser), ("nbd", Kind::Nbd)];

    /// What it is called.
    pub fn name(self) -> &'static str {
        let found = Kind::ALL.iter().find(|(_, kind)| *kind == self);
        found.map_or("", |(name, _)| name)
    }
}

/// Where a volume is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// A unix socket.
    Socket(PathBuf),
    /// An address and port; with NBD only.
    Address(SocketAddr),
}

/// An attachment that outlives restarts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attached {
    /// The volume's number.
    pub volume: u64,
    /// Names it among the volume's.
    pub id: u64,
    /// What it may do.
    pub access: AccessName,
    /// Rings offered to the guest.
    pub queues: u16,
    /// How it is served.
    pub kind: Kind,
    /// Where it is served.
    pub place: Place,
    /// Why it must not be served to a guest that was at work before: something that it was told is written is
    /// lost. Empty as a rule.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub lost: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OnDisk {
    version: u32,
    attachments: Vec<Attached>,
}

/// An attachment and how it fares.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What is on disk.
    pub attached: Attached,
    /// Its generation while it serves, and why it does not.
    pub state: Result<u64, String>,
}

impl Entry {
    fn is(&self, volume: u64, id: u64) -> bool {
        (self.attached.volume, self.attached.id) == (volume, id)
    }
}

/// All attachments of a node.
#[derive(Debug)]
pub struct Attachments {
    dir: PathBuf,
    /// Whose turn it is to write the file.
    writing: tokio::sync::Mutex<()>,
    /// What the file says, and how each fares. Held for moments.
    entries: Mutex<Vec<Entry>>,
}

impl Attachments {
    /// Reads what was attached when the node ended; nothing serves yet.
    ///
    /// # Errors
    /// When the file cannot be read, or was not written by this program.
    pub fn load(dir: &Path) -> io::Result<Attachments> {
        let path = dir.join(NAME);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(named(&path, &error)),
        };
        let attachments = if text.is_empty() {
            Vec::new()
        } else {
            parse(&text).map_err(|what| named(&path, &io::Error::other(what)))?
        };
        let entries = attachments.into_iter().map(|attached| Entry {
            attached,
            state: Err("the node starts".to_owned()),
        });
        Ok(Attachments {
            dir: dir.to_owned(),
            writing: tokio::sync::Mutex::default(),
            entries: Mutex::new(entries.collect()),
        })
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them.
    pub fn all(&self) -> Vec<Entry> {
        self.entries().clone()
    }

    /// Those of a volume.
    pub fn of(&self, volume: u64) -> Vec<Entry> {
        let of_it = |entry: &&Entry| entry.attached.volume == volume;
        self.entries().iter().filter(of_it).cloned().collect()
    }

    /// Notes how one fares.
    pub async fn note(&self, volume: u64, id: u64, state: Result<u64, String>) {
        let _turn = self.writing.lock().await;
        let mut entries = self.entries();
        let found = entries.iter_mut().find(|entry| entry.is(volume, id));
        if let Some(entry) = found {
            entry.state = state;
        }
    }

    /// Removes some of a volume, and adds one, durably.
    ///
    /// # Errors
    /// When the file cannot be written: nothing has changed.
    pub async fn change(&self, volume: u64, ended: &[u64], added: Option<Entry>) -> io::Result<()> {
        let _turn = self.writing.lock().await;
        let mut entries = self.all();
        entries.retain(|old| !ended.iter().any(|id| old.is(volume, *id)));
        entries.extend(added);
        let attachments = entries.iter().map(|entry| entry.attached.clone());
        let on_disk = OnDisk {
            version: VERSION,
            attachments: attachments.collect(),
        };
        let text = serde_json::to_vec_pretty(&on_disk)?;
        let dir = self.dir.clone();
        let written = tokio::task::spawn_blocking(move || write(&dir, &text)).await;
        let written = written.map_err(io::Error::other).flatten();
        written.map_err(|error| named(&self.dir.join(NAME), &error))?;
        *self.entries() = entries;
        Ok(())
    }
}

fn parse(text: &[u8]) -> Result<Vec<Attached>, String> {
    let on_disk: OnDisk = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if on_disk.version != VERSION {
        let known = format!("this program knows {VERSION}");
        return Err(format!("version {} is not known; {known}", on_disk.version));
    }
    Ok(on_disk.attachments)
}

fn write(dir: &Path, text: &[u8]) -> io::Result<()> {
    let temporary = dir.join(TEMPORARY);
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(text)?;
    file.sync_data()?;
    std::fs::rename(&temporary, dir.join(NAME))?;
    std::fs::File::open(dir)?.sync_all()
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(volume: u64, id: u64) -> Entry {
        Entry {
            attached: Attached {
                volume,
                id,
                access: AccessName::ReadOnly,
                queues: 2,
                kind: Kind::VhostUser,
                place: Place::Socket(format!("/run/{volume}-{id}.sock").into()),
                lost: String::new(),
            },
            state: Ok(id),
        }
    }

    #[tokio::test]
    async fn attachments_are_found_again_and_damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let all = Attachments::load(dir.path()).unwrap();
        assert!(all.all().is_empty());
        all.change(1, &[], Some(entry(1, 1))).await.unwrap();
        all.change(2, &[1], Some(entry(2, 1))).await.unwrap();
        all.change(1, &[1], Some(entry(1, 2))).await.unwrap();
        let found = |all: &Attachments| -> Vec<Attached> {
            all.all().into_iter().map(|entry| entry.attached).collect()
        };
        let expected = [entry(2, 1).attached, entry(1, 2).attached];
        assert_eq!(found(&all), expected);
        assert_eq!(found(&Attachments::load(dir.path()).unwrap()), expected);
        all.change(2, &[1], None).await.unwrap();
        assert_eq!(all.of(2).len(), 0);
        all.note(1, 2, Err("why".into())).await;
        assert_eq!(all.of(1)[0].state, Err("why".to_owned()));
        let again = Attachments::load(dir.path()).unwrap();
        assert_eq!(found(&again), expected[1..]);

        let path = dir.path().join(NAME);
        let newer = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, newer.replace("\"version\": 1", "\"version\": 2")).unwrap();
        let refused = Attachments::load(dir.path()).unwrap_err().to_string();
        assert!(
            refused.contains(NAME) && refused.contains("version 2"),
            "{refused}"
        );
        std::fs::write(&path, "{").unwrap();
        assert!(Attachments::load(dir.path()).is_err());
    }
}
