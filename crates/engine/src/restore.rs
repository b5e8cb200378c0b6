//! Building a database from a replica.
//!
//! The new database grows in a temporary file beside its place and takes its name only when it is
//! whole, proven and durable. A restore that cannot reach the point asked for is an error; it
//! never ends silently at another one.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::StreamExt;
use jiff::Timestamp;
use ltx::{Decoder, LtxError, Txid};
use rustix::process::{Flock, FlockType};
use sqlite_format::PageSize;
use store::{SharedStore, Store, StoreError, StoreErrorKind};

use crate::local::sync_directory;
use crate::plan::{Plan, PlanError, plan_from, plan_restore};
use crate::remote::{self, RemoteError, RemoteFile, read_header};
use crate::scan::with_suffix;
use crate::sqlite::{Inspection, SqliteError};
use crate::table::PageTable;

/// Largest object that is held in memory; larger ones go through a temporary file.
const MEMORY_BYTES: u64 = 4 << 20;
/// Bytes of one ranged read.
const RANGE_BYTES: u64 = 4 << 20;
/// Times that a restore begins again because planned files have expired meanwhile.
const REPLANS: u32 = 3;

/// The point to restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// The newest stored position.
    Latest,
    /// Exactly this position.
    Txid(Txid),
    /// The newest position at or before this time.
    Timestamp(Timestamp),
}

/// How deep SQLite looks at the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IntegrityCheck {
    /// Not at all: checksums of files and the coverage of pages are proven all the same.
    None,
    /// `PRAGMA quick_check`.
    Quick,
    /// `PRAGMA integrity_check`.
    Full,
}

/// What was restored.
#[derive(Debug, Clone)]
pub struct Restored {
    /// The position reached.
    pub txid: Txid,
    /// When it was captured, in Unix milliseconds.
    pub timestamp_ms: i64,
    /// The hash of every page, and the checksum of the whole database.
    pub table: PageTable,
    /// Bytes read from the store.
    pub bytes: u64,
    /// Files read.
    pub files: usize,
}

/// Why a restore failed. Nothing at the destination has changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A stored file is damaged or not what its name says.
    #[error(transparent)]
    Remote(RemoteError),
    /// What is stored does not lead to the point.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Nothing is as old as the time asked for.
    #[error("the oldest backup is of {oldest}, after {wanted}")]
    TooEarly {
        /// The time asked for.
        wanted: Timestamp,
        /// The oldest position's time.
        oldest: Timestamp,
    },
    /// Files fit together, but a page is in none of them.
    #[error("page {pgno} of {commit} is in no stored file")]
    MissingPage {
        /// The first missing page.
        pgno: u32,
        /// Size of the database in pages.
        commit: u32,
    },
    /// A file of the chain has another page size.
    #[error("{name} has pages of {found} bytes, the files before it of {expected}")]
    PageSizeChanged {
        /// The file.
        name: String,
        /// Its page size.
        found: u32,
        /// The page size before.
        expected: u32,
    },
    /// SQLite finds fault with the restored database.
    #[error("SQLite's check of the restored database: {problem}")]
    Integrity {
        /// Its first complaint.
        problem: String,
    },
    /// SQLite could not look at it.
    #[error(transparent)]
    Sqlite(#[from] SqliteError),
    /// Something is at the destination.
    #[error("{} exists; restore elsewhere, or force", path.display())]
    Exists {
        /// The destination.
        path: PathBuf,
    },
    /// Somebody has the database open, or restores to the same place.
    #[error("{} is in use: stop the application, or the other restore, first", path.display())]
    InUse {
        /// The destination.
        path: PathBuf,
    },
    /// The local disk failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl From<RemoteError> for RestoreError {
    fn from(error: RemoteError) -> RestoreError {
        match error {
            RemoteError::Store(error) => RestoreError::Store(error),
            other => RestoreError::Remote(other),
        }
    }
}

/// A point, found in what is stored.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// Every file of the replica.
    pub files: BTreeSet<RemoteFile>,
    /// The files that lead to the point.
    pub plan: Plan,
}

/// Looks up what is stored and plans the way to a point.
///
/// # Errors
///
/// See [`RestoreError`]; [`PlanError::Empty`] only when the store says that there is nothing.
pub async fn resolve(store: &SharedStore, point: Point) -> Result<Resolved, RestoreError> {
    let files = remote::list(store).await?;
    let wanted = match point {
        Point::Latest => None,
        Point::Txid(txid) => Some(txid),
        Point::Timestamp(time) => Some(position_at(store, &files, time).await?),
    };
    let plan = plan_restore(&files, wanted)?;
    Ok(Resolved { files, plan })
}

