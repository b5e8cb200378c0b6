//! A lock on a file that costs no descriptor while it is held.
//!
//! A lock of flock(2) belongs to the open file, not to its descriptors: Linux gives it up with the
//! last reference (`locks_remove_file` in `__fput`), and a mapping is one. So the file is mapped, and
//! its descriptor closed. A process that ends, however it ends, has no mappings any more. Where
//! files cannot be mapped, the descriptor stays.

use std::fs::{File, TryLockError};
use std::path::Path;

use memmap2::{MmapOptions, MmapRaw};

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
    /// Makes the file where it is missing, and locks it.
    ///
    /// # Errors
    ///
    /// [`TryLockError::WouldBlock`] while another one has it locked; else the system's refusal.
    pub fn take(path: &Path) -> Result<LockFile, TryLockError> {
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .map_err(TryLockError::Error)?;
        file.try_lock()?;
        // Nobody ever looks at the page; a file of any size has one.
        let held = match MmapOptions::new().len(1).map_raw_read_only(&file) {
            Ok(mapping) => Held::Mapped(mapping),
            Err(_) => Held::Open(file),
        };
        Ok(LockFile { _held: held })
    }
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
