//! The point to restore, and the way there through what is stored.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use jiff::Timestamp;
use ltx::Txid;
use store::SharedStore;

use super::RestoreError;
use crate::generations::{self, Generation, GenerationError, GenerationPlan};
use crate::plan::{Plan, PlanError, plan_restore};
use crate::remote::{self, RemoteFile, read_header};

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

/// A point, found in what is stored.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// Every file of the replica.
    pub files: BTreeSet<RemoteFile>,
    /// The files that lead to the point.
    pub plan: Plan,
}

/// What leads to a point.
#[derive(Debug, Clone)]
pub enum Way {
    /// Our files, which are those of Litestream 0.5.
    Files(Resolved),
    /// A generation of Litestream 0.3.
    Generation(GenerationPlan),
}

/// Looks up what is stored, by us and by Litestream 0.3, and plans the way to a point. Of two ways
/// the one to the newer state counts.
///
/// # Errors
///
/// See [`RestoreError`]; [`PlanError::Empty`] only when the store says that there is nothing.
pub async fn find(store: &SharedStore, point: Point) -> Result<Way, RestoreError> {
    let files = remote::list(store).await?;
    // Generations have no TXIDs; with our files there, nobody means one.
    let by_txid = matches!(point, Point::Txid(_));
    let generations = if by_txid && !files.is_empty() {
        Vec::new()
    } else {
        generations::list(store).await?
    };
    if generations.is_empty() {
        let resolved = resolve(store, files, point).await;
        return resolved.map(Way::Files);
    }
    let at = match point {
        Point::Latest => None,
        Point::Timestamp(time) => Some(time),
        Point::Txid(_) => return Err(GenerationError::NoTxid.into()),
    };
    let Some(newest) = files.iter().map(|file| file.max).max() else {
        return generations::plan(&generations, at).map(Way::Generation);
    };
    let position = match at {
        None => newest,
        Some(time) => match position_at(store, &files, time).await {
            Err(RestoreError::TooEarly { oldest, .. }) => {
                return before_ours(&files, &generations, time, oldest).map(Way::Generation);
            }
            position => position?,
        },
    };
    let (ours_ms, theirs_ms) = (content_ms(&files, position), newest_ms(&generations, at));
    if theirs_ms > ours_ms {
        tracing::info!(
            ?ours_ms,
            ?theirs_ms,
            "what Litestream 0.3 stored is newer than our files"
        );
        return generations::plan(&generations, at).map(Way::Generation);
    }
    let plan = plan_restore(&files, Some(position))?;
    Ok(Way::Files(Resolved { files, plan }))
}

/// The way to a time from before our files.
fn before_ours(
    files: &BTreeSet<RemoteFile>,
    generations: &[Generation],
    wanted: Timestamp,
    oldest: Timestamp,
) -> Result<GenerationPlan, RestoreError> {
    // Without our first file, nobody knows what was stored until the oldest that is left.
    let is_whole = files.iter().any(|file| file.max.get() == 1);
    let end = newest_ms(generations, None).and_then(|ms| Timestamp::from_millisecond(ms).ok());
    if let Some(end) = end.filter(|end| !is_whole && *end < wanted) {
        return Err(GenerationError::Between {
            wanted,
            before: end,
            after: oldest,
        }
        .into());
    }
    generations::plan(generations, Some(wanted)).map_err(|error| match error {
        RestoreError::TooEarly { oldest: theirs, .. } => RestoreError::TooEarly {
            wanted,
            oldest: oldest.min(theirs),
        },
        error => error,
    })
}

/// When the store got the newest pages up to a position. A fence has none: it is younger than what
/// it ends.
fn content_ms(files: &BTreeSet<RemoteFile>, position: Txid) -> Option<i64> {
    let content = files
        .iter()
        .filter(|file| file.max <= position && file.has_pages());
    // What is merged or copied later is stored again.
    let newest = content.max_by_key(|file| (file.max, Reverse(file.modified_ms)));
    newest.map(|file| file.modified_ms)
}

fn newest_ms(generations: &[Generation], at: Option<Timestamp>) -> Option<i64> {
    let at_ms = at.map(Timestamp::as_millisecond);
    let each = generations
        .iter()
        .filter_map(|generation| generation.newest_ms(at_ms));
    each.max()
}

/// Plans the way to a point through our files.
async fn resolve(
    store: &SharedStore,
    files: BTreeSet<RemoteFile>,
    point: Point,
) -> Result<Resolved, RestoreError> {
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
