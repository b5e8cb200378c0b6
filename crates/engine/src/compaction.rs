//! The rule that picks neighbours to merge into one file of the next level.
//!
//! A merged file repeats what is stored: it makes restores shorter, and nothing depends on it. Base
//! images are never merged: only captured changes, so no level below 9 holds a whole database.

use std::collections::BTreeSet;

use ltx::{Level, Txid};

use crate::remote::RemoteFile;

/// Files merged into one of level 2 or above. Each is read in parts of
/// [`PART_BYTES`](crate::target), so this bounds memory.
pub const MAX_INPUTS: usize = 24;
/// Bytes merged into one of level 2 or above: the merged file lies on our disk until it is stored.
pub const MAX_BYTES: u64 = 64 << 20;

/// Returns the files of the level below to merge into the next file of `level`, two or more that
/// continue each other, the oldest that are not merged yet; none: there is nothing to gain.
///
/// Where a name is missing, or a file is too large, a merged file ends before it. Files before the
/// newest full copy stay as they are: among them may be one that is damaged, and was left behind
/// with that copy.
pub fn next_merge(files: &BTreeSet<RemoteFile>, level: u8) -> Option<Vec<RemoteFile>> {
    let newest = |level| of_level(files, level).next_back().map(|file| file.max);
    let reached = newest(level).max(newest(Level::SNAPSHOT.get()));
    let begin = reached.unwrap_or(Txid::ZERO).next();
    let mut run: Vec<RemoteFile> = Vec::new();
    let mut bytes = 0;
    for file in from(files, level - 1, begin) {
        let continues = run.last().is_some_and(|last| file.min == last.max.next());
        let fits = bytes + file.size <= MAX_BYTES && run.len() < MAX_INPUTS;
        if !continues || !fits {
            if run.len() > 1 {
                break;
            }
            run.clear();
            bytes = 0;
        }
        bytes += file.size;
        run.push(*file);
    }
    (run.len() > 1 && bytes <= MAX_BYTES).then_some(run)
}

fn of_level(
    files: &BTreeSet<RemoteFile>,
    level: u8,
) -> impl DoubleEndedIterator<Item = &RemoteFile> {
    files.range(first(level, Txid::ZERO)..first(level + 1, Txid::ZERO))
}

fn from(files: &BTreeSet<RemoteFile>, level: u8, min: Txid) -> impl Iterator<Item = &RemoteFile> {
    files.range(first(level, min)..first(level + 1, Txid::ZERO))
}

/// Sorts before every file of this level that begins at or after `min`.
fn first(level: u8, min: Txid) -> RemoteFile {
    RemoteFile {
        level,
        min,
        max: Txid::ZERO,
        size: 0,
        modified_ms: i64::MIN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::plan_restore;
    use proptest::prelude::*;

    fn file(level: u8, min: u64, max: u64, size: u64) -> RemoteFile {
        RemoteFile {
            level,
            min: Txid::new(min),
            max: Txid::new(max),
            size,
            modified_ms: 0,
        }
    }

    fn next(files: &[(u8, u64, u64, u64)], level: u8) -> Vec<(u64, u64)> {
        let files = files
            .iter()
            .map(|(level, min, max, size)| file(*level, *min, *max, *size));
        let run = next_merge(&files.collect(), level).unwrap_or_default();
        run.iter()
            .map(|file| (file.min.get(), file.max.get()))
            .collect()
    }

    #[test]
    fn neighbours_behind_the_last_merge_go_together() {
        let files = [
            (9, 1, 1, 5),
            (1, 2, 3, 1),
            (1, 4, 6, 1),
            (2, 2, 6, 1),
            (1, 7, 7, 1),
        ];
        assert_eq!(next(&files[..3], 2), [(2, 3), (4, 6)]);
        assert_eq!(next(&files, 2), [], "one alone is left alone");
        let more = [&files[..], &[(1, 8, 9, 1)]].concat();
        assert_eq!(next(&more, 2), [(7, 7), (8, 9)]);
        assert_eq!(next(&more, 3), []);
        let copied = [&more[..], &[(9, 1, 7, 5)]].concat();
        assert_eq!(next(&copied, 2), [], "what a full copy has left behind");
    }

    #[test]
    fn a_merged_file_ends_before_a_gap_and_before_what_is_too_large() {
        let gap = [(1, 2, 3, 1), (1, 5, 6, 1), (1, 7, 8, 1)];
        assert_eq!(next(&gap, 2), [(5, 6), (7, 8)]);
        let large = [
            (1, 2, 3, MAX_BYTES + 1),
            (1, 4, 5, 1),
            (1, 6, 7, 1),
            (1, 8, 9, MAX_BYTES),
        ];
        assert_eq!(next(&large, 2), [(4, 5), (6, 7)]);
        assert_eq!(next(&large[..2], 2), []);
        assert_eq!(
            next(&[(1, 2, 3, MAX_BYTES + 1), (1, 4, 5, MAX_BYTES + 1)], 2),
            []
        );
        let many: Vec<_> = (2..100).map(|txid| (1, txid, txid, 1)).collect();
        assert_eq!(next(&many, 2).len(), MAX_INPUTS);
    }

    proptest! {
        /// Merging until there is nothing left to merge changes no restorable point and makes the
        /// way to the newest one no longer.
        #[test]
        fn merging_ends_and_keeps_every_point(
            spans in prop::collection::vec((1u64..5, 0u64..3, 1u64..9), 1..60),
        ) {
            let mut files: BTreeSet<RemoteFile> = [file(9, 1, 1, 1)].into();
            let mut txid = 1;
            for (span, gap, size) in spans {
                // Now and then a new base, above a gap.
                if gap == 2 {
                    txid += 2;
                    files.insert(file(9, 1, txid, 1));
                }
                files.insert(file(1, txid + 1, txid + span, size << 23));
                txid += span;
            }
            let before = files.clone();
            for level in [2, 3] {
                for _ in 0..100 {
                    let Some(run) = next_merge(&files, level) else { break };
                    prop_assert!(run.len() > 1 && run.len() <= MAX_INPUTS);
                    prop_assert!(run.windows(2).all(|pair| pair[1].min == pair[0].max.next()));
                    let size = run.iter().map(|file| file.size).sum();
                    prop_assert!(size <= MAX_BYTES);
                    files.insert(file(level, run[0].min.get(), run[run.len() - 1].max.get(), size));
                }
                prop_assert!(next_merge(&files, level).is_none());
            }
            for point in before.iter().map(|file| file.max) {
                let plan = plan_restore(&before, Some(point));
                let merged = plan_restore(&files, Some(point));
                prop_assert_eq!(plan.is_ok(), merged.is_ok());
                if let (Ok(plan), Ok(merged)) = (plan, merged) {
                    prop_assert!(merged.files.len() <= plan.files.len());
                }
            }
        }
    }
}
