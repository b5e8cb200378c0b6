//! A snapshot: every page of the database as it was at one position, read while the application
//! writes. It is streamed to a store without a copy on our disk.
//!
//! A [`Cut`] defines the pages by a hash for each. A page is taken from the database file if its
//! image there has that hash. The cut itself holds the pages that were only in the WAL at its
//! position. So each page is proven without a lock, whatever the application does meanwhile. A
//! page that is overwritten before it is read ends the snapshot. The next attempt reads faster
//! than the store accepts data ([`Effort`]).

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ltx::{Encoder, Header, LtxError, page_checksum};
use sqlite_format::PageSize;
use store::{PutMeta, PutMode, SharedStore, Store, StoreError, StoreErrorKind};

use crate::env::budget::{Account, Budgets, Work};
use crate::env::threads::Threads;
use crate::replica::manifest;
use crate::source::open_files::PlainFile;
use crate::source::read_mark::ReadMark;
use crate::source::sqlite::{Connection, SqliteError};
use crate::spool::cut::Cut;
use crate::spool::ltx_writer::snapshot_header;
use crate::spool::queue::{Writer, queue};

/// Bytes of the database per read.
const CHUNK_BYTES: usize = 1 << 20;
/// Memory of one snapshot in progress: the read buffer, queued pieces, parts of the upload.
const WORK_BYTES: u64 = 22 << 20;
/// WAL size in bytes that ends a pinned snapshot, or a fourth of the database if that is more. The
/// read mark of the snapshot is what lets the WAL grow.
const PINNED_WAL_BYTES: u64 = 256 << 20;

/// How a snapshot keeps ahead of an application that overwrites its pages. After the application
/// has overtaken a snapshot, the next one uses more effort.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Effort {
    /// Read at the speed of the store: nothing on disk, no lock.
    #[default]
    Streamed,
    /// Read at the speed of the disk, into the free part of the local-state budget.
    Spooled,
    /// The same under a read mark, so that no page is overwritten while it is read. Meanwhile the
    /// WAL may grow, and a blocking checkpoint of the application waits. Used only where stored
    /// files cannot be compacted into a snapshot.
    Pinned,
}

impl Effort {
    /// The effort after a failure.
    #[must_use]
    pub fn more(self) -> Effort {
        match self {
            Effort::Streamed => Effort::Spooled,
            Effort::Spooled | Effort::Pinned => Effort::Pinned,
        }
    }
}

/// A page whose hash differs from that of the cut. If the next cut and the page both have the same
/// hashes again, no commit overwrote the page: the captured state is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overwritten {
    /// The page.
    pub pgno: u32,
    /// Its hash at the cut.
    pub expected: Option<u64>,
    /// Its hash in the database file.
    pub found: u64,
}

