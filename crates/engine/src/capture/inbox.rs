//! Where the capture thread leaves what it finds in one database.

use std::sync::{Mutex, MutexGuard, PoisonError};

use sqlite_format::PageSize;
use tokio::sync::Notify;

use crate::tap::{Batch, BreakReason, Look, TapError};

/// What the capture thread has found in one database, until somebody takes it.
#[derive(Debug, Default)]
pub struct Found {
    /// Commits, merged in order.
    pub batch: Option<Batch>,
    /// Commits before `batch` may have been missed; `batch` holds the whole present log.
    pub broken: Option<BreakReason>,
    /// Another file has taken the path; the tap is gone.
    pub moved: bool,
    /// The tap failed and is gone.
    pub failed: Option<TapError>,
    /// The page size, once attached.
    pub page_size: Option<PageSize>,
    /// The log is far longer than applications let it grow.
    pub wants_checkpoint: bool,
    /// The last barrier passed: everything published before it was asked for is in here.
    pub barrier: u64,
    /// At that barrier the log held nothing behind what is captured, published or not.
    pub at_end: bool,
    /// The whole present log, when it was asked for.
    pub log: Option<Batch>,
    /// The tap is gone, and with it every lock of ours: after a detach, a failure, a move.
    pub gone: bool,
}

impl Found {
    /// At the last barrier everything was captured, and somebody has taken it.
    pub fn is_all_taken(&self) -> bool {
        self.batch.is_none() && self.broken.is_none() && self.at_end
    }
}

/// Where the capture thread leaves what it finds in one database.
#[derive(Debug, Default)]
pub struct Inbox {
    found: Mutex<Found>,
    /// Woken after each change of `found`.
    pub changed: Notify,
}

impl Inbox {
    /// What was found, to be read or taken.
    pub fn lock(&self) -> MutexGuard<'_, Found> {
        // The thread that could poison it takes the whole process down.
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut Found)) {
        change(&mut self.lock());
        self.changed.notify_one();
    }

    pub(super) fn deliver(&self, look: Look) {
        let mut found = self.lock();
        match look {
            Look::Quiet | Look::Moved => return,
            Look::Captured(batch) => match &mut found.batch {
                None => found.batch = Some(batch),
                Some(earlier) => match earlier.append(batch) {
                    // Whoever will take the batch knows of it: a wake-up would cost more than this.
                    Ok(()) => return,
                    Err(error) => {
                        found.batch = None;
                        found.failed = Some(TapError::Spill(error));
                    }
                },
            },
            // Earlier pages may be older than what the database file holds by now: drop them.
            Look::Broken(reason, batch) => {
                found.batch = Some(batch);
                found.broken = Some(reason);
            }
        }
        drop(found);
        self.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::pages::PageSet;
    use crate::tap::LogPosition;

    /// Commits of these pages, most of which lie in `directory`.
    fn batch(numbers: std::ops::Range<u32>, directory: &Path) -> Batch {
        let mut pages = PageSet::on_disk(PageSize::MIN, directory);
        for pgno in numbers {
            pages.insert(pgno, &[1; 512]).unwrap();
        }
        Batch {
            pages,
            commit: 99,
            log: LogPosition {
                salts: (1, 1),
                big_endian: false,
                frames: 64,
                checksum: (0, 0),
                change: 1,
            },
            log_offset: 32,
            first_ms: 0,
            last_ms: 0,
        }
    }

    #[test]
    fn commits_that_cannot_be_kept_are_a_failure_and_no_silence() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        let inbox = Inbox::default();
        // Nothing can be kept there.
        inbox.deliver(Look::Captured(batch(1..2, &file.join("below"))));
        assert!(inbox.lock().batch.is_some());
        inbox.deliver(Look::Captured(batch(2..99, directory.path())));
        let found = inbox.lock();
        assert!(matches!(found.failed, Some(TapError::Spill(_))));
        assert!(found.batch.is_none(), "half of it would be taken for all");
    }

    #[test]
    fn what_is_left_to_take_or_to_heal_or_lies_behind_the_end_is_not_all() {
        let directory = tempfile::tempdir().unwrap();
        let at_end = || Found {
            at_end: true,
            ..Found::default()
        };
        assert!(at_end().is_all_taken());
        for found in [
            Found::default(),
            Found {
                batch: Some(batch(1..2, directory.path())),
                ..at_end()
            },
            Found {
                broken: Some(BreakReason::CommitsMissed),
                ..at_end()
            },
        ] {
            assert!(!found.is_all_taken(), "{found:?}");
        }
    }
}
