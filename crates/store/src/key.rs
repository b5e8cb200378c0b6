//! The keys that every store can keep, and how a prefix is joined to them.

use crate::StoreError;
use crate::target::clean;

/// Limit on a component of a key, in bytes: the limit of file systems, minus space for the name of
/// a temporary file.
const MAX_COMPONENT_BYTES: usize = 200;
/// Limit on a key, in bytes: the limit of S3 (1,024), minus space for a prefix.
const MAX_KEY_BYTES: usize = 700;
/// Suffix of files that are not objects yet, both ours and Litestream's.
pub(crate) const TEMPORARY_SUFFIX: &str = ".tmp";
/// Prefix of the keys of Litestream 0.3.
const GENERATIONS: &str = "generations/";

/// Checks that every store can keep an object under this key.
pub(crate) fn check(key: &str) -> Result<(), StoreError> {
    let fault = if key.is_empty() {
        Some("it is empty")
    } else if key.len() > MAX_KEY_BYTES {
        Some("it is too long")
    } else if key.contains(is_unlistable) {
        Some("it holds a control character")
    } else if key.contains('\\') {
        // Some stores with directories treat it as a slash.
        Some("it holds a backslash")
    } else {
        key.split('/').find_map(component_fault)
    };
    match fault {
        None => Ok(()),
        Some(reason) => Err(StoreError::InvalidKey {
            key: key.to_owned(),
            reason,
        }),
    }
}

/// Checks that every store can keep a database's backup at this path below a target, and that every
/// list finds it.
///
/// # Errors
/// The fault of the path.
pub fn check_place(place: &str) -> Result<(), &'static str> {
    match check(place) {
        Err(StoreError::InvalidKey { reason, .. }) => Err(reason),
        _ => Ok(()),
    }
}

/// True for a character that the XML of a list cannot contain.
pub(crate) fn is_unlistable(c: char) -> bool {
    c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}')
}

/// True for a valid directory name in a key.
pub(crate) fn is_directory_name(name: &str) -> bool {
    !name.contains('/') && check(name).is_ok()
}

/// Checks the directories that a prefix names in full. The text after them is not restricted.
pub(crate) fn check_prefix(prefix: &str) -> Result<(), StoreError> {
    prefix
        .rsplit_once('/')
        .map_or(Ok(()), |(directories, _)| check(directories))
}

/// Returns the text before a key, exactly as in Litestream: the path as written and a slash, even
/// after an empty path. Litestream 0.3 cleaned the path first.
pub(crate) fn stem(path: &str, key: &str) -> String {
    if key.starts_with(GENERATIONS) {
        return directory(path);
    }
    format!("{path}/")
}

/// Returns the text before the keys of the databases below a path. Litestream cleans the path of a
/// directory of databases.
pub(crate) fn directory(path: &str) -> String {
    match clean(path).as_str() {
        "." => String::new(),
        "/" => "/".to_owned(),
        cleaned => format!("{cleaned}/"),
    }
}

/// Returns the full key of an object.
pub(crate) fn join(path: &str, key: &str) -> String {
    stem(path, key) + key
}

/// Returns the prefix of the keys below a directory; the empty directory is the store itself.
pub(crate) fn below(directory: &str) -> String {
    if directory.is_empty() {
        String::new()
    } else {
        format!("{directory}/")
    }
}

fn component_fault(component: &str) -> Option<&'static str> {
    match component {
        "" => Some("it has an empty component"),
        "." | ".." => Some("it has a component that is a directory"),
        _ if component.len() > MAX_COMPONENT_BYTES => Some("it has a component that is too long"),
        _ if component.ends_with(TEMPORARY_SUFFIX) => Some("it looks like a temporary file"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_some_store_cannot_keep_are_refused() {
        for key in [
            "",
            "/a",
            "a/",
            "a//b",
            ".",
            "a/../b",
            "a\0b",
            "a\\b",
            "a.tmp",
            "x.tmp/a",
            "a\nb",
            "a\u{7f}",
            "a\u{ffff}",
        ] {
            assert!(check(key).is_err(), "{key:?}");
        }
        assert!(check(&"k".repeat(MAX_COMPONENT_BYTES + 1)).is_err());
        assert!(check(&"k/".repeat(MAX_KEY_BYTES)).is_err());
        for key in [
            "a",
            "0000/0000000000000001-0000000000000001.ltx",
            "lock.json",
            "ä b/+%&=",
            "..a",
        ] {
            check(key).unwrap();
        }
    }

    #[test]
    fn paths_are_joined_byte_for_byte_as_litestream_does() {
        for (path, of_0_5, of_0_3) in [
            ("db", "db/0000/x", "db/generations/x"),
            ("", "/0000/x", "generations/x"),
            (".", "./0000/x", "generations/x"),
            ("/", "//0000/x", "/generations/x"),
            ("/db", "/db/0000/x", "/db/generations/x"),
            ("db/", "db//0000/x", "db/generations/x"),
            ("a//b", "a//b/0000/x", "a/b/generations/x"),
            ("./db", "./db/0000/x", "db/generations/x"),
            ("../db", "../db/0000/x", "../db/generations/x"),
        ] {
            assert_eq!(join(path, "0000/x"), of_0_5);
            assert_eq!(join(path, "generations/x"), of_0_3);
        }
    }
}
