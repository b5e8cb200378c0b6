//! The point to restore, and the way there through what is stored.

use std::collections::BTreeSet;

use jiff::Timestamp;
use ltx::Txid;
use store::SharedStore;

use super::RestoreError;
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
