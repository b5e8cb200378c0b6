//! Scans: reading a whole database, for the hash of each page, and to find the changed pages when
//! frames were missed.
//!
//! The pages are read without a lock while the application writes. So single pages may be newer
//! than others, or torn by a running checkpoint. Every such page has its frame in the part of the
//! WAL that was published since the scan began. So the scan is good once those frames are applied
//! to it, in whatever order the pages were read.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ltx::page_checksum;
use sqlite_format::{DatabaseHeader, FormatError, PageSize};

use crate::env::files::{Fingerprint, cold_fingerprint};
use crate::pages::page_hashes::PageHashes;
use crate::pages::page_set::{PageSet, Spill};
use crate::source::open_files::PlainFile;
use crate::source::sqlite::{Connection, SqliteError};

/// Bytes read at once.
const CHUNK_BYTES: usize = 1 << 20;
/// Changed pages that a scan keeps in any case, in bytes; beyond that, at most half of the
/// database. With more, a new snapshot is smaller than the delta.
const CHANGED_BYTES: u64 = 16 << 20;

/// Why a database could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScanError {
    /// SQLite refused.
    #[error(transparent)]
    Sqlite(#[from] SqliteError),
    /// The file could not be read.
    #[error("read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The pages could not be written to the local disk.
    #[error("keep pages: {0}")]
    Spill(#[source] io::Error),
    /// The file is not a database.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// An application wrote while we read a database that was not open.
    #[error("the database changed while it was read")]
    Disturbed,
}

/// Reaction of a scan when the budget of local state has no room for the changed pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFull {
    /// The scan fails: there will be room when the waiting files are stored.
    Fail,
    /// The scan keeps hashes only: a snapshot replaces the delta.
    KeepHashes,
}

/// Result of a scan.
#[derive(Debug)]
pub struct Scan {
    /// The hash of every page, as it was read.
    pub hashes: PageHashes,
    /// The pages that differ from the known ones. None when no pages were known, or when so many
    /// differ that a snapshot is better than a delta.
    pub changed: Option<PageSet>,
}

/// Reads every page of a database that the application has open. The result is good only with the
/// frames applied that were published since.
///
/// # Errors
///
/// See [`ScanError`].
pub fn scan_live(
    path: &Path,
    page_size: PageSize,
    known: Option<&PageHashes>,
    on_full: OnFull,
    spill: &Spill,
) -> Result<Scan, ScanError> {
    let connection = Connection::open(path)?;
    let bytes = connection.database_bytes()?;
    scan_pages(
        page_size,
        bytes,
        (known, on_full),
        spill,
        |buffer, offset| {
            connection
                .read_database(buffer, offset)
                .map_err(ScanError::from)
        },
    )
}

/// Reads a database that is not open, and must not be opened meanwhile.
///
/// It opens the file itself, which it does not do while this process has a SQLite connection to it.
///
/// # Errors
///
/// See [`ScanError`]; [`ScanError::Disturbed`] when the database was opened or changed meanwhile.
pub fn scan_cold(
    path: &Path,
    fingerprint: Fingerprint,
    known: Option<&PageHashes>,
    on_full: OnFull,
    spill: &Spill,
) -> Result<Scan, ScanError> {
    let failed = |source| ScanError::Read {
        path: path.to_owned(),
        source,
    };
    let Some(plain) = PlainFile::open(path).map_err(failed)? else {
        return Err(ScanError::Disturbed);
    };
    let file = plain.file();
    let mut start = [0u8; 100];
    file.read_exact_at(&mut start, 0).map_err(failed)?;
    let page_size = DatabaseHeader::parse(&start)?.page_size;
    let known = known.filter(|hashes| hashes.page_size() == page_size);
    let bytes = fingerprint.size();
    let found = scan_pages(
        page_size,
        bytes,
        (known, on_full),
        spill,
        |buffer, offset| file.read_exact_at(buffer, offset).map_err(failed),
    )?;
    if cold_fingerprint(path).map_err(failed)? != Some(fingerprint) {
        return Err(ScanError::Disturbed);
    }
    Ok(found)
}

