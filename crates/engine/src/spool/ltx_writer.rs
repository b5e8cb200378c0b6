//! Writes captured pages as an LTX file, which is proven before it has a name.

use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use ltx::{Encoder, Header, LtxError, Txid, page_checksum};
use sqlite_format::{FRAME_HEADER_BYTES, PageSize, Salts, WAL_HEADER_BYTES};

use crate::env::disk::{Disk, is_disk_full};
use crate::pages::page_hashes::PageHashes;
use crate::pages::page_set::PageSet;
use crate::source::wal::WalPosition;
use crate::spool::state_dir::{LocalError, LocalFile, LocalState};

/// A delta about to be written.
#[derive(Debug)]
pub struct Delta {
    /// The pages that changed.
    pub pages: PageSet,
    /// Size of the database in pages.
    pub commit: u32,
    /// Position in the WAL, for a program that takes over: Litestream needs it in the newest file.
    pub position: Option<(WalPosition, u64)>,
    /// Time at which its newest commit was seen, in Unix milliseconds.
    pub timestamp_ms: i64,
}

/// Why a file was not written. Nothing was published, and the page hashes are unchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// A restore would miss this page: the delta does not cover the growth of the database.
    #[error("page {pgno} of {commit} is in no file")]
    Uncovered {
        /// The first missing page.
        pgno: u32,
        /// The size of the database in pages.
        commit: u32,
    },
    /// The local disk failed.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// A temporary file could not be written.
    #[error("write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The LTX encoder refused its input.
    #[error(transparent)]
    Ltx(#[from] LtxError),
}

/// Offset and size in the WAL, in the form that a Litestream can take over from. The offset is at
/// least the size of the WAL header, and salts are never zero.
#[derive(Debug, Clone, Copy)]
struct WalRange {
    offset: i64,
    size: i64,
    salts: Salts,
}

impl WalRange {
    fn new(position: Option<(WalPosition, u64)>, page_size: PageSize) -> WalRange {
        let start = WAL_HEADER_BYTES as i64;
        let unknown = WalRange {
            offset: start,
            size: 0,
            salts: Salts { salt1: 1, salt2: 1 },
        };
        let Some((position, offset)) = position else {
            return unknown;
        };
        if position.frames == 0 || position.salts == (0, 0) {
            return unknown;
        }
        let frame_bytes = (FRAME_HEADER_BYTES + page_size.as_usize()) as i64;
        let end = start + i64::from(position.frames) * frame_bytes;
        let offset = i64::try_from(offset).unwrap_or(start).clamp(start, end);
        let salts = Salts {
            salt1: position.salts.0,
            salt2: position.salts.1,
        };
        WalRange {
            offset,
            size: end - offset,
            salts,
        }
    }
}

/// Writes `delta` as the captured file of `txid` and advances `hashes`.
///
/// The file is durable before it has its name. Before that it is proven: the delta holds every page
/// that the database gained.
///
/// # Errors
///
/// See [`WriteError`]; on any error nothing has changed.
pub fn write_delta(
    local: &LocalState,
    hashes: &mut PageHashes,
    delta: &mut Delta,
    txid: Txid,
    epoch: u64,
) -> Result<LocalFile, WriteError> {
    delta.pages.truncate(delta.commit);
    if let Some(pgno) = hashes.first_gap(delta.commit, |pgno| delta.pages.contains(pgno)) {
        return Err(WriteError::Uncovered {
            pgno,
            commit: delta.commit,
        });
    }
    // Litestream searches the pages for the last frame of the range. It reads on after the range
    // even if it then needs a snapshot. So a file without pages has no range.
    let known = delta.position.filter(|_| !delta.pages.is_empty());
    let range = WalRange::new(known, hashes.page_size());
    let header = Header {
        min_txid: txid,
        max_txid: txid,
        wal_offset: range.offset,
        wal_size: range.size,
        wal_salts: range.salts,
        ..plain_header(hashes.page_size(), delta.commit, delta.timestamp_ms, epoch)
    };
    let path = local.captured_path(txid);
    let (bytes, changed) = write_file(local.disk(), &path, header, &delta.pages)?;
    hashes.apply(changed, delta.commit);
    Ok(LocalFile {
        txid,
        bytes,
        timestamp_ms: delta.timestamp_ms,
    })
}

/// The header of a snapshot of these pages at `txid`.
pub(crate) fn snapshot_header(
    hashes: &PageHashes,
    txid: Txid,
    timestamp_ms: i64,
    epoch: u64,
) -> Header {
    Header {
        min_txid: Txid::FIRST,
        max_txid: txid,
        ..plain_header(hashes.page_size(), hashes.commit(), timestamp_ms, epoch)
    }
}

