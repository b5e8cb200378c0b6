//! The one module that opens SQLite, and the only one with `unsafe`.
//!
//! It gives the capture code two things that SQLite's public interface lacks: the wal-index header
//! that SQLite has mapped, and raw reads through SQLite's own file handles. No code here opens a
//! file descriptor of its own on a database: closing one would drop every POSIX lock that this
//! process holds on that file.
//!
//! Our connections never write. They set `query_only` and never checkpoint by themselves. They
//! checkpoint on close only where [`Connection::close_and_checkpoint`] closes them.

#![expect(unsafe_code, reason = "SQLite's VFS methods have no safe binding")]

mod inspection;

use std::ffi::{c_int, c_void};
use std::path::Path;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{OpenFlags, ffi};
use sqlite_format::WalIndexHeader;

use crate::source::open_files::OpenFileGuard;

pub use inspection::{Checked, Inspection, NOT_CHECKED_MAX, QueryResult, Stop, StopOnDrop};

/// Bytes of the wal-index that hold both header copies and the checkpoint information.
const WAL_INDEX_INFO_BYTES: usize = 136;
/// Size of one wal-index region, fixed by SQLite.
const WAL_INDEX_REGION_BYTES: c_int = 32_768;

/// A failure inside SQLite, with the request that failed.
#[derive(Debug, thiserror::Error)]
#[error("{action}: {message}")]
pub struct SqliteError {
    /// The request.
    pub action: &'static str,
    /// SQLite's result code, such as 5 for `SQLITE_BUSY`.
    pub code: i32,
    /// SQLite's own message.
    pub message: String,
}

impl SqliteError {
    /// True when a file ends before the requested range does.
    pub fn is_short_read(&self) -> bool {
        self.code == ffi::SQLITE_IOERR_SHORT_READ
    }

    /// True when SQLite understands the file but cannot execute the statement: a collation,
    /// function, tokenizer or module is missing here.
    pub fn is_refusal(&self) -> bool {
        self.code == ffi::SQLITE_ERROR
    }

    /// True when the statement was interrupted: by its time limit, or because the work has to end.
    pub fn is_interrupt(&self) -> bool {
        self.code == ffi::SQLITE_INTERRUPT
    }

    /// True when another connection holds a lock that we need; the next attempt may succeed.
    pub fn is_busy(&self) -> bool {
        matches!(
            self.code,
            ffi::SQLITE_BUSY | ffi::SQLITE_LOCKED | ffi::SQLITE_PROTOCOL
        )
    }
}

/// State of the wal-index at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalView {
    /// The published header.
    pub header: WalIndexHeader,
    /// Frames that a checkpoint has copied into the database file.
    pub backfilled: u32,
    /// The read marks in slots 1 to 4, in use or not.
    pub marks: [u32; 4],
}

/// A read-only connection to a live database, without timers, caches or automatic checkpoints.
#[derive(Debug)]
pub struct Connection {
    // Dropped first: the connection is closed before the right to have the file open is released.
    inner: rusqlite::Connection,
    hold: OpenFileGuard,
}

impl Connection {
    /// Opens an existing database without creating anything when it is absent.
    ///
    /// The caller has checked that `-wal` and `-shm` exist and that our user owns the database.
    /// Opening a database that no other process has open would create those files with our owner.
    ///
    /// # Errors
    ///
    /// SQLite's error, for example when the application uses exclusive locking mode. Busy while
    /// this process has the file open in another way, or when another file takes the path.
    pub fn open(path: &Path) -> Result<Connection, SqliteError> {
        configure_library();
        let hold = hold(path)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let inner = rusqlite::Connection::open_with_flags(path, flags).map_err(wrap("open"))?;
        inner
            .busy_timeout(Duration::ZERO)
            .map_err(wrap("set the busy timeout"))?;
        inner
            .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
            .map_err(wrap("forbid checkpoints on close"))?;
        inner
            .execute_batch("PRAGMA query_only=1; PRAGMA wal_autocheckpoint=0; PRAGMA cache_size=4; PRAGMA mmap_size=0")
            .map_err(wrap("configure the connection"))?;
        let connection = Connection { inner, hold };
        if !connection.hold.is_for(path) || connection.has_moved() {
            return Err(busy("another file has taken the path"));
        }
        Ok(connection)
    }

