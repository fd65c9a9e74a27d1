//! What is attached, as a file: it is written before a user is told, and read at the next start.
//!
//! `attachments.json` is complete or the one before: it is written under another name, synced and renamed.
//!
//! An NBD attachment has a verifier, by which clients know that what they were told is written is there. It stays
//! over a restart that lost nothing, which the partitions say once, when they are opened. So the file says
//! before that, that this was not judged yet, and a start that finds this gives every attachment another verifier.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use coronafs::Access;
use nbd_wire::session::Token;
use serde::{Deserialize, Serialize};

use crate::remotes::{RemoteAttached, RemoteEntry, RemoteFault};

const NAME: &str = "attachments.json";
const TEMPORARY: &str = "attachments.json.tmp";
const VERSION: u32 = 2;
/// The oldest that is read: without verifiers and remote volumes.
const VERSION_MIN: u32 = 1;

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
    /// What NBD's clients know it by.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "crate::remotes::optional_token"
    )]
    pub verifier: Option<Token>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OnDisk {
    version: u32,
    /// Whether each verifier holds of what was found when the partitions were opened.
    #[serde(default = "yes")]
    judged: bool,
    attachments: Vec<Attached>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    remotes: Vec<RemoteAttached>,
}

fn yes() -> bool {
    true
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
    /// The same of volumes of other nodes.
    remotes: Mutex<Vec<RemoteEntry>>,
    /// Whether the file says that the verifiers hold.
    judged: AtomicBool,
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
        let on_disk = if text.is_empty() {
            OnDisk {
                version: VERSION,
                judged: true,
                attachments: Vec::new(),
                remotes: Vec::new(),
            }
        } else {
            parse(&text).map_err(|what| named(&path, &io::Error::other(what)))?
        };
        let entries = on_disk.attachments.into_iter().map(|attached| Entry {
            attached,
            state: Err("the node starts".to_owned()),
        });
        let remotes = on_disk.remotes.into_iter().map(RemoteEntry::starting);
        Ok(Attachments {
            dir: dir.to_owned(),
            writing: tokio::sync::Mutex::default(),
            entries: Mutex::new(entries.collect()),
            remotes: Mutex::new(remotes.collect()),
            judged: AtomicBool::new(on_disk.judged),
        })
    }

    /// Says durably that the verifiers are to be judged by what the partitions say when they are opened; before
    /// they are. Whether they held until now.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub async fn begin(&self) -> io::Result<bool> {
        let _turn = self.writing.lock().await;
        let (entries, remotes) = (self.all(), self.remotes());
        let held = self.judged.load(Ordering::Relaxed);
        if entries.iter().any(|entry| entry.attached.kind == Kind::Nbd) {
            self.judged.store(false, Ordering::Relaxed);
            self.write(&entries, &remotes).await?;
        }
        Ok(held)
    }

    /// Gives attachments their verifiers, which hold from now on, durably.
    ///
    /// # Errors
    /// When the file cannot be written: they are not to be served.
    pub async fn judge(&self, verifiers: &[((u64, u64), Token)]) -> io::Result<()> {
        let _turn = self.writing.lock().await;
        let (mut entries, remotes) = (self.all(), self.remotes());
        for ((volume, id), verifier) in verifiers {
            let found = entries.iter_mut().find(|entry| entry.is(*volume, *id));
            if let Some(entry) = found {
                entry.attached.verifier = Some(*verifier);
            }
        }
        self.judged.store(true, Ordering::Relaxed);
        self.write(&entries, &remotes).await?;
        *self.entries() = entries;
        Ok(())
    }

    async fn write(&self, entries: &[Entry], remotes: &[RemoteEntry]) -> io::Result<()> {
        let attachments = entries.iter().map(|entry| entry.attached.clone());
        let remotes = remotes.iter().map(|entry| entry.attached.clone());
        let on_disk = OnDisk {
            version: VERSION,
            judged: self.judged.load(Ordering::Relaxed),
            attachments: attachments.collect(),
            remotes: remotes.collect(),
        };
        let text = serde_json::to_vec_pretty(&on_disk)?;
        let dir = self.dir.clone();
        let written = tokio::task::spawn_blocking(move || write(&dir, &text)).await;
        let written = written.map_err(io::Error::other).flatten();
        written.map_err(|error| named(&self.dir.join(NAME), &error))
    }

    fn remote_entries(&self) -> MutexGuard<'_, Vec<RemoteEntry>> {
        self.remotes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All volumes of other nodes, by name.
    pub fn remotes(&self) -> Vec<RemoteEntry> {
        self.remote_entries().clone()
    }

    /// Notes how a volume of another node fares.
    pub async fn note_remote(&self, name: &str, state: Result<(), RemoteFault>) {
        let _turn = self.writing.lock().await;
        let mut remotes = self.remote_entries();
        let found = remotes.iter_mut().find(|entry| entry.attached.name == name);
        if let Some(entry) = found {
            entry.state = state;
        }
    }

    /// Removes a volume of another node, and adds one, durably.
    ///
    /// # Errors
    /// When the file cannot be written: nothing has changed.
    pub async fn change_remote(&self, ended: &str, added: Option<RemoteEntry>) -> io::Result<()> {
        let _turn = self.writing.lock().await;
        let mut remotes = self.remotes();
        remotes.retain(|old| old.attached.name != ended);
        remotes.extend(added);
        remotes.sort_by(|a, b| a.attached.name.cmp(&b.attached.name));
        self.write(&self.all(), &remotes).await?;
        *self.remote_entries() = remotes;
        Ok(())
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
        self.write(&entries, &self.remotes()).await?;
        *self.entries() = entries;
        Ok(())
    }
}

