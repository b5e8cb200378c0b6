//! Names and identities of files: which file is at a path, and whether it has changed.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Age of a file's times, in milliseconds, from which on every write changes them.
const SETTLED_AFTER_MS: u64 = 100;

/// Identity of the state of a database that is not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Fingerprint {
    /// The fingerprint of a simulated file. `changed` are the seconds and
    /// nanoseconds of its last change, which differ for any two changes.
    pub fn new(inode: u64, size: u64, changed: (i64, i64)) -> Fingerprint {
        Fingerprint {
            device: 0,
            inode,
            size,
            modified: changed,
            changed,
        }
    }

    /// Whether both belong to the same file, whatever its content.
    pub fn is_same_file(&self, other: &Fingerprint) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// True when the file is empty.
    pub fn is_empty(&self) -> bool {
        self.size == 0
    }

    /// When the file was written or came to its name, in Unix milliseconds. An application cannot
    /// set this time.
    pub fn changed_ms(&self) -> i64 {
        self.changed.0.saturating_mul(1000) + self.changed.1 / 1_000_000
    }

    /// Whether the file's times are so old that any later write changes them: they advance in steps
    /// of up to 10 ms.
    pub fn is_settled(&self, now_ms: i64) -> bool {
        // After the clock was set back, a later write gives an earlier time.
        now_ms.abs_diff(self.changed_ms()) > SETTLED_AFTER_MS
    }
}

/// The fingerprint of a database without `-wal`; none when the file is missing or has a WAL.
///
/// # Errors
///
/// The directory cannot be read.
pub fn cold_fingerprint(path: &Path) -> io::Result<Option<Fingerprint>> {
    if with_suffix(path, "-wal").try_exists()? {
        return Ok(None);
    }
    fingerprint(path)
}

/// The fingerprint of a file; none when it is missing.
///
/// # Errors
///
/// The directory cannot be read.
pub fn fingerprint(path: &Path) -> io::Result<Option<Fingerprint>> {
    match fs::metadata(path) {
        Ok(meta) => Ok(Some(Fingerprint {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A path with a suffix, as SQLite names the files beside a database.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Identity of a file. By it, a later process without local state recognises the backed-up
/// database at the path, because we never write into the database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceId {
    /// File system identity, from `statvfs`.
    pub filesystem: String,
    /// Inode number.
    pub inode: u64,
    /// Time of birth of the inode, as text; empty where the file system does not keep it.
    pub born: String,
}

impl SourceId {
    /// Whether both belong to the same file. Some file systems get another identity when a volume
    /// moves to another machine. So that identity decides only where no birth time is kept.
    pub fn is_same_file(&self, other: &SourceId) -> bool {
        self.inode == other.inode
            && self.born == other.born
            && (!self.born.is_empty() || self.filesystem == other.filesystem)
    }
}

/// The identity of a database file.
///
/// # Errors
///
/// The file is missing or its metadata cannot be read.
pub fn identify(path: &Path) -> io::Result<SourceId> {
    let meta = fs::metadata(path)?;
    let born = meta
        .created()
        .ok()
        .and_then(|time| Timestamp::try_from(time).ok())
        .map_or_else(String::new, |time| time.to_string());
    let filesystem = rustix::fs::statvfs(path)?.f_fsid;
    Ok(SourceId {
        filesystem: format!("{filesystem:016x}"),
        inode: meta.ino(),
        born,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_tell_every_write_only_when_they_are_old() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db");
        fs::write(&path, "x").unwrap();
        let found = fingerprint(&path).unwrap().unwrap();
        let changed_ms = found.changed_ms();
        assert!(!found.is_settled(changed_ms));
        assert!(!found.is_settled(changed_ms - 50));
        assert!(
            found.is_settled(changed_ms - 60_000),
            "the clock was set back"
        );
        assert!(found.is_settled(changed_ms + 1000));
    }

    #[test]
    fn a_file_keeps_its_identity_and_a_new_one_has_another() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db");
        std::fs::write(&path, "one").unwrap();
        let first = identify(&path).unwrap();
        std::fs::write(&path, "two, in place").unwrap();
        assert_eq!(identify(&path).unwrap(), first);
        let other = directory.path().join("other");
        std::fs::write(&other, "one").unwrap();
        std::fs::rename(&other, &path).unwrap();
        let second = identify(&path).unwrap();
        assert!(!second.is_same_file(&first));
        let moved = |born: &str| SourceId {
            filesystem: "of another machine".into(),
            born: born.into(),
            ..second.clone()
        };
        assert!(moved(&second.born).is_same_file(&second) || second.born.is_empty());
        assert!(!moved("").is_same_file(&SourceId {
            born: String::new(),
            ..second
        }));
    }
}
