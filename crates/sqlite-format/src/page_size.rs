//! The size of a page.

use std::fmt;

use crate::FormatError;

/// Offset of the first lock byte: 1 GiB into every database.
const PENDING_BYTE: u32 = 0x4000_0000;

/// Size of a page in bytes: a power of two within 512 to 65536.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageSize(u32);

impl PageSize {
    /// The smallest page size of SQLite, in bytes.
    pub const MIN: PageSize = PageSize(512);
    /// The largest page size of SQLite, in bytes.
    pub const MAX: PageSize = PageSize(65_536);

    /// Creates a page size from bytes.
    ///
    /// # Errors
    ///
    /// [`FormatError::PageSize`] for a size that SQLite does not support.
    pub fn new(bytes: u32) -> Result<PageSize, FormatError> {
        if bytes.is_power_of_two() && (Self::MIN.0..=Self::MAX.0).contains(&bytes) {
            Ok(PageSize(bytes))
        } else {
            Err(FormatError::PageSize { found: bytes })
        }
    }

    /// Creates a page size from the two-byte field of the database header and wal-index, where 1
    /// means 65536.
    ///
    /// # Errors
    ///
    /// [`FormatError::PageSize`] for a size that SQLite does not support.
    pub fn from_header_field(field: u16) -> Result<PageSize, FormatError> {
        match field {
            1 => Ok(Self::MAX),
            bytes => Self::new(u32::from(bytes)),
        }
    }

    /// Returns the size in bytes.
    pub fn get(self) -> u32 {
        self.0
    }

    /// Returns the size in bytes, for lengths of buffers.
    pub fn as_usize(self) -> usize {
        self.0 as usize
    }

    /// Returns the page that holds byte 2^30. SQLite uses it for locks and never stores data there.
    pub fn lock_pgno(self) -> u32 {
        PENDING_BYTE / self.0 + 1
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<u32> for PageSize {
    type Error = FormatError;

    fn try_from(bytes: u32) -> Result<PageSize, FormatError> {
        PageSize::new(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_powers_of_two_from_512_to_65536_are_page_sizes() {
        let accepted: Vec<u32> = (0..=70_000).filter(|n| PageSize::new(*n).is_ok()).collect();
        assert_eq!(
            accepted,
            [512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536]
        );
        assert_eq!(
            PageSize::new(u32::MAX),
            Err(FormatError::PageSize { found: u32::MAX })
        );
    }

    #[test]
    fn a_header_field_of_one_means_65536() {
        assert_eq!(PageSize::from_header_field(1), Ok(PageSize::MAX));
        assert_eq!(PageSize::from_header_field(512), Ok(PageSize::MIN));
        assert_eq!(
            PageSize::from_header_field(0),
            Err(FormatError::PageSize { found: 0 })
        );
    }

    #[test]
    fn the_lock_page_holds_byte_two_to_the_thirty() {
        for shift in 9..=16 {
            let size = PageSize::new(1 << shift).unwrap();
            let first_byte = u64::from(size.lock_pgno() - 1) * u64::from(size.get());
            assert_eq!(first_byte, 1 << 30);
        }
        assert_eq!(PageSize::new(4096).unwrap().lock_pgno(), 262_145);
    }
}
