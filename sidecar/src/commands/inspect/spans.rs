//! The ranges of positions that restores can reach, for people.

use std::collections::BTreeSet;

use engine::replica::manifest::RemoteFile;
use ltx::Txid;

/// Returns the ranges of positions, ascending. A range begins at a snapshot and ends at the last
/// position that the files after it reach. Inside a compacted file only its end can be restored.
pub fn spans(files: &BTreeSet<RemoteFile>) -> Vec<(Txid, Txid)> {
    let (copies, mut others): (Vec<&RemoteFile>, Vec<&RemoteFile>) =
        files.iter().partition(|file| file.is_snapshot());
    others.sort_by_key(|file| file.min);
    // For each file, the furthest end among the files that begin no later.
    let furthest: Vec<Txid> = others
        .iter()
        .scan(Txid::ZERO, |end, file| {
            *end = file.max.max(*end);
            Some(*end)
        })
        .collect();
    let follow = |from: Txid| {
        let mut end = from;
        loop {
            let usable = others.partition_point(|file| file.min <= end.next());
            match usable.checked_sub(1).map(|last| furthest[last]) {
                Some(further) if further > end => end = further,
                _ => return end,
            }
        }
    };
    let mut spans: Vec<(Txid, Txid)> = Vec::new();
    let bases: BTreeSet<Txid> = copies.iter().map(|file| file.max).collect();
    for base in bases {
        if spans.last().is_none_or(|(_, end)| base > *end) {
            spans.push((base, follow(base)));
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restores_reach_as_far_as_files_follow_each_other() {
        for (files, expected) in [
            (&[][..], &[][..]),
            (&[(9, 1, 1)], &[(1, 1)]),
            (&[(9, 1, 1), (0, 2, 2), (0, 3, 3)], &[(1, 3)]),
            // Several snapshots on one path form one range.
            (&[(9, 1, 1), (1, 2, 9), (9, 1, 5), (0, 10, 10)], &[(1, 10)]),
            // Snapshots from an older history are ranges of their own.
            (&[(9, 1, 1), (9, 1, 50), (0, 51, 51)], &[(1, 1), (50, 51)]),
            // A missing file, without and with a later snapshot.
            (&[(9, 1, 1), (0, 2, 2), (0, 4, 4), (0, 5, 5)], &[(1, 2)]),
            (
                &[(9, 1, 1), (0, 2, 2), (0, 4, 4), (9, 1, 4), (0, 6, 6)],
                &[(1, 2), (4, 4)],
            ),
            // A compacted file bridges removed files.
            (&[(9, 1, 1), (0, 2, 2), (1, 2, 9)], &[(1, 9)]),
            // Captured before the oldest snapshot.
            (&[(0, 3, 3), (9, 1, 7)], &[(7, 7)]),
        ] {
            let file = |(level, min, max): &(u8, u64, u64)| RemoteFile {
                level: *level,
                min: Txid::new(*min),
                max: Txid::new(*max),
                size: 1,
                modified_ms: 0,
            };
            let found = spans(&files.iter().map(file).collect());
            let numbers: Vec<(u64, u64)> = found.iter().map(|(a, b)| (a.get(), b.get())).collect();
            assert_eq!(numbers, expected, "{files:?}");
        }
    }
}
