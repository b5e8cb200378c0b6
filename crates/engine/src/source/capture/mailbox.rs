//! The mailbox in which the capture thread leaves the commits of one database.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sqlite_format::PageSize;
use tokio::sync::watch;

use crate::source::wal::{Batch, GapReason, Polled, WalError};

/// Results of the capture thread for one database, until the driver takes them.
#[derive(Debug, Default)]
pub struct PendingCapture {
    /// Captured commits, appended in order.
    pub batch: Option<Batch>,
    /// Commits before `batch` may have been missed. Then `batch` holds the whole present WAL.
    pub gap: Option<GapReason>,
    /// Another file has taken the path, and the WAL reader is gone.
    pub moved: bool,
    /// The WAL reader failed and is gone. The first task that checks takes the error.
    pub failed: Option<WalError>,
    /// After `failed` or `moved`: no more results will come.
    pub has_ended: bool,
    /// The page size, once attached.
    pub page_size: Option<PageSize>,
    /// The WAL is far longer than applications let it grow.
    pub wants_checkpoint: bool,
    /// The last poll that was requested and made.
    pub poll: u64,
    /// The last barrier passed. Everything published before it was requested is in here.
    pub barrier: u64,
    /// At that barrier the WAL held nothing after the captured commits, published or not.
    pub at_end: bool,
    /// At that barrier the database file held every page of the WAL.
    pub is_backfilled: bool,
    /// No other process has the database open.
    pub is_alone: bool,
    /// The whole present WAL, if it was requested, or why there is no room for it.
    pub wal: Option<Result<Batch, WalError>>,
    /// The WAL reader is gone, and with it all our locks: after a detach, a failure or a move.
    pub gone: bool,
}

impl PendingCapture {
    /// Nothing waits for the driver.
    pub fn is_taken(&self) -> bool {
        self.batch.is_none() && self.gap.is_none()
    }

    /// True when everything was captured at the last barrier, and the driver has taken it.
    pub fn is_all_taken(&self) -> bool {
        self.is_taken() && self.at_end
    }
}

/// Age and size of the commits of one database that no captured file holds yet.
///
/// The reported lag is read from here, so it is correct at every moment, whatever the driver of
/// the database does. Each change happens under the lock of the mailbox, except
/// [`UnwrittenCommits::written`] and [`UnwrittenCommits::changed`].
#[derive(Debug, Default)]
pub struct UnwrittenCommits(Mutex<Ages>);

/// Time of the oldest commit, in Unix milliseconds, and bytes of page images.
type Age = Option<(i64, u64)>;

#[derive(Debug, Default, Clone, Copy)]
struct Ages {
    /// Commits in the mailbox.
    waiting: Age,
    /// Commits whose pages are not in the mailbox: a resync must find them.
    dropped: Age,
    /// Commits that the driver has taken and is writing to a file.
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
    /// When the oldest unwritten commit was seen, in Unix milliseconds.
    pub fn oldest_ms(&self) -> Option<i64> {
        self.lock().all().map(|(first_ms, _)| first_ms).min()
    }

    /// Bytes of page images of unwritten commits, as far as they were seen.
    pub fn bytes(&self) -> u64 {
        self.lock().all().map(|(_, bytes)| bytes).sum()
    }

    /// When the oldest commit that the driver has taken was seen, in Unix milliseconds.
    pub(crate) fn oldest_taken_ms(&self) -> Option<i64> {
        self.lock().taken.map(|(first_ms, _)| first_ms)
    }

    /// Every taken commit is in a captured file, or proved to change nothing.
    pub(crate) fn written(&self) {
        self.lock().taken = None;
    }

    /// The database changed while it was not attached, at this time in Unix milliseconds at the
    /// earliest. A resync must find the commits.
    pub(crate) fn changed(&self, first_ms: i64) {
        add(&mut self.lock().dropped, Some((first_ms, 0)));
    }

    /// A resync takes over the commits that were dropped until now.
    pub(crate) fn begin_resync(&self) {
        let mut ages = self.lock();
        let dropped = ages.dropped.take();
        add(&mut ages.taken, dropped);
    }

    /// Forgets all commits.
    pub(crate) fn clear(&self) {
        *self.lock() = Ages::default();
    }

    /// Commits wait in the mailbox. `bytes` is the size of all of them.
    fn waits(&self, first_ms: i64, bytes: u64) {
        let mut ages = self.lock();
        let first_ms = ages.waiting.map_or(first_ms, |(ms, _)| ms.min(first_ms));
        ages.waiting = Some((first_ms, bytes));
    }

    /// The driver takes the waiting commits. They count until they are written: after a failure,
    /// the next resync takes them again.
    fn take(&self) {
        let mut ages = self.lock();
        let waiting = ages.waiting.take();
        add(&mut ages.taken, waiting);
    }

    /// The pages of the waiting commits are lost.
    fn drop_pages(&self) {
        let mut ages = self.lock();
        let waiting = ages.waiting.take();
        add(&mut ages.dropped, waiting);
    }

