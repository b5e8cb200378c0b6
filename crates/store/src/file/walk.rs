//! Lists the objects below a directory.

use std::fs;
use std::io;
use std::path::Path;

use super::{LOCK_NAME, info};
use crate::StoreError;
use crate::key::{TEMPORARY_SUFFIX, is_directory_name};
use crate::object::ObjectInfo;

/// Limit on the nesting of directories. It also ends a loop of links.
const MAX_DEPTH: usize = 32;

/// Returns the objects whose key starts with `prefix` and sorts after `start_after`, sorted.
///
/// A missing directory is empty; an unreadable one is an error.
pub(super) fn list(
    root: &Path,
    prefix: &str,
    start_after: Option<&str>,
) -> Result<Vec<ObjectInfo>, StoreError> {
    let mut walk = Walk {
        prefix,
        start_after,
        found: Vec::new(),
    };
    // Start at the deepest directory that the prefix names in full.
    let base = prefix.rfind('/').map_or("", |end| &prefix[..=end]);
    walk.directory(&root.join(base), base, 0)?;
    walk.found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    Ok(walk.found)
}

/// Returns the names of the directories directly in `path`, sorted. An empty directory also counts:
/// it was emptied by a deletion, because only this store creates directories. An unreadable entry
/// is an error.
pub(super) fn directories(path: &Path) -> Result<Vec<String>, StoreError> {
    let at = |error| StoreError::from_io("list", path, error);
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(Vec::new());
        }
        Err(error) => return Err(at(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(at)?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if is_directory_name(&name) && is_directory(&entry.path())? {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn is_directory(path: &Path) -> Result<bool, StoreError> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.is_dir()),
        // The entry was removed meanwhile, or is a dangling link.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(StoreError::from_io("stat", path, error)),
    }
}

struct Walk<'a> {
    prefix: &'a str,
    start_after: Option<&'a str>,
    found: Vec<ObjectInfo>,
}

impl Walk<'_> {
    /// Adds the objects below `path`. Their keys start with `base`, which is empty or ends in `/`.
    fn directory(&mut self, path: &Path, base: &str, depth: usize) -> Result<(), StoreError> {
        let at = |error| StoreError::from_io("list", path, error);
        if depth > MAX_DEPTH {
            return Err(at(io::Error::other("directories nest too deep")));
        }
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(at(error)),
        };
        for entry in entries {
            let entry = entry.map_err(at)?;
            // Every key is UTF-8.
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if name.ends_with(TEMPORARY_SUFFIX) || (base.is_empty() && name == LOCK_NAME) {
                continue;
            }
            let key = format!("{base}{name}");
            // The prefix names no directory below `base`, so other entries cannot match.
            if key.starts_with(self.prefix) {
                self.entry(&entry.path(), key, depth)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, key: String, depth: usize) -> Result<(), StoreError> {
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            // The directory was removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(StoreError::from_io("stat", path, error)),
        };
        if metadata.is_dir() {
            return self.directory(path, &format!("{key}/"), depth + 1);
        }
        if self.start_after.is_none_or(|after| key.as_str() > after) {
            self.found.push(info(key, &metadata));
        }
        Ok(())
    }
}
