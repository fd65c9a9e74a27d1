//! The store: the state in memory, its tables on disk, and the one writer.
//!
//! Tables:
//!
//! | table | key | value |
//! | --- | --- | --- |
//! | `versions` | revision, 12 bytes | [`crate::record`] |
//! | `leases` | id | granted and remaining time to live, in seconds |
//! | `users`, `roles` | name | `authpb.User`, `authpb.Role` |
//! | `state` | `state` | [`StateRow`] |
//!
//! A batch is one transaction of all of them, the state's row included. So what is on disk after
//! a crash is the state after some batch, with the log id at which it stood; the log replays the
//! rest. It must not be purged past [`Store::durable`].

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use prost::Message;
use redb::{
    Database, Durability, ReadableDatabase, StorageBackend, TableDefinition, WriteTransaction,
};

use crate::auth::Auth;
use crate::batch::{Batch, Changes, Durable};
use crate::error::{During, Error, ErrorKind};
use crate::load::{StateRow, load};
use crate::purge;
use crate::revision::RevisionBytes;
use crate::state::{AppliedMeta, State};
use crate::view::View;

pub(crate) const VERSIONS: TableDefinition<'_, &RevisionBytes, &[u8]> =
    TableDefinition::new("versions");
pub(crate) const LEASES: TableDefinition<'_, i64, (i64, i64)> = TableDefinition::new("leases");
pub(crate) const USERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("users");
pub(crate) const ROLES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("roles");
pub(crate) const STATE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("state");
pub(crate) const STATE_ROW: &str = "state";

/// How a store works. Two replicas must agree on `lease_ttl_s_min` alone.
#[derive(Debug, Clone)]
pub struct Options {
    /// Memory for pages of the tables.
    pub cache_bytes: usize,
    /// A commit becomes durable when this many before it were not.
    pub undurable_batches_max: u32,
    /// A commit becomes durable when this many bytes of versions are not yet. The batch waits for
    /// that flush: small is even, large is fast.
    pub undurable_bytes_max: u64,
    /// Versions that one batch looks at for a compaction under way; each costs it about as much as
    /// a put.
    pub purge_versions_max: usize,
    /// A lease lives at least this long: etcd's 1.5 election timeouts, rounded up.
    pub lease_ttl_s_min: i64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cache_bytes: 256 << 20,
            undurable_batches_max: 4_096,
            undurable_bytes_max: 8 << 20,
            purge_versions_max: 128,
            lease_ttl_s_min: 2,
        }
    }
}

/// Gives views of the newest committed state, from any thread.
#[derive(Clone)]
pub struct Reader {
    published: Arc<RwLock<Arc<View>>>,
}

impl Reader {
    /// The state after the newest batch. It does not change, however long it is kept; a kept view
    /// keeps the disk space of what it sees.
    pub fn view(&self) -> Arc<View> {
        // The lock is held for as long as it takes to copy a pointer.
        let published = self.published.read();
        Arc::clone(&published.unwrap_or_else(PoisonError::into_inner))
    }

    fn publish(&self, view: View) {
        let mut next = Arc::new(view);
        let mut published = self
            .published
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut *published, &mut next);
        drop(published);
        // The one before may take a while to free, if nobody else holds it.
        drop(next);
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reader")
            .field(&self.view().revision())
            .finish()
    }
}

/// What a crash keeps.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DurableMark {
    /// The last applied entry's index.
    pub applied_index: u64,
    /// What was committed with it.
    pub meta: AppliedMeta,
}

