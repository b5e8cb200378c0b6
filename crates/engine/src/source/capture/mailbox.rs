//! Where the capture thread leaves what it finds in one database.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sqlite_format::PageSize;
use tokio::sync::watch;

use crate::source::wal::{Batch, GapReason, Polled, WalError};

/// What the capture thread has found in one database, until the driver takes it.
#[derive(Debug, Default)]
pub struct PendingCapture {
    /// Commits, compacted in order.
    pub batch: Option<Batch>,
    /// Commits before `batch` may have been missed; `batch` holds the whole present log.
    pub gap: Option<GapReason>,
    /// Another file has taken the path; the reader is gone.
    pub moved: bool,
    /// The reader failed and is gone; the first reader takes the error.
    pub failed: Option<WalError>,
    /// After `failed` or `moved`: nothing more will come.
    pub has_ended: bool,
    /// The page size, once attached.
    pub page_size: Option<PageSize>,
    /// The log is far longer than applications let it grow.
    pub wants_checkpoint: bool,
    /// The last barrier passed: everything published before it was asked for is in here.
    pub barrier: u64,
    /// At that barrier the log held nothing behind what is captured, published or not.
    pub at_end: bool,
    /// At that barrier the database file held everything that the WAL does.
    pub is_backfilled: bool,
    /// No other process has the database open.
    pub is_alone: bool,
    /// The whole present log, when it was asked for, or why there is no room for it.
    pub log: Option<Result<Batch, WalError>>,
    /// The reader is gone, and with it every lock of ours: after a detach, a failure, a move.
    pub gone: bool,
}

impl PendingCapture {
    /// At the last barrier everything was captured, and somebody has taken it.
    pub fn is_all_taken(&self) -> bool {
        self.batch.is_none() && self.gap.is_none() && self.at_end
    }
}

/// Age and size of the commits of one database that no captured file holds yet.
///
/// The reported lag is read from here, so it is true at every moment, whatever the driver of the
/// database does. Each change happens under the lock of the mailbox, except [`UnwrittenCommits::written`] and
/// [`UnwrittenCommits::changed`].
#[derive(Debug, Default)]
pub struct UnwrittenCommits(Mutex<Ages>);

/// Time of the oldest commit, in Unix milliseconds, and bytes of page images.
type Age = Option<(i64, u64)>;

#[derive(Debug, Default, Clone, Copy)]
struct Ages {
    /// Commits in the mailbox.
    waiting: Age,
    /// Commits whose pages are not in the mailbox: a resync has to find them.
    dropped: Age,
    /// Commits that the driver has taken and writes to a file.
    taken: Age,
}

impl Ages {
    fn all(self) -> impl Iterator<Item = (i64, u64)> {
        let each = [self.waiting, self.dropped, self.taken];
        each.into_iter().flatten()
    }
}

/// Adds the commits of `more` to those of `age`.
fn add(age: &mut Age, more: Age) {
    *age = match (*age, more) {
        (Some((one_ms, one)), Some((other_ms, other))) => Some((one_ms.min(other_ms), one + other)),
        (one, other) => one.or(other),
    };
}

impl UnwrittenCommits {
    /// When the oldest such commit was seen, in Unix milliseconds.
    pub fn oldest_ms(&self) -> Option<i64> {
        self.lock().all().map(|(first_ms, _)| first_ms).min()
    }

    /// Bytes of page images of such commits, as far as they were seen.
    pub fn bytes(&self) -> u64 {
        self.lock().all().map(|(_, bytes)| bytes).sum()
    }

    /// When the oldest commit that the driver has taken was seen, in Unix milliseconds.
    pub(crate) fn oldest_taken_ms(&self) -> Option<i64> {
        self.lock().taken.map(|(first_ms, _)| first_ms)
    }

    /// Everything that was taken is in a captured file, or turned out to change nothing.
    pub(crate) fn written(&self) {
        self.lock().taken = None;
    }