/// Why no snapshot was made. Nothing was stored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The application changed a page before it was read. Another attempt may succeed.
    #[error("page {} was overwritten before it was read", .0.pgno)]
    Overwritten(Overwritten),
    /// The WAL grew too long under the read mark of a pinned snapshot.
    #[error("the WAL has grown to {bytes} bytes while the snapshot was read")]
    WalTooLong {
        /// Size of the WAL.
        bytes: u64,
    },
    /// SQLite returned an error.
    #[error(transparent)]
    Sqlite(#[from] SqliteError),
    /// The database file cannot be read.
    #[error("read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// Our own disk failed.
    #[error("keep a part of the snapshot: {0}")]
    Spill(#[source] io::Error),
    /// The encoder rejected our input.
    #[error("encode the snapshot: {0}")]
    Encode(#[source] LtxError),
}

impl SnapshotError {
    /// The page that the application overwrote, if that is the reason. More [`Effort`] helps then.
    pub fn overwritten(&self) -> Option<Overwritten> {
        match self {
            SnapshotError::Overwritten(page) => Some(*page),
            _ => None,
        }
    }

    /// True when the local disk is full or its budget is used up.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, SnapshotError::Spill(error) if crate::env::disk::is_disk_full(error))
    }
}

/// The input and the destination of a snapshot.
pub struct Snapshot {
    /// Its content.
    pub cut: Arc<Cut>,
    /// The database file.
    pub database: PathBuf,
    /// Index of the target.
    pub target: usize,
    /// Our epoch at the target.
    pub epoch: u64,
    /// How it keeps ahead of the application.
    pub effort: Effort,
    /// The read mark of [`Effort::Pinned`].
    pub pin: Option<ReadMark>,
    /// Bytes of the last snapshot, if there was one: an estimate for this one.
    pub expected_bytes: Option<u64>,
    /// Directory for pieces that the store does not accept yet.
    pub directory: PathBuf,
    /// The budget of that directory.
    pub account: Arc<Account>,
}

/// Why [`Snapshot::store`] failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreSnapshotError {
    /// The snapshot could not be read.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Snapshot {
    /// Streams the snapshot to the store and returns its size there in bytes. An existing object
    /// of that name with our own header counts as this snapshot: the answer to an earlier attempt
    /// was lost.
    ///
    /// # Errors
    ///
    /// See [`StoreSnapshotError`]; nothing is stored then, unless the store's answer was lost.
    ///
    /// # Cancel safety
    ///
    /// If dropped, it stores nothing, and its thread ends at the next piece.
    pub async fn store(
        self,
        store: &SharedStore,
        budgets: &Budgets,
        threads: &dyn Threads,
    ) -> Result<u64, StoreSnapshotError> {
        let cut = Arc::clone(&self.cut);
        let header = snapshot_header(&cut.hashes, cut.txid, cut.timestamp_ms, self.epoch);
        let key = manifest::key(
            store.layout(),
            ltx::Level::SNAPSHOT.get(),
            header.file_name(),
        );
        let database_bytes = cut.database_bytes();
        let memory = WORK_BYTES.min(database_bytes * 3);
        let _memory = budgets.memory(Work::Snapshot, self.target, memory).await;
        // Without an earlier snapshot: incompressible data is a little longer than its pages.
        let most = database_bytes + database_bytes / 64 + 4096;
        let expected_bytes = self
            .expected_bytes
            .map_or(most, |bytes| most.min(bytes * 2));
        let spool = match self.effort {
            Effort::Streamed => None,
            Effort::Spooled | Effort::Pinned => Some(self.account.reserve(expected_bytes)),
        };
        let disk_bytes = spool.as_ref().map_or(0, |spool| spool.bytes());
        let (writer, stream) = queue(&self.directory, disk_bytes).map_err(SnapshotError::Spill)?;
        let read = threads.run(move || {
            let _spool = spool;
            encode(&self.database, &cut, self.pin, header, writer)
        });
        let meta = PutMeta {
            timestamp_ms: Some(header.timestamp_ms),
        };
        let stored = store
            .put_stream(&key, stream, expected_bytes, PutMode::Create, &meta)
            .await;
        // Reading ends with the stream, whichever side ended it.
        let read = read.await;
        match (stored, read) {
            (Ok(bytes), _) => Ok(bytes),
            (Err(error), _) if error.kind() == StoreErrorKind::Exists => {
                match stored_by_us(store, &key, &header).await? {
                    Some(bytes) => Ok(bytes),
                    None => Err(error.into()),
                }
            }
            (Err(_), Err(Some(error))) => Err(error.into()),
            (Err(error), _) => Err(error.into()),
        }
    }
}

/// The size of an object with exactly this header; none if its header differs.
pub(crate) async fn stored_by_us(
    store: &SharedStore,
    key: &str,
    header: &Header,
) -> Result<Option<u64>, StoreError> {
    let start = store.get(key, Some(0..ltx::HEADER_BYTES as u64)).await?;
    let ours = header.encode().ok();
    let is_ours = ours.is_some_and(|ours| ours[..] == start[..]);
    match is_ours {
        true => Ok(Some(store.head(key).await?.size)),
        false => Ok(None),
    }
}

/// Encodes the snapshot. Fails with none when the reader of the stream is gone.
fn encode(
    database: &Path,
    cut: &Cut,
    pin: Option<ReadMark>,
    header: Header,
    writer: Writer,
) -> Result<(), Option<SnapshotError>> {
    let failed = |error: LtxError| match error {
        LtxError::Io(error) if error.kind() == io::ErrorKind::BrokenPipe => None,
        LtxError::Io(error) => Some(SnapshotError::Spill(error)),
        error => Some(SnapshotError::Encode(error)),
    };
    let mut encoder = Encoder::new(writer, header).map_err(failed)?;
    read_pages(database, cut, pin, |pgno, image| {
        encoder.encode_page(pgno, image).map_err(failed)
    })?;
    let (writer, _summary) = encoder.finish().map_err(failed)?;
    writer.finish().map_err(|error| failed(error.into()))
}