/// The newest position at or before a time: a binary search over the headers of stored files,
/// whose times never go back with their TXIDs.
async fn position_at(
    store: &SharedStore,
    files: &BTreeSet<RemoteFile>,
    time: Timestamp,
) -> Result<Txid, RestoreError> {
    let mut ends: Vec<RemoteFile> = Vec::new();
    for file in sorted_by_end(files) {
        if ends.last().is_none_or(|last| last.max != file.max) {
            ends.push(file);
        }
    }
    let wanted_ms = time.as_millisecond();
    let (mut low, mut high) = (0, ends.len());
    while low < high {
        let middle = low + (high - low) / 2;
        if read_header(store, &ends[middle]).await?.timestamp_ms <= wanted_ms {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    match (low.checked_sub(1), ends.first()) {
        (Some(index), _) => Ok(ends[index].max),
        (None, None) => Err(PlanError::Empty.into()),
        (None, Some(first)) => {
            let oldest_ms = read_header(store, first).await?.timestamp_ms;
            let oldest = Timestamp::from_millisecond(oldest_ms).unwrap_or(Timestamp::MAX);
            Err(RestoreError::TooEarly {
                wanted: time,
                oldest,
            })
        }
    }
}

fn sorted_by_end(files: &BTreeSet<RemoteFile>) -> Vec<RemoteFile> {
    let mut sorted: Vec<RemoteFile> = files.iter().copied().collect();
    sorted.sort_by_key(|file| (file.max, file.level));
    sorted
}

/// How to restore.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// The point.
    pub point: Point,
    /// Where the database goes.
    pub output: PathBuf,
    /// Replace a database that is there. Nobody may have it open.
    pub force: bool,
    /// How deep SQLite looks at the result.
    pub integrity: IntegrityCheck,
    /// Objects fetched at the same time, 1 to 64. Memory is about 4 MiB for each.
    pub parallelism: usize,
}

/// Restores a database. `progress` is told of bytes read and bytes to read.
///
/// # Errors
///
/// See [`RestoreError`]; nothing at the destination has changed then.
pub async fn restore(
    store: &SharedStore,
    options: &RestoreOptions,
    progress: &(dyn Fn(u64, u64) + Send + Sync),
) -> Result<Restored, RestoreError> {
    let (assembly, restored) = assemble(store, options, progress).await?;
    assembly.publish(&options.output, options.force)?;
    Ok(restored)
}

/// Does everything but give the database its name: for callers that have to write down first what
/// it will be.
///
/// # Errors
///
/// See [`RestoreError`]; nothing at the destination has changed either way.
pub async fn assemble(
    store: &SharedStore,
    options: &RestoreOptions,
    progress: &(dyn Fn(u64, u64) + Send + Sync),
) -> Result<(Assembly, Restored), RestoreError> {
    let output = &options.output;
    if !options.force && exists(output)? {
        return Err(RestoreError::Exists {
            path: output.clone(),
        });
    }
    for _ in 0..REPLANS {
        let resolved = resolve(store, options.point).await?;
        match build(store, options, &resolved.plan, progress).await {
            // Retention took a planned file: what is stored now leads there another way.
            Err(RestoreError::Store(error)) if error.kind() == StoreErrorKind::Missing => {}
            result => return result,
        }
    }
    let resolved = resolve(store, options.point).await?;
    build(store, options, &resolved.plan, progress).await
}

async fn build(
    store: &SharedStore,
    options: &RestoreOptions,
    plan: &Plan,
    progress: &(dyn Fn(u64, u64) + Send + Sync),
) -> Result<(Assembly, Restored), RestoreError> {
    let mut assembly = Assembly::create(&options.output)?;
    assembly
        .fetch(store, plan, options.parallelism, progress)
        .await?;
    let restored = assembly.prove(options.integrity).await?;
    Ok((assembly, restored))
}

fn exists(path: &Path) -> Result<bool, RestoreError> {
    match fs::metadata(path) {
        // An empty file is what an application that has not written yet leaves.
        Ok(meta) => Ok(!meta.is_file() || meta.len() > 0),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(RestoreError::Io {
            path: path.to_owned(),
            source,
        }),
    }
}

/// A database under construction, in a temporary file that is removed unless it is published.
#[derive(Debug)]
pub struct Assembly {
    temporary: PathBuf,
    state: Option<State>,
    bytes: u64,
    files: usize,
}

#[derive(Debug)]
struct State {
    file: File,
    page_size: Option<PageSize>,
    commit: u32,
    txid: Txid,
    timestamp_ms: i64,
    /// One bit a page: written.
    written: Vec<u64>,
}

/// An object on this machine.
enum Fetched {
    Memory(Bytes),
    Disk(File),
}

impl Assembly {
    /// Begins beside the place where the database will be.
    ///
    /// # Errors
    ///
    /// The directory cannot be made or written.
    pub fn create(output: &Path) -> Result<Assembly, RestoreError> {
        let directory = directory_of(output);
        fs::create_dir_all(&directory).map_err(failed(&directory))?;
        let name = output.file_name().unwrap_or_default().to_string_lossy();
        let temporary = directory.join(format!(".{name}.restore.tmp"));
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&temporary)
            .map_err(failed(&temporary))?;
        match file.try_lock() {
            Ok(()) => file.set_len(0).map_err(failed(&temporary))?,
            Err(fs::TryLockError::WouldBlock) => {
                return Err(RestoreError::InUse {
                    path: output.to_owned(),
                });
            }
            Err(fs::TryLockError::Error(source)) => return Err(failed(&temporary)(source)),
        }
        let state = State {
            file,
            page_size: None,
            commit: 0,
            txid: Txid::ZERO,
            timestamp_ms: 0,
            written: Vec::new(),
        };
        Ok(Assembly {
            temporary,
            state: Some(state),
            bytes: 0,
            files: 0,
        })
    }

    /// The position reached so far.
    pub fn txid(&self) -> Txid {
        self.state().txid
    }

    /// Fetches the files of a plan, several at once, and applies them in order.
    ///
    /// # Errors
    ///
    /// See [`RestoreError`]; the assembly is useless then.
    pub async fn fetch(
        &mut self,
        store: &SharedStore,
        plan: &Plan,
        parallelism: usize,
        progress: &(dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<(), RestoreError> {
        let total = plan.bytes();
        let directory = directory_of(&self.temporary);
        let fetches = plan
            .files
            .iter()
            .map(|file| fetch(store, *file, &directory));
        let mut fetched = futures::stream::iter(fetches).buffered(parallelism.clamp(1, 64));
        for file in &plan.files {
            let object = fetched
                .next()
                .await
                .expect("one answer for each planned file")?;
            let key = remote::key(store.layout(), file.level, file.name());
            let (path, file) = (self.temporary.clone(), *file);
            let mut state = self
                .state
                .take()
                .expect("an assembly has its state between files");
            let applied = tokio::task::spawn_blocking(move || {
                let applied = state.apply(object, file, &key, &path);
                (state, applied)
            });
            let (state, applied) = applied.await.expect("applying a file does not panic");
            self.state = Some(state);
            applied?;
            self.bytes += file.size;
            self.files += 1;
            progress(self.bytes, total);
        }
        Ok(())
    }

    /// Leads on from the position reached to a later one.
    ///
    /// # Errors
    ///
    /// See [`RestoreError`].
    pub async fn advance(
        &mut self,
        store: &SharedStore,
        files: &BTreeSet<RemoteFile>,
        wanted: Txid,
        parallelism: usize,
    ) -> Result<(), RestoreError> {
        let plan = plan_from(files, self.txid(), wanted)?;
        self.fetch(store, &plan, parallelism, &|_, _| {}).await
    }

    /// Proves what there is: every page is there, the bytes on disk are what was fetched, SQLite
    /// agrees. Returns what was restored.
    ///
    /// # Errors
    ///
    /// See [`RestoreError`].
    pub async fn prove(&mut self, integrity: IntegrityCheck) -> Result<Restored, RestoreError> {
        let state = self
            .state
            .take()
            .expect("an assembly has its state between files");
        let path = self.temporary.clone();
        let proven = tokio::task::spawn_blocking(move || {
            let table = state.prove(&path, integrity);
            (state, table)
        });
        let (state, table) = proven.await.expect("proving does not panic");
        self.state = Some(state);
        let table = table?;
        let state = self.state();
        Ok(Restored {
            txid: state.txid,
            timestamp_ms: state.timestamp_ms,
            table,
            bytes: self.bytes,
            files: self.files,
        })
    }

    /// The file as it is, for checks. It has no log beside it.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Gives the database its name. What was there before is kept until the new one has it.
    ///
    /// # Errors
    ///
    /// The disk failed, or something has come to the destination meanwhile.
    pub fn publish(mut self, output: &Path, force: bool) -> Result<(), RestoreError> {
        if !force && exists(output)? {
            return Err(RestoreError::Exists {
                path: output.to_owned(),
            });
        }
        let state = self
            .state
            .take()
            .expect("an assembly has its state between files");
        if is_open(output).map_err(failed(output))? {
            return Err(RestoreError::InUse {
                path: output.to_owned(),
            });
        }
        adopt_access(&state.file, output).map_err(failed(&self.temporary))?;
        state.file.sync_all().map_err(failed(&self.temporary))?;
        // A log that belongs to another file would be replayed into the new one. So it goes first,
        // and comes back if the new file does not get its name.
        let aside = set_aside(output)?;
        let named = fs::rename(&self.temporary, output)
            .and_then(|()| sync_directory(&directory_of(output)));
        if let Err(source) = named {
            put_back(&aside);
            return Err(failed(output)(source));
        }
        for (_, path) in aside.iter().filter(|_| force) {
            fs::remove_file(path).map_err(failed(path))?;
        }
        Ok(())
    }

    fn state(&self) -> &State {
        self.state
            .as_ref()
            .expect("an assembly has its state between files")
    }
}

impl Drop for Assembly {
    fn drop(&mut self) {
        // After a publication there is nothing under this name.
        let _removed = fs::remove_file(&self.temporary);
    }
}

impl State {
    fn apply(
        &mut self,
        object: Fetched,
        expected: RemoteFile,
        key: &str,
        path: &Path,
    ) -> Result<(), RestoreError> {
        match object {
            Fetched::Memory(bytes) => self.apply_from(bytes.as_ref(), expected, key, path),
            Fetched::Disk(file) => {
                self.apply_from(BufReader::with_capacity(1 << 20, file), expected, key, path)
            }
        }
    }

    fn apply_from(
        &mut self,
        reader: impl Read,
        expected: RemoteFile,
        key: &str,
        path: &Path,
    ) -> Result<(), RestoreError> {
        let corrupt = |source: LtxError| {
            RestoreError::Remote(RemoteError::Corrupt {
                key: key.to_owned(),
                source,
            })
        };
        let mut decoder = Decoder::new(reader).map_err(corrupt)?;
        let header = *decoder.header();
        if (header.min_txid, header.max_txid) != (expected.min, expected.max) {
            let (key, found) = (key.to_owned(), header.file_name());
            return Err(RestoreError::Remote(RemoteError::NameMismatch {
                key,
                found,
            }));
        }
        let page_size = *self.page_size.get_or_insert(header.page_size);
        if page_size != header.page_size {
            return Err(RestoreError::PageSizeChanged {
                name: key.to_owned(),
                found: header.page_size.get(),
                expected: page_size.get(),
            });
        }
        self.resize(header.commit);
        let size = u64::from(page_size.get());
        let mut image = Vec::new();
        while let Some(pgno) = decoder.next_page(&mut image).map_err(corrupt)? {
            self.file
                .write_all_at(&image, u64::from(pgno - 1) * size)
                .map_err(failed(path))?;
            self.written[pgno as usize / 64] |= 1 << (pgno % 64);
        }
        decoder.finish().map_err(corrupt)?;
        self.file
            .set_len(u64::from(header.commit) * size)
            .map_err(failed(path))?;
        self.txid = header.max_txid;
        self.timestamp_ms = header.timestamp_ms;
        Ok(())
    }

    /// Pages behind a shrunken end are no longer there when the database grows again.
    fn resize(&mut self, commit: u32) {
        self.written.resize(commit as usize / 64 + 1, 0);
        let last = self.written.len() - 1;
        self.written[last] &= u64::MAX >> (63 - commit % 64);
        self.commit = commit;
    }

    fn prove(&self, path: &Path, integrity: IntegrityCheck) -> Result<PageTable, RestoreError> {
        let Some(page_size) = self.page_size else {
            return Err(PlanError::Empty.into());
        };
        let commit = self.commit;
        let is_written = |pgno: u32| self.written[pgno as usize / 64] >> (pgno % 64) & 1 == 1;
        let missing = |pgno: &u32| !is_written(*pgno) && *pgno != page_size.lock_pgno();
        if let Some(pgno) = (1..=commit).find(missing) {
            return Err(RestoreError::MissingPage { pgno, commit });
        }
        let mut table = PageTable::new(page_size);
        let mut reader = BufReader::with_capacity(1 << 20, &self.file);
        reader.rewind().map_err(failed(path))?;
        let mut image = vec![0; page_size.as_usize()];
        for pgno in 1..=commit {
            reader.read_exact(&mut image).map_err(failed(path))?;
            if pgno != page_size.lock_pgno() {
                table.set(pgno, &image);
            }
        }
        table.apply([], commit);
        let problem = match integrity {
            IntegrityCheck::None => None,
            IntegrityCheck::Quick => Inspection::open(path)?.quick_check()?,
            IntegrityCheck::Full => Inspection::open(path)?.integrity_check()?,
        };
        problem.map_or(Ok(table), |problem| {
            Err(RestoreError::Integrity { problem })
        })
    }
}

/// Whether another process has the database open, from the locks that SQLite holds meanwhile.
fn is_open(output: &Path) -> io::Result<bool> {
    // Every connection in WAL mode holds a shared lock on this byte of `-shm`; others hold one in
    // this range of the file itself while they read. <https://sqlite.org/src/file/src/os_unix.c>
    for (path, start, length) in [
        (with_suffix(output, "-shm"), 128, 1),
        (output.to_owned(), 0x4000_0000, 512),
    ] {
        let file = match File::options().read(true).write(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened?,
        };
        let wanted = Flock {
            start,
            length,
            ..Flock::from(FlockType::WriteLock)
        };
        if rustix::process::fcntl_getlk(&file, &wanted)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Gives a new file the mode and owner of the one that it replaces; else what SQLite would give
/// it, and, for root, the owner of the directory.
fn adopt_access(file: &File, output: &Path) -> io::Result<()> {
    let (mode, owner) = match fs::metadata(output) {
        Ok(old) => (old.mode() & 0o777, (old.uid(), old.gid())),
        Err(_) => {
            let directory = fs::metadata(directory_of(output))?;
            let mask = rustix::process::umask(rustix::fs::Mode::empty());
            rustix::process::umask(mask);
            let mode = 0o644 & !mask.bits();
            (mode, (directory.uid(), directory.gid()))
        }
    };
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::fchown(file, Some(owner.0), Some(owner.1))?;
    }
    Ok(())
}

/// Moves the logs beside the destination to names of their own, and gives the database there a
/// second name. Returns where each was and is.
fn set_aside(output: &Path) -> Result<Vec<(PathBuf, PathBuf)>, RestoreError> {
    let mut moved = Vec::new();
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let (from, to) = (
            with_suffix(output, suffix),
            with_suffix(output, &format!(".before-restore{suffix}")),
        );
        let done = if suffix.is_empty() {
            second_name(&from, &to)
        } else {
            fs::rename(&from, &to)
        };
        match done {
            Ok(()) => moved.push((from, to)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                put_back(&moved);
                return Err(RestoreError::Io { path: from, source });
            }
        }
    }
    Ok(moved)
}

/// The database keeps its own name until the new file takes it: there is always one of the two.
fn second_name(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(to)?;
            fs::hard_link(from, to)
        }
        linked => linked,
    }
}

