//! From the tables to the state in memory.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use redb::{ReadTransaction, ReadableTable, ReadableTableMetadata as _};

use crate::auth::Auth;
use crate::error::{During, Error, ErrorKind};
use crate::index::{Change, Entry, Stamp};
use crate::lease::{Attachment, Lease};
use crate::record;
use crate::revision::Revision;
use crate::state::{Alarm, AppliedMeta, State};
use crate::store::{LEASES, ROLES, STATE, STATE_ROW, USERS, VERSIONS};

/// The format of the tables.
const FORMAT: u32 = 1;

/// What the state has besides keys, leases, users and roles. A field is only ever added.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct StateRow {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(int64, tag = "2")]
    revision: i64,
    #[prost(int64, tag = "3")]
    compacted: i64,
    #[prost(int64, tag = "4")]
    purge_main: i64,
    #[prost(uint32, tag = "5")]
    purge_sub: u32,
    #[prost(uint64, tag = "6")]
    applied_index: u64,
    #[prost(bytes = "bytes", tag = "7")]
    last_applied: Bytes,
    #[prost(bytes = "bytes", tag = "8")]
    membership: Bytes,
    #[prost(string, tag = "9")]
    cluster_version: String,
    #[prost(bool, tag = "10")]
    auth_enabled: bool,
    #[prost(uint64, tag = "11")]
    auth_revision: u64,
    #[prost(bytes = "bytes", tag = "12")]
    token_key: Bytes,
    #[prost(message, repeated, tag = "13")]
    alarms: Vec<AlarmRow>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct AlarmRow {
    #[prost(uint64, tag = "1")]
    member: u64,
    #[prost(int32, tag = "2")]
    kind: i32,
}

impl StateRow {
    pub(crate) fn of(state: &State) -> Self {
        Self {
            format: FORMAT,
            revision: state.revision,
            compacted: state.compacted,
            purge_main: state.purge_next.main,
            purge_sub: state.purge_next.sub,
            applied_index: state.applied_index,
            last_applied: state.meta.last_applied.clone(),
            membership: state.meta.membership.clone(),
            cluster_version: state.cluster_version.to_string(),
            auth_enabled: state.auth.enabled,
            auth_revision: state.auth.revision,
            token_key: state.auth.token_key.clone(),
            alarms: state
                .alarms
                .iter()
                .map(|alarm| AlarmRow {
                    member: alarm.member,
                    kind: alarm.kind,
                })
                .collect(),
        }
    }

    /// Without what differs between replicas.
    pub(crate) fn replicated(state: &State) -> Self {
        Self {
            purge_main: 0,
            purge_sub: 0,
            applied_index: 0,
            last_applied: Bytes::new(),
            membership: Bytes::new(),
            ..Self::of(state)
        }
    }

    fn into_state(self) -> State {
        State {
            auth: Arc::new(Auth {
                enabled: self.auth_enabled,
                revision: self.auth_revision,
                token_key: self.token_key,
                ..Auth::default()
            }),
            alarms: Arc::new(
                self.alarms
                    .into_iter()
                    .map(|row| Alarm {
                        kind: row.kind,
                        member: row.member,
                    })
                    .collect(),
            ),
            cluster_version: self.cluster_version.into(),
            revision: self.revision,
            compacted: self.compacted,
            purge_next: Revision::new(self.purge_main, self.purge_sub),
            applied_index: self.applied_index,
            meta: Arc::new(AppliedMeta {
                last_applied: self.last_applied,
                membership: self.membership,
            }),
            ..State::default()
        }
    }
}

/// Reads the whole state.
pub(crate) fn load(txn: &ReadTransaction) -> Result<State, Error> {
    let table = txn.open_table(STATE).during("open the state")?;
    let Some(row) = table.get(STATE_ROW).during("read the state")? else {
        check_empty(txn)?;
        return Ok(State::default());
    };
    let row = StateRow::decode(row.value())
        .map_err(|error| Error::caused(ErrorKind::Corrupt, "read the state's row", error))?;
    if row.format != FORMAT {
        let found = format!("open: format {FORMAT} is expected, {} found", row.format);
        return Err(Error::new(ErrorKind::Format, found));
    }
    if row.revision < 1 || row.compacted > row.revision || row.purge_main < 0 {
        return Err(Error::corrupt(
            "read the state's row: 0 < compacted <= revision is expected",
        ));
    }
    let mut state = row.into_state();
    load_auth(txn, &mut state)?;
    load_leases(txn, &mut state)?;
    load_index(txn, &mut state)?;
    attach(&mut state)?;
    Ok(state)
}

