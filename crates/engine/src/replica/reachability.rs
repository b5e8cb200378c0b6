//! The positions that restores reach, computed for all of them in one pass.
//!
//! [`plan_restore`](crate::replica::restore_plan::plan_restore) answers for one position and lists its files. This
//! module gives the same answer for every position at once, so that a hundred thousand of them can
//! be proven before each deletion.

use ltx::Txid;

use crate::replica::manifest::RemoteFile;

/// The positions that restores reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// Ascending, one file for each position: of those that end there, the one that begins first.
    ends: Vec<RemoteFile>,
}

impl Reach {
    /// Follows files, given in the order of their ends.
    ///
    /// A position is reached when a snapshot ends there, or a file that continues a reached
    /// position before it. Only the last reached position matters: a file that continues an earlier
    /// one continues it, too. A later snapshot never hides the positions that an older one leads
    /// to.
    pub fn of<'a>(files: impl IntoIterator<Item = &'a RemoteFile>) -> Reach {
        let mut ends: Vec<RemoteFile> = Vec::new();
        let mut files = files.into_iter().peekable();
        while let Some(file) = files.next() {
            let mut widest = *file;
            while let Some(other) = files.next_if(|other| other.max == widest.max) {
                if other.min < widest.min {
                    widest = *other;
                }
            }
            let before = ends.last();
            debug_assert!(before.is_none_or(|before| before.max < widest.max));
            let continues = before.is_some_and(|before| widest.min <= before.max.next());
            if widest.is_snapshot() || continues {
                ends.push(widest);
            }
        }
        Reach { ends }
    }

    /// Whether a restore reaches this position.
    pub fn contains(&self, txid: Txid) -> bool {
        self.find(txid).is_ok()
    }

    /// The files that lead to a reached position, the last one first; none when it is not reached.
    pub fn way(&self, txid: Txid) -> Vec<RemoteFile> {
        let mut way = Vec::new();
        let mut next = self.find(txid).ok();
        while let Some(file) = next.map(|index| self.ends[index]) {
            way.push(file);
            // Continue from the first position that fits: this gives the fewest files.
            let from = Txid::new(file.min.get() - 1);
            let index = self.ends.partition_point(|end| end.max < from);
            next = (!file.is_snapshot()).then_some(index);
        }
        way
    }

    fn find(&self, txid: Txid) -> Result<usize, usize> {
        self.ends.binary_search_by_key(&txid, |end| end.max)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::replica::restore_plan::plan_restore;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_position_is_reached_when_and_only_when_a_restore_can_be_planned(
            ranges in prop::collection::vec((0u8..4, 1u64..20, 0u64..8), 1..40),
        ) {
            let file = |(level, min, span): &(u8, u64, u64)| RemoteFile {
                level: if *min == 1 { 9 } else { *level },
                min: Txid::new(*min),
                max: Txid::new(min + span),
                size: 1,
                modified_ms: 0,
            };
            let files: BTreeSet<RemoteFile> = ranges.iter().map(file).collect();
            let mut sorted: Vec<RemoteFile> = files.iter().copied().collect();
            sorted.sort_by_key(|file| file.max);
            let reach = Reach::of(&sorted);
            for txid in (1..30).map(Txid::new) {
                let plan = plan_restore(&files, Some(txid));
                prop_assert_eq!(reach.contains(txid), plan.is_ok(), "{}", txid);
                let way: BTreeSet<RemoteFile> = reach.way(txid).into_iter().collect();
                // The files of the way alone lead to the position.
                let alone = plan_restore(&way, Some(txid));
                prop_assert_eq!(alone.is_ok(), plan.is_ok());
            }
        }
    }
}
