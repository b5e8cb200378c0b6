//! SQLite's own checks and the user's queries on a restored database, with a time limit and a stop.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rusqlite::{OpenFlags, ffi};

use super::{SqliteError, configure_library, wrap};

/// A restored database file without writers: opened without WAL, locks or files beside it.
#[derive(Debug)]
pub struct Inspection {
    inner: rusqlite::Connection,
    stop: Stop,
}

/// Ends the work of an [`Inspection`] on another thread. Clones share one state.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Stops running and later statements: each fails with an interrupt.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether the work has to end.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// A guard that sets the stop when it is dropped, with the future that waits for the work.
    pub fn on_drop(&self) -> StopOnDrop {
        StopOnDrop(self.clone())
    }
}

/// See [`Stop::on_drop`].
#[derive(Debug)]
pub struct StopOnDrop(Stop);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.set();
    }
}

/// The result of SQLite's check of a database.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Checked {
    /// The first complaint.
    pub complaint: Option<String>,
    /// Parts that could not be checked, each with the reason; at most [`NOT_CHECKED_MAX`]. An
    /// application may have collations, functions, tokenizers and modules that our SQLite lacks.
    pub not_checked: Vec<String>,
}

/// Most parts of a database that [`Checked`] lists.
pub const NOT_CHECKED_MAX: usize = 8;

/// The result of a user's query.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct QueryResult {
    /// Number of rows, counted up to the limit.
    pub rows: u64,
    /// The first value of the first row as text; none for no row or NULL.
    pub first: Option<String>,
}

/// Virtual machine steps, or pages of a check, between two reads of the time and of the [`Stop`].
const PROGRESS_STEPS: i32 = 10_000;

impl Inspection {
    /// Opens the file as immutable.
    ///
    /// # Errors
    ///
    /// SQLite's error.
    pub fn open(path: &Path) -> Result<Inspection, SqliteError> {
        Inspection::open_until(path, &Stop::default())
    }

    /// As [`open`](Self::open); statements end when `stop` is set.
    ///
    /// # Errors
    ///
    /// SQLite's error.
    pub fn open_until(path: &Path, stop: &Stop) -> Result<Inspection, SqliteError> {
        configure_library();
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
        let inner = rusqlite::Connection::open_with_flags(immutable_uri(path), flags)
            .map_err(wrap("open the restored database"))?;
        // A user's query must not reach other files.
        inner
            .set_limit(rusqlite::limits::Limit::SQLITE_LIMIT_ATTACHED, 0)
            .map_err(wrap("forbid ATTACH"))?;
        let mut inspection = Inspection {
            inner,
            stop: stop.clone(),
        };
        inspection.limit(None)?;
        Ok(inspection)
    }

