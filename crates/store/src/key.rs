//! Which keys every store can keep, and how they are joined to a prefix.

use crate::StoreError;

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
    } else if key.contains('\0') {
        Some("it holds a NUL")
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

/// Returns the full key of an object, exactly as Litestream joins them: an empty path still gives
/// a leading `/`, but not with the keys of Litestream 0.3.
pub(crate) fn join(path: &str, key: &str) -> String {
    if path.is_empty() && key.starts_with(GENERATIONS) {
        return key.to_owned();
    }
    format!("{path}/{key}")
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
            "", "/a", "a/", "a//b", ".", "a/../b", "a\0b", "a\\b", "a.tmp", "x.tmp/a",
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
    fn an_empty_path_gives_a_leading_slash_as_litestream_does() {
        assert_eq!(join("db", "0000/x"), "db/0000/x");
        assert_eq!(join("", "0000/x"), "/0000/x");
        assert_eq!(join("db", "generations/x"), "db/generations/x");
        assert_eq!(join("", "generations/x"), "generations/x");
    }
}