    /// Begins a read transaction and takes a read mark, without reading the schema.
    ///
    /// # Errors
    ///
    /// `SQLITE_BUSY` while another process recovers the WAL or holds the database exclusively. No
    /// transaction is open then.
    pub fn begin_read(&self) -> Result<(), SqliteError> {
        // A PRAGMA that reads one header field begins the transaction and needs no schema.
        let begun = self
            .run("BEGIN")
            .and_then(|()| self.number("PRAGMA user_version").map(|_| ()))
            .map_err(wrap("begin to read"));
        if begun.is_err() && !self.inner.is_autocommit() {
            self.end_read();
        }
        begun
    }

    /// Ends the read transaction, if one is open.
    pub fn end_read(&self) {
        // A COMMIT of a read transaction only releases a shared lock, so it cannot fail.
        let _released = self.run("COMMIT");
    }

    fn run(&self, sql: &str) -> rusqlite::Result<()> {
        self.inner.prepare_cached(sql)?.raw_execute().map(|_| ())
    }

    fn number(&self, sql: &str) -> rusqlite::Result<i64> {
        self.inner
            .prepare_cached(sql)?
            .query_row([], |row| row.get(0))
    }

    /// Page size in bytes, as SQLite reports it. For a WAL whose header does not contain it yet.
    pub fn page_size(&self) -> Result<u32, SqliteError> {
        let size = self
            .number("PRAGMA page_size")
            .map_err(wrap("read the page size"))?;
        Ok(u32::try_from(size).unwrap_or(0))
    }

    /// Size of the database in pages, in the open transaction.
    pub fn page_count(&self) -> Result<u32, SqliteError> {
        let count = self
            .number("PRAGMA page_count")
            .map_err(wrap("read the page count"))?;
        Ok(u32::try_from(count).unwrap_or(0))
    }

    /// Copies as many frames as it can from the WAL into the database file, without waiting.
    ///
    /// Returns false when another checkpoint runs.
    ///
    /// # Errors
    ///
    /// SQLite's error.
    pub fn checkpoint_passive(&self) -> Result<bool, SqliteError> {
        self.checkpoint("PRAGMA wal_checkpoint(PASSIVE)")
    }

    /// Copies the rest of the WAL and makes the next writer restart it. Writers wait meanwhile, so
    /// few frames should be left to copy. It waits for readers of the WAL for at most `wait`.
    ///
    /// Returns false when a reader prevented it.
    ///
    /// # Errors
    ///
    /// SQLite's error.
    pub fn checkpoint_restart(&self, wait: Duration) -> Result<bool, SqliteError> {
        let failed = wrap("checkpoint");
        self.inner.busy_timeout(wait).map_err(failed)?;
        self.checkpoint("PRAGMA wal_checkpoint(RESTART)")
    }

    fn checkpoint(&self, sql: &str) -> Result<bool, SqliteError> {
        let busy = self.inner.query_row(sql, [], |row| row.get::<_, i64>(0));
        Ok(busy.map_err(wrap("checkpoint"))? == 0)
    }

    /// Whether another process has the database open, whose wal-index is at `index`.
    ///
    /// # Errors
    ///
    /// As [`OpenFileGuard::is_open_elsewhere`].
    pub fn is_open_elsewhere(&self, index: &Path) -> std::io::Result<bool> {
        self.hold.is_open_elsewhere(index)
    }

