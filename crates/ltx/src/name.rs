//! Names of LTX files, and their levels.

use std::fmt;

use crate::Txid;

/// Compaction level: 0 as captured, 1 to 8 compacted, 9 snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level(u8);

impl Level {
    /// Files as captured.
    pub const CAPTURED: Level = Level(0);
    /// Snapshots.
    pub const SNAPSHOT: Level = Level(9);

    /// Creates a level; `None` above 9.
    pub const fn new(number: u8) -> Option<Level> {
        if number <= Self::SNAPSHOT.0 {
            Some(Level(number))
        } else {
            None
        }
    }

    /// Returns the number.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// Returns every level, 0 to 9.
    pub fn all() -> impl DoubleEndedIterator<Item = Level> {
        (0..=Self::SNAPSHOT.0).map(Level)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Name of an LTX file: `<min>-<max>.ltx`, its inclusive range of TXIDs.
///
/// Names order by `min`, then `max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileName {
    /// First TXID of the file.
    pub min: Txid,
    /// Last TXID of the file.
    pub max: Txid,
}

impl FileName {
    /// Parses the last component of a key; `None` for a name that is not an LTX file's.
    ///
    /// No writer uses a name whose range is empty or begins at zero; such a name also gives `None`.
    pub fn parse(name: &str) -> Option<FileName> {
        let (min, max) = name.strip_suffix(".ltx")?.split_once('-')?;
        let name = FileName {
            min: Txid::from_hex(min)?,
            max: Txid::from_hex(max)?,
        };
        (Txid::FIRST <= name.min && name.min <= name.max).then_some(name)
    }

    /// True for a file that begins at TXID 1 and thus holds every page.
    pub fn is_snapshot(&self) -> bool {
        self.min == Txid::FIRST
    }

    /// True for a file of one TXID.
    pub fn is_single(&self) -> bool {
        self.min == self.max
    }

    /// True when `other` continues this file: it ends later, and no TXID between them is missing.
    pub fn is_continued_by(&self, other: &FileName) -> bool {
        other.min <= self.max.next() && other.max > self.max
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}.ltx", self.min, self.max)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(min: u64, max: u64) -> FileName {
        FileName {
            min: Txid::new(min),
            max: Txid::new(max),
        }
    }

    #[test]
    fn foreign_names_are_nobodys() {
        let hex = "0000000000000001";
        assert_eq!(
            FileName::parse(&format!("{hex}-{hex}.ltx")),
            Some(name(1, 1))
        );
        for foreign in [
            "lock.json".to_owned(),
            format!("{hex}-{hex}.ltx.tmp"),
            format!(" {hex}-{hex}.ltx"),
            format!("{hex}-{hex}.ltx\n"),
            format!("{hex}{hex}.ltx"),
            format!("{hex}-{hex}-{hex}.ltx"),
            format!("{hex}-000000000000000A.ltx"),
            format!("0000000000000000-{hex}.ltx"),
            format!("0000000000000002-{hex}.ltx"),
        ] {
            assert_eq!(FileName::parse(&foreign), None, "{foreign:?}");
        }
    }

    #[test]
    fn neighbours_may_overlap_but_not_leave_a_gap() {
        assert!(name(1, 4).is_continued_by(&name(5, 5)));
        assert!(name(1, 4).is_continued_by(&name(2, 5)));
        assert!(!name(1, 4).is_continued_by(&name(2, 4)));
        assert!(!name(1, 4).is_continued_by(&name(6, 9)));
        assert!(!name(1, u64::MAX).is_continued_by(&name(u64::MAX, u64::MAX)));
    }

    #[test]
    fn levels_are_zero_to_nine() {
        assert_eq!(Level::new(9), Some(Level::SNAPSHOT));
        assert_eq!(Level::new(10), None);
        assert_eq!(
            Level::all().map(Level::get).collect::<Vec<_>>(),
            (0..=9).collect::<Vec<_>>()
        );
    }

    proptest! {
        #[test]
        fn names_round_trip_and_sort(a in 1u64.., b in 0u64..1000, c in 1u64.., d in 0u64..1000) {
            let (a, b) = (name(a, a.saturating_add(b)), name(c, c.saturating_add(d)));
            prop_assert_eq!(FileName::parse(&a.to_string()), Some(a));
            prop_assert_eq!(a.to_string().cmp(&b.to_string()), a.cmp(&b));
        }

        #[test]
        fn arbitrary_names_never_panic(text in ".*") {
            let _ = FileName::parse(&text);
        }
    }
}
