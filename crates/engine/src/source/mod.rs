//! The database of the application: SQLite, its files, and the capture of its commits.

pub mod capture;
mod checkpoint;
pub mod open_files;
pub mod probe;
pub mod read_mark;
pub mod scan;
pub mod sqlite;
pub mod wal;

use std::fmt::Debug;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use sqlite_format::PageSize;

use crate::env::files::{self, Fingerprint, with_suffix};
use crate::pages::page_hashes::PageHashes;
use crate::pages::page_set::Spill;
use capture::{Attached, Capture, IdleWatch, UnwrittenCommits};
use probe::Probe;
use read_mark::ReadMark;
use scan::{OnFull, Scan, ScanError};
use sqlite::{Connection, SqliteError};
use wal::Start;

/// Access to the databases of applications. [`Capture`] implements it for SQLite. A simulation has
/// databases of its own.
///
/// The methods that read or write a database wait for the disk, so they run on a thread that may
/// block: [`Source::scan_live`], [`Source::scan_cold`], [`Source::checkpoint`] and
/// [`Source::read_mark`].
pub trait Source: Debug + Send + Sync {
    /// Finds out what is at a path: see [`probe::probe`].
    fn probe(&self, path: &Path) -> Probe;

    /// The fingerprint of a file; none when it is missing.
    ///
    /// # Errors
    ///
    /// The directory cannot be read.
    fn fingerprint(&self, path: &Path) -> io::Result<Option<Fingerprint>>;

    /// Starts to capture the commits of a database: see [`Capture::attach`].
    fn attach(
        &self,
        path: &Path,
        spill: &Spill,
        start: Start,
        unwritten: &Arc<UnwrittenCommits>,
    ) -> Attached;

    /// Reads every page of a database that is open: see [`scan::scan_live`].
    ///
    /// # Errors
    ///
    /// See [`ScanError`].
    fn scan_live(
        &self,
        path: &Path,
        page_size: PageSize,
        known: Option<&PageHashes>,
        on_full: OnFull,
        spill: &Spill,
    ) -> Result<Scan, ScanError>;

    /// Reads a database that is not open: see [`scan::scan_cold`].
    ///
    /// # Errors
    ///
    /// See [`ScanError`].
    fn scan_cold(
        &self,
        path: &Path,
        fingerprint: Fingerprint,
        known: Option<&PageHashes>,
        on_full: OnFull,
        spill: &Spill,
    ) -> Result<Scan, ScanError>;

    /// Copies the WAL of a database that is open into its file without waiting for another
    /// process. With `may_resort`, makes writers restart a WAL that still grows. Returns none if
    /// that was not tried, else whether it helped.
    ///
    /// # Errors
    ///
    /// The refusal of SQLite.
    fn checkpoint(&self, path: &Path, may_resort: bool) -> Result<Option<bool>, SqliteError>;

    /// Takes a read mark without waiting.
    ///
    /// # Errors
    ///
    /// The refusal of SQLite, or no application has the database open.
    fn read_mark(&self, path: &Path) -> Result<ReadMark, SqliteError>;

    /// Waits for the turn of a database that is attached for the first time.
    fn turn(&self) -> BoxFuture<'_, ()>;

    /// Whether a database without writes should make room for others.
    fn is_crowded(&self) -> bool;

    /// Whether other databases wait for their turn.
    fn others_wait(&self) -> bool;

    /// Watches a file of an idle database: its next change or its next opening ends the rest. None
    /// where the system gives no such events.
    fn watch_idle(&self, path: &Path) -> Option<IdleWatch>;

    /// Pause between polls of an idle database that is watched.
    fn idle_pause(&self) -> Duration;
}

impl dyn Source {
    /// The fingerprint of a database without WAL; none when it is missing or has one.
    pub(crate) fn cold_fingerprint(&self, path: &Path) -> io::Result<Option<Fingerprint>> {
        if self.fingerprint(&with_suffix(path, "-wal"))?.is_some() {
            return Ok(None);
        }
        self.fingerprint(path)
    }

    /// The fingerprints of a database and of its WAL; none when one of them is missing.
    ///
    /// Equal fingerprints prove that nothing was written since, but only if the files had been
    /// idle for a while: file times advance in steps of some milliseconds.
    pub(crate) fn live_fingerprint(
        &self,
        path: &Path,
    ) -> io::Result<Option<(Fingerprint, Fingerprint)>> {
        let wal = self.fingerprint(&with_suffix(path, "-wal"))?;
        Ok(self.fingerprint(path)?.zip(wal))
    }
}

impl Source for Capture {
    fn probe(&self, path: &Path) -> Probe {
        probe::probe(path)
    }

    fn fingerprint(&self, path: &Path) -> io::Result<Option<Fingerprint>> {
        files::fingerprint(path)
    }

    fn attach(
        &self,
        path: &Path,
        spill: &Spill,
        start: Start,
        unwritten: &Arc<UnwrittenCommits>,
    ) -> Attached {
        Capture::attach(self, path, spill, start, unwritten)
    }

    fn scan_live(
        &self,
        path: &Path,
        page_size: PageSize,
        known: Option<&PageHashes>,
        on_full: OnFull,
        spill: &Spill,
    ) -> Result<Scan, ScanError> {
        scan::scan_live(path, page_size, known, on_full, spill)
    }

    fn scan_cold(
        &self,
        path: &Path,
        fingerprint: Fingerprint,
        known: Option<&PageHashes>,
        on_full: OnFull,
        spill: &Spill,
    ) -> Result<Scan, ScanError> {
        scan::scan_cold(path, fingerprint, known, on_full, spill)
    }

    fn checkpoint(&self, path: &Path, may_resort: bool) -> Result<Option<bool>, SqliteError> {
        checkpoint::shorten(&Connection::open(path)?, may_resort)
    }

    fn read_mark(&self, path: &Path) -> Result<ReadMark, SqliteError> {
        ReadMark::take(path)
    }

    fn turn(&self) -> BoxFuture<'_, ()> {
        Capture::turn(self).boxed()
    }

    fn is_crowded(&self) -> bool {
        Capture::is_crowded(self)
    }

    fn others_wait(&self) -> bool {
        Capture::others_wait(self)
    }

    fn watch_idle(&self, path: &Path) -> Option<IdleWatch> {
        Capture::watch_idle(self, path)
    }

    fn idle_pause(&self) -> Duration {
        Capture::idle_pause(self)
    }
}
