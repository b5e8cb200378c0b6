//! The header of the wal-index (`-shm`): the state of a WAL as SQLite has published it.

use crate::wal::VERSION;
use crate::{FormatError, PageSize, Salts, WalChecksum};

/// Length of one copy of the header, in bytes. The wal-index begins with two copies.
pub const WAL_INDEX_HEADER_BYTES: usize = 48;

/// Bytes of the header that its checksum covers.
const CHECKED_BYTES: usize = 40;

/// The published state of a WAL. Frames after `max_frame` do not count yet.
///
/// | offset | size | field |
/// | --- | --- | --- |
/// | 0 | 4 | version, 3007000 |
/// | 8 | 4 | change count |
/// | 12 | 1 | 1 when initialized |
/// | 13 | 1 | 1 when the WAL has big-endian checksums |
/// | 14 | 2 | page size, 1 for 65536 |
/// | 16 | 4 | last published frame |
/// | 20 | 4 | database size in pages |
/// | 24 | 8 | checksum of that frame |
/// | 32 | 8 | salts, the same bytes as in the WAL |
/// | 40 | 8 | checksum of the 40 bytes before |
///
/// Numbers are in the byte order of this machine, except the salts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalIndexHeader {
    /// Grows with each commit; starts over when the wal-index is rebuilt.
    pub change: u32,
    /// False before the first connection has read the WAL.
    pub initialized: bool,
    /// Byte order of the words that the WAL's checksums add up.
    pub big_endian_checksums: bool,
    /// Size of every page; `None` after a recovery that found no frame.
    pub page_size: Option<PageSize>,
    /// Last published frame, counted from 1; 0 when the WAL has none.
    pub max_frame: u32,
    /// Size of the database in pages; 0 after a recovery that found no frame.
    pub page_count: u32,
    /// Running checksum of the WAL up to and including `max_frame`.
    pub frame_checksum: WalChecksum,
    /// Salts of the WAL.
    pub salts: Salts,
}

impl WalIndexHeader {
    /// Parses and checks one copy of the header.
    ///
    /// The caller compares both copies first: a copy can be torn while SQLite writes it, in a way
    /// that this checksum does not detect. A wal-index of zeros gives a header that is not
    /// initialized.
    ///
    /// # Errors
    ///
    /// [`FormatError::HeaderChecksum`] for a torn copy; [`FormatError::WalVersion`] and
    /// [`FormatError::PageSize`] for an initialized header that no known SQLite has written.
    pub fn parse(bytes: &[u8; WAL_INDEX_HEADER_BYTES]) -> Result<WalIndexHeader, FormatError> {
        let native_is_big = cfg!(target_endian = "big");
        let stored = checksum_at(bytes, CHECKED_BYTES);
        let computed = WalChecksum::default().update(native_is_big, &bytes[..CHECKED_BYTES]);
        if stored != computed {
            return Err(FormatError::HeaderChecksum { stored, computed });
        }
        let initialized = bytes[12] != 0;
        let version = ne_u32(bytes, 0);
        if initialized && version != VERSION {
            return Err(FormatError::WalVersion { found: version });
        }
        Ok(WalIndexHeader {
            change: ne_u32(bytes, 8),
            initialized,
            big_endian_checksums: bytes[13] != 0,
            page_size: page_size(u16::from_ne_bytes([bytes[14], bytes[15]]))?,
            max_frame: ne_u32(bytes, 16),
            page_count: ne_u32(bytes, 20),
            frame_checksum: checksum_at(bytes, 24),
            salts: Salts::from_be_bytes(bytes[32..40].try_into().expect("a slice of eight bytes")),
        })
    }
}

fn page_size(field: u16) -> Result<Option<PageSize>, FormatError> {
    match field {
        0 => Ok(None),
        field => PageSize::from_header_field(field).map(Some),
    }
}

fn checksum_at(bytes: &[u8], offset: usize) -> WalChecksum {
    WalChecksum {
        s1: ne_u32(bytes, offset),
        s2: ne_u32(bytes, offset + 4),
    }
}

fn ne_u32(bytes: &[u8], offset: usize) -> u32 {
    let word = bytes[offset..offset + 4]
        .try_into()
        .expect("a slice of four bytes");
    u32::from_ne_bytes(word)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Appends the correct checksum to 40 bytes.
    fn sealed(fields: [u8; CHECKED_BYTES]) -> [u8; WAL_INDEX_HEADER_BYTES] {
        let big_endian = cfg!(target_endian = "big");
        let sum = WalChecksum::default().update(big_endian, &fields);
        let mut bytes = [0; WAL_INDEX_HEADER_BYTES];
        bytes[..40].copy_from_slice(&fields);
        bytes[40..44].copy_from_slice(&sum.s1.to_ne_bytes());
        bytes[44..].copy_from_slice(&sum.s2.to_ne_bytes());
        bytes
    }

    #[test]
    fn a_wal_index_of_zeros_is_not_initialized() {
        let header = WalIndexHeader::parse(&[0; 48]).unwrap();
        assert!(!header.initialized);
        assert_eq!(header.page_size, None);
    }

    #[test]
    fn an_unknown_version_is_refused_once_initialized() {
        let mut fields = [0; CHECKED_BYTES];
        fields[0] = 9;
        assert!(WalIndexHeader::parse(&sealed(fields)).is_ok());
        fields[12] = 1;
        let found = ne_u32(&fields, 0);
        assert_eq!(
            WalIndexHeader::parse(&sealed(fields)),
            Err(FormatError::WalVersion { found })
        );
    }

    #[test]
    fn salts_keep_the_byte_order_of_the_log() {
        let mut fields = [0; CHECKED_BYTES];
        fields[32..40].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
        let header = WalIndexHeader::parse(&sealed(fields)).unwrap();
        assert_eq!(
            header.salts,
            Salts {
                salt1: 0x0102_0304,
                salt2: 0x0506_0708
            }
        );
    }

    proptest! {
        #[test]
        fn arbitrary_fields_never_panic(head: [u8; 20], tail: [u8; 20], initialized: bool) {
            let mut fields = [0; CHECKED_BYTES];
            fields[..20].copy_from_slice(&head);
            fields[20..].copy_from_slice(&tail);
            fields[..4].copy_from_slice(&VERSION.to_ne_bytes());
            fields[12] = u8::from(initialized);
            let bytes = sealed(fields);
            let _ = WalIndexHeader::parse(&bytes);
            for offset in 0..48 {
                let mut torn = bytes;
                torn[offset] ^= 0x10;
                prop_assert!(WalIndexHeader::parse(&torn).is_err(), "byte {}", offset);
            }
        }
    }
}