/// Reads the pages of a file of `bytes` bytes with `read`, which fills a buffer from an offset on.
///
/// # Errors
///
/// Those of `read`, and [`ScanError::Spill`].
pub fn scan_pages(
    page_size: PageSize,
    bytes: u64,
    (known, on_full): (Option<&PageHashes>, OnFull),
    spill: &Spill,
    mut read: impl FnMut(&mut [u8], u64) -> Result<(), ScanError>,
) -> Result<Scan, ScanError> {
    let size = page_size.as_usize();
    let count = u32::try_from(bytes / size as u64).map_err(|_| ScanError::Disturbed)?;
    let most_changed = CHANGED_BYTES.max(bytes / 2);
    let mut hashes = PageHashes::new(page_size);
    let mut changed = known.map(|known| (known, PageSet::new(page_size, spill)));
    let at_once = u32::try_from((CHUNK_BYTES / size).max(1)).expect("pages of a megabyte");
    let (mut buffer, mut new_hashes) = (Vec::new(), Vec::new());
    let mut next = 0;
    while next < count {
        let now = at_once.min(count - next);
        buffer.resize(now as usize * size, 0);
        read(&mut buffer, u64::from(next) * size as u64)?;
        new_hashes.clear();
        for (pgno, image) in (next + 1..).zip(buffer.chunks_exact(size)) {
            if pgno == page_size.lock_pgno() {
                continue;
            }
            let hash = page_checksum(pgno, image);
            new_hashes.push((pgno, hash));
            if let Some((known, pages)) = &mut changed
                && !known.matches(pgno, hash)
            {
                match pages.insert(pgno, image) {
                    Ok(()) if pages.bytes() <= most_changed => {}
                    Ok(()) => changed = None,
                    Err(error) if is_over_budget(&error) && on_full == OnFull::KeepHashes => {
                        changed = None;
                    }
                    Err(error) => return Err(ScanError::Spill(error)),
                }
            }
        }
        next += now;
        hashes.apply(new_hashes.iter().copied(), next);
    }
    Ok(Scan {
        hashes,
        changed: changed.map(|(_, pages)| pages),
    })
}

/// Drops pages whose content `known` already has. For a delta found by comparison.
///
/// # Errors
///
/// The spilled pages cannot be read.
pub fn drop_unchanged(pages: &mut PageSet, known: &PageHashes) -> Result<(), ScanError> {
    let mut image = Vec::new();
    let mut unchanged = std::collections::BTreeSet::new();
    for pgno in pages.numbers() {
        pages.read(pgno, &mut image).map_err(ScanError::Spill)?;
        if known.matches(pgno, page_checksum(pgno, &image)) {
            unchanged.insert(pgno);
        }
    }
    pages.retain(|pgno| !unchanged.contains(&pgno));
    Ok(())
}

/// Whether a page was not kept because the budget of local state is used up.
fn is_over_budget(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::QuotaExceeded
}

impl ScanError {
    /// True when the local disk is full.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, ScanError::Spill(error) if crate::env::disk::is_disk_full(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_that_is_written_while_it_is_read_is_not_taken() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db");
        let application = rusqlite::Connection::open(&path).unwrap();
        application.execute_batch("CREATE TABLE t(x)").unwrap();
        let spill = Spill::with_memory(directory.path(), 1 << 20);
        let scan = |fingerprint| scan_cold(&path, fingerprint, None, OnFull::Fail, &spill);
        let before = cold_fingerprint(&path).unwrap().unwrap();
        assert_eq!(scan(before).unwrap().hashes.commit(), 2);
        application.execute_batch("CREATE TABLE u(x)").unwrap();
        assert!(matches!(scan(before), Err(ScanError::Disturbed)));
        // A database whose application opens it in WAL mode is refused, too.
        let now = cold_fingerprint(&path).unwrap().unwrap();
        application
            .execute_batch("PRAGMA journal_mode=WAL; INSERT INTO t VALUES(1)")
            .unwrap();
        assert!(matches!(scan(now), Err(ScanError::Disturbed)));
    }

    #[test]
    fn a_scan_keeps_changed_pages_until_they_are_most_of_a_large_database() {
        let directory = tempfile::tempdir().unwrap();
        let spill = Spill::with_memory(directory.path(), 1 << 20);
        let page_size = PageSize::new(65_536).unwrap();
        let pages = 1024_u32;
        let read = |byte: u8, pages: u64| {
            move |buffer: &mut [u8], offset: u64| {
                for (page, image) in buffer.chunks_exact_mut(65_536).enumerate() {
                    let is_changed = offset / 65_536 + (page as u64) < pages;
                    image.fill(if is_changed { byte } else { 0 });
                }
                Ok(())
            }
        };
        let bytes = u64::from(pages) * 65_536;
        let known = (None, OnFull::Fail);
        let known = scan_pages(page_size, bytes, known, &spill, read(1, 100)).unwrap();
        assert!(known.changed.is_none(), "nothing was known");
        for (changed, kept) in [(100, true), (512, true), (513, false), (1024, false)] {
            let known = (Some(&known.hashes), OnFull::Fail);
            let found = scan_pages(page_size, bytes, known, &spill, read(2, changed)).unwrap();
            let found_pages = found.changed.map(|pages| pages.len() as u64);
            assert_eq!(found_pages, kept.then_some(changed), "{changed}");
            assert_eq!(found.hashes.commit(), pages);
        }
    }
}
