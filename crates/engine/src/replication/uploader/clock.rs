//! The clock of a store, from which the ages of its files follow.

use std::collections::BTreeSet;

use store::{SharedStore, Store, StoreError};
use tokio::time::Instant;

use crate::env::clock::Clock;
use crate::replica::lease::LEASE_KEY;
use crate::replica::manifest::RemoteFile;

/// A clock that is never ahead of the store's.
///
/// It starts at the time that the store gave our lease, and advances with the monotonic clock. So
/// changing this machine's wall clock has no effect. Files that we store are dated by this clock,
/// listed files by the store.
#[derive(Debug, Clone, Copy)]
pub(super) struct StoreClock {
    begin_ms: i64,
    begin: Instant,
}

impl StoreClock {
    /// Reads the time from the lease, which the store dates itself. Other files of a directory
    /// carry the times that their writers gave them.
    pub(super) async fn read(store: &SharedStore) -> Result<StoreClock, StoreError> {
        let lease = store.head(LEASE_KEY).await?;
        Ok(StoreClock {
            begin_ms: lease.modified_ms,
            begin: Instant::now(),
        })
    }

    /// Time in Unix milliseconds.
    pub(super) fn now_ms(&self) -> i64 {
        let passed = i64::try_from(self.begin.elapsed().as_millis()).unwrap_or(i64::MAX);
        self.begin_ms.saturating_add(passed)
    }

    /// Time for deletions: the earlier of the store's clock and this machine's. So both have to be
    /// wrong before a file counts as older than it is.
    pub(super) fn cautious_ms(&self, here: &dyn Clock) -> i64 {
        self.now_ms().min(here.unix_ms())
    }

    /// Dates files from the future as of now, so that they expire some day.
    pub(super) fn clamp_to_now(&self, files: BTreeSet<RemoteFile>) -> BTreeSet<RemoteFile> {
        let now_ms = self.now_ms();
        let dated = files.into_iter().map(|file| RemoteFile {
            modified_ms: file.modified_ms.min(now_ms),
            ..file
        });
        dated.collect()
    }
}
