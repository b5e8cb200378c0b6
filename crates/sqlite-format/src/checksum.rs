//! The checksum of WALs and wal-index headers: two sums, each of which feeds the other.

use std::fmt;

/// Running checksum over pairs of 32-bit words; the default is the start, zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct WalChecksum {
    /// First sum.
    pub s1: u32,
    /// Second sum.
    pub s2: u32,
}

impl WalChecksum {
    /// Continues the checksum with `bytes`, read as words of the given byte order.
    ///
    /// # Panics
    ///
    /// When the length is not a multiple of 8.
    #[must_use]
    pub fn update(self, big_endian: bool, bytes: &[u8]) -> WalChecksum {
        let (pairs, rest) = bytes.as_chunks::<8>();
        assert!(
            rest.is_empty(),
            "checksummed length {} is not a multiple of 8",
            bytes.len()
        );
        if big_endian {
            self.add(pairs, u32::from_be_bytes)
        } else {
            self.add(pairs, u32::from_le_bytes)
        }
    }

    #[inline]
    fn add(self, pairs: &[[u8; 8]], word: impl Fn([u8; 4]) -> u32) -> WalChecksum {
        let WalChecksum { mut s1, mut s2 } = self;
        for &[a, b, c, d, e, f, g, h] in pairs {
            s1 = s1.wrapping_add(word([a, b, c, d])).wrapping_add(s2);
            s2 = s2.wrapping_add(word([e, f, g, h])).wrapping_add(s1);
        }
        WalChecksum { s1, s2 }
    }

    /// Returns the stored form: two big-endian words.
    pub(crate) fn to_be_bytes(self) -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&self.s1.to_be_bytes());
        bytes[4..].copy_from_slice(&self.s2.to_be_bytes());
        bytes
    }
}

impl fmt::Display for WalChecksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{:08x}", self.s1, self.s2)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_sums_feed_each_other() {
        let bytes = [0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4];
        let sum = WalChecksum::default().update(true, &bytes);
        assert_eq!(
            sum,
            WalChecksum {
                s1: 1 + 3 + 3,
                s2: 3 + 4 + 7
            }
        );
    }

    #[test]
    #[should_panic(expected = "not a multiple of 8")]
    fn half_a_pair_is_refused() {
        let _ = WalChecksum::default().update(true, &[0; 12]);
    }

    proptest! {
        #[test]
        fn parts_give_the_same_sum_as_the_whole(words in prop::collection::vec(any::<[u8; 8]>(), 0..64),
                                                cut in any::<prop::sample::Index>(),
                                                big_endian: bool) {
            let bytes = words.concat();
            let (head, tail) = bytes.split_at(cut.index(words.len() + 1) * 8);
            let whole = WalChecksum::default().update(big_endian, &bytes);
            let parts = WalChecksum::default().update(big_endian, head).update(big_endian, tail);
            prop_assert_eq!(parts, whole);
        }

        #[test]
        fn byte_order_matters_only_through_the_words(words in prop::collection::vec(any::<u32>(), 0..32)) {
            let even = &words[..words.len() / 2 * 2];
            let little: Vec<u8> = even.iter().flat_map(|w| w.to_le_bytes()).collect();
            let big: Vec<u8> = even.iter().flat_map(|w| w.to_be_bytes()).collect();
            let start = WalChecksum { s1: 7, s2: 9 };
            prop_assert_eq!(start.update(false, &little), start.update(true, &big));
        }
    }
}
