//! Prefixes that some stores change, and prefixes that are easily confused.
//!
//! S3 treats a key as bytes. Stores that keep directories (SeaweedFS) treat `a//b` as `a/b` when an
//! object is written or read, but not in a list, and refuse `./a`. A backup below such a prefix
//! would be written and never found, so it is refused.

use std::sync::atomic::Ordering;

use super::{Inner, answer};
use crate::object::PutMode;
use crate::s3::upload::Put;
use crate::target::clean;
use crate::{StoreError, key};

/// Returns whether a store that keeps directories may confuse the prefix with another one.
pub(super) fn is_odd(prefix: &str) -> bool {
    !prefix.is_empty()
        && (clean(prefix) != prefix || prefix.starts_with(['/', '.']) || prefix.contains('\\'))
}

/// Returns the rest of a full key after `stem`. Some stores (SeaweedFS) drop leading slashes from
/// the keys that they list, and only there.
pub(super) fn below<'a>(stem: &str, full: &'a str) -> Option<&'a str> {
    full.strip_prefix(stem)
        .or_else(|| full.strip_prefix(stem.trim_start_matches('/')))
}

/// Returns the other prefixes that a person may have meant.
pub(super) fn near(prefix: &str) -> Vec<String> {
    let cleaned = clean(&format!("/{prefix}"));
    let cleaned = cleaned.trim_start_matches('/');
    let mut near: Vec<String> = match cleaned {
        "" => ["", ".", "/"].map(str::to_owned).into(),
        name => [
            name.to_owned(),
            format!("/{name}"),
            format!("{name}/"),
            format!("/{name}/"),
            format!("./{name}"),
        ]
        .into(),
    };
    near.retain(|other| other != prefix);
    near
}

impl Inner {
    /// Proves after the first put below an odd prefix that a list finds the object. An object that
    /// was created and cannot be found is deleted again.
    pub(super) async fn prove_place<T>(
        &self,
        put: &Put<'_>,
        stored: Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let stored = match stored {
            Ok(stored) if !self.is_proven.load(Ordering::Relaxed) => stored,
            Err(StoreError::Other { what, code, source }) if is_odd(&self.prefix) => {
                let code = format!(
                    "{code}; not every store keeps keys below the path {:?}: write it without \
                     slashes at its ends, double slashes and dots",
                    self.prefix
                );
                return Err(StoreError::Other { what, code, source });
            }
            stored => return stored,
        };
        let stem = key::stem(&self.prefix, put.key);
        let found = self.call(|| self.first(&stem)).await?;
        if found.is_some_and(|found| below(&stem, &found).is_some()) {
            self.is_proven.store(true, Ordering::Relaxed);
            return Ok(stored);
        }
        if *put.mode == PutMode::Create {
            self.call(|| self.delete(put.key)).await?;
        }
        Err(self.other_name(put.key))
    }

    /// Refuses an odd prefix below which a list finds nothing, although the store returns the
    /// objects of the cleaned prefix for it. `prefix` is that of the list.
    pub(super) async fn refuse_other_names(&self, prefix: &str) -> Result<(), StoreError> {
        if self.is_proven.load(Ordering::Relaxed) || !is_odd(&self.prefix) {
            return Ok(());
        }
        let cleaned = key::directory(&self.prefix) + prefix;
        let Some(found) = self.first(&cleaned).await? else {
            return Ok(());
        };
        let Some(below) = below(&cleaned, &found) else {
            return Ok(());
        };
        match self.head(&format!("{prefix}{below}")).await {
            Ok(_) => Err(self.other_name(prefix)),
            // Another object, in a store that distinguishes the keys, or that cannot have such
            // keys.
            Err(StoreError::Missing { .. } | StoreError::Other { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(super) fn other_name(&self, key: &str) -> StoreError {
        StoreError::InvalidKey {
            key: answer::what("the key", &self.bucket, &self.prefix, key),
            reason: "this store takes it for another one and lists it under that; write the path \
                     without slashes at its ends, double slashes and dots",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_differ_in_slashes_and_dots_are_near_misses_of_each_other() {
        let forms = ["a/b", "/a/b", "a/b/", "/a/b/", "./a/b"];
        for form in forms {
            let others: Vec<_> = forms.into_iter().filter(|other| *other != form).collect();
            assert_eq!(near(form), others, "{form}");
        }
        assert_eq!(near("a//b/../c"), ["a/c", "/a/c", "a/c/", "/a/c/", "./a/c"]);
        assert_eq!(near(""), [".", "/"]);
        assert_eq!(near("."), ["", "/"]);
    }

    #[test]
    fn only_plain_paths_need_no_proof() {
        for prefix in ["", "a", "a/b c", "a.b/.c"] {
            assert!(!is_odd(prefix), "{prefix}");
        }
        for prefix in ["/a", "a/", "a//b", "./a", ".", "a/../b", "a\\b"] {
            assert!(is_odd(prefix), "{prefix}");
        }
    }
}