    /// Limits the time of statements, and ends them when the stop is set.
    fn limit(&mut self, limit: Option<Duration>) -> Result<(), SqliteError> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        let stop = self.stop.clone();
        let is_over =
            move || stop.is_set() || deadline.is_some_and(|deadline| Instant::now() >= deadline);
        self.inner
            .progress_handler(PROGRESS_STEPS, Some(is_over))
            .map_err(wrap("limit the query"))
    }

    /// `PRAGMA quick_check`.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or the stop was set.
    pub fn quick_check(&self) -> Result<Checked, SqliteError> {
        self.check("quick_check")
    }

    /// `PRAGMA integrity_check`.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or the stop was set.
    pub fn integrity_check(&self) -> Result<Checked, SqliteError> {
        self.check("integrity_check")
    }

    fn check(&self, pragma: &str) -> Result<Checked, SqliteError> {
        let whole = format!("PRAGMA {pragma}(1)");
        self.each(pragma, &whole, |sql| self.first_complaint(sql))
    }

    /// Checks everything at once; if SQLite refuses that, each table alone.
    fn each(
        &self,
        pragma: &str,
        whole: &str,
        ask: impl Fn(&str) -> Result<Option<String>, SqliteError>,
    ) -> Result<Checked, SqliteError> {
        let mut checked = Checked::default();
        let refusal = match ask(whole) {
            Ok(complaint) => {
                checked.complaint = complaint;
                return Ok(checked);
            }
            Err(error) if error.is_refusal() => error,
            Err(error) => return Err(error),
        };
        for table in self.tables()? {
            let name = table.replace('\'', "''");
            match ask(&format!("PRAGMA {pragma}('{name}')")) {
                Ok(complaint) => checked.complaint = checked.complaint.or(complaint),
                Err(error) if error.is_refusal() => {
                    let said = format!("table {table}: {}", error.message);
                    checked.not_checked.push(said);
                }
                Err(error) => return Err(error),
            }
        }
        // Each table passes alone, so the reason is elsewhere: report that of the whole check.
        if checked.not_checked.is_empty() {
            checked.not_checked.push(refusal.message);
        }
        checked.not_checked.truncate(NOT_CHECKED_MAX);
        Ok(checked)
    }

    fn tables(&self) -> Result<Vec<String>, SqliteError> {
        let run = || {
            let sql = "SELECT name FROM sqlite_schema WHERE type = 'table'";
            let mut statement = self.inner.prepare(sql)?;
            let names = statement.query_map([], |row| row.get(0))?;
            names.collect::<rusqlite::Result<_>>()
        };
        run().map_err(wrap("list the tables"))
    }

    fn first_complaint(&self, sql: &str) -> Result<Option<String>, SqliteError> {
        let answer: Result<String, _> = self.inner.query_row(sql, [], |row| row.get(0));
        match answer {
            Ok(answer) => Ok((answer != "ok").then_some(answer)),
            // A file so damaged that the check itself fails is a complaint, too.
            Err(rusqlite::Error::SqliteFailure(failure, text))
                if matches!(
                    failure.extended_code & 0xff,
                    ffi::SQLITE_CORRUPT | ffi::SQLITE_NOTADB
                ) =>
            {
                Ok(Some(text.unwrap_or_else(|| failure.to_string())))
            }
            Err(error) => Err(wrap("check the database")(error)),
        }
    }

    /// `PRAGMA foreign_key_check`, for at most `limit`. The first row without a parent is the
    /// complaint.
    ///
    /// # Errors
    ///
    /// The file cannot be read, the time limit has passed, or the stop was set.
    pub fn foreign_key_check(&mut self, limit: Duration) -> Result<Checked, SqliteError> {
        self.limit(Some(limit))?;
        let pragma = "foreign_key_check";
        self.each(pragma, &format!("PRAGMA {pragma}"), |sql| {
            self.first_orphan(sql)
        })
    }

    fn first_orphan(&self, sql: &str) -> Result<Option<String>, SqliteError> {
        let run = || {
            let mut statement = self.inner.prepare(sql)?;
            let mut rows = statement.query([])?;
            rows.next()?
                .map(|row| {
                    let table: String = row.get(0)?;
                    let number: Option<i64> = row.get(1)?;
                    let parent: String = row.get(2)?;
                    // Rows of a table without rowids have no number.
                    let row = number.map_or("a row".to_owned(), |number| format!("row {number}"));
                    Ok(format!("{row} of {table} refers to nothing in {parent}"))
                })
                .transpose()
        };
        run().map_err(wrap("check foreign keys"))
    }

    /// Runs one read-only statement, for at most `limit`.
    ///
    /// # Errors
    ///
    /// SQLite's error, a statement that writes, the time limit, or the stop.
    pub fn query(&mut self, sql: &str, limit: Duration) -> Result<QueryResult, SqliteError> {
        self.limit(Some(limit))?;
        let run = || {
            let mut statement = self.inner.prepare(sql)?;
            let mut rows = statement.query([])?;
            let mut result = QueryResult::default();
            while let Some(row) = rows.next()? {
                if result.rows == 0 {
                    result.first = text_of(row.get_ref(0)?);
                }
                result.rows += 1;
            }
            Ok(result)
        };
        run().map_err(wrap("run the query"))
    }
}

