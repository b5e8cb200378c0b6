//! The destination of a restore: its open files, its access rights, and the exchange of files. The
//! old database keeps its name until the new one takes it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::process::{Flock, FlockType};

use super::RestoreError;
use crate::env::files::{fingerprint, with_suffix};

pub(super) fn exists(path: &Path) -> Result<bool, RestoreError> {
    match fs::metadata(path) {
        // An application that has not written yet leaves an empty file.
        Ok(meta) => Ok(!meta.is_file() || meta.len() > 0),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(RestoreError::Io {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Refuses a symbolic link: the restore would replace the link and leave its target behind.
pub(super) fn refuse_link(path: &Path) -> Result<(), RestoreError> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_symlink() => Err(RestoreError::Link {
            path: path.to_owned(),
        }),
        _ => Ok(()),
    }
}

/// Whether another process has the database open, by the locks that SQLite holds meanwhile.
pub(super) fn is_open(output: &Path) -> io::Result<bool> {
    // Every connection in WAL mode holds a shared lock on this byte of `-shm`. Others hold one in
    // this range of the database file while they read. <https://sqlite.org/src/file/src/os_unix.c>
    for (path, start, length) in [
        (with_suffix(output, "-shm"), 128, 1),
        (output.to_owned(), 0x4000_0000, 512),
    ] {
        let file = match File::options().read(true).write(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened?,
        };
        let wanted = Flock {
            start,
            length,
            ..Flock::from(FlockType::WriteLock)
        };
        if rustix::process::fcntl_getlk(&file, &wanted)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Gives a new file the mode and owner of the file that it replaces. Without one, it gets the mode
/// that SQLite would give it and, for root, the owner of the directory.
pub(super) fn adopt_access(file: &File, output: &Path) -> io::Result<()> {
    let (mode, owner) = match fs::metadata(output) {
        Ok(old) => (old.mode() & 0o777, (old.uid(), old.gid())),
        Err(_) => {
            let directory = fs::metadata(directory_of(output))?;
            (0o644 & !umask()?, (directory.uid(), directory.gid()))
        }
    };
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::fchown(file, Some(owner.0), Some(owner.1))?;
    }
    Ok(())
}

/// The process's mask for new files. The system call that reads it also changes it for a moment,
/// for all threads.
fn umask() -> io::Result<u32> {
    let status = fs::read_to_string("/proc/self/status")?;
    let mask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    mask.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok())
        .ok_or_else(|| io::Error::other("/proc/self/status names no umask"))
}

/// Moves the WAL and its companions beside the destination to other names, and gives the database
/// there a second name. Returns the old and the new path of each.
pub(super) fn set_aside(output: &Path) -> Result<Vec<(PathBuf, PathBuf)>, RestoreError> {
    let mut moved = Vec::new();
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let (from, to) = (
            with_suffix(output, suffix),
            with_suffix(output, &format!(".before-restore{suffix}")),
        );
        let done = if suffix.is_empty() {
            second_name(&from, &to)
        } else {
            fs::rename(&from, &to)
        };
        match done {
            Ok(()) => moved.push((from, to)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                put_back(&moved);
                return Err(RestoreError::Io { path: from, source });
            }
        }
    }
    Ok(moved)
}

/// Adds a second name. The database keeps its own until the new file takes it, so one of the two
/// always exists.
fn second_name(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(to)?;
            fs::hard_link(from, to)
        }
        linked => linked,
    }
}

/// Undoes [`set_aside`] as far as the disk allows; a file that stays keeps its `.before-restore`
/// name.
pub(super) fn put_back(moved: &[(PathBuf, PathBuf)]) {
    for (from, to) in moved {
        // A rename does not join two names of one file, so the second name is removed.
        let is_second_name = same_file(from, to);
        let undone = if is_second_name {
            fs::remove_file(to)
        } else {
            fs::rename(to, from)
        };
        if let Err(error) = undone {
            tracing::error!("{} stays at {}: {error}", from.display(), to.display());
        }
    }
}

fn same_file(one: &Path, other: &Path) -> bool {
    let both = (fingerprint(one), fingerprint(other));
    matches!(both, (Ok(Some(one)), Ok(Some(other))) if one.is_same_file(&other))
}

pub(super) fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_set_aside_comes_back_and_leaves_no_second_name() {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("app.db");
        for suffix in ["", "-wal"] {
            fs::write(with_suffix(&output, suffix), suffix).unwrap();
        }
        let moved = set_aside(&output).unwrap();
        assert!(output.exists(), "there is always a database");
        put_back(&moved);
        let names = fs::read_dir(directory.path()).unwrap();
        let mut names: Vec<_> = names.map(|name| name.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["app.db", "app.db-wal"]);
    }

    #[test]
    fn the_umask_is_the_one_that_new_files_get() {
        let directory = tempfile::tempdir().unwrap();
        let file = File::create(directory.path().join("new")).unwrap();
        let mode = file.metadata().unwrap().mode() & 0o777;
        assert_eq!(mode, 0o666 & !umask().unwrap());
    }
}
