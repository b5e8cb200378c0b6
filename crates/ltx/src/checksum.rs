//! Checksums of files, pages and databases: CRC-64/GO-ISO with the top bit as a flag.

use std::fmt;

use crc_fast::{CrcAlgorithm, Digest};

/// Set in every checksum, so that zero means "no checksum".
pub const CHECKSUM_FLAG: u64 = 1 << 63;

/// Checksum of one page image under its number.
pub fn page_checksum(pgno: u32, page: &[u8]) -> u64 {
    let mut crc = Crc::new();
    crc.update(&pgno.to_be_bytes());
    crc.update(page);
    crc.flagged()
}

/// Checksum of a whole database, kept current page by page.
///
/// It is the exclusive or of the checksums of all pages except the lock page. To replace a page,
/// toggle the checksum of its old image and then of its new one. The order of pages does not
/// matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DatabaseChecksum(u64);

impl DatabaseChecksum {
    /// Checksum of a database without pages.
    pub const EMPTY: DatabaseChecksum = DatabaseChecksum(CHECKSUM_FLAG);

    /// Accepts a stored checksum; `None` when the flag is missing.
    pub fn new(value: u64) -> Option<DatabaseChecksum> {
        (value & CHECKSUM_FLAG != 0).then_some(DatabaseChecksum(value))
    }

    /// The checksum with its flag.
    pub fn get(self) -> u64 {
        self.0
    }

    /// Adds a page that is not in the database, or removes one that is.
    pub fn toggle(&mut self, page_checksum: u64) {
        self.0 = CHECKSUM_FLAG | (self.0 ^ page_checksum);
    }
}

impl Default for DatabaseChecksum {
    fn default() -> DatabaseChecksum {
        DatabaseChecksum::EMPTY
    }
}

impl fmt::Display for DatabaseChecksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A running CRC-64/GO-ISO.
#[derive(Clone)]
pub(crate) struct Crc(Digest);

impl Crc {
    pub(crate) fn new() -> Crc {
        Crc(Digest::new(CrcAlgorithm::Crc64GoIso))
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The checksum so far, with the flag.
    pub(crate) fn flagged(&self) -> u64 {
        CHECKSUM_FLAG | self.0.finalize()
    }
}

impl fmt::Debug for Crc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Crc({:016x})", self.flagged())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// CRC-64/GO-ISO bit by bit, straight from its definition.
    fn slow_crc(bytes: &[u8]) -> u64 {
        !bytes.iter().fold(u64::MAX, |crc, byte| {
            (0..8).fold(crc ^ u64::from(*byte), |crc, _| {
                if crc & 1 == 1 {
                    (crc >> 1) ^ 0xd800_0000_0000_0000
                } else {
                    crc >> 1
                }
            })
        })
    }

    #[test]
    fn the_check_value_of_crc_64_go_iso_is_met() {
        assert_eq!(slow_crc(b"123456789"), 0xb909_56c7_75a4_1001);
    }

    #[test]
    fn pages_that_come_and_go_leave_no_trace() {
        let mut sum = DatabaseChecksum::EMPTY;
        sum.toggle(page_checksum(1, &[1; 512]));
        let one_page = sum;
        sum.toggle(page_checksum(2, &[2; 512]));
        assert_ne!(sum, one_page);
        sum.toggle(page_checksum(2, &[2; 512]));
        assert_eq!(sum, one_page);
        sum.toggle(page_checksum(1, &[1; 512]));
        assert_eq!(sum, DatabaseChecksum::EMPTY);
    }

    proptest! {
        #[test]
        fn the_fast_checksum_is_the_defined_one(pgno: u32, page in prop::collection::vec(any::<u8>(), 0..700)) {
            let whole = [&pgno.to_be_bytes()[..], &page].concat();
            prop_assert_eq!(page_checksum(pgno, &page), CHECKSUM_FLAG | slow_crc(&whole));
        }
    }
}
