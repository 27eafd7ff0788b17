//! The redb file of the embedded store: entries, leases and the revision. Every write is durable when the
//! call returns.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use redb::{Database, ReadableTable, TableDefinition};

use super::state::Saved;
use crate::store::{Change, Entry, LeaseId, StoreError};

/// Key to (revision of the last change, lease, value).
const ENTRIES: TableDefinition<&str, (u64, Option<i64>, &[u8])> = TableDefinition::new("entries");
/// Lease to its time in milliseconds.
const LEASES: TableDefinition<i64, u64> = TableDefinition::new("leases");
const NUMBERS: TableDefinition<&str, u64> = TableDefinition::new("numbers");
const REVISION: &str = "revision";

/// redb's default of 1 GiB is meant for large data; here everything is in memory anyway.
const CACHE_BYTES: usize = 4 << 20;

pub(super) struct File {
    database: Database,
    path: String,
}

impl File {
    pub fn open(path: &Path) -> Result<File, StoreError> {
        let name = path.display().to_string();
        let failed = |why: String| StoreError::File { path: name.clone(), why };
        let database = Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(|error| {
            failed(match error {
                redb::DatabaseError::DatabaseAlreadyOpen => {
                    "another process has it open; only the agent of this server opens it".to_owned()
                }
                other => other.to_string(),
            })
        })?;
        let file = File { database, path: name };
        file.transaction(|tables| {
            tables.open_table(ENTRIES)?;
            tables.open_table(LEASES)?;
            tables.open_table(NUMBERS)?;
            Ok(())
        })?;
        Ok(file)
    }

    pub fn read(&self) -> Result<Saved, StoreError> {
        self.read_tables().map_err(|error| self.failed(error))
    }

    fn read_tables(&self) -> Result<Saved, redb::Error> {
        use redb::ReadableDatabase as _;
        let tables = self.database.begin_read()?;
        let revision = tables.open_table(NUMBERS)?.get(REVISION)?.map_or(0, |number| number.value());
        let mut entries = BTreeMap::new();
        for row in tables.open_table(ENTRIES)?.iter()? {
            let (key, row) = row?;
            let (revision, lease, value) = row.value();
            let (key, value, lease) = (key.value().to_owned(), value.to_owned(), lease.map(LeaseId));
            entries.insert(key.clone(), Entry { key, value, revision, lease });
        }
        let mut leases = BTreeMap::new();
        for row in tables.open_table(LEASES)?.iter()? {
            let (lease, ttl) = row?;
            leases.insert(LeaseId(lease.value()), Duration::from_millis(ttl.value()));
        }
        Ok(Saved { revision, entries, leases })
    }

    /// Writes the changes of one revision; with `ended`, a lease goes in the same stroke.
    pub fn write(&self, changes: &[Change], ended: Option<LeaseId>) -> Result<(), StoreError> {
        self.transaction(|tables| {
            let mut entries = tables.open_table(ENTRIES)?;
            for change in changes {
                match change {
                    Change::Put(entry) => {
                        let lease = entry.lease.map(|lease| lease.0);
                        entries
                            .insert(entry.key.as_str(), (entry.revision, lease, entry.value.as_slice()))?;
                    }
                    Change::Deleted { key, .. } => {
                        entries.remove(key.as_str())?;
                    }
                }
            }
            if let Some(change) = changes.first() {
                tables.open_table(NUMBERS)?.insert(REVISION, change.revision())?;
            }
            if let Some(lease) = ended {
                tables.open_table(LEASES)?.remove(lease.0)?;
            }
            Ok(())
        })
    }

    pub fn write_lease(&self, lease: LeaseId, ttl: Duration) -> Result<(), StoreError> {
        self.transaction(|tables| {
            tables.open_table(LEASES)?.insert(lease.0, ttl.as_millis() as u64)?;
            Ok(())
        })
    }

    fn transaction(
        &self,
        work: impl FnOnce(&redb::WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), StoreError> {
        let run = || {
            let tables = self.database.begin_write()?;
            work(&tables)?;
            Ok(tables.commit()?)
        };
        run().map_err(|error: redb::Error| self.failed(error))
    }

    fn failed(&self, error: redb::Error) -> StoreError {
        StoreError::File { path: self.path.clone(), why: error.to_string() }
    }
}