    /// Closes the connection as an application would: where no other connection has the database
    /// open, SQLite copies the rest of the WAL into the database file and removes the WAL.
    ///
    /// # Errors
    ///
    /// SQLite's refusal. The connection is closed all the same, and the WAL stays.
    pub fn close_and_checkpoint(self) -> Result<(), SqliteError> {
        let allow = self
            .inner
            .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false);
        allow.map(drop).map_err(wrap("allow a checkpoint on close"))
    }

    /// True when the path no longer leads to the file that this connection has open.
    pub fn has_moved(&self) -> bool {
        let mut moved: c_int = 0;
        let code = self.file_control(ffi::SQLITE_FCNTL_HAS_MOVED, (&raw mut moved).cast());
        code == ffi::SQLITE_OK && moved != 0
    }

    /// Reads the wal-index that SQLite has mapped: no system call, no lock.
    ///
    /// Returns `None` while the two header copies differ or the WAL is not initialized, that is,
    /// while a writer updates them: try again. The connection must have read once.
    pub fn wal_view(&self) -> Option<WalView> {
        let words = self.map_wal_index()?;
        let mut first = [0u8; 48];
        let mut second = [0u8; 48];
        copy_words(words, 0, &mut first);
        fence(Ordering::SeqCst);
        copy_words(words, 12, &mut second);
        fence(Ordering::SeqCst);
        let mut backfilled = [0u8; 4];
        copy_words(words, 24, &mut backfilled);
        let mut marks = [0u8; 16];
        copy_words(words, 26, &mut marks);
        fence(Ordering::SeqCst);
        // The backfill counter may belong to another WAL: the header must still be the same.
        let mut again = [0u8; 48];
        copy_words(words, 0, &mut again);
        if first != second || first != again {
            return None;
        }
        let header = WalIndexHeader::parse(&first).ok()?;
        header.initialized.then_some(WalView {
            header,
            backfilled: u32::from_ne_bytes(backfilled),
            marks: [0, 4, 8, 12]
                .map(|at| u32::from_ne_bytes(marks[at..at + 4].try_into().expect("4 bytes"))),
        })
    }

    /// Fills `buffer` from the WAL at `offset`, through SQLite's handle.
    ///
    /// # Errors
    ///
    /// An I/O error, or a WAL that is shorter than that.
    pub fn read_wal(&self, buffer: &mut [u8], offset: u64) -> Result<(), SqliteError> {
        self.read(
            ffi::SQLITE_FCNTL_JOURNAL_POINTER,
            "read the log",
            buffer,
            offset,
        )
    }

    /// Fills `buffer` from the database file at `offset`, through SQLite's handle. Bytes beyond the
    /// end of the file read as zeros.
    ///
    /// # Errors
    ///
    /// An I/O error.
    pub fn read_database(&self, buffer: &mut [u8], offset: u64) -> Result<(), SqliteError> {
        match self.read(
            ffi::SQLITE_FCNTL_FILE_POINTER,
            "read the database",
            buffer,
            offset,
        ) {
            Err(error) if error.is_short_read() => Ok(()),
            result => result,
        }
    }

    /// Size of the database file in bytes.
    ///
    /// # Errors
    ///
    /// An I/O error.
    pub fn database_bytes(&self) -> Result<u64, SqliteError> {
        let action = "ask for the size of the database";
        let failed = |code| SqliteError {
            action,
            code,
            message: "input/output error".into(),
        };
        let file = self
            .file(ffi::SQLITE_FCNTL_FILE_POINTER)
            .ok_or(failed(ffi::SQLITE_IOERR))?;
        let mut size: i64 = 0;
        // SAFETY: as in `read`; the call writes one i64.
        let code = unsafe {
            let size_of = (*file)
                .pMethods
                .as_ref()
                .and_then(|methods| methods.xFileSize);
            size_of.map_or(ffi::SQLITE_IOERR, |size_of| size_of(file, &raw mut size))
        };
        if code == ffi::SQLITE_OK {
            Ok(u64::try_from(size).unwrap_or(0))
        } else {
            Err(failed(code))
        }
    }

    fn read(
        &self,
        which: c_int,
        action: &'static str,
        buffer: &mut [u8],
        offset: u64,
    ) -> Result<(), SqliteError> {
        let missing = || SqliteError {
            action,
            code: ffi::SQLITE_IOERR,
            message: "no file".into(),
        };
        let file = self.file(which).ok_or_else(missing)?;
        let amount = c_int::try_from(buffer.len()).map_err(|_| missing())?;
        let offset = i64::try_from(offset).map_err(|_| missing())?;
        // SAFETY: `file` is a live sqlite3_file of this connection, which `&self` keeps open, and
        // its methods table is set while it is open. The buffer has `amount` writable bytes.
        let code = unsafe {
            let methods = (*file).pMethods;
            let Some(read) = methods.as_ref().and_then(|methods| methods.xRead) else {
                return Err(missing());
            };
            read(file, buffer.as_mut_ptr().cast(), amount, offset)
        };
        if code == ffi::SQLITE_OK {
            return Ok(());
        }
        let message = if code == ffi::SQLITE_IOERR_SHORT_READ {
            "short read"
        } else {
            "input/output error"
        };
        Err(SqliteError {
            action,
            code,
            message: message.into(),
        })
    }

    /// The first region of the wal-index, as SQLite has mapped it.
    fn map_wal_index(&self) -> Option<*const u32> {
        let file = self.file(ffi::SQLITE_FCNTL_FILE_POINTER)?;
        let mut region: *mut c_void = std::ptr::null_mut();
        // SAFETY: as in `read`. With bExtend 0 the call maps an existing region or gives the
        // mapping that is there; it changes no file. A read-only mapping is answered with
        // SQLITE_READONLY and a good pointer, so the pointer decides, not the code.
        unsafe {
            let methods = (*file).pMethods.as_ref()?;
            let map = methods.xShmMap?;
            map(file, 0, WAL_INDEX_REGION_BYTES, 0, (&raw mut region).cast());
        }
        (!region.is_null()).then_some(region.cast_const().cast::<u32>())
    }

    fn file(&self, which: c_int) -> Option<*mut ffi::sqlite3_file> {
        let mut file: *mut ffi::sqlite3_file = std::ptr::null_mut();
        let code = self.file_control(which, (&raw mut file).cast());
        // SAFETY: a non-null pointer from SQLite names a sqlite3_file; a file that is not open has
        // a null methods table.
        let open = !file.is_null() && unsafe { !(*file).pMethods.is_null() };
        (code == ffi::SQLITE_OK && open).then_some(file)
    }

    fn file_control(&self, operation: c_int, argument: *mut c_void) -> c_int {
        // SAFETY: the handle is valid while `&self` lives, the name is NUL-terminated, and each
        // caller passes a pointer of the type that its operation writes.
        unsafe {
            ffi::sqlite3_file_control(self.inner.handle(), c"main".as_ptr(), operation, argument)
        }
    }
}