    /// The database was changed while it was not attached, at this time in Unix milliseconds at the
    /// earliest. A resync has to find the commits.
    pub(crate) fn changed(&self, first_ms: i64) {
        add(&mut self.lock().dropped, Some((first_ms, 0)));
    }

    /// A resync takes what was dropped until now.
    pub(crate) fn begin_resync(&self) {
        let mut ages = self.lock();
        let dropped = ages.dropped.take();
        add(&mut ages.taken, dropped);
    }

    /// No commit counts any more.
    pub(crate) fn clear(&self) {
        *self.lock() = Ages::default();
    }

    /// Commits wait in the mailbox; `bytes` is the size of all of them.
    fn pending(&self, first_ms: i64, bytes: u64) {
        let mut ages = self.lock();
        let first_ms = ages.waiting.map_or(first_ms, |(ms, _)| ms.min(first_ms));
        ages.waiting = Some((first_ms, bytes));
    }

    /// The driver takes what waits. It counts until it is written: after a failure, the resync that
    /// follows takes it again.
    fn take(&self) {
        let mut ages = self.lock();
        let waiting = ages.waiting.take();
        add(&mut ages.taken, waiting);
    }

    /// The pages of what waits are lost.
    fn drop_pages(&self) {
        let mut ages = self.lock();
        let waiting = ages.waiting.take();
        add(&mut ages.dropped, waiting);
    }

    fn lock(&self) -> MutexGuard<'_, Ages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the capture thread leaves what it finds in one database.
#[derive(Debug, Default)]
pub struct Mailbox {
    pending: Mutex<PendingCapture>,
    unwritten: Arc<UnwrittenCommits>,
    /// Counts changes of `pending`.
    version: watch::Sender<u64>,
}

impl Mailbox {
    /// An empty one, whose commits count in `unwritten`.
    pub(crate) fn new(unwritten: Arc<UnwrittenCommits>) -> Mailbox {
        Mailbox {
            unwritten,
            ..Mailbox::default()
        }
    }

    /// A receiver that hears of every change after this call.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    fn notify(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    /// Takes the commits that wait.
    pub fn take(&self) -> Option<Batch> {
        let mut pending = self.lock();
        // Under one lock: commits that arrive right after it must count as waiting.
        self.unwritten.take();
        pending.batch.take()
    }

    /// Takes the reason for which the database has to be read, before it is read: what is missed
    /// from here on is a new reason.
    pub(crate) fn begin_resync(&self) -> Option<GapReason> {
        let mut pending = self.lock();
        self.unwritten.begin_resync();
        pending.gap.take()
    }

    /// Says that the driver holds nothing that it has not written. Where nothing waits either, no
    /// commit is unwritten: what seemed to be a change was none.
    pub(crate) fn settle(&self) {
        let pending = self.lock();
        if pending.batch.is_none() && pending.gap.is_none() {
            self.unwritten.clear();
        }
    }

    /// What waits, to be read or taken.
    pub fn lock(&self) -> MutexGuard<'_, PendingCapture> {
        // The thread that could poison it takes the whole process down.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut PendingCapture)) {
        change(&mut self.lock());
        self.notify();
    }

