//! Sets of page numbers.

use std::collections::BTreeMap;

/// Pages in a block.
const BLOCK: u32 = 4096;

/// A set of page numbers, one bit for each page. Its memory depends on the pages in the set, never
/// on the greatest number, because a file can state any number.
#[derive(Debug, Default)]
pub(crate) struct PageNumbers {
    /// Every page up to this one is in the set.
    up_to: u32,
    blocks: BTreeMap<u32, [u64; (BLOCK / 64) as usize]>,
}

impl PageNumbers {
    /// Pages 1 to `last`.
    pub(crate) fn up_to(last: u32) -> PageNumbers {
        PageNumbers {
            up_to: last,
            blocks: BTreeMap::new(),
        }
    }

    pub(crate) fn insert(&mut self, pgno: u32) {
        let block = self.blocks.entry(pgno / BLOCK).or_insert([0; _]);
        block[word(pgno)] |= 1 << (pgno % 64);
    }

    pub(crate) fn contains(&self, pgno: u32) -> bool {
        let in_block = |block: &[u64; _]| block[word(pgno)] >> (pgno % 64) & 1 == 1;
        pgno <= self.up_to || self.blocks.get(&(pgno / BLOCK)).is_some_and(in_block)
    }

    /// Removes the pages after `last`.
    pub(crate) fn truncate(&mut self, last: u32) {
        self.up_to = self.up_to.min(last);
        self.blocks.retain(|block, _| *block <= last / BLOCK);
        if let Some(block) = self.blocks.get_mut(&(last / BLOCK)) {
            block[word(last)] &= u64::MAX >> (63 - last % 64);
            block[word(last) + 1..].fill(0);
        }
    }
}

fn word(pgno: u32) -> usize {
    (pgno % BLOCK / 64) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_great_number_takes_no_more_room_than_a_small_one() {
        let mut pages = PageNumbers::default();
        pages.insert(u32::MAX);
        assert_eq!(pages.blocks.len(), 1);
        assert!(pages.contains(u32::MAX) && !pages.contains(u32::MAX - 1));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Insert(u32),
        Truncate(u32),
    }

    proptest! {
        #[test]
        fn it_is_a_set(
            first in 0_u32..300,
            steps in prop::collection::vec(
                prop_oneof![
                    4 => (1_u32..10_000).prop_map(Step::Insert),
                    1 => (0_u32..10_000).prop_map(Step::Truncate),
                ],
                0..200,
            ),
        ) {
            let mut pages = PageNumbers::up_to(first);
            let mut model: BTreeSet<u32> = (1..=first).collect();
            for step in steps {
                match step {
                    Step::Insert(pgno) => {
                        pages.insert(pgno);
                        model.insert(pgno);
                    }
                    Step::Truncate(last) => {
                        pages.truncate(last);
                        model.retain(|pgno| *pgno <= last);
                    }
                }
            }
            for pgno in 1..10_100 {
                prop_assert_eq!(pages.contains(pgno), model.contains(&pgno), "page {}", pgno);
            }
        }
    }
}
