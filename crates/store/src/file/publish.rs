//! Publishes, replaces and removes files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use super::{LOCK_NAME, object_metadata, version};
use crate::StoreError;
use crate::key::TEMPORARY_SUFFIX;
use crate::object::{Body, PutMeta, PutMode};

/// Distinguishes the temporary files of one process.
static TEMPORARIES: AtomicU64 = AtomicU64::new(0);
/// Limit on the names that are tried: more than a crash loop leaves behind.
const MAX_TEMPORARY_NAMES: u32 = 10_000;

/// Stores an object as the file at `path`.
pub(super) fn put(
    root: &Path,
    key: &str,
    path: &Path,
    body: &Body,
    mode: &PutMode,
    meta: PutMeta,
) -> Result<(), StoreError> {
    let pending = begin(root, key, path, mode.clone(), meta)?;
    pending.temporary.fill(body)?;
    pending.publish(root, key, path)
}

/// Begins an object that stays invisible to readers until [`Pending::publish`].
pub(super) fn begin(
    root: &Path,
    key: &str,
    path: &Path,
    mode: PutMode,
    meta: PutMeta,
) -> Result<Pending, StoreError> {
    create_directories(root, directory_of(path))?;
    // Most creates that lose fail here, before the bytes are written.
    if mode == PutMode::Create && fs::symlink_metadata(path).is_ok() {
        return Err(StoreError::Exists {
            key: key.to_owned(),
        });
    }
    let temporary = Temporary::create(path)?;
    Ok(Pending {
        temporary,
        mode,
        meta,
    })
}

fn directory_of(path: &Path) -> &Path {
    path.parent()
        .expect("a key has a component, so its path has a parent")
}

/// An object whose bytes are still being written.
pub(super) struct Pending {
    temporary: Temporary,
    mode: PutMode,
    meta: PutMeta,
}

impl Pending {
    /// Appends the next bytes.
    pub(super) fn append(self, bytes: &[u8]) -> Result<Self, StoreError> {
        let temporary = &self.temporary;
        (&temporary.file)
            .write_all(bytes)
            .map_err(|error| StoreError::from_io("write", &temporary.path, error))?;
        Ok(self)
    }

    /// Makes the bytes durable, then renames the file to its final name.
    pub(super) fn publish(self, root: &Path, key: &str, path: &Path) -> Result<(), StoreError> {
        let at = |what: &'static str, path: &Path| {
            let path = path.to_owned();
            move |error: io::Error| StoreError::from_io(what, &path, error)
        };
        let Pending {
            temporary,
            mode,
            meta,
        } = self;
        // Make the bytes durable before the name. Otherwise a power cut can leave a name without
        // its content, after the caller was told that the object is stored.
        temporary.seal(meta)?;
        {
            let _lock = lock(root, matches!(mode, PutMode::Match(_)))?;
            match mode {
                PutMode::Overwrite => {
                    fs::rename(&temporary.path, path).map_err(at("rename to", path))?;
                }
                PutMode::Create => {
                    fs::hard_link(&temporary.path, path).map_err(|error| match error.kind() {
                        io::ErrorKind::AlreadyExists => StoreError::Exists {
                            key: key.to_owned(),
                        },
                        _ => at("link to", path)(error),
                    })?;
                }
                PutMode::Match(expected) => {
                    let found = match object_metadata(path) {
                        Ok(metadata) => Some(version(&metadata)),
                        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                        Err(error) => return Err(at("stat", path)(error)),
                    };
                    if found != Some(expected) {
                        return Err(StoreError::Conflict {
                            key: key.to_owned(),
                        });
                    }
                    fs::rename(&temporary.path, path).map_err(at("rename to", path))?;
                }
            }
        }
        drop(temporary);
        sync_directory(directory_of(path))
    }
}

/// Removes files; missing ones are ignored. Nothing is synced: if a power cut undoes a removal, the
/// caller removes the file again.
pub(super) fn delete(root: &Path, paths: &[PathBuf]) -> Result<(), StoreError> {
    // Without the directory no file exists, and the lock has no place.
    if !root
        .try_exists()
        .map_err(|error| StoreError::from_io("stat", root, error))?
    {
        return Ok(());
    }
    for path in paths {
        let _lock = lock(root, false)?;
        match fs::remove_file(path) {
            Ok(()) => {}
            Err(error) if is_missing(error.kind()) => {}
            Err(error) => return Err(StoreError::from_io("remove", path, error)),
        }
    }
    Ok(())
}

/// A file that is not an object yet, in the directory of its future object. Drop removes it.
struct Temporary {
    path: PathBuf,
    file: File,
}