/// The replicated state machine.
pub struct Store {
    db: Database,
    options: Options,
    reader: Reader,
    /// A failed write is never tried again: what is on disk is unknown until it is read anew.
    poisoned: bool,
    undurable_batches: u32,
    undurable_bytes: u64,
    durable: DurableMark,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("revision", &self.view().revision())
            .field("poisoned", &self.poisoned)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Opens what `backend` holds, or creates an empty store in an empty one. Reads every version
    /// once.
    ///
    /// # Errors
    /// The storage fails, is damaged, or holds another format.
    pub fn open(backend: impl StorageBackend, options: Options) -> Result<Self, Error> {
        let db = Database::builder()
            .set_cache_size(options.cache_bytes)
            .create_with_backend(backend)
            .during("open")?;
        create_tables(&db)?;
        let state = load(&db.begin_read().during("begin to read")?)?;
        let durable = mark(&state);
        let view = View::new(&db, state)?;
        Ok(Self {
            db,
            options,
            reader: Reader {
                published: Arc::new(RwLock::new(Arc::new(view))),
            },
            poisoned: false,
            undurable_batches: 0,
            undurable_bytes: 0,
            durable,
        })
    }

    /// Begins a batch. One at a time.
    pub fn batch(&mut self) -> Batch<'_> {
        Batch::new(self)
    }

    /// The state after the newest batch.
    pub fn view(&self) -> Arc<View> {
        self.reader.view()
    }

    /// A handle that gives views to others while this store is written to. It stays good across
    /// batches and restores.
    pub fn reader(&self) -> Reader {
        self.reader.clone()
    }

    /// How far a crash goes back at most.
    pub fn durable(&self) -> &DurableMark {
        &self.durable
    }

    /// Makes everything so far durable.
    ///
    /// # Errors
    /// The storage failed.
    pub fn flush(&mut self) -> Result<(), Error> {
        let view = self.view();
        let state = view.state().clone();
        self.commit(&view, state, &Changes::default(), Durable::Yes)
    }

    /// Goes on with a compaction under way while no batch comes; every batch does so too. Whether
    /// there is more to do.
    ///
    /// # Errors
    /// The storage failed.
    pub fn purge(&mut self) -> Result<bool, Error> {
        let view = self.view();
        if view.is_purging() {
            let state = view.state().clone();
            self.commit(&view, state, &Changes::default(), Durable::No)?;
        }
        Ok(self.view().is_purging())
    }

    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    pub(crate) fn db(&self) -> &Database {
        &self.db
    }

    pub(crate) fn check_alive(&self) -> Result<(), Error> {
        if self.poisoned {
            return Err(Error::new(ErrorKind::Poisoned, "use"));
        }
        Ok(())
    }

    /// Takes no more: the batch under way could not be applied.
    pub(crate) fn poison(&mut self) {
        self.poisoned = true;
    }

    /// Marks the store as unusable if `result` is an error.
    pub(crate) fn guard<T>(&mut self, result: Result<T, Error>) -> Result<T, Error> {
        self.poisoned |= result.is_err();
        result
    }

    /// Writes one batch, then publishes its state.
    pub(crate) fn commit(
        &mut self,
        base: &View,
        mut state: State,
        changes: &Changes,
        durable: Durable,
    ) -> Result<(), Error> {
        self.check_alive()?;
        let bytes: usize = changes.versions.values().map(bytes::Bytes::len).sum();
        self.undurable_batches = self.undurable_batches.saturating_add(1);
        self.undurable_bytes += bytes as u64;
        let flush = durable == Durable::Yes
            || self.undurable_batches > self.options.undurable_batches_max
            || self.undurable_bytes > self.options.undurable_bytes_max;
        let written = self.write(base.state(), &mut state, changes, flush);
        self.guard(written)?;
        if flush {
            self.note_durable(mark(&state));
        }
        let view = View::new(&self.db, state);
        let view = self.guard(view)?;
        self.reader.publish(view);
        Ok(())
    }

    fn write(
        &self,
        before: &State,
        state: &mut State,
        changes: &Changes,
        flush: bool,
    ) -> Result<(), Error> {
        let txn = begin(&self.db, flush)?;
        {
            let mut versions = txn.open_table(VERSIONS).during("open the versions")?;
            for (at, bytes) in &changes.versions {
                versions
                    .insert(&at.to_bytes(), &bytes[..])
                    .during("write a version")?;
            }
            purge::step(state, &mut versions, self.options.purge_versions_max)?;
        }
        write_leases(&txn, changes)?;
        if !Arc::ptr_eq(&before.auth, &state.auth) {
            write_auth(&txn, &before.auth, &state.auth)?;
        }
        write_state(&txn, state)?;
        txn.commit().during("commit a batch")
    }

    /// Takes a state that was restored, durably, in place of all before.
    pub(crate) fn replace(&mut self) -> Result<(), Error> {
        let txn = self.db.begin_read().during("begin to read")?;
        let state = load(&txn)?;
        self.note_durable(mark(&state));
        self.reader.publish(View::new(&self.db, state)?);
        Ok(())
    }

    fn note_durable(&mut self, mark: DurableMark) {
        self.undurable_batches = 0;
        self.undurable_bytes = 0;
        self.durable = mark;
    }
}