fn parse(text: &[u8]) -> Result<OnDisk, String> {
    let on_disk: OnDisk = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if !(VERSION_MIN..=VERSION).contains(&on_disk.version) {
        let known = format!("this program knows {VERSION_MIN} to {VERSION}");
        return Err(format!("version {} is not known; {known}", on_disk.version));
    }
    Ok(on_disk)
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
                verifier: None,
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
        std::fs::write(&path, newer.replace("\"version\": 2", "\"version\": 3")).unwrap();
        let refused = Attachments::load(dir.path()).unwrap_err().to_string();
        assert!(
            refused.contains(NAME) && refused.contains("version 3"),
            "{refused}"
        );
        std::fs::write(&path, "{").unwrap();
        assert!(Attachments::load(dir.path()).is_err());
    }

    /// As the first version has it; it must open for ever.
    const FIRST: &str = r#"{ "version": 1, "attachments": [
        { "volume": 7, "id": 3, "access": "shared", "queues": 1, "kind": "nbd",
          "place": { "address": "127.0.0.1:10809" } },
        { "volume": 7, "id": 4, "access": "exclusive", "queues": 2, "kind": "vhost-user",
          "place": { "socket": "/run/7-4.sock" }, "lost": "a flush had failed" } ] }"#;

    #[tokio::test]
    async fn a_file_of_the_first_version_is_read_and_gets_verifiers() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(NAME), FIRST).unwrap();
        let all = Attachments::load(dir.path()).unwrap();
        assert!(all.begin().await.unwrap());
        let found: Vec<Attached> = all.all().into_iter().map(|entry| entry.attached).collect();
        assert_eq!((found[0].kind, found[0].verifier), (Kind::Nbd, None));
        assert_eq!(found[1].lost, "a flush had failed");
        all.judge(&[((7, 3), Token(9))]).await.unwrap();
        let again = Attachments::load(dir.path()).unwrap();
        assert_eq!(again.all()[0].attached.verifier, Some(Token(9)));
    }

    #[tokio::test]
    async fn verifiers_hold_only_when_the_last_start_has_judged_them() {
        let dir = tempfile::tempdir().unwrap();
        let mut nbd = entry(1, 1);
        nbd.attached.kind = Kind::Nbd;
        nbd.attached.verifier = Some(Token(5));
        let all = Attachments::load(dir.path()).unwrap();
        all.change(1, &[], Some(nbd)).await.unwrap();
        let begin = async || {
            let all = Attachments::load(dir.path()).unwrap();
            let held = all.begin().await.unwrap();
            (all, held)
        };
        let (_, held) = begin().await;
        assert!(held);
        // It ended before it had judged, whatever else it had written.
        let (all, held) = begin().await;
        assert!(!held);
        all.change(2, &[], Some(entry(2, 1))).await.unwrap();
        let (all, held) = begin().await;
        assert!(!held);
        all.judge(&[((1, 1), Token(6))]).await.unwrap();
        all.change(2, &[1], None).await.unwrap();
        let (all, held) = begin().await;
        assert!(held);
        assert_eq!(all.of(1)[0].attached.verifier, Some(Token(6)));
    }
}