fn plain_header(page_size: PageSize, commit: u32, timestamp_ms: i64, epoch: u64) -> Header {
    Header {
        flags: Header::NO_CHECKSUM,
        page_size,
        commit,
        min_txid: Txid::ZERO,
        max_txid: Txid::ZERO,
        timestamp_ms,
        pre_apply: 0,
        wal_offset: 0,
        wal_size: 0,
        wal_salts: Salts { salt1: 0, salt2: 0 },
        node_id: epoch,
        reserved: [0; 20],
    }
}

/// Writes the pages beside `path`, makes them durable, then gives the file its name.
fn write_file(
    disk: &dyn Disk,
    path: &Path,
    header: Header,
    pages: &PageSet,
) -> Result<(u64, Vec<(u32, u64)>), WriteError> {
    let failed = |source| WriteError::Write {
        path: path.to_owned(),
        source,
    };
    let temporary = path.with_extension("tmp");
    let written = write_temporary(disk, &temporary, header, pages).and_then(|written| {
        // The bytes before the name, and the name before any upload.
        disk.rename(&temporary, path).map_err(failed)?;
        disk.sync_directory(path.parent().expect("a captured file lies in a directory"))
            .map_err(failed)?;
        Ok(written)
    });
    if written.is_err() {
        // Otherwise a full disk stays full. If the removal fails, the next start removes the file.
        let _removed = disk.remove(&temporary);
    }
    written
}

fn write_temporary(
    disk: &dyn Disk,
    temporary: &Path,
    header: Header,
    pages: &PageSet,
) -> Result<(u64, Vec<(u32, u64)>), WriteError> {
    let failed = |source| WriteError::Write {
        path: temporary.to_owned(),
        source,
    };
    let commit = header.commit;
    let file = disk.create(temporary).map_err(failed)?;
    let mut encoder = Encoder::new(BufWriter::with_capacity(256 << 10, file), header)?;
    let mut hashes = Vec::with_capacity(pages.len());
    let mut image = Vec::new();
    for pgno in pages.numbers().take_while(|pgno| *pgno <= commit) {
        if pgno == header.page_size.lock_pgno() {
            continue;
        }
        pages.read(pgno, &mut image).map_err(failed)?;
        encoder.encode_page(pgno, &image)?;
        hashes.push((pgno, page_checksum(pgno, &image)));
    }
    let (writer, summary) = encoder.finish()?;
    let file = writer
        .into_inner()
        .map_err(|error| failed(error.into_error()))?;
    disk.sync(&file, temporary).map_err(failed)?;
    Ok((summary.bytes, hashes))
}

impl WriteError {
    /// True when the disk is full.
    pub fn is_disk_full(&self) -> bool {
        match self {
            WriteError::Local(error) => error.is_disk_full(),
            WriteError::Write { source, .. } => is_disk_full(source),
            WriteError::Ltx(LtxError::Io(error)) => is_disk_full(error),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::host::Host;
    use crate::pages::page_set::Spill;

    /// A delta of these pages, all of zeros.
    fn delta(local: &LocalState, numbers: &[u32], commit: u32) -> Delta {
        let mut pages = PageSet::new(
            PageSize::MIN,
            &Spill::with_memory(local.directory(), 1 << 20),
        );
        for pgno in numbers {
            pages.insert(*pgno, &[0; 512]).unwrap();
        }
        Delta {
            pages,
            commit,
            position: None,
            timestamp_ms: 1,
        }
    }

    fn files(local: &LocalState) -> usize {
        let directory = local.directory().join("ltx/0");
        std::fs::read_dir(directory).unwrap().count()
    }

    #[test]
    fn a_page_that_no_file_has_is_never_promised() {
        let directory = tempfile::tempdir().unwrap();
        let local = LocalState::open(directory.path(), &Host::default().disk).unwrap();
        let mut hashes = PageHashes::new(PageSize::MIN);
        hashes.set(1, &[0; 512]);
        hashes.set(2, &[0; 512]);
        let before = hashes.clone();
        let mut grown = delta(&local, &[1, 4], 4);
        let refused = write_delta(&local, &mut hashes, &mut grown, Txid::new(2), 1);
        assert!(matches!(
            refused,
            Err(WriteError::Uncovered { pgno: 3, commit: 4 })
        ));
        assert_eq!(hashes, before);
        assert_eq!(files(&local), 0);
        let mut whole = delta(&local, &[3, 4], 4);
        write_delta(&local, &mut hashes, &mut whole, Txid::new(2), 1).unwrap();
        assert_eq!((hashes.commit(), files(&local)), (4, 1));
    }
}
