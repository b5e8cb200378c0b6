//! The only table of the application.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};

/// Time that a statement waits for another process's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// SQLite's journal modes that the tests cover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Journal {
    Wal,
    Delete,
}

/// An open database.
pub(crate) struct Database(Connection);

impl Database {
    /// Opens an existing database. It is opened for writing, so that SQLite can read it in any
    /// state of its WAL.
    pub(crate) fn open(path: &Path) -> Result<Database> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)
            .with_context(|| format!("open {}", path.display()))?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        Ok(Database(connection))
    }

    /// Opens a database. Creates the database and its table if they do not exist.
    pub(crate) fn create(path: &Path, journal: Journal) -> Result<Database> {
        let connection =
            Connection::open(path).with_context(|| format!("create {}", path.display()))?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        let mode = match journal {
            Journal::Wal => "wal",
            Journal::Delete => "delete",
        };
        connection
            .pragma_update(None, "journal_mode", mode)
            .context("set the journal mode")?;
        // Rows are numbered from 1 without gaps, because no row is ever deleted.
        connection
            .execute_batch(
                "CREATE TABLE IF NOT EXISTS rows (
                    id INTEGER PRIMARY KEY,
                    written_at_ms INTEGER NOT NULL,
                    payload BLOB NOT NULL
                )",
            )
            .context("create the table")?;
        Ok(Database(connection))
    }

    /// Writes the next row in its own transaction, and returns its number and time.
    pub(crate) fn insert(&self, payload_bytes: usize) -> Result<(i64, i64)> {
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
        let now_ms = i64::try_from(now_ms)?;
        self.0
            .prepare("INSERT INTO rows (written_at_ms, payload) VALUES (?1, randomblob(?2))")?
            .execute((now_ms, i64::try_from(payload_bytes)?))
            .context("insert a row")?;
        Ok((self.0.last_insert_rowid(), now_ms))
    }

    /// The number of the newest row, which is the number of rows.
    pub(crate) fn rows(&self) -> Result<u64> {
        let newest: i64 = self
            .0
            .query_row("SELECT coalesce(max(id), 0) FROM rows", [], |row| {
                row.get(0)
            })?;
        Ok(u64::try_from(newest)?)
    }

    /// Content of the database: `count`, `max_id`, `max_written_at_ms`, `contiguous` (rows 1 to
    /// `max_id` all exist) and `integrity` (`"ok"`, or the first error of SQLite's check).
    pub(crate) fn stats(&self) -> Result<Value> {
        let (count, max_id, max_written_at_ms): (i64, i64, i64) = self
            .0
            .query_row(
                "SELECT count(*), coalesce(max(id), 0), coalesce(max(written_at_ms), 0) FROM rows",
                [],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
            )
            .context("count the rows")?;
        let integrity: String = self
            .0
            .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
        Ok(json!({
            "count": count,
            "max_id": max_id,
            "max_written_at_ms": max_written_at_ms,
            "contiguous": count == max_id,
            "integrity": integrity,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_numbered_on_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.db");
        for _ in 0..2 {
            Database::create(&path, Journal::Wal)
                .unwrap()
                .insert(10)
                .unwrap();
        }
        let stats = Database::open(&path).unwrap().stats().unwrap();
        assert_eq!((&stats["count"], &stats["max_id"]), (&json!(2), &json!(2)));
        assert_eq!(
            (&stats["contiguous"], &stats["integrity"]),
            (&json!(true), &json!("ok"))
        );
        assert!(stats["max_written_at_ms"].as_i64().unwrap() > 0);
    }

    #[test]
    fn a_missing_row_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::create(&folder.path().join("app.db"), Journal::Delete).unwrap();
        for _ in 0..3 {
            database.insert(10).unwrap();
        }
        database
            .0
            .execute("DELETE FROM rows WHERE id = 2", [])
            .unwrap();
        assert_eq!(database.stats().unwrap()["contiguous"], json!(false));
    }

    #[test]
    fn a_database_that_is_not_there_is_not_made_by_looking() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.db");
        assert!(Database::open(&path).is_err());
        assert!(!path.exists());
    }
}