fn mark(state: &State) -> DurableMark {
    DurableMark {
        applied_index: state.applied_index,
        meta: AppliedMeta::clone(&state.meta),
    }
}

/// Begins to write, durably or not.
pub(crate) fn begin(db: &Database, durable: bool) -> Result<WriteTransaction, Error> {
    let mut txn = db.begin_write().during("begin to write")?;
    let durability = if durable {
        Durability::Immediate
    } else {
        Durability::None
    };
    txn.set_durability(durability)
        .during("set the durability")?;
    // Costs a little at each flush, and saves reading the whole file after a crash.
    txn.set_quick_repair(durable);
    Ok(txn)
}

fn create_tables(db: &Database) -> Result<(), Error> {
    let txn = begin(db, true)?;
    txn.open_table(VERSIONS).during("create a table")?;
    txn.open_table(LEASES).during("create a table")?;
    txn.open_table(USERS).during("create a table")?;
    txn.open_table(ROLES).during("create a table")?;
    txn.open_table(STATE).during("create a table")?;
    txn.commit().during("create the tables")
}

fn write_leases(txn: &WriteTransaction, changes: &Changes) -> Result<(), Error> {
    if changes.leases.is_empty() {
        return Ok(());
    }
    let mut leases = txn.open_table(LEASES).during("open the leases")?;
    for (id, lease) in &changes.leases {
        match lease {
            Some(lease) => leases.insert(id, (lease.ttl_s, lease.remaining_s)),
            None => leases.remove(id),
        }
        .during("write a lease")?;
    }
    Ok(())
}

fn write_auth(txn: &WriteTransaction, before: &Auth, now: &Auth) -> Result<(), Error> {
    let mut users = txn.open_table(USERS).during("open the users")?;
    write_names(&mut users, &before.users, &now.users)?;
    let mut roles = txn.open_table(ROLES).during("open the roles")?;
    write_names(&mut roles, &before.roles, &now.roles)
}

/// Writes what differs.
fn write_names<T: Message + PartialEq>(
    table: &mut redb::Table<'_, &'static str, &'static [u8]>,
    before: &BTreeMap<String, T>,
    now: &BTreeMap<String, T>,
) -> Result<(), Error> {
    for name in before.keys().filter(|name| !now.contains_key(*name)) {
        table.remove(name.as_str()).during("remove a name")?;
    }
    for (name, value) in now {
        if before.get(name) != Some(value) {
            let bytes = value.encode_to_vec();
            table
                .insert(name.as_str(), &bytes[..])
                .during("write a name")?;
        }
    }
    Ok(())
}

fn write_state(txn: &WriteTransaction, state: &State) -> Result<(), Error> {
    let mut table = txn.open_table(STATE).during("open the state")?;
    let row = StateRow::of(state).encode_to_vec();
    table
        .insert(STATE_ROW, &row[..])
        .during("write the state")?;
    Ok(())
}