    pub(super) fn deliver(&self, poll: Polled) {
        let mut pending = self.lock();
        match poll {
            Polled::Quiet | Polled::Moved => return,
            Polled::Captured(batch) => match &mut pending.batch {
                None => {
                    self.unwritten.pending(batch.first_ms, batch.pages.bytes());
                    pending.batch = Some(batch);
                }
                Some(earlier) => match earlier.append(batch) {
                    // Whoever will take the batch knows of it: a wake-up would cost more than this.
                    Ok(()) => {
                        self.unwritten
                            .pending(earlier.first_ms, earlier.pages.bytes());
                        return;
                    }
                    Err(error) => {
                        pending.batch = None;
                        pending.failed = Some(WalError::Spill(error));
                        pending.has_ended = true;
                        self.unwritten.drop_pages();
                    }
                },
            },
            // Earlier pages may be older than what the database file holds by now: drop them.
            Polled::Gap(reason, batch) => {
                self.unwritten.drop_pages();
                self.unwritten.pending(batch.first_ms, batch.pages.bytes());
                pending.batch = Some(batch);
                pending.gap = Some(reason);
            }
        }
        drop(pending);
        self.notify();
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::pages::page_set::{PageSet, Spill};
    use crate::source::wal::LogPosition;

    /// Commits of these pages, most of which lie in `directory`.
    fn batch(numbers: std::ops::Range<u32>, directory: &Path) -> Batch {
        let mut pages = PageSet::new(PageSize::MIN, &Spill::with_memory(directory, 0));
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
        let mailbox = Mailbox::default();
        // Nothing can be kept there.
        mailbox.deliver(Polled::Captured(batch(1..2, &file.join("below"))));
        assert!(mailbox.lock().batch.is_some());
        mailbox.deliver(Polled::Captured(batch(2..99, directory.path())));
        let pending = mailbox.lock();
        assert!(matches!(pending.failed, Some(WalError::Spill(_))));
        assert!(pending.batch.is_none(), "half of it would be taken for all");
    }

    #[test]
    fn what_is_left_to_take_or_to_heal_or_lies_behind_the_end_is_not_all() {
        let directory = tempfile::tempdir().unwrap();
        let at_end = || PendingCapture {
            at_end: true,
            ..PendingCapture::default()
        };
        assert!(at_end().is_all_taken());
        for pending in [
            PendingCapture::default(),
            PendingCapture {
                batch: Some(batch(1..2, directory.path())),
                ..at_end()
            },
            PendingCapture {
                gap: Some(GapReason::CommitsMissed),
                ..at_end()
            },
        ] {
            assert!(!pending.is_all_taken(), "{pending:?}");
        }
    }

    #[test]
    fn commits_count_from_the_moment_they_are_seen_until_they_are_sealed() {
        let directory = tempfile::tempdir().unwrap();
        let unwritten = Arc::new(UnwrittenCommits::default());
        let mailbox = Mailbox::new(Arc::clone(&unwritten));
        let seen = |first_ms, pages| Batch {
            first_ms,
            ..batch(pages, directory.path())
        };
        assert_eq!((unwritten.oldest_ms(), unwritten.bytes()), (None, 0));
        mailbox.deliver(Polled::Captured(seen(100, 1..3)));
        mailbox.deliver(Polled::Captured(seen(200, 2..5)));
        assert_eq!(
            (unwritten.oldest_ms(), unwritten.bytes()),
            (Some(100), 4 * 512)
        );
        assert!(mailbox.take().is_some());
        mailbox.deliver(Polled::Captured(seen(300, 1..2)));
        assert_eq!(
            (unwritten.oldest_ms(), unwritten.bytes()),
            (Some(100), 5 * 512)
        );
        unwritten.written();
        assert_eq!((unwritten.oldest_ms(), unwritten.bytes()), (Some(300), 512));
        // Commits that were missed are as old as those that were found before, also where the driver
        // was writing others just then.
        assert!(mailbox.take().is_some());
        mailbox.deliver(Polled::Captured(seen(350, 1..2)));
        mailbox.deliver(Polled::Gap(GapReason::CommitsMissed, seen(400, 1..2)));
        unwritten.written();
        assert_eq!(unwritten.oldest_ms(), Some(350));
        assert!(mailbox.begin_resync().is_some() && mailbox.take().is_some());
        assert_eq!(unwritten.oldest_ms(), Some(350), "until it is written");
        mailbox.deliver(Polled::Gap(GapReason::CommitsMissed, seen(500, 1..2)));
        unwritten.written();
        assert_eq!(unwritten.oldest_ms(), Some(500), "missed during the resync");
        mailbox.settle();
        assert_eq!(unwritten.oldest_ms(), Some(500), "a resync is due");
        assert!(mailbox.begin_resync().is_some() && mailbox.take().is_some());
        unwritten.changed(50);
        unwritten.written();
        assert_eq!(unwritten.oldest_ms(), Some(50));
        mailbox.settle();
        assert_eq!(unwritten.oldest_ms(), None);
    }
}