/// Every batch writes the state's row: without it there is nothing else.
fn check_empty(txn: &ReadTransaction) -> Result<(), Error> {
    let versions = txn.open_table(VERSIONS).during("open the versions")?;
    let leases = txn.open_table(LEASES).during("open the leases")?;
    let users = txn.open_table(USERS).during("open the users")?;
    let roles = txn.open_table(ROLES).during("open the roles")?;
    let rows = versions.len().during("count the versions")?
        + leases.len().during("count the leases")?
        + users.len().during("count the users")?
        + roles.len().during("count the roles")?;
    if rows > 0 {
        return Err(Error::corrupt(
            "read the state's row: it is expected beside others",
        ));
    }
    Ok(())
}

fn load_auth(txn: &ReadTransaction, state: &mut State) -> Result<(), Error> {
    let auth = Arc::make_mut(&mut state.auth);
    let users = txn.open_table(USERS).during("open the users")?;
    for row in users.iter().during("read the users")? {
        let (name, user) = row.during("read a user")?;
        let user = decode("a user", user.value())?;
        auth.users.insert(name.value().into(), user);
    }
    let roles = txn.open_table(ROLES).during("open the roles")?;
    for row in roles.iter().during("read the roles")? {
        let (name, role) = row.during("read a role")?;
        let role = decode("a role", role.value())?;
        auth.roles.insert(name.value().into(), role);
    }
    Ok(())
}

fn decode<T: Message + Default>(what: &str, bytes: &[u8]) -> Result<T, Error> {
    // Fields may outlive the page that they come from.
    T::decode(Bytes::copy_from_slice(bytes))
        .map_err(|error| Error::caused(ErrorKind::Corrupt, format!("read {what}"), error))
}

fn load_leases(txn: &ReadTransaction, state: &mut State) -> Result<(), Error> {
    let leases = txn.open_table(LEASES).during("open the leases")?;
    for row in leases.iter().during("read the leases")? {
        let (id, times) = row.during("read a lease")?;
        let (ttl_s, remaining_s) = times.value();
        let lease = Lease::new(id.value(), ttl_s, remaining_s);
        state.leases.insert(Arc::new(lease));
    }
    Ok(())
}

fn load_index(txn: &ReadTransaction, state: &mut State) -> Result<(), Error> {
    let versions = txn.open_table(VERSIONS).during("open the versions")?;
    for row in versions.iter().during("read the versions")? {
        let (at, bytes) = row.during("read a version")?;
        let at = Revision::from_bytes(*at.value());
        if at.main < 1 || at.main > state.revision {
            let what = format!(
                "version {}.{}: a revision from 1 to {} is expected",
                at.main, at.sub, state.revision
            );
            return Err(Error::corrupt(what));
        }
        let bytes = Bytes::copy_from_slice(bytes.value());
        state.size += record::size(&bytes);
        let found = record::decode(at, &bytes)?;
        let change = Change {
            created: found.kv.create_revision,
            version: found.kv.version,
            lease: found.kv.lease,
            stamp: Stamp {
                revision: at,
                tombstone: found.tombstone,
            },
        };
        let key = &found.kv.key[..];
        state.index.update(key, |before| {
            Arc::new(match before {
                Some(entry) => entry.next(change),
                None => Entry::first(Arc::from(key), change),
            })
        });
    }
    Ok(())
}

/// Hangs the keys on their leases.
fn attach(state: &mut State) -> Result<(), Error> {
    for entry in state.index.iter().filter(|entry| entry.lease != 0) {
        if state.lease(entry.lease).is_none() {
            let what = format!(
                "key {:?} hangs on lease {:x}, which is not there",
                entry.key, entry.lease
            );
            return Err(Error::corrupt(what));
        }
        let attachment = Attachment::new(entry.lease, &entry.key);
        state.attached.insert(Arc::new(attachment));
    }
    Ok(())
}
