//! Building a database from a replica.
//!
//! The new database grows in a temporary file beside its place and takes its name only when it is
//! whole, proven and durable. A restore that cannot reach the point asked for is an error; it
//! never ends silently at another one. Around a damaged file it takes another way to that very point, if
//! there is one, and says so.
//!
//! Here is what a restore is asked, what it answers, and the order of its steps: `point` finds the
//! way, `search` the position of a time, `fetch` brings the files in order, `assembly` builds and proves,
//! `place` exchanges the files at the destination.

mod assembly;
mod fetch;
mod place;
mod point;
mod search;

use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use ltx::Txid;
use store::{SharedStore, StoreError, StoreErrorKind};

use crate::generations::{self, GenerationError, GenerationId};
use crate::plan::{PlanError, plan_restore};
use crate::remote::{self, RemoteError, RemoteFile};
use crate::sqlite::{Checked, SqliteError};
use crate::table::PageTable;

pub use assembly::Assembly;
pub(crate) use assembly::Whole;
pub use fetch::RANGE_BYTES;
pub(crate) use fetch::{Objects, pipe};
use place::{exists, refuse_link};
pub use point::{Point, Resolved, Way, find};

/// Times that a restore begins again because planned files have expired meanwhile.
const REPLANS: u32 = 3;

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

/// SQLite's check of the result, beside the proof by checksums and coverage that always is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Check {
    /// How deep it looks.
    pub depth: IntegrityCheck,
    /// The reaction to a complaint.
    pub on_complaint: OnComplaint,
}

/// The reaction when SQLite complains about a database whose bytes are proven to be the stored ones: the
/// database itself is so, not the backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnComplaint {
    /// The restore fails.
    Refuse,
    /// The database is given back, and [`Restored::checked`] has the complaint. A generation of
    /// Litestream 0.3 is refused all the same: nothing proves the end of its logs.
    Tell,
}

impl From<IntegrityCheck> for Check {
    /// A check that decides.
    fn from(depth: IntegrityCheck) -> Check {
        Check {
            depth,
            on_complaint: OnComplaint::Refuse,
        }
    }
}

/// What was restored.
#[derive(Debug, Clone)]
pub struct Restored {
    /// The position reached; zero when it is of a generation.
    pub txid: Txid,
    /// The generation of Litestream 0.3 that it is of.
    pub generation: Option<GenerationId>,
    /// When it was captured, in Unix milliseconds.
    pub timestamp_ms: i64,
    /// The hash of every page, and the checksum of the whole database.
    pub table: PageTable,
    /// Bytes read from the store.
    pub bytes: u64,
    /// Files read.
    pub files: usize,
    /// Keys of damaged files that the way went around, over others that lead to the same position.
    pub damaged: Vec<String>,
    /// SQLite's findings that are no reason to withhold the database.
    pub checked: Checked,
}

