//! Backups at another spelling of a path: with and without slashes at its ends, or cleaned.
//!
//! Litestream takes the `path` of a file as it is and cleans that of a URL, and so do we. Whoever
//! writes the same place in two ways finds nothing, and has to be told where the backup is.

use engine::lease::LEASE_KEY;
use engine::restore::{Point, find};
use store::{SharedStore, Store};

/// Where a backup lies that may be the one looked for; none when there is none, or when nobody can
/// say. Ask only where `store` itself holds nothing: this costs some lists.
pub async fn near_miss(store: &SharedStore) -> Option<String> {
    for near in store.near_misses() {
        // It is only a hint, so a store that does not answer has none.
        let lease = near.list(LEASE_KEY, None).await;
        if lease.is_ok_and(|found| !found.is_empty()) || find(&near, Point::Latest).await.is_ok() {
            return Some(near.describe());
        }
    }
    None
}

/// What to say of a near miss, as the end of a sentence; empty when there is none.
pub async fn hint(store: &SharedStore) -> String {
    match near_miss(store).await {
        Some(place) => format!(
            "; there is one at {place}: a path is taken byte for byte, so correct the slashes and \
             dots of this one if that is meant"
        ),
        None => String::new(),
    }
}
