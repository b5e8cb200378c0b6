//! Which keys every store can keep, and how they are joined to a prefix.

use crate::StoreError;
use crate::target::clean;

/// The longest component of a key, in bytes: what file systems allow, less room for the name of
/// a temporary file.
const MAX_COMPONENT_BYTES: usize = 200;
/// The longest key, in bytes: what S3 allows (1,024), less room for a prefix.
const MAX_KEY_BYTES: usize = 700;
/// Ends the names of files that are not objects yet, ours and Litestream's.
pub(crate) const TEMPORARY_SUFFIX: &str = ".tmp";
/// What the keys of Litestream 0.3 begin with.
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
        // Some stores that keep directories take it for a slash.
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

/// Checks that a database may have its backup at this place below a target: every store can keep
/// it there, and every list finds it.
///
/// # Errors
/// What is wrong with it.
pub fn check_place(place: &str) -> Result<(), &'static str> {
    match check(place) {
        Err(StoreError::InvalidKey { reason, .. }) => Err(reason),
        _ => Ok(()),
    }
}

/// True for what the XML of a list cannot hold.
pub(crate) fn is_unlistable(c: char) -> bool {
    c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}')
}

/// True for what a directory in a key may be called.
pub(crate) fn is_directory_name(name: &str) -> bool {
    !name.contains('/') && check(name).is_ok()
}

/// Checks the directories that a prefix names in full; what follows them may be any text.
pub(crate) fn check_prefix(prefix: &str) -> Result<(), StoreError> {
    prefix
        .rsplit_once('/')
        .map_or(Ok(()), |(directories, _)| check(directories))
}

/// Returns what stands before a key, exactly as Litestream has it: the path as it was written and a
/// slash, even after an empty path. Litestream 0.3 cleaned the path first.
pub(crate) fn stem(path: &str, key: &str) -> String {
    if key.starts_with(GENERATIONS) {
        return directory(path);
    }
    format!("{path}/")
}

/// Returns what stands before the keys of the databases below a path: Litestream cleans the path of
/// a directory of databases.
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

/// Returns the prefix of the keys below a directory; the empty one is the store itself.
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