    fn lock(&self) -> MutexGuard<'_, Ages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The mailbox of one database, which the capture thread fills.
#[derive(Debug, Default)]
pub struct Mailbox {
    pending: Mutex<PendingCapture>,
    unwritten: Arc<UnwrittenCommits>,
    /// Counts changes of `pending`.
    version: watch::Sender<u64>,
}

impl Mailbox {
    /// Creates an empty mailbox, whose commits count in `unwritten`.
    pub fn new(unwritten: Arc<UnwrittenCommits>) -> Mailbox {
        Mailbox {
            unwritten,
            ..Mailbox::default()
        }
    }

    /// A receiver that sees every change after this call.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    fn notify(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    /// Takes the waiting commits.
    pub fn take(&self) -> Option<Batch> {
        let mut pending = self.lock();
        // Under one lock, so that commits that arrive right afterwards count as waiting.
        self.unwritten.take();
        pending.batch.take()
    }

    /// Takes the reason for a resync before the database is read. Commits missed from here on give
    /// a new reason.
    pub(crate) fn begin_resync(&self) -> Option<GapReason> {
        let mut pending = self.lock();
        self.unwritten.begin_resync();
        pending.gap.take()
    }

    /// Reports that capture continues where the driver is: the mailbox has every commit that may have
    /// been made before, so the next file, or [`Mailbox::settle`], covers them.
    pub(crate) fn resumed(&self) {
        let pending = self.lock();
        if pending.gap.is_none() {
            self.unwritten.begin_resync();
        }
    }

    /// Reports that the driver holds no unwritten commit. If none waits either, no commit is
    /// unwritten, and a suspected change was none.
    pub(crate) fn settle(&self) {
        let pending = self.lock();
        if pending.is_taken() {
            self.unwritten.clear();
        }
    }

    /// The pending results, to be read or taken.
    pub fn lock(&self) -> MutexGuard<'_, PendingCapture> {
        // A panic of the capture thread would poison it, but aborts the process.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the pending results.
    pub fn update(&self, change: impl FnOnce(&mut PendingCapture)) {
        change(&mut self.lock());
        self.notify();
    }

    /// Delivers the result of a poll.
    pub fn deliver(&self, poll: Polled) {
        let mut pending = self.lock();
        match poll {
            Polled::Quiet | Polled::Moved => return,
            Polled::Captured(batch) => match &mut pending.batch {
                None => {
                    self.unwritten.waits(batch.first_ms, batch.pages.bytes());
                    pending.batch = Some(batch);
                }
                Some(earlier) => match earlier.append(batch) {
                    // The driver already knows of this batch: another wake-up would cost more than
                    // this.
                    Ok(()) => {
                        self.unwritten
                            .waits(earlier.first_ms, earlier.pages.bytes());
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
            // Earlier pages may be older than those in the database file by now: drop them.
            Polled::Gap(reason, batch) => {
                self.unwritten.drop_pages();
                self.unwritten.waits(batch.first_ms, batch.pages.bytes());
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
    use crate::source::wal::WalPosition;

    /// Commits of these pages, most of which are stored in `directory`.
    fn batch(numbers: std::ops::Range<u32>, directory: &Path) -> Batch {
        let mut pages = PageSet::new(PageSize::MIN, &Spill::with_memory(directory, 0));
        for pgno in numbers {
            pages.insert(pgno, &[1; 512]).unwrap();
        }
        Batch {
            pages,
            commit: 99,
            position: WalPosition {
                salts: (1, 1),
                big_endian: false,
                frames: 64,
                checksum: (0, 0),
                change: 1,
            },
            wal_offset: 32,
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
        // Nothing can be stored there.
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
        // Missed commits are as old as the captured ones before them, even if the driver was
        // writing others at that moment.
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

    #[test]
    fn a_suspected_change_ends_with_the_next_file_when_capture_continues() {
        let directory = tempfile::tempdir().unwrap();
        let unwritten = Arc::new(UnwrittenCommits::default());
        let mailbox = Mailbox::new(Arc::clone(&unwritten));
        unwritten.changed(50);
        mailbox.deliver(Polled::Captured(batch(1..3, directory.path())));
        mailbox.resumed();
        // Under load there is always a next batch, so nothing settles.
        assert!(mailbox.take().is_some());
        assert_eq!(unwritten.oldest_taken_ms(), Some(0));
        mailbox.deliver(Polled::Captured(batch(1..3, directory.path())));
        unwritten.written();
        assert_eq!(unwritten.bytes(), 2 * 512);
        assert!(mailbox.take().is_some());
        unwritten.written();
        assert_eq!(unwritten.oldest_ms(), None);
    }

    #[test]
    fn a_suspected_change_stays_while_commits_may_be_missing() {
        let directory = tempfile::tempdir().unwrap();
        let unwritten = Arc::new(UnwrittenCommits::default());
        let mailbox = Mailbox::new(Arc::clone(&unwritten));
        unwritten.changed(-5);
        let found = batch(1..3, directory.path());
        mailbox.deliver(Polled::Gap(GapReason::Fresh, found));
        mailbox.resumed();
        assert!(mailbox.take().is_some());
        unwritten.written();
        assert_eq!(unwritten.oldest_ms(), Some(-5), "until the resync");
    }
}
