//! Backups at another spelling of a path: with and without slashes at its ends, or cleaned.
//!
//! Litestream uses the `path` of a file unchanged and cleans the path of a URL, and so do we. A
//! user who writes the same path in both ways finds no backup, and needs a hint.

use engine::replica::lease::LEASE_KEY;
use engine::restore::{Point, find};
use store::{SharedStore, Store};

/// Returns the address of a backup that may be the wanted one; `None` when no such backup is known.
/// Call it only when `store` itself is empty, because it costs some lists.
pub async fn near_miss(store: &SharedStore) -> Option<String> {
    for near in store.near_misses() {
        // This is only a hint, so an unreachable store counts as empty.
        let lease = near.list(LEASE_KEY, None).await;
        if lease.is_ok_and(|found| !found.is_empty()) || find(&near, Point::Latest).await.is_ok() {
            return Some(near.describe());
        }
    }
    None
}

/// Returns the hint at a near miss as the end of a sentence; empty without one.
pub async fn hint(store: &SharedStore) -> String {
    match near_miss(store).await {
        Some(place) => format!(
            "; there is one at {place}: a path is taken byte for byte, so correct the slashes and \
             dots of this one if that is meant"
        ),
        None => String::new(),
    }
}
