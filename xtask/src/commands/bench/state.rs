//! Disk usage of a replicating process in addition to its databases.

use std::collections::HashSet;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Unit of [`MetadataExt::blocks`] in bytes, for every file system.
const BLOCK_BYTES: u64 = 512;

/// Disk usage in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Footprint {
    /// Local state: hidden directories beside the databases.
    pub named: u64,
    /// Unnamed files that the process has open. They use space on a volume like any other.
    pub unnamed: u64,
    /// WALs of the databases.
    pub wal: u64,
}

impl Footprint {
    /// Measures a directory of databases and the process that replicates them.
    pub(super) fn measure(data: &Path, pid: u32) -> Footprint {
        let mut footprint = Footprint::default();
        let mut seen = HashSet::new();
        for entry in fs::read_dir(data).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with('.') {
                footprint.named += tree_bytes(entry.path(), &mut seen);
            } else if name.ends_with("-wal") {
                footprint.wal += tree_bytes(entry.path(), &mut seen);
            }
        }
        let descriptors = Path::new("/proc").join(pid.to_string()).join("fd");
        for entry in fs::read_dir(descriptors).into_iter().flatten().flatten() {
            // Follows the link to the open file. Skip a file that was closed meanwhile.
            let Ok(data) = fs::metadata(entry.path()) else {
                continue;
            };
            if data.is_file() && data.nlink() == 0 {
                footprint.unnamed += bytes_once(&data, &mut seen);
            }
        }
        footprint
    }

    /// Returns all bytes that count towards the limit of local state.
    pub(super) fn state(&self) -> u64 {
        self.named + self.unnamed
    }

    /// Returns the higher of both figures in each field.
    pub(super) fn peak(self, other: Footprint) -> Footprint {
        let higher = match self.state() >= other.state() {
            true => self,
            false => other,
        };
        Footprint {
            wal: self.wal.max(other.wal),
            ..higher
        }
    }
}

/// Returns the disk usage of everything below a directory.
pub(super) fn disk_bytes(folder: &Path) -> u64 {
    tree_bytes(folder.to_owned(), &mut HashSet::new())
}

fn tree_bytes(path: PathBuf, seen: &mut HashSet<(u64, u64)>) -> u64 {
    let (mut bytes, mut paths) = (0, vec![path]);
    while let Some(path) = paths.pop() {
        // A file that was removed meanwhile uses no space.
        let Ok(data) = fs::symlink_metadata(&path) else {
            continue;
        };
        bytes += bytes_once(&data, seen);
        if data.is_dir() {
            let entries = fs::read_dir(path).into_iter().flatten().flatten();
            paths.extend(entries.map(|entry| entry.path()));
        }
    }
    bytes
}

/// A file with several names, or with a name and a descriptor, counts once.
fn bytes_once(data: &Metadata, seen: &mut HashSet<(u64, u64)>) -> u64 {
    match seen.insert((data.dev(), data.ino())) {
        true => data.blocks() * BLOCK_BYTES,
        false => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: usize = 64 << 10;

    fn write(path: &Path) -> fs::File {
        fs::write(path, vec![1; BYTES]).unwrap();
        let file = fs::File::open(path).unwrap();
        file.sync_all().unwrap();
        file
    }

    #[test]
    fn files_without_a_name_count_as_local_state_and_links_count_once() {
        let data = std::env::temp_dir().join(format!("bench-state-{}", std::process::id()));
        let state = data.join(".a.db-sqlite-backup");
        fs::create_dir_all(&state).unwrap();
        let empty = Footprint::measure(&data, std::process::id());
        write(&data.join("a.db"));
        write(&data.join("a.db-wal"));
        write(&state.join("1.ltx"));
        fs::hard_link(state.join("1.ltx"), state.join("2.ltx")).unwrap();
        let unnamed = write(&state.join("spool"));
        fs::remove_file(state.join("spool")).unwrap();
        let found = Footprint::measure(&data, std::process::id());
        drop(unnamed);
        fs::remove_dir_all(&data).unwrap();
        assert_eq!(found.named - empty.named, BYTES as u64);
        assert_eq!(found.wal, BYTES as u64);
        // Tests run in threads of one process, so another one may also have such a file.
        assert!(found.unnamed >= BYTES as u64, "{found:?}");
        assert_eq!(found.state(), found.named + found.unnamed);
    }

    #[test]
    fn a_peak_is_one_moment_of_local_state() {
        let of = |named, unnamed, wal| Footprint {
            named,
            unnamed,
            wal,
        };
        assert_eq!(of(5, 1, 9).peak(of(1, 7, 2)), of(1, 7, 9));
        assert_eq!(of(5, 1, 2).peak(of(1, 1, 9)), of(5, 1, 9));
    }
}
