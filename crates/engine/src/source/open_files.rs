//! The files that this process has open, registered so that SQLite's locks are never lost.
//!
//! SQLite's locks on a database are POSIX locks. They belong to the process, and closing *any*
//! descriptor of the file silently drops all of them. So one process has a database file open
//! either through SQLite or as a plain file, never both. This register decides, by device and
//! inode; both ways of opening ask it first.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::IntoRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Flock, FlockOffsetType, FlockType, fcntl_getlk};

/// The byte of a wal-index that every connection holds a read lock on (SQLite's `UNIX_SHM_DMS`).
const OPEN_LOCK: u64 = 128;

/// A file, by device and inode.
type FileId = (u64, u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OpenMode {
    Sqlite,
    Plain,
}

/// Longest wait for plain reads to end. Each is of a megabyte, except the read of a whole database
/// that no process has open.
const PLAIN_READ_TIME: Duration = Duration::from_secs(1);

/// One open file.
#[derive(Debug)]
struct Entry {
    way: OpenMode,
    count: usize,
    /// Its wal-index, opened to query the locks of other processes. It stays open as long as the
    /// file does: closing it earlier would drop our own locks on it.
    index: Option<File>,
}

static OPEN: LazyLock<Mutex<HashMap<FileId, Entry>>> = LazyLock::new(Mutex::default);

/// Signalled after a file was closed.
static CLOSED: Condvar = Condvar::new();

/// The right to have a file open in one way, until this is dropped.
#[derive(Debug)]
pub struct OpenFileGuard {
    id: FileId,
}

impl OpenFileGuard {
    /// Requests the right to open `path` through SQLite; none while it is open as a plain file.
    /// Waits up to a second for plain reads to end.
    ///
    /// # Errors
    ///
    /// The file is missing or its metadata cannot be read.
    pub fn for_sqlite(path: &Path) -> io::Result<Option<OpenFileGuard>> {
        OpenFileGuard::take(path, OpenMode::Sqlite, PLAIN_READ_TIME)
    }

    /// Whether `path` leads to the file of this guard.
    pub fn is_for(&self, path: &Path) -> bool {
        fs::metadata(path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.id)
    }

    fn take(path: &Path, way: OpenMode, wait: Duration) -> io::Result<Option<OpenFileGuard>> {
        let meta = fs::metadata(path)?;
        let id = (meta.dev(), meta.ino());
        let is_other =
            |open: &mut HashMap<FileId, Entry>| open.get(&id).is_some_and(|entry| entry.way != way);
        let (mut open, _) = CLOSED
            .wait_timeout_while(register(), wait, is_other)
            .unwrap_or_else(PoisonError::into_inner);
        let entry = open.entry(id).or_insert(Entry {
            way,
            count: 0,
            index: None,
        });
        if entry.way != way {
            return Ok(None);
        }
        entry.count += 1;
        Ok(Some(OpenFileGuard { id }))
    }

    /// Whether another process has the database open in WAL mode. Each of its connections that has
    /// read holds a lock on the wal-index at `index`.
    ///
    /// # Errors
    ///
    /// The wal-index cannot be opened, or the file system has no locks.
    pub fn is_open_elsewhere(&self, index: &Path) -> io::Result<bool> {
        let mut open = register();
        let entry = open.get_mut(&self.id);
        let entry = entry.expect("it is registered while this lives");
        if entry.index.is_none() {
            entry.index = Some(File::open(index)?);
        }
        let file = entry.index.as_ref().expect("it was opened just now");
        has_open_lock(file)
    }
}

impl Drop for OpenFileGuard {
    fn drop(&mut self) {
        let mut open = register();
        if let Some(entry) = open.get_mut(&self.id) {
            entry.count -= 1;
            if entry.count == 0 {
                open.remove(&self.id);
                CLOSED.notify_all();
            }
        }
    }
}

fn register() -> MutexGuard<'static, HashMap<FileId, Entry>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether another process holds the lock that each connection holds on the wal-index.
///
/// # Errors
///
/// The file system has no locks.
pub fn has_open_lock(index: &File) -> io::Result<bool> {
    let lock = Flock {
        start: OPEN_LOCK,
        length: 1,
        pid: None,
        typ: FlockType::WriteLock,
        offset_type: FlockOffsetType::Set,
    };
    Ok(fcntl_getlk(index, &lock)?.is_some())
}

/// A database opened as a plain file, for reading.
#[derive(Debug)]
pub struct PlainFile {
    // Dropped first: the file is closed before the right is released.
    file: File,
    _hold: OpenFileGuard,
}

impl PlainFile {
    /// Opens a file; none while this process has it open through SQLite.
    ///
    /// # Errors
    ///
    /// The file is missing or cannot be read.
    pub fn open(path: &Path) -> io::Result<Option<PlainFile>> {
        let Some(hold) = OpenFileGuard::take(path, OpenMode::Plain, Duration::ZERO)? else {
            return Ok(None);
        };
        let file = File::open(path)?;
        let meta = file.metadata()?;
        if (meta.dev(), meta.ino()) != hold.id {
            // Another file has taken the path meanwhile, and SQLite may have it open. Closing this
            // descriptor could drop SQLite's locks. Leaving it open costs nothing.
            let _leaked = file.into_raw_fd();
            return Ok(None);
        }
        Ok(Some(PlainFile { file, _hold: hold }))
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_open_in_one_way_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db");
        fs::write(&path, "x").unwrap();
        let first = OpenFileGuard::for_sqlite(&path).unwrap().unwrap();
        let second = OpenFileGuard::for_sqlite(&path).unwrap().unwrap();
        assert!(PlainFile::open(&path).unwrap().is_none());
        drop(first);
        assert!(PlainFile::open(&path).unwrap().is_none());
        drop(second);
        let plain = PlainFile::open(&path).unwrap().unwrap();
        assert!(
            OpenFileGuard::take(&path, OpenMode::Sqlite, Duration::ZERO)
                .unwrap()
                .is_none()
        );
        // SQLite's turn waits for the plain read to end.
        std::thread::scope(|scope| {
            let waiting =
                scope.spawn(|| OpenFileGuard::take(&path, OpenMode::Sqlite, Duration::MAX));
            drop(plain);
            assert!(waiting.join().unwrap().unwrap().is_some());
        });
    }
}
