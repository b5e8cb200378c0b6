//! A lock on a file that costs no descriptor while it is held.
//!
//! A lock of flock(2) belongs to the open file, not to its descriptors. Linux releases it with the
//! last reference (`locks_remove_file` in `__fput`), and a mapping is such a reference. So we map
//! the file and close its descriptor. A process that ends, however it ends, loses its mappings.
//!
//! Overlayfs is different: its mappings refer to another open file, that of the lower layer. So the
//! descriptor is closed only on file systems that are known to map the locked file; elsewhere it
//! stays open.

use std::fs::{File, TryLockError};
use std::path::Path;

use memmap2::{MmapOptions, MmapRaw};

/// Magic numbers (statfs(2)) of ext2 to ext4, XFS, Btrfs and tmpfs.
const KNOWN: [u64; 4] = [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994];

/// An exclusive lock, held while this lives.
#[derive(Debug)]
pub struct LockFile {
    _held: Held,
}

#[derive(Debug)]
enum Held {
    Mapped(#[expect(dead_code, reason = "held, never read")] MmapRaw),
    Open(#[expect(dead_code, reason = "held, never read")] File),
}

impl LockFile {
    /// Creates the file if it is missing, and locks it.
    ///
    /// # Errors
    ///
    /// [`TryLockError::WouldBlock`] while another process has it locked; otherwise the system's
    /// error.
    pub fn take(path: &Path) -> Result<LockFile, TryLockError> {
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .map_err(TryLockError::Error)?;
        file.try_lock()?;
        // The mapped page is never read; a file of any size has one.
        let mapping = maps_what_is_locked(&file)
            .then(|| MmapOptions::new().len(1).map_raw_read_only(&file).ok())
            .flatten();
        let held = match mapping {
            Some(mapping) => Held::Mapped(mapping),
            None => Held::Open(file),
        };
        Ok(LockFile { _held: held })
    }
}

fn maps_what_is_locked(file: &File) -> bool {
    let found = rustix::fs::fstatfs(file).map(|system| system.f_type);
    found.is_ok_and(|found| u64::try_from(found).is_ok_and(|found| KNOWN.contains(&found)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_descriptors(path: &Path) -> usize {
        let descriptors = std::fs::read_dir("/proc/self/fd").unwrap();
        let leads_here = |entry: std::io::Result<std::fs::DirEntry>| {
            let to = entry.and_then(|entry| std::fs::read_link(entry.path()));
            to.is_ok_and(|to| to == path)
        };
        descriptors.map(leads_here).filter(|it| *it).count()
    }

    #[test]
    fn a_lock_lasts_as_long_as_it_is_held_and_costs_no_descriptor() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().canonicalize().unwrap().join("lock");
        let held = LockFile::take(&path).unwrap();
        assert_eq!(open_descriptors(&path), 0);
        let other = File::open(&path).unwrap();
        assert_eq!(open_descriptors(&path), 1);
        assert!(matches!(other.try_lock(), Err(TryLockError::WouldBlock)));
        let second = LockFile::take(&path);
        assert!(matches!(second, Err(TryLockError::WouldBlock)));
        drop(held);
        assert!(other.try_lock().is_ok());
    }

    #[test]
    fn a_lock_that_cannot_be_made_says_why() {
        let refused = LockFile::take(Path::new("/nowhere/lock"));
        assert!(matches!(refused, Err(TryLockError::Error(_))));
    }
}
