//! Removing what a compaction made unreachable, a bounded step with each batch.
//!
//! A version becomes garbage when a later one of its key is at or before the compacted revision.
//! That later one stands between the last compaction and this one: so it is enough to walk what
//! was written from the one to the other, and to drop the predecessors of what is met (and
//! tombstones, of which the last compaction has left those at its own revision). The cost follows
//! the changes, not the keys. Readers never see the difference: they may not read there.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use redb::{ReadableTable, Table};

use crate::error::{During, Error};
use crate::record;
use crate::revision::{Revision, RevisionBytes};
use crate::state::State;

type Versions<'t> = Table<'t, &'static RevisionBytes, &'static [u8]>;

/// Looks at `versions_max` versions at most, and drops what they have replaced.
pub(crate) fn step(
    state: &mut State,
    versions: &mut Versions<'_>,
    versions_max: usize,
) -> Result<(), Error> {
    if !state.is_purging() {
        return Ok(());
    }
    let met = walk(state, versions, versions_max)?;
    for (key, at) in met {
        let Some(entry) = state.index.get(&key) else {
            continue;
        };
        let (kept, dropped) = entry.compact(at, state.compacted);
        if dropped.is_empty() {
            continue;
        }
        match kept {
            Some(entry) => drop(state.index.insert(Arc::new(entry))),
            None => drop(state.index.remove(&key)),
        }
        for at in dropped {
            let gone = versions.remove(&at.to_bytes()).during("purge a version")?;
            let gone = gone.map(|bytes| record::size(bytes.value()));
            state.size -= gone.unwrap_or(0);
        }
    }
    Ok(())
}

/// The next versions below the compacted revision: for each key the newest met. Moves the cursor.
fn walk(
    state: &mut State,
    versions: &Versions<'_>,
    versions_max: usize,
) -> Result<BTreeMap<Bytes, Revision>, Error> {
    let mut met = BTreeMap::new();
    let past = Revision::new(state.compacted + 1, 0);
    let (from, to) = (state.purge_next.to_bytes(), past.to_bytes());
    let mut rows = versions
        .range::<&RevisionBytes>(&from..&to)
        .during("walk the versions")?;
    for _ in 0..versions_max.max(1) {
        let Some(row) = rows.next() else {
            state.purge_next = past;
            return Ok(met);
        };
        let (at, bytes) = row.during("walk the versions")?;
        let at = Revision::from_bytes(*at.value());
        let found = record::decode(at, &Bytes::copy_from_slice(bytes.value()))?;
        met.insert(found.kv.key, at);
        state.purge_next = Revision::new(at.main, at.sub + 1);
    }
    Ok(met)
}
