//! Stored files that are missing although they were promised.
//!
//! Inside `retention.exact` each capture keeps a file of its own in level 0. A restore of a later
//! position does not notice a lost one where a compacted file of level 1 and up covers it. But the
//! capture itself cannot be restored any more, and the state at a time beside it is unknown. A file
//! that retention removed on purpose is no hole. The remaining files tell the two cases apart:
//!
//! - Retention removes files of level 0 from the oldest on, and never the newest. So if an older
//!   file is left, the missing one was lost.
//! - It removes the files that one compacted file covers together, once that file is older than
//!   `exact`. So beside others of the same compacted file, a missing file was lost, unless
//!   retention is removing files at this very point.
//! - A snapshot alone at the end of a gap is a new beginning: no file was stored between.

use std::time::Duration;

use ltx::{Level, Txid};

use crate::replica::manifest::RemoteFile;

/// Positions between two stored ones whose files are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hole {
    /// The last stored position before.
    pub after: Txid,
    /// The first stored position after the hole.
    pub next: Txid,
    /// Whether a compacted file covers the hole: the positions after it are restored all the same.
    pub is_covered: bool,
    /// Whether the hole is inside `retention.exact`, where each capture can be restored.
    pub is_exact: bool,
}

impl Hole {
    /// The first missing position.
    pub fn first(&self) -> Txid {
        self.after.next()
    }

    /// The last missing position.
    pub fn last(&self) -> Txid {
        Txid::new(self.next.get() - 1)
    }
}

/// The span in which each capture has a file, as far as it is known.
#[derive(Debug, Clone, Copy)]
pub struct Exact {
    /// `retention.exact`, or the shorter `retention.window`.
    pub span: Duration,
    /// Now, in Unix milliseconds, by a clock that is near the store's.
    pub now_ms: i64,
}

/// One stored position.
struct End {
    txid: Txid,
    /// The lowest first TXID of the files that end here, except snapshots; none when only snapshots
    /// do.
    min: Option<Txid>,
    has_capture: bool,
    age_ms: i64,
}

/// A compacted file.
#[derive(Clone, Copy)]
struct Compacted {
    min: Txid,
    max: Txid,
    age_ms: i64,
}