/// Reads and proves each page of the cut, in order.
fn read_pages(
    database: &Path,
    cut: &Cut,
    pin: Option<ReadMark>,
    mut take: impl FnMut(u32, &[u8]) -> Result<(), Option<SnapshotError>>,
) -> Result<(), Option<SnapshotError>> {
    let page_size = cut.hashes.page_size();
    let size = page_size.as_usize();
    let at_once = u32::try_from((CHUNK_BYTES / size).max(1)).expect("pages of a megabyte");
    let is_pinned = pin.is_some();
    let file = DatabaseFile::new(database, pin);
    let (mut buffer, mut newest) = (Vec::new(), Vec::new());
    let (mut next, commit) = (1, cut.hashes.commit());
    while next <= commit {
        let now = at_once.min(commit - next + 1);
        buffer.resize(now as usize * size, 0);
        file.read(&mut buffer, u64::from(next - 1) * size as u64)?;
        for (pgno, image) in (next..).zip(buffer.chunks_exact(size)) {
            if pgno == page_size.lock_pgno() {
                continue;
            }
            let is_right = |image: &[u8]| cut.hashes.matches(pgno, page_checksum(pgno, image));
            let in_wal = cut.newest.read(pgno, &mut newest);
            let image = match in_wal.map_err(SnapshotError::Spill)? {
                true if is_right(&newest) => &newest[..],
                _ if is_right(image) => image,
                _ => {
                    let page = Overwritten {
                        pgno,
                        expected: cut.hashes.hash(pgno),
                        found: page_checksum(pgno, image),
                    };
                    return Err(Some(SnapshotError::Overwritten(page)));
                }
            };
            take(pgno, image)?;
        }
        next += now;
        if is_pinned {
            check_wal(&file, page_size, cut.database_bytes())?;
        }
    }
    Ok(())
}

fn check_wal(
    file: &DatabaseFile<'_>,
    page_size: PageSize,
    database_bytes: u64,
) -> Result<(), SnapshotError> {
    let view = file.pinned.as_ref().and_then(Connection::wal_view);
    let frames = view.map_or(0, |view| view.header.max_frame);
    let bytes = u64::from(frames) * u64::from(page_size.get());
    match bytes > PINNED_WAL_BYTES.max(database_bytes / 4) {
        true => Err(SnapshotError::WalTooLong { bytes }),
        false => Ok(()),
    }
}

/// The database file. Without a read mark it is open only while a chunk is read. While a plain
/// file is open, capture waits to attach. While a SQLite connection is open, the application's
/// last close does not remove the WAL.
struct DatabaseFile<'a> {
    path: &'a Path,
    /// The connection that holds the read mark.
    pinned: Option<Connection>,
}

impl DatabaseFile<'_> {
    fn new(path: &Path, pin: Option<ReadMark>) -> DatabaseFile<'_> {
        DatabaseFile {
            path,
            pinned: pin.map(ReadMark::into_connection),
        }
    }

    /// Fills the buffer. Bytes behind the end of the file read as zeros.
    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), SnapshotError> {
        let failed = |source| SnapshotError::Read {
            path: self.path.to_owned(),
            source,
        };
        if let Some(connection) = &self.pinned {
            return Ok(connection.read_database(buffer, offset)?);
        }
        match PlainFile::open(self.path).map_err(failed)? {
            Some(plain) => fill(plain.file(), buffer, offset).map_err(failed),
            // Capture is attached, so the application has it open, too.
            None => Ok(Connection::open(self.path)?.read_database(buffer, offset)?),
        }
    }
}

