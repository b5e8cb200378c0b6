//! Restore: building a database from a replica.
//!
//! The new database grows in a temporary file beside its destination. It takes its name only when
//! it is whole, proven and durable. A restore that cannot reach the requested point is an error; it
//! never ends silently at another one. Around a damaged file a restore takes other files to that
//! very point, if there are any, and reports it.
//!
//! This module holds the options, the result and the order of the steps. `point` plans the files to
//! a point, `search` finds the position of a time, and `fetch` brings the files in order.
//! `assembly` builds and proves, `place` exchanges the files at the destination.

mod assembly;
mod fetch;
pub mod litestream03;
mod place;
mod point;
mod search;

use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use ltx::Txid;
use store::{SharedStore, StoreError, StoreErrorKind};

use crate::env::host::Host;
use crate::pages::page_hashes::PageHashes;
use crate::replica::manifest::{self, RemoteError, RemoteFile};
use crate::replica::restore_plan::{PlanError, plan_restore};
use crate::source::sqlite::{Checked, SqliteError};
use litestream03::{GenerationError, GenerationId};

pub use assembly::Assembly;
pub(crate) use assembly::Whole;
pub use fetch::RANGE_BYTES;
pub(crate) use fetch::{Objects, pipe};
use place::{exists, refuse_link};
pub use point::{Point, Resolved, Way, find};

/// Maximum number of new plans of one restore, when planned files have expired meanwhile.
const REPLANS: u32 = 3;

/// Depth of SQLite's check of the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IntegrityCheck {
    /// No check. Checksums of files and the coverage of pages are proven all the same.
    None,
    /// `PRAGMA quick_check`.
    Quick,
    /// `PRAGMA integrity_check`.
    Full,
}

/// SQLite's check of the result, beside the proof by checksums and coverage that is always made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Check {
    /// Depth of the check.
    pub depth: IntegrityCheck,
    /// The reaction to a complaint.
    pub on_complaint: OnComplaint,
}

/// The reaction when SQLite complains about a database whose bytes are proven to be the stored
/// ones. The fault is then in the database itself, not in the backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnComplaint {
    /// The restore fails.
    Refuse,
    /// The database is published, and [`Restored::checked`] has the complaint. A generation of
    /// Litestream 0.3 is refused all the same: nothing proves the end of its WAL files.
    Tell,
}

impl From<IntegrityCheck> for Check {
    /// A check whose complaint refuses the database.
    fn from(depth: IntegrityCheck) -> Check {
        Check {
            depth,
            on_complaint: OnComplaint::Refuse,
        }
    }
}

/// The result of a restore.
#[derive(Debug, Clone)]
pub struct Restored {
    /// The position reached; zero for a generation of Litestream 0.3.
    pub txid: Txid,
    /// The restored generation of Litestream 0.3, if it was one.
    pub generation: Option<GenerationId>,
    /// When it was captured, in Unix milliseconds.
    pub timestamp_ms: i64,
    /// The hash of every page, and the checksum of the whole database.
    pub hashes: PageHashes,
    /// Bytes read from the store.
    pub bytes: u64,
    /// Files read.
    pub files: usize,
    /// Keys of damaged files that were replaced by others to the same position.
    pub damaged: Vec<String>,
    /// SQLite's findings that are no reason to withhold the database.
    pub checked: Checked,
}

impl Restored {
    /// The base on which capture continues; none when the database begins a new history.
    pub fn base(&self) -> Option<(Txid, &PageHashes)> {
        (self.generation.is_none()).then_some((self.txid, &self.hashes))
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
    /// The stored files do not lead to the point.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The files of Litestream 0.3 do not lead to the point.
    #[error(transparent)]
    Generation(#[from] GenerationError),
    /// No backup is as old as the requested time.
    #[error("the oldest backup is of {oldest}, after {wanted}")]
    TooEarly {
        /// The requested time.
        wanted: Timestamp,
        /// The time of the oldest position.
        oldest: Timestamp,
    },
    /// Files are missing around a time, so the state of that time cannot be known.
    #[error(
        "the state at {wanted} cannot be known: no stored file gives TXID {first} to {last}; restore \
         another time, or --txid {before} or {next} where these can be reached"
    )]
    HoleAtTime {
        /// The requested time.
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
    /// SQLite complains about the restored database.
    #[error("SQLite complains about the restored database: {problem}; {}", cause(*.is_proven))]
    Integrity {
        /// Its first complaint.
        problem: String,
        /// Whether checksums prove that the bytes are the stored ones: the source then has the same
        /// fault.
        is_proven: bool,
    },
    /// SQLite could not check the database.
    #[error(transparent)]
    Sqlite(#[from] SqliteError),
    /// The destination exists.
    #[error("{} exists; restore elsewhere, or force", path.display())]
    Exists {
        /// The destination.
        path: PathBuf,
    },
    /// The destination is a symbolic link.
    #[error("{} is a symbolic link; give the path that it leads to", path.display())]
    Link {
        /// The destination.
        path: PathBuf,
    },
    /// Another process has the database open, or restores to the same destination.
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
        /// The system's error.
        source: io::Error,
    },
}

/// The origin of a complaint of SQLite, and how to restore the database all the same.
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

/// Parameters of a restore.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// The point.
    pub point: Point,
    /// Destination of the database.
    pub output: PathBuf,
    /// Replace an existing database. No process may have it open.
    pub force: bool,
    /// SQLite's check of the result.
    pub integrity: Check,
    /// Requests in flight at the same time, 1 to 64. Memory is about 2 MiB for each.
    pub parallelism: usize,
}

/// Restores a database. Calls `progress` with the bytes read and the bytes to read.
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
    assembly
        .publish(&options.output, options.force, &Host::default().disk)
        .await?;
    Ok(restored)
}

/// Does everything but give the database its name, for callers that must first record what it will
/// be.
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
            // Retention deleted a file that was listed: plan again from the present list.
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
                // Dropping the old assembly frees the name of its temporary file.
                drop(assembly);
                assembly = Assembly::create(&options.output)?;
            }
        }
        Way::Generation(plan) => {
            litestream03::rebuild(&mut assembly, store, &plan, parallelism, progress).await?;
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

/// Plans the files to the same position without the file that an error reports as damaged. Returns
/// them with its key. Replanning ends, because each plan has fewer files to choose from.
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
    let is_damaged = |file: &RemoteFile| manifest::key(layout, file.level, file.name()) == key;
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
