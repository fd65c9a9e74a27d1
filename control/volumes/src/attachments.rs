//! What is attached, as a file: it is written before a user is told, and read at the next start.
//!
//! `attachments.json` is complete or the one before: it is written under another name, synced and renamed.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

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
    /// Where the guest connects.
    pub socket: PathBuf,
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

/// All attachments of a node.
#[derive(Debug)]
pub struct Attachments {
    dir: PathBuf,
    entries: Vec<Entry>,
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
            entries: entries.collect(),
        })
    }

    /// All of them.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Those of a volume.
    pub fn of(&self, volume: u64) -> impl Iterator<Item = &Entry> {
        self.entries
            .iter()
            .filter(move |entry| entry.attached.volume == volume)
    }

    /// Notes how one fares.
    pub fn note(&mut self, at: usize, state: Result<u64, String>) {
        if let Some(entry) = self.entries.get_mut(at) {
            entry.state = state;
        }
    }

    /// Adds one, and removes those that it ended, durably.
    ///
    /// # Errors
    /// When the file cannot be written: nothing has changed.
    pub fn add(&mut self, entry: Entry, ended: &[u64]) -> io::Result<()> {
        let volume = entry.attached.volume;
        self.change(|entries| {
            entries
                .retain(|old| old.attached.volume != volume || !ended.contains(&old.attached.id));
            entries.push(entry);
        })
    }

    /// Removes one, durably; false when there is none.
    ///
    /// # Errors
    /// When the file cannot be written: nothing has changed.
    pub fn remove(&mut self, volume: u64, id: u64) -> io::Result<bool> {
        let is_it = |entry: &Entry| entry.attached.volume == volume && entry.attached.id == id;
        if !self.entries.iter().any(is_it) {
            return Ok(false);
        }
        self.change(|entries| entries.retain(|entry| !is_it(entry)))?;
        Ok(true)
    }

    fn change(&mut self, change: impl FnOnce(&mut Vec<Entry>)) -> io::Result<()> {
        let mut entries = self.entries.clone();
        change(&mut entries);
        let attachments = entries.iter().map(|entry| entry.attached.clone());
        let on_disk = OnDisk {
            version: VERSION,
            attachments: attachments.collect(),
        };
        let text = serde_json::to_vec_pretty(&on_disk)?;
        write(&self.dir, &text).map_err(|error| named(&self.dir.join(NAME), &error))?;
        self.entries = entries;
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
                socket: format!("/run/{volume}-{id}.sock").into(),
            },
            state: Ok(id),
        }
    }

    #[test]
    fn attachments_are_found_again_and_damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut all = Attachments::load(dir.path()).unwrap();
        assert!(all.entries().is_empty());
        all.add(entry(1, 1), &[]).unwrap();
        all.add(entry(2, 1), &[1]).unwrap();
        all.add(entry(1, 2), &[1]).unwrap();
        let found = |all: &Attachments| -> Vec<Attached> {
            all.entries().iter().map(|e| e.attached.clone()).collect()
        };
        let expected = [entry(2, 1).attached, entry(1, 2).attached];
        assert_eq!(found(&all), expected);
        assert_eq!(found(&Attachments::load(dir.path()).unwrap()), expected);
        assert!(all.remove(2, 1).unwrap());
        assert!(!all.remove(2, 1).unwrap());
        assert_eq!(
            found(&Attachments::load(dir.path()).unwrap()),
            expected[1..]
        );

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