fn fill(file: &fs::File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => {
                buffer[filled..].fill(0);
                return Ok(());
            }
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ltx::{Decoder, Txid};
    use store::Memory;

    use super::*;
    use crate::env::budget::Limits;
    use crate::env::threads::RuntimeThreads;
    use crate::pages::page_hashes::PageHashes;
    use crate::pages::page_set::{PageSet, Spill};

    const PAGES: u32 = 3000;

    /// A file whose pages each repeat one byte, and a cut of it.
    fn database(directory: &Path) -> (PathBuf, Cut) {
        let path = directory.join("db");
        let page_size = PageSize::MIN;
        let mut hashes = PageHashes::new(page_size);
        let mut bytes = Vec::new();
        for pgno in 1..=PAGES {
            let image = [pgno as u8; 512];
            hashes.set(pgno, &image);
            bytes.extend_from_slice(&image);
        }
        fs::write(&path, bytes).unwrap();
        let spill = Spill::with_memory(directory, 1 << 20);
        let cut = Cut {
            txid: Txid::new(7),
            timestamp_ms: 1_700_000_000_000,
            hashes,
            newest: PageSet::new(page_size, &spill),
        };
        (path, cut)
    }

    fn overwrite(path: &Path, pgno: u32) {
        let file = fs::File::options().write(true).open(path).unwrap();
        file.write_all_at(&[0xff; 512], u64::from(pgno - 1) * 512)
            .unwrap();
    }

    fn snapshot(path: &Path, cut: &Arc<Cut>, effort: Effort) -> (Arc<Budgets>, Snapshot) {
        let budgets = Budgets::new(Limits::default());
        let snapshot = Snapshot {
            cut: Arc::clone(cut),
            database: path.to_owned(),
            target: 0,
            epoch: 3,
            effort,
            pin: None,
            expected_bytes: None,
            directory: path.with_file_name("state"),
            account: budgets.account(),
        };
        (budgets, snapshot)
    }

    const KEY: &str = "ltx/9/0000000000000001-0000000000000007.ltx";

    #[tokio::test]
    async fn a_snapshot_holds_each_page_as_it_was_at_the_cut() {
        let directory = tempfile::tempdir().unwrap();
        let (path, mut cut) = database(directory.path());
        // Only the WAL had page 8 at the cut. The file now has a newer version of it.
        cut.newest.insert(8, &[8; 512]).unwrap();
        cut.newest.insert(9, &[77; 512]).unwrap();
        overwrite(&path, 8);
        let cut = Arc::new(cut);
        for effort in [Effort::Streamed, Effort::Spooled] {
            let store: SharedStore = Arc::new(Memory::new());
            let (budgets, snapshot) = snapshot(&path, &cut, effort);
            let size = snapshot
                .store(&store, &budgets, &RuntimeThreads)
                .await
                .unwrap();
            assert_eq!(budgets.state_bytes(), 0, "what was reserved is given back");
            let bytes = store.get(KEY, None).await.unwrap();
            assert_eq!(bytes.len() as u64, size);
            let mut decoder = Decoder::new(&bytes[..]).unwrap();
            let mut image = Vec::new();
            for pgno in 1..=PAGES {
                assert_eq!(decoder.next_page(&mut image).unwrap(), Some(pgno));
                assert_eq!(image, [pgno as u8; 512]);
            }
            assert_eq!(decoder.next_page(&mut image).unwrap(), None);
            decoder.finish().unwrap();
        }
    }

    #[tokio::test]
    async fn a_page_that_changed_before_it_was_read_ends_the_snapshot_with_nothing_stored() {
        let directory = tempfile::tempdir().unwrap();
        let (path, cut) = database(directory.path());
        let cut = Arc::new(cut);
        overwrite(&path, PAGES - 1);
        let store: SharedStore = Arc::new(Memory::new());
        let (budgets, snapshot) = snapshot(&path, &cut, Effort::Streamed);
        let error = snapshot
            .store(&store, &budgets, &RuntimeThreads)
            .await
            .unwrap_err();
        let overtaken = matches!(&error, StoreSnapshotError::Snapshot(SnapshotError::Overwritten(page)) if page.pgno == PAGES - 1);
        assert!(overtaken, "{error}");
        assert!(store.list("", None).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn an_answer_that_was_lost_is_no_other_writer() {
        let directory = tempfile::tempdir().unwrap();
        let (path, cut) = database(directory.path());
        let cut = Arc::new(cut);
        let store: SharedStore = Arc::new(Memory::new());
        let mut sizes = Vec::new();
        for _ in 0..2 {
            let (budgets, snapshot) = snapshot(&path, &cut, Effort::Streamed);
            sizes.push(
                snapshot
                    .store(&store, &budgets, &RuntimeThreads)
                    .await
                    .unwrap(),
            );
        }
        assert_eq!(sizes[0], sizes[1]);
        let (budgets, mut snapshot) = snapshot(&path, &cut, Effort::Streamed);
        snapshot.epoch = 4;
        let error = snapshot
            .store(&store, &budgets, &RuntimeThreads)
            .await
            .unwrap_err();
        let exists = matches!(&error, StoreSnapshotError::Store(error) if error.kind() == StoreErrorKind::Exists);
        assert!(exists, "{error}");
    }

    #[test]
    fn a_pinned_snapshot_reads_what_the_application_overwrites_meanwhile() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db");
        let application = rusqlite::Connection::open(&path).unwrap();
        let sql = "PRAGMA page_size=512; PRAGMA journal_mode=WAL; CREATE TABLE t(x);
            WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200)
            INSERT INTO t SELECT randomblob(400) FROM n";
        application.execute_batch(sql).unwrap();
        application
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            .unwrap();
        let bytes = fs::read(&path).unwrap();
        let page_size = PageSize::MIN;
        let mut hashes = PageHashes::new(page_size);
        for (pgno, image) in (1..).zip(bytes.chunks_exact(512)) {
            hashes.set(pgno, image);
        }
        let spill = Spill::with_memory(directory.path(), 1 << 20);
        let cut = Cut {
            txid: Txid::new(1),
            timestamp_ms: 1,
            hashes,
            newest: PageSet::new(page_size, &spill),
        };
        let overwritten = |pin: Option<ReadMark>| {
            application
                .execute_batch("UPDATE t SET x = randomblob(400); PRAGMA wal_checkpoint(PASSIVE)")
                .unwrap();
            read_pages(&path, &cut, pin, |_, _| Ok(())).is_err()
        };
        let pin = ReadMark::take(&path).unwrap();
        assert!(!overwritten(Some(pin)));
        assert!(overwritten(None));
    }
}