impl Restored {
    /// Where what is captured next goes on from; none when it begins a history of its own.
    pub fn base(&self) -> Option<(Txid, &PageTable)> {
        (self.generation.is_none()).then_some((self.txid, &self.table))
    }
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
    /// What Litestream 0.3 stored does not lead to the point.
    #[error(transparent)]
    Generation(#[from] GenerationError),
    /// Nothing is as old as the time asked for.
    #[error("the oldest backup is of {oldest}, after {wanted}")]
    TooEarly {
        /// The time asked for.
        wanted: Timestamp,
        /// The oldest position's time.
        oldest: Timestamp,
    },
    /// Files are missing around a time, so the state of that time cannot be known.
    #[error(
        "the state at {wanted} cannot be known: no stored file gives TXID {first} to {last}; restore \
         another time, or --txid {before} or {next} where these can be reached"
    )]
    HoleAtTime {
        /// The time asked for.
        wanted: Timestamp,
        /// The last position at or before the time that is stored.
        before: Txid,
        /// The first missing position.
        first: Txid,
        /// The last missing position.
        last: Txid,
        /// The first stored position after them.
        next: Txid,
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
    #[error("SQLite complains about the restored database: {problem}; {}", cause(*.is_proven))]
    Integrity {
        /// Its first complaint.
        problem: String,
        /// Checksums prove that the bytes are those that were stored: the source is so, too.
        is_proven: bool,
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
    /// A symbolic link is at the destination.
    #[error("{} is a symbolic link; give the path that it leads to", path.display())]
    Link {
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

/// Whose fault a complaint of SQLite's is, and how the database is restored all the same.
fn cause(is_proven: bool) -> &'static str {
    if is_proven {
        "every checksum holds and every page is there, so the backup is what was stored and the \
         database itself is so; --integrity-check none gives it back as it is, and before an application \
         starts startup.onCheckFailed: Start does"
    } else {
        "Litestream 0.3 stores no checksum that proves the end of a log, so the backup may differ from \
         its source; --integrity-check none restores it as it is"
    }
}

impl From<RemoteError> for RestoreError {
    fn from(error: RemoteError) -> RestoreError {
        match error {
            RemoteError::Store(error) => RestoreError::Store(error),
            other => RestoreError::Remote(other),
        }
    }
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
    /// SQLite's check of the result.
    pub integrity: Check,
    /// Requests under way at the same time, 1 to 64. Memory is about 2 MiB for each.
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
    assembly.publish(&options.output, options.force).await?;
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
    refuse_link(output)?;
    if !options.force && exists(output)? {
        return Err(RestoreError::Exists {
            path: output.clone(),
        });
    }
    for _ in 0..REPLANS {
        match build(store, options, progress).await {
            // Retention took a file that was listed: what is stored now leads there another way.
            Err(RestoreError::Store(error)) if error.kind() == StoreErrorKind::Missing => {}
            result => return result,
        }
    }
    build(store, options, progress).await
}

async fn build(
    store: &SharedStore,
    options: &RestoreOptions,
    progress: &(dyn Fn(u64, u64) + Send + Sync),
) -> Result<(Assembly, Restored), RestoreError> {
    let way = find(store, options.point).await?;
    let mut assembly = Assembly::create(&options.output)?;
    let parallelism = options.parallelism;
    let mut damaged = Vec::new();
    match way {
        Way::Files(mut resolved) => {
            while let Err(error) = assembly
                .fetch(store, &resolved.plan, parallelism, progress)
                .await
            {
                let Some((key, around)) = around(store, resolved, &error) else {
                    return Err(error);
                };
                tracing::warn!("{error}: other files lead to the same position");
                damaged.push(key);
                resolved = around;
                // The place of the one before is given up first.
                drop(assembly);
                assembly = Assembly::create(&options.output)?;
            }
        }
        Way::Generation(plan) => {
            generations::rebuild(&mut assembly, store, &plan, parallelism, progress).await?;
        }
    }
    let restored = assembly.prove(options.integrity.depth).await?;
    if let Some(problem) = &restored.checked.complaint {
        let is_proven = restored.generation.is_none();
        if !is_proven || options.integrity.on_complaint == OnComplaint::Refuse {
            let problem = problem.clone();
            return Err(RestoreError::Integrity { problem, is_proven });
        }
    }
    let restored = Restored {
        damaged,
        ..restored
    };
    Ok((assembly, restored))
}

/// Another way to the same position without the file that an error says is damaged, and its key. It ends,
/// because each way has fewer files to choose from.
fn around(
    store: &SharedStore,
    mut resolved: Resolved,
    error: &RestoreError,
) -> Option<(String, Resolved)> {
    let RestoreError::Remote(damage) = error else {
        return None;
    };
    let key = damage.key()?;
    let layout = store.layout();
    let is_damaged = |file: &RemoteFile| remote::key(layout, file.level, file.name()) == key;
    resolved.files.retain(|file| !is_damaged(file));
    let plan = plan_restore(&resolved.files, Some(resolved.plan.txid)).ok()?;
    Some((key.to_owned(), Resolved { plan, ..resolved }))
}

pub(crate) fn failed(path: &Path) -> impl Fn(io::Error) -> RestoreError {
    let path = path.to_owned();
    move |source| RestoreError::Io {
        path: path.clone(),
        source,
    }
}