impl Temporary {
    /// Creates a file with an unused name. In containers, two processes that share a directory may
    /// have the same process ID.
    fn create(target: &Path) -> Result<Self, StoreError> {
        let name = target
            .file_name()
            .expect("a key ends in a name")
            .to_string_lossy();
        let mut attempt = 1;
        loop {
            let number = TEMPORARIES.fetch_add(1, Ordering::Relaxed);
            let name = format!(".{name}.{}-{number}{TEMPORARY_SUFFIX}", std::process::id());
            let path = target.with_file_name(name);
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => return Ok(Self { path, file }),
                Err(error)
                    if error.kind() == io::ErrorKind::AlreadyExists
                        && attempt < MAX_TEMPORARY_NAMES =>
                {
                    attempt += 1;
                }
                Err(error) => return Err(StoreError::from_io("create", &path, error)),
            }
        }
    }

    fn fill(&self, body: &Body) -> Result<(), StoreError> {
        let write = |error| StoreError::from_io("write", &self.path, error);
        match body {
            Body::Bytes(bytes) => (&self.file).write_all(bytes).map_err(write)?,
            Body::File { path, len } => {
                let source = File::open(path);
                let source =
                    source.map_err(|error| StoreError::from_io("read body", path, error))?;
                let copied = io::copy(&mut io::Read::take(source, *len), &mut &self.file);
                let copied = copied.map_err(write)?;
                if copied != *len {
                    let error = io::Error::from(io::ErrorKind::UnexpectedEof);
                    return Err(StoreError::from_io("read body", path, error));
                }
            }
        }
        Ok(())
    }

    /// Sets the modification time of the file and makes its bytes durable.
    fn seal(&self, meta: PutMeta) -> Result<(), StoreError> {
        let write = |error| StoreError::from_io("write", &self.path, error);
        if let Some(timestamp_ms) = meta.timestamp_ms {
            self.file
                .set_modified(system_time(timestamp_ms))
                .map_err(write)?;
        }
        self.file.sync_all().map_err(write)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a rename the file is already gone. A leftover file is never treated as an object.
        let _ = fs::remove_file(&self.path);
    }
}

/// Takes the lock on names in the store, until the returned file is dropped.
fn lock(root: &Path, exclusive: bool) -> Result<File, StoreError> {
    let path = root.join(LOCK_NAME);
    let open = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path);
    let locked = open.and_then(|file| {
        if exclusive {
            file.lock()?
        } else {
            file.lock_shared()?
        }
        Ok(file)
    });
    locked.map_err(|error| StoreError::from_io("lock", &path, error))
}

/// Creates the missing directories of an object, and makes their names durable.
fn create_directories(root: &Path, directory: &Path) -> Result<(), StoreError> {
    let at = |error| StoreError::from_io("create directory", directory, error);
    if directory.is_dir() {
        return Ok(());
    }
    let top = directory.ancestors().find(|ancestor| ancestor.is_dir());
    fs::create_dir_all(directory).map_err(|error| match error.kind() {
        // `mkdir` found a file in the place of a directory.
        io::ErrorKind::AlreadyExists => at(io::ErrorKind::NotADirectory.into()),
        _ => at(error),
    })?;
    let made = directory
        .ancestors()
        .take_while(|ancestor| Some(*ancestor) != top);
    for parent in made.filter_map(Path::parent) {
        if parent.starts_with(root) || root.starts_with(parent) {
            sync_directory(parent)?;
        }
    }
    Ok(())
}

fn sync_directory(path: &Path) -> Result<(), StoreError> {
    // `Path::parent` returns an empty path for the current directory.
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let synced = File::open(path).and_then(|directory| directory.sync_all());
    synced.map_err(|error| StoreError::from_io("sync directory", path, error))
}

fn is_missing(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn system_time(timestamp_ms: i64) -> SystemTime {
    let distance = Duration::from_millis(timestamp_ms.unsigned_abs());
    if timestamp_ms < 0 {
        SystemTime::UNIX_EPOCH - distance
    } else {
        SystemTime::UNIX_EPOCH + distance
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_files_of_two_processes_with_one_number_stay_apart() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("object.ltx");
        // The files that the other process has open under the next names.
        let next = TEMPORARIES.load(Ordering::Relaxed);
        for number in next..next + 20 {
            let name = format!(".object.ltx.{}-{number}.tmp", std::process::id());
            fs::write(directory.path().join(name), "theirs").unwrap();
        }
        let ours = Temporary::create(&target).unwrap();
        (&ours.file).write_all(b"ours").unwrap();
        assert!(
            ours.path
                .extension()
                .is_some_and(|extension| extension == "tmp")
        );
        drop(ours);
        let left: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
        assert_eq!(left.len(), 20);
        for entry in left {
            assert_eq!(fs::read(entry.unwrap().path()).unwrap(), b"theirs");
        }
    }
}
