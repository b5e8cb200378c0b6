//! Which ranges of positions restores reach, for people: where they begin, where they stop.

use std::collections::{BTreeMap, BTreeSet};

use engine::remote::RemoteFile;
use ltx::Txid;

/// What a replica's files lead to.
#[derive(Debug, PartialEq, Eq)]
pub struct Spans {
    /// Ranges of positions, ascending: the first is that of a full copy, the last is as far as the
    /// files after it lead. Inside a merged file only its end can be restored.
    pub spans: Vec<(Txid, Txid)>,
    /// Where files are missing: the last position before, and the first of the files behind that
    /// no restore can use.
    pub holes: BTreeMap<Txid, Txid>,
}

/// Follows the files from each full copy on.
pub fn spans(files: &BTreeSet<RemoteFile>) -> Spans {
    let (copies, mut others): (Vec<&RemoteFile>, Vec<&RemoteFile>) =
        files.iter().partition(|file| file.is_snapshot());
    others.sort_by_key(|file| file.min);
    // The furthest end among the files up to each one, which begin no later than it.
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
    let mut holes = BTreeMap::new();
    for file in others {
        let behind = spans.partition_point(|(from, _)| *from < file.max);
        // Files from before every full copy are missed by nobody.
        let before = behind.checked_sub(1).map(|last| spans[last].1);
        if let Some(end) = before.filter(|end| *end < file.max) {
            holes.entry(end).or_insert(file.min);
        }
    }
    Spans { spans, holes }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Pairs = Vec<(u64, u64)>;

    fn reached(files: &[(u8, u64, u64)]) -> (Pairs, Pairs) {
        let file = |(level, min, max): &(u8, u64, u64)| RemoteFile {
            level: *level,
            min: Txid::new(*min),
            max: Txid::new(*max),
            size: 1,
            modified_ms: 0,
        };
        let found = spans(&files.iter().map(file).collect());
        let numbers = |(a, b): (Txid, Txid)| (a.get(), b.get());
        (
            found.spans.into_iter().map(numbers).collect(),
            found.holes.into_iter().map(numbers).collect(),
        )
    }

    #[test]
    fn restores_reach_as_far_as_files_follow_each_other() {
        for (files, spans, holes) in [
            (&[][..], &[][..], &[][..]),
            (&[(9, 1, 1)], &[(1, 1)], &[]),
            (&[(9, 1, 1), (0, 2, 2), (0, 3, 3)], &[(1, 3)], &[]),
            // Several full copies on one way are one span.
            (
                &[(9, 1, 1), (1, 2, 9), (9, 1, 5), (0, 10, 10)],
                &[(1, 10)],
                &[],
            ),
            // Full copies that are left of an older history stand alone.
            (
                &[(9, 1, 1), (9, 1, 50), (0, 51, 51)],
                &[(1, 1), (50, 51)],
                &[],
            ),
            // A file that is missing, with and without a full copy behind.
            (
                &[(9, 1, 1), (0, 2, 2), (0, 4, 4), (0, 5, 5)],
                &[(1, 2)],
                &[(2, 4)],
            ),
            (
                &[(9, 1, 1), (0, 2, 2), (0, 4, 4), (9, 1, 4), (0, 6, 6)],
                &[(1, 2), (4, 4)],
                &[(2, 4), (4, 6)],
            ),
            // A merged file leads over what is gone.
            (&[(9, 1, 1), (0, 2, 2), (1, 2, 9)], &[(1, 9)], &[]),
            // Captured before the oldest full copy.
            (&[(0, 3, 3), (9, 1, 7)], &[(7, 7)], &[]),
        ] {
            let expected = (spans.to_vec(), holes.to_vec());
            assert_eq!(reached(files), expected, "{files:?}");
        }
    }
}
