//! The state machine as Raft drives it: commands in batches to the store, and the events of each batch
//! to the watch hub before anybody is told of an outcome.

use std::io;
use std::sync::Arc;

use chainfire_core::{Command as Entry, SnapshotChunks, Standing, StateMachine};
use chainfire_store::{AppliedMeta, Command, Durable, Outcome, Reader, Snapshot, Store};
use prost::Message as _;

use crate::watch::SharedHub;

/// What a snapshot's chunk holds, about.
const CHUNK_BYTES: usize = 1 << 20;

/// A store that tells the hub.
pub struct StoreMachine {
    store: Store,
    hub: Arc<SharedHub>,
}

impl StoreMachine {
    /// The store, whose newest revision the hub knows.
    pub fn new(store: Store, hub: Arc<SharedHub>) -> StoreMachine {
        StoreMachine { store, hub }
    }
}

fn meta(standing: &Standing) -> AppliedMeta {
    AppliedMeta {
        last_applied: standing.applied.clone().into(),
        membership: standing.membership.clone().into(),
    }
}

fn undecodable(index: u64, error: &prost::DecodeError) -> io::Error {
    let what = format!("the command of entry {index} cannot be read: {error}");
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl StateMachine for StoreMachine {
    type Outcome = Outcome;
    type Reader = Reader;

    fn reader(&self) -> Reader {
        self.store.reader()
    }

    fn standing(&self) -> io::Result<Standing> {
        let view = self.store.view();
        let applied = view.applied();
        Ok(Standing {
            applied: applied.last_applied.to_vec(),
            membership: applied.membership.to_vec(),
        })
    }

    fn apply(
        &mut self,
        commands: &[Entry],
        standing: &Standing,
        durable: bool,
    ) -> io::Result<Vec<Outcome>> {
        let mut batch = self.store.batch();
        let mut outcomes = Vec::with_capacity(commands.len());
        for entry in commands {
            let command = Command::decode(entry.bytes.clone());
            let command = command.map_err(|error| undecodable(entry.index, &error))?;
            let outcome = batch.apply(&command, entry.index);
            outcomes.push(outcome.map_err(io::Error::other)?);
        }
        let durable = if durable { Durable::Yes } else { Durable::No };
        let committed = batch.commit(meta(standing), durable);
        for batch in committed.map_err(io::Error::other)? {
            let events: Vec<_> = batch.events.into_iter().map(Arc::new).collect();
            self.hub.publish(batch.revision, &events);
        }
        Ok(outcomes)
    }

    fn snapshot(&mut self) -> io::Result<SnapshotChunks> {
        self.store.flush().map_err(io::Error::other)?;
        let chunks = Snapshot::new(self.store.view(), CHUNK_BYTES);
        Ok(Box::new(
            chunks.map(|chunk| chunk.map_err(io::Error::other)),
        ))
    }

    fn restore(&mut self, chunks: SnapshotChunks, standing: &Standing) -> io::Result<()> {
        let mut restore = self.store.restore().map_err(io::Error::other)?;
        for chunk in chunks {
            restore.push(&chunk?).map_err(io::Error::other)?;
        }
        restore.finish().map_err(io::Error::other)?;
        let batch = self.store.batch();
        let committed = batch.commit(meta(standing), Durable::Yes);
        committed.map_err(io::Error::other)?;
        self.hub.jump(self.store.view().revision());
        Ok(())
    }
}
