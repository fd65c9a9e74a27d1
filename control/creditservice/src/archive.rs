//! A whole ledger out of a store and into one: the audit, and offline export and import.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use control_kit::store::{Condition, Entry, SharedStore, Write};
use tokio::time::Instant;

use crate::book::Book;
use crate::entries;
use crate::error::{Error, ErrorKind};
use crate::export::Export;
use crate::keys::{FORMAT, Keys};
use crate::ledger::{Ledger, Options, RETRY_AFTER};
use crate::records::{Committed, Records, not_written};

/// How often a ledger is read again that changed while it was read.
const READS_MAX: usize = 3;
/// How many keys an import writes together.
const IMPORT_KEYS: usize = 96;

impl Ledger {
    /// The whole ledger, read from the store and checked: every law of [`Book::check`], and that each key
    /// follows from the accounts and transfers. It is held in memory.
    ///
    /// # Errors
    /// When it does not hold, or could not be read; also when it changed each time that it was read.
    pub async fn audit(&self) -> Result<Book, Error> {
        for _ in 0..READS_MAX {
            if let Some(all) = self.still().await? {
                return entries::book(&self.records.keys, &all);
            }
        }
        let what = "the ledger changed while it was read: stop what writes to it";
        Err(Error::new(ErrorKind::Unavailable, what))
    }

    /// The whole ledger as text. What is written to it afterwards is not in there, so stop its writers
    /// before.
    ///
    /// # Errors
    /// As [`Ledger::audit`].
    pub async fn export(&self) -> Result<Export, Error> {
        self.audit().await.map(|book| book.export())
    }

    /// All keys and values; nothing where they changed meanwhile. Whatever changes the ledger writes to an
    /// account, so accounts that are what they were tell that nothing has.
    async fn still(&self) -> Result<Option<BTreeMap<String, Bytes>>, Error> {
        let accounts = self.records.keys.kind("account");
        let before = self.records.all(accounts.clone()).await?;
        let all = self.records.all(self.records.keys.all()).await?;
        let after = self.records.all(accounts).await?;
        let revisions = |entries: &[Entry]| -> Vec<(String, i64)> {
            let one = |entry: &Entry| (entry.key.clone(), entry.mod_revision);
            entries.iter().map(one).collect()
        };
        let same = revisions(&before) == revisions(&after);
        let one = |entry: Entry| (entry.key, entry.value);
        Ok(same.then(|| all.into_iter().map(one).collect()))
    }

    /// Puts an exported ledger into a store that has none, and gives its SHA-256. Where it ends half-way, the
    /// same import goes on; until it has ended the ledger does not open.
    ///
    /// # Errors
    /// When the text is no whole ledger, when there is a ledger already, or when the store fails.
    pub async fn import(
        store: SharedStore,
        options: &Options,
        text: &str,
    ) -> Result<String, Error> {
        let book = Book::import(text).map_err(|error| {
            let what = "the text is not a whole ledger";
            Error::caused(ErrorKind::Damaged, what, error)
        })?;
        let Export { sha256, .. } = book.export();
        let keys = Keys::below(&options.prefix);
        let import = Import {
            records: Records { store, keys },
            patience: options.patience,
        };
        import.begin(&sha256).await?;
        for some in entries::whole(&import.records.keys, &book).chunks(IMPORT_KEYS) {
            let one = |(key, value): &(String, Bytes)| Write::put(key.clone(), value.clone());
            import.write(some.iter().map(one).collect()).await?;
        }
        import.end().await?;
        Ok(sha256)
    }
}

/// An import under way.
struct Import {
    records: Records,
    patience: Duration,
}

impl Import {
    /// Says what is imported, where nothing is there.
    async fn begin(&self, sha256: &str) -> Result<(), Error> {
        let (format, importing) = (self.records.keys.format(), self.records.keys.importing());
        let conditions = [&format, &importing].map(|key| Condition::Absent(key.clone()));
        let writes = vec![Write::put(importing.clone(), sha256.to_owned())];
        let found = self.commit(&conditions, &writes).await?;
        match (found.get(&format), found.get(&importing)) {
            (None, None) => Ok(()),
            (None, Some(entry)) if entry.value == sha256 => Ok(()),
            (None, Some(_)) => {
                let what = format!(
                    "{importing} says that another export is imported: end that import first, or delete \
                     everything below its prefix"
                );
                Err(Error::new(ErrorKind::Store, what))
            }
            (Some(_), _) => {
                let what =
                    format!("{format} says that there is a ledger: import below another prefix");
                Err(Error::new(ErrorKind::Store, what))
            }
        }
    }

    async fn write(&self, writes: Vec<Write>) -> Result<(), Error> {
        let format = self.records.keys.format();
        let found = self.commit(&[Condition::Absent(format)], &writes).await?;
        if found.is_empty() {
            return Ok(());
        }
        let what = "another has ended this import meanwhile";
        Err(Error::new(ErrorKind::Store, what))
    }

    /// From here on there is a ledger.
    async fn end(&self) -> Result<(), Error> {
        let (format, importing) = (self.records.keys.format(), self.records.keys.importing());
        let conditions = [Condition::Absent(format.clone())];
        let writes = [Write::put(format, FORMAT), Write::Delete(importing)];
        // Where the format is there already, an earlier try has put it.
        self.commit(&conditions, &writes).await.map(drop)
    }

    /// Commits until there is an answer: what is found where a condition does not hold. Each writes the same
    /// again, so that a lost answer does no harm.
    async fn commit(
        &self,
        conditions: &[Condition],
        writes: &[Write],
    ) -> Result<BTreeMap<String, Entry>, Error> {
        let started = Instant::now();
        let read_back = vec![self.records.keys.format(), self.records.keys.importing()];
        loop {
            let committed = self
                .records
                .commit(conditions.to_vec(), writes.to_vec(), read_back.clone())
                .await;
            match committed.map_err(not_written) {
                Ok(Committed::At(_)) => return Ok(BTreeMap::new()),
                Ok(Committed::Not(found)) => return Ok(found),
                Err(error) if error.lasts() || started.elapsed() > self.patience => {
                    return Err(error);
                }
                Err(_) => tokio::time::sleep(RETRY_AFTER).await,
            }
        }
    }
}