/// Finds the holes between the files of a replica, in order. `exact` is none where the
/// configuration is unknown; a file that may have expired is then no hole.
pub fn holes<'a>(
    files: impl IntoIterator<Item = &'a RemoteFile>,
    exact: Option<Exact>,
) -> Vec<Hole> {
    let now_ms = exact.map_or(0, |exact| exact.now_ms);
    let mut sorted: Vec<RemoteFile> = files.into_iter().copied().collect();
    sorted.sort_by_key(|file| (file.max, file.level));
    let mut ends: Vec<End> = Vec::new();
    let mut captures: Vec<Txid> = Vec::new();
    let mut levels: [Vec<Compacted>; Level::SNAPSHOT.get() as usize] = Default::default();
    let mut age_ms = i64::MAX;
    for file in &sorted {
        // A later end means a later capture, whatever the store's times are.
        age_ms = age_ms.min(now_ms.saturating_sub(file.modified_ms));
        if ends.last().is_none_or(|end| end.txid != file.max) {
            ends.push(End {
                txid: file.max,
                min: None,
                has_capture: false,
                age_ms,
            });
        }
        let end = ends.last_mut().expect("it was pushed a moment ago");
        end.age_ms = age_ms;
        if file.is_snapshot() {
            continue;
        }
        end.min = Some(end.min.map_or(file.min, |min| min.min(file.min)));
        if file.level == 0 {
            end.has_capture = true;
            captures.push(file.max);
        } else if let Some(level) = levels.get_mut(usize::from(file.level)) {
            let (min, max) = (file.min, file.max);
            level.push(Compacted { min, max, age_ms });
        }
    }
    let is_old = |age_ms: i64| {
        exact
            .is_some_and(|exact| u128::from(age_ms.max(0).unsigned_abs()) >= exact.span.as_millis())
    };
    // The lowest first TXID among the files that end at a position or later.
    let mut reach = Txid::new(u64::MAX);
    let mut found = Vec::new();
    for index in (1..ends.len()).rev() {
        let (before, next) = (&ends[index - 1], &ends[index]);
        reach = next.min.map_or(reach, |min| min.min(reach));
        let (after, first) = (before.txid, before.txid.next());
        if next.txid == first {
            continue;
        }
        let is_covered = reach <= first;
        let is_exact = if is_covered {
            let covering = levels.iter().filter_map(|level| {
                let at = level.partition_point(|file| file.max < next.txid);
                level.get(at).filter(|file| file.min <= first)
            });
            let covering: Vec<Compacted> = covering.copied().collect();
            // A level 0 file that covers the gap is of another program, and holds the captures.
            let Some(lowest) = covering.first() else {
                continue;
            };
            let has_expired = covering.iter().any(|file| is_old(file.age_ms));
            let has_older = captures.first().is_some_and(|oldest| *oldest <= after);
            let has_begun = levels
                .iter()
                .any(|level| level.first().is_some_and(|oldest| oldest.max <= after));
            let beside = captures.partition_point(|capture| *capture <= after);
            // The newest capture stays when the others that its compacted file covers expire.
            let has_beside = beside + 1 < captures.len() && captures[beside] <= lowest.max;
            let is_lost = has_older || has_beside && (exact.is_some() || !has_begun);
            if has_expired || !is_lost {
                continue;
            }
            true
        } else if next.min.is_none() {
            continue;
        } else {
            next.has_capture && !is_old(next.age_ms)
        };
        found.push(Hole {
            after,
            next: next.txid,
            is_covered,
            is_exact,
        });
    }
    found.reverse();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(level: u8, min: u64, max: u64) -> RemoteFile {
        RemoteFile {
            level,
            min: Txid::new(min),
            max: Txid::new(max),
            size: 1,
            // A capture each second.
            modified_ms: max as i64 * 1000,
        }
    }

    fn found(files: &[(u8, u64, u64)], exact: Option<Exact>) -> Vec<(u64, u64, bool, bool)> {
        let files = files
            .iter()
            .map(|(level, min, max)| file(*level, *min, *max));
        let files: Vec<RemoteFile> = files.collect();
        holes(&files, exact)
            .iter()
            .map(|hole| {
                let (after, next) = (hole.after.get(), hole.next.get());
                (after, next, hole.is_covered, hole.is_exact)
            })
            .collect()
    }

    #[test]
    fn what_is_lost_is_told_from_what_has_expired() {
        type Case = (&'static [(u8, u64, u64)], &'static [(u64, u64, bool, bool)]);
        let cases: &[Case] = &[
            (&[], &[]),
            (&[(9, 1, 1), (0, 2, 2), (0, 3, 3)], &[]),
            // Lost, and no file covers the hole.
            (&[(9, 1, 1), (0, 3, 3)], &[(1, 3, false, true)]),
            (&[(9, 1, 1), (1, 5, 9)], &[(1, 9, false, false)]),
            // A later snapshot does not bring back the captures before it.
            (
                &[(9, 1, 1), (0, 2, 2), (0, 4, 4), (9, 1, 4)],
                &[(2, 4, false, true)],
            ),
            // A new beginning.
            (&[(9, 1, 1), (9, 1, 50), (0, 51, 51)], &[]),
            (&[(0, 3, 3), (9, 1, 7)], &[]),
            // Lost, and a compacted file covers the hole: in its middle, at its end, at its start.
            (
                &[(9, 1, 1), (0, 2, 2), (0, 4, 4), (1, 2, 4)],
                &[(2, 4, true, true)],
            ),
            (
                &[(9, 1, 1), (0, 2, 2), (1, 2, 4), (0, 5, 5)],
                &[(2, 4, true, true)],
            ),
            (
                &[(9, 1, 1), (0, 3, 3), (0, 4, 4), (1, 2, 4)],
                &[(1, 3, true, true)],
            ),
            // The end of the compacted file is a position of its own.
            (
                &[(9, 1, 1), (0, 2, 2), (0, 3, 3), (1, 2, 4), (0, 5, 5)],
                &[],
            ),
            // Expired: level 0 of whole compacted files, the older ones first; and the newest
            // stays.
            (&[(9, 1, 1), (1, 2, 9), (1, 10, 19), (0, 20, 20)], &[]),
            (
                &[(9, 1, 1), (1, 2, 9), (0, 10, 10), (0, 11, 11), (1, 10, 11)],
                &[],
            ),
            // Expiring at this moment.
            (
                &[(9, 1, 1), (1, 2, 9), (0, 14, 14), (0, 15, 15), (1, 10, 15)],
                &[],
            ),
            // All captures of an idle database expired, except the newest.
            (&[(9, 1, 1), (0, 9, 9), (1, 2, 9)], &[]),
        ];
        for (files, expected) in cases {
            assert_eq!(found(files, None), *expected, "{files:?}");
        }
    }

    #[test]
    fn where_the_span_is_known_the_store_s_times_decide() {
        let lost = [(9, 1, 1), (1, 2, 9), (0, 14, 14), (0, 15, 15), (1, 10, 15)];
        let at = |span: u64| Exact {
            span: Duration::from_secs(span),
            now_ms: 20_000,
        };
        assert_eq!(found(&lost, Some(at(6))), [(9, 14, true, true)]);
        assert_eq!(found(&lost, Some(at(5))), []);
        let old = [(9, 1, 1), (0, 2, 2), (0, 4, 4), (0, 5, 5)];
        assert_eq!(found(&old, Some(at(17))), [(2, 4, false, true)]);
        assert_eq!(found(&old, Some(at(16))), [(2, 4, false, false)]);
    }
}
