//! From chunks to a state that takes the place of the store's own, whole or not at all.

use bytes::Buf;
use crc_fast::{CrcAlgorithm, Digest};
use redb::{ReadableTable as _, TableDefinition, WriteTransaction};

use super::{HEAD, KIND_END, KIND_ROWS, MAGIC, TAIL, Table, crc32c};
use crate::error::{During, Error, ErrorKind};
use crate::revision::RevisionBytes;
use crate::store::{LEASES, ROLES, STATE, STATE_ROW, Store, USERS, VERSIONS, begin};

/// A snapshot that is being taken in. Dropped before [`Restore::finish`], it never was.
pub struct Restore<'s> {
    store: &'s mut Store,
    txn: WriteTransaction,
    number: u64,
    rows: u64,
    chain: Digest,
    ended: bool,
}

impl Store {
    /// Begins to take in a snapshot in place of everything. Views go on seeing what they saw.
    ///
    /// # Errors
    /// The storage failed.
    pub fn restore(&mut self) -> Result<Restore<'_>, Error> {
        self.check_alive()?;
        let txn = begin(self.db(), true)?;
        txn.delete_table(VERSIONS).during("empty the versions")?;
        txn.delete_table(LEASES).during("empty the leases")?;
        txn.delete_table(USERS).during("empty the users")?;
        txn.delete_table(ROLES).during("empty the roles")?;
        txn.delete_table(STATE).during("empty the state")?;
        Ok(Restore {
            store: self,
            txn,
            number: 0,
            rows: 0,
            chain: Digest::new(CrcAlgorithm::Crc32Iscsi),
            ended: false,
        })
    }
}