/// Copies 4-byte words of shared memory that another process may be writing.
fn copy_words(words: *const u32, first: usize, out: &mut [u8]) {
    debug_assert!(first * 4 + out.len() <= WAL_INDEX_INFO_BYTES);
    for (index, chunk) in out.chunks_exact_mut(4).enumerate() {
        // SAFETY: the mapping is at least one region long and 4-byte aligned, and the callers stay
        // inside its first 136 bytes. Volatile, because another process writes here.
        let word = unsafe { words.add(first + index).read_volatile() };
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
}

/// Keeps SQLite's per-connection memory small: 51 KB a database in place of 292 KB.
fn configure_library() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        // SAFETY: called once, before the first connection of this process initializes SQLite;
        // later it would be refused with SQLITE_MISUSE and change nothing.
        unsafe {
            let none: *mut c_void = std::ptr::null_mut();
            ffi::sqlite3_config(ffi::SQLITE_CONFIG_PAGECACHE, none, 0 as c_int, 0 as c_int);
            ffi::sqlite3_config(ffi::SQLITE_CONFIG_LOOKASIDE, 0 as c_int, 0 as c_int);
        }
    });
}

/// Acquires the right to open a database through SQLite.
fn hold(path: &Path) -> Result<OpenFileGuard, SqliteError> {
    match OpenFileGuard::for_sqlite(path) {
        Ok(Some(hold)) => Ok(hold),
        Ok(None) => Err(busy("this process reads the file in another way")),
        Err(error) => Err(SqliteError {
            action: "open",
            code: ffi::SQLITE_CANTOPEN,
            message: error.to_string(),
        }),
    }
}

fn busy(message: &str) -> SqliteError {
    SqliteError {
        action: "open",
        code: ffi::SQLITE_BUSY,
        message: message.to_owned(),
    }
}

fn wrap(action: &'static str) -> impl Fn(rusqlite::Error) -> SqliteError {
    move |error| {
        let code = match &error {
            rusqlite::Error::SqliteFailure(failure, _) => failure.extended_code & 0xff,
            _ => ffi::SQLITE_ERROR,
        };
        let message = match error {
            // Leave out the statement, which is ours.
            rusqlite::Error::SqlInputError { msg, .. } => msg,
            error => error.to_string(),
        };
        SqliteError {
            action,
            code,
            message,
        }
    }
}

/// Version of the SQLite that is built in, such as `3.54.1`.
pub fn version() -> &'static str {
    rusqlite::version()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_connection_to_a_database_writes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db");
        let application = rusqlite::Connection::open(&path).unwrap();
        let sql = "PRAGMA journal_mode=WAL; CREATE TABLE t(x)";
        application.execute_batch(sql).unwrap();
        let ours = Connection::open(&path).unwrap();
        for sql in ["INSERT INTO t VALUES(1)", "CREATE TABLE u(x)", "VACUUM"] {
            assert!(ours.inner.execute_batch(sql).is_err(), "{sql}");
        }
    }
}