/// Undoes [`set_aside`] as far as the disk allows; what stays has its name of before.
fn put_back(moved: &[(PathBuf, PathBuf)]) {
    for (from, to) in moved {
        if let Err(error) = fs::rename(to, from) {
            tracing::error!("{} stays at {}: {error}", from.display(), to.display());
        }
    }
}

/// Brings an object to this machine, small ones into memory.
async fn fetch(
    store: &SharedStore,
    file: RemoteFile,
    directory: &Path,
) -> Result<Fetched, RestoreError> {
    let key = remote::key(store.layout(), file.level, file.name());
    if file.size <= MEMORY_BYTES {
        return Ok(Fetched::Memory(store.get(&key, None).await?));
    }
    let target = tempfile_in(directory).map_err(failed(directory))?;
    let starts = (0..file.size).step_by(RANGE_BYTES as usize);
    let ranges = starts.map(|start| start..file.size.min(start + RANGE_BYTES));
    let reads = ranges.map(|range| {
        let read = store.get(&key, Some(range.clone()));
        async move { read.await.map(|bytes| (range.start, bytes)) }
    });
    let mut reads = futures::stream::iter(reads).buffer_unordered(4);
    while let Some(read) = reads.next().await {
        let (start, bytes) = read?;
        target
            .write_all_at(&bytes, start)
            .map_err(failed(directory))?;
    }
    Ok(Fetched::Disk(target))
}

fn tempfile_in(directory: &Path) -> io::Result<File> {
    crate::pages::unnamed_file(directory)
}

fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn failed(path: &Path) -> impl Fn(io::Error) -> RestoreError {
    let path = path.to_owned();
    move |source| RestoreError::Io {
        path: path.clone(),
        source,
    }
}