impl Restore<'_> {
    /// Takes the next chunk.
    ///
    /// # Errors
    /// The chunk is damaged, is not the next, or comes after the end; or the storage failed.
    pub fn push(&mut self, chunk: &[u8]) -> Result<(), Error> {
        let (kind, mut payload) = self.open_chunk(chunk)?;
        if kind == KIND_END {
            return self.check_end(payload);
        }
        let mut rows = Vec::new();
        while !payload.is_empty() {
            rows.push(self.split_row(&mut payload)?);
        }
        self.rows += rows.len() as u64;
        rows.chunk_by(|one, next| one.table == next.table)
            .try_for_each(|rows| self.write_rows(rows[0].table, rows))
    }

    /// Makes the snapshot the store's state, durably.
    ///
    /// # Errors
    /// The end has not come; or the storage failed.
    pub fn finish(self) -> Result<(), Error> {
        if !self.ended {
            return Err(damaged(self.number, "one more chunk, up to the end,"));
        }
        // Tables without a row must be there, too.
        self.txn.open_table(VERSIONS).during("create a table")?;
        self.txn.open_table(LEASES).during("create a table")?;
        self.txn.open_table(USERS).during("create a table")?;
        self.txn.open_table(ROLES).during("create a table")?;
        let has_state = {
            let state = self.txn.open_table(STATE).during("create a table")?;
            state.get(STATE_ROW).during("read the state")?.is_some()
        };
        if !has_state {
            return Err(damaged(self.number, "the state's row before the end"));
        }
        let taken = self.txn.commit().during("commit the snapshot");
        self.store.guard(taken)?;
        let replaced = self.store.replace();
        self.store.guard(replaced)
    }

    /// Checks a chunk's frame; gives its kind and payload.
    fn open_chunk<'c>(&mut self, chunk: &'c [u8]) -> Result<(u8, &'c [u8]), Error> {
        let number = self.number;
        if self.ended {
            return Err(damaged(number, "no chunk after the end"));
        }
        if chunk.len() < HEAD + TAIL {
            return Err(damaged(number, "a chunk of 17 bytes at least"));
        }
        let (body, mut crc) = chunk.split_at(chunk.len() - TAIL);
        let crc = crc.get_u32_le();
        if crc32c(body) != crc {
            return Err(damaged(number, "a matching CRC32C"));
        }
        let (magic, mut rest) = body.split_at(MAGIC.len());
        if magic != MAGIC {
            let what = format!("snapshot: chunk {number}: the magic CFS1 is expected");
            return Err(Error::new(ErrorKind::Format, what));
        }
        if rest.get_u64_le() != number {
            return Err(damaged(number, "the chunk of this number"));
        }
        let kind = rest.get_u8();
        if kind != KIND_ROWS && kind != KIND_END {
            return Err(damaged(number, "a kind of 0 or 1"));
        }
        if kind == KIND_ROWS {
            self.chain.update(&crc.to_le_bytes());
        }
        self.number += 1;
        Ok((kind, rest))
    }

    fn check_end(&mut self, mut payload: &[u8]) -> Result<(), Error> {
        let number = self.number - 1;
        if payload.len() != 12 {
            return Err(damaged(number, "an end of 12 bytes"));
        }
        if payload.get_u64_le() != self.rows {
            return Err(damaged(number, "as many rows as came"));
        }
        if payload.get_u32_le() != self.chain.clone().finalize() as u32 {
            return Err(damaged(number, "the CRC32C of all chunks"));
        }
        self.ended = true;
        Ok(())
    }

    /// Takes the next row off a payload.
    fn split_row<'c>(&self, payload: &mut &'c [u8]) -> Result<Row<'c>, Error> {
        let number = self.number - 1;
        if payload.len() < 9 {
            return Err(damaged(number, "a whole row"));
        }
        let table = Table::from_byte(payload.get_u8());
        let table = table.ok_or_else(|| damaged(number, "a table from 0 to 4"))?;
        let (key_len, value_len) = (payload.get_u32_le() as usize, payload.get_u32_le() as usize);
        if payload.len() < key_len.saturating_add(value_len) {
            return Err(damaged(number, "a whole row"));
        }
        let (key, rest) = payload.split_at(key_len);
        let (value, rest) = rest.split_at(value_len);
        *payload = rest;
        Ok(Row { table, key, value })
    }

    /// Writes rows of one table.
    fn write_rows(&self, table: Table, rows: &[Row<'_>]) -> Result<(), Error> {
        match table {
            Table::Versions => self.write_versions(rows),
            Table::Leases => self.write_leases(rows),
            Table::Users => self.write_names(USERS, rows),
            Table::Roles => self.write_names(ROLES, rows),
            Table::State => self.write_names(STATE, rows),
        }
    }

    fn write_versions(&self, rows: &[Row<'_>]) -> Result<(), Error> {
        let mut versions = self.txn.open_table(VERSIONS).during("open the versions")?;
        for row in rows {
            let at: &RevisionBytes = row
                .key
                .try_into()
                .map_err(|_| damaged(self.number - 1, "a revision of 12 bytes"))?;
            versions.insert(at, row.value).during("write a version")?;
        }
        Ok(())
    }

    fn write_leases(&self, rows: &[Row<'_>]) -> Result<(), Error> {
        let mut leases = self.txn.open_table(LEASES).during("open the leases")?;
        for row in rows {
            let (mut key, mut value) = (row.key, row.value);
            if key.len() != 8 || value.len() != 16 {
                return Err(damaged(self.number - 1, "a lease of 8 and 16 bytes"));
            }
            let times = (value.get_i64(), value.get_i64());
            leases
                .insert(key.get_i64(), times)
                .during("write a lease")?;
        }
        Ok(())
    }

    fn write_names(
        &self,
        table: TableDefinition<'_, &'static str, &'static [u8]>,
        rows: &[Row<'_>],
    ) -> Result<(), Error> {
        let mut table = self.txn.open_table(table).during("open a table")?;
        for row in rows {
            let name = std::str::from_utf8(row.key)
                .map_err(|_| damaged(self.number - 1, "a name in UTF-8"))?;
            table.insert(name, row.value).during("write a row")?;
        }
        Ok(())
    }
}

/// A row of a chunk.
struct Row<'c> {
    table: Table,
    key: &'c [u8],
    value: &'c [u8],
}

fn damaged(chunk: u64, expected: &str) -> Error {
    Error::corrupt(format!("snapshot: chunk {chunk}: {expected} is expected"))
}
