//! The rule that picks adjacent files to compact into one file of the next level.
//!
//! A compacted file repeats stored changes: it shortens restores, and nothing depends on it.
//! Snapshots are never compacted, only captured changes, so no level below 9 holds a whole
//! database.

use std::collections::BTreeSet;

use ltx::{Level, Txid};

use crate::replica::manifest::RemoteFile;

/// Captured files compacted into one of level 1.
pub const MAX_CAPTURED: usize = 256;
/// Files compacted into one of level 2 or above. Each is read in parts of at most 1 MiB, so this
/// bounds memory.
pub const MAX_INPUTS: usize = 24;
/// Bytes compacted into one file. Larger files stay as they are.
pub const MAX_BYTES: u64 = 64 << 20;

/// Files to compact into one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The level of the new file.
    pub level: u8,
    /// Its inputs, each continuing the one before.
    pub files: Vec<RemoteFile>,
}

/// Returns the captured files after `compacted` to compact into one of level 1, and the TXID up to
/// which compaction is then done. There may be no run. A file too large to be worth it, or a TXID
/// that another writer's history skipped, ends a run and stays as it is.
pub fn next_run_of_captured(
    files: &BTreeSet<RemoteFile>,
    compacted: Txid,
    acked: Txid,
) -> (Option<Run>, Txid) {
    let mut run: Vec<RemoteFile> = Vec::new();
    let (mut bytes, mut last) = (0, compacted);
    let captured = from(files, 0, compacted.next()).take_while(|file| file.max <= acked);
    for file in captured {
        let continues = file.min == file.max && file.min == last.next();
        let fits = bytes + file.size <= MAX_BYTES && run.len() < MAX_CAPTURED;
        match (continues && fits, run.is_empty()) {
            (true, _) => {
                bytes += file.size;
                run.push(*file);
                last = file.max;
            }
            (false, false) => break,
            // The run is still empty: continue after the large file.
            (false, true) if continues => last = file.max,
            (false, true) => {
                last = Txid::new(file.min.get() - 1);
                if file.size <= MAX_BYTES {
                    bytes = file.size;
                    run.push(*file);
                    last = file.max;
                }
            }
        }
    }
    if run.is_empty() {
        return (None, acked);
    }
    (
        Some(Run {
            level: 1,
            files: run,
        }),
        last,
    )
}

/// Returns two or more files of the level below to compact into the next file of `level`. They
/// continue each other and are the oldest that are not compacted yet. None when compaction gains
/// nothing.
///
/// A compacted file ends before a missing name or a file that is too large. Files before the newest
/// snapshot stay as they are: one of them may be damaged, and that snapshot may have been made
/// because of it.
pub fn next_run(files: &BTreeSet<RemoteFile>, level: u8) -> Option<Run> {
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
    let is_worth_it = run.len() > 1 && bytes <= MAX_BYTES;
    is_worth_it.then_some(Run { level, files: run })
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
    use crate::replica::restore_plan::plan_restore;
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
        let run = next_run(&files.collect(), level);
        let files = run.map_or_else(Vec::new, |run| run.files);
        files
            .iter()
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
        let newest_snapshot = [&more[..], &[(9, 1, 7, 5)]].concat();
        assert_eq!(
            next(&newest_snapshot, 2),
            [],
            "what a snapshot has left behind"
        );
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

    fn next_captured(files: &[(u64, u64)], compacted: u64, acked: u64) -> (Vec<u64>, u64) {
        let files = files
            .iter()
            .map(|(txid, size)| file(0, *txid, *txid, *size));
        let (compacted, acked) = (Txid::new(compacted), Txid::new(acked));
        let (run, last) = next_run_of_captured(&files.collect(), compacted, acked);
        let files = run.map_or_else(Vec::new, |run| run.files);
        let txids = files.iter().map(|file| file.max.get()).collect();
        (txids, last.get())
    }

    #[test]
    fn captured_files_go_together_up_to_what_is_stored() {
        let files: Vec<_> = (2..10).map(|txid| (txid, 1)).collect();
        assert_eq!(next_captured(&files, 3, 6), (vec![4, 5, 6], 6));
        assert_eq!(next_captured(&files, 9, 9), (vec![], 9));
        let many: Vec<_> = (1..1000).map(|txid| (txid, 1)).collect();
        let (run, last) = next_captured(&many, 0, 999);
        assert_eq!((run.len(), last), (MAX_CAPTURED, MAX_CAPTURED as u64));
    }

    #[test]
    fn a_captured_file_that_is_too_large_and_a_gap_end_a_run_and_are_passed() {
        let large = [(2, 1), (3, MAX_BYTES + 1), (4, 1), (5, MAX_BYTES)];
        assert_eq!(next_captured(&large, 1, 5), (vec![2], 2));
        assert_eq!(next_captured(&large, 2, 5), (vec![4], 4));
        assert_eq!(next_captured(&large, 4, 5), (vec![5], 5));
        assert_eq!(next_captured(&large[..2], 2, 3), (vec![], 3));
        let gap = [(2, 1), (5, 1), (6, 1)];
        assert_eq!(next_captured(&gap, 1, 6), (vec![2], 2));
        assert_eq!(next_captured(&gap, 2, 6), (vec![5, 6], 6));
        assert_eq!(next_captured(&gap, 6, 9), (vec![], 9));
    }

    proptest! {
        /// Compacting until no run is left changes no restorable point, and makes the plan to the
        /// newest one no longer.
        #[test]
        fn merging_ends_and_keeps_every_point(
            spans in prop::collection::vec((1u64..5, 0u64..3, 1u64..9), 1..60),
        ) {
            let mut files: BTreeSet<RemoteFile> = [file(9, 1, 1, 1)].into();
            let mut txid = 1;
            for (span, gap, size) in spans {
                // Now and then a new snapshot, above a gap.
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
                    let Some(Run { files: run, .. }) = next_run(&files, level) else { break };
                    prop_assert!(run.len() > 1 && run.len() <= MAX_INPUTS);
                    prop_assert!(run.windows(2).all(|pair| pair[1].min == pair[0].max.next()));
                    let size = run.iter().map(|file| file.size).sum();
                    prop_assert!(size <= MAX_BYTES);
                    files.insert(file(level, run[0].min.get(), run[run.len() - 1].max.get(), size));
                }
                prop_assert!(next_run(&files, level).is_none());
            }
            for point in before.iter().map(|file| file.max) {
                let plan = plan_restore(&before, Some(point));
                let compacted = plan_restore(&files, Some(point));
                prop_assert_eq!(plan.is_ok(), compacted.is_ok());
                if let (Ok(plan), Ok(compacted)) = (plan, compacted) {
                    prop_assert!(compacted.files.len() <= plan.files.len());
                }
            }
        }
    }
}