fn text_of(value: rusqlite::types::ValueRef<'_>) -> Option<String> {
    use rusqlite::types::ValueRef;
    match value {
        ValueRef::Null => None,
        ValueRef::Integer(number) => Some(number.to_string()),
        ValueRef::Real(number) => Some(number.to_string()),
        ValueRef::Text(text) => Some(String::from_utf8_lossy(text).into_owned()),
        ValueRef::Blob(bytes) => Some(format!("{} bytes", bytes.len())),
    }
}

/// A file URI that makes SQLite ignore WALs and locks. Every byte outside the unreserved ones is
/// escaped, as <https://sqlite.org/uri.html> requires.
fn immutable_uri(path: &Path) -> String {
    use std::fmt::Write;
    use std::os::unix::ffi::OsStrExt;
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut uri = String::from("file:");
    for byte in absolute.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => {
                uri.push(char::from(*byte));
            }
            other => write!(uri, "%{other:02X}").expect("a string takes everything"),
        }
    }
    uri.push_str("?immutable=1&mode=ro");
    uri
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDLESS: &str =
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n) SELECT max(i) FROM n";
    const HOUR: Duration = Duration::from_secs(3600);

    fn database(sql: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let application = rusqlite::Connection::open(file.path()).unwrap();
        let reversed = |one: &str, other: &str| other.cmp(one);
        application.create_collation("reversed", reversed).unwrap();
        application.execute_batch(sql).unwrap();
        file
    }

    #[test]
    fn a_statement_ends_with_its_time_and_with_the_stop() {
        let file = database("CREATE TABLE t(x)");
        let stop = Stop::default();
        let mut inspection = Inspection::open_until(file.path(), &stop).unwrap();
        let late = inspection.query(ENDLESS, Duration::ZERO).unwrap_err();
        assert!(late.is_interrupt(), "{late}");
        drop(stop.on_drop());
        let stopped = inspection.query(ENDLESS, HOUR).unwrap_err();
        assert!(stopped.is_interrupt(), "{stopped}");
    }

    #[test]
    fn a_long_check_ends_with_the_stop_and_so_do_foreign_keys_with_their_time() {
        let file = database(
            "PRAGMA foreign_keys=0;
             CREATE TABLE a(id INTEGER PRIMARY KEY);
             CREATE TABLE b(a REFERENCES a);
             INSERT INTO a WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n LIMIT 50000)
                           SELECT i FROM n;
             INSERT INTO b SELECT id FROM a;",
        );
        let stop = Stop::default();
        let mut inspection = Inspection::open_until(file.path(), &stop).unwrap();
        assert_eq!(
            inspection.foreign_key_check(HOUR).unwrap(),
            Checked::default()
        );
        let late = inspection.foreign_key_check(Duration::ZERO).unwrap_err();
        assert!(late.is_interrupt(), "{late}");
        stop.set();
        let stopped = inspection.integrity_check().unwrap_err();
        assert!(stopped.is_interrupt(), "{stopped}");
    }

    #[test]
    fn one_table_that_cannot_be_checked_hides_no_complaint_about_another() {
        let file = database(
            "CREATE TABLE odd(x TEXT UNIQUE COLLATE reversed);
             INSERT INTO odd VALUES('a'), ('b');
             CREATE TABLE bad(x);
             INSERT INTO bad VALUES(NULL);
             PRAGMA writable_schema=1;
             UPDATE sqlite_schema SET sql='CREATE TABLE bad(x NOT NULL)' WHERE name='bad';",
        );
        for checked in [Inspection::quick_check, Inspection::integrity_check] {
            let checked = checked(&Inspection::open(file.path()).unwrap()).unwrap();
            assert_eq!(checked.complaint.as_deref(), Some("NULL value in bad.x"));
            let reason = "table odd: no such collation sequence: reversed";
            assert_eq!(checked.not_checked, [reason]);
        }
    }
}
