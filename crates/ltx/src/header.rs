//! The first 100 and the last 16 bytes of a file.

use sqlite_format::{PageSize, Salts};

use crate::{CHECKSUM_FLAG, HeaderError, Txid};

/// Length of the header, in bytes.
pub const HEADER_BYTES: usize = 100;
/// Length of the trailer, in bytes.
pub const TRAILER_BYTES: usize = 16;

const MAGIC: [u8; 4] = *b"LTX1";

/// The header of an LTX file.
///
/// | offset | size | field |
/// | --- | --- | --- |
/// | 0 | 4 | magic `LTX1` |
/// | 4 | 4 | flags |
/// | 8 | 4 | page size |
/// | 12 | 4 | commit |
/// | 16 | 8 | min TXID |
/// | 24 | 8 | max TXID |
/// | 32 | 8 | timestamp, Unix milliseconds |
/// | 40 | 8 | pre-apply checksum |
/// | 48 | 8 | WAL offset |
/// | 56 | 8 | WAL size |
/// | 64 | 8 | WAL salts |
/// | 72 | 8 | node id |
/// | 80 | 20 | reserved |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// [`Header::NO_CHECKSUM`] or 0.
    pub flags: u32,
    /// Size of every page.
    pub page_size: PageSize,
    /// Size of the database in pages after this file.
    pub commit: u32,
    /// First TXID.
    pub min_txid: Txid,
    /// Last TXID.
    pub max_txid: Txid,
    /// Time at which the last transaction was captured, in milliseconds since 1970.
    pub timestamp_ms: i64,
    /// Database checksum before this file; 0 in snapshots and without checksums.
    pub pre_apply: u64,
    /// Offset in the WAL at which the frames began, in bytes; 0 for none.
    pub wal_offset: i64,
    /// Length of the captured part of the WAL, in bytes.
    pub wal_size: i64,
    /// Salts of that WAL.
    pub wal_salts: Salts,
    /// ID of the writer. Litestream writes 0 and accepts any.
    pub node_id: u64,
    /// Not interpreted, but covered by the file checksum.
    pub reserved: [u8; 20],
}

impl Header {
    /// Flag of a file without database checksums, the only kind that Litestream restores.
    pub const NO_CHECKSUM: u32 = 0x2;

    /// Creates a header without database checksums, WAL range and node ID.
    pub fn new(page_size: PageSize, commit: u32, min_txid: Txid, max_txid: Txid) -> Header {
        Header {
            flags: Self::NO_CHECKSUM,
            page_size,
            commit,
            min_txid,
            max_txid,
            timestamp_ms: 0,
            pre_apply: 0,
            wal_offset: 0,
            wal_size: 0,
            wal_salts: Salts::default(),
            node_id: 0,
            reserved: [0; 20],
        }
    }

    /// Reads and checks a header.
    ///
    /// # Errors
    ///
    /// [`HeaderError`] for anything except a valid header of LTX version 3.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Header, HeaderError> {
        let mut fields = Fields(bytes);
        if fields.take::<4>() != MAGIC {
            return Err(HeaderError::Magic);
        }
        let header = Header {
            flags: u32::from_be_bytes(fields.take()),
            page_size: PageSize::new(u32::from_be_bytes(fields.take()))
                .map_err(HeaderError::PageSize)?,
            commit: u32::from_be_bytes(fields.take()),
            min_txid: Txid::new(u64::from_be_bytes(fields.take())),
            max_txid: Txid::new(u64::from_be_bytes(fields.take())),
            timestamp_ms: i64::from_be_bytes(fields.take()),
            pre_apply: u64::from_be_bytes(fields.take()),
            wal_offset: i64::from_be_bytes(fields.take()),
            wal_size: i64::from_be_bytes(fields.take()),
            wal_salts: Salts {
                salt1: u32::from_be_bytes(fields.take()),
                salt2: u32::from_be_bytes(fields.take()),
            },
            node_id: u64::from_be_bytes(fields.take()),
            reserved: fields.take(),
        };
        header.check()?;
        Ok(header)
    }

    /// Returns the bytes of this header.
    ///
    /// # Errors
    ///
    /// [`HeaderError`] for fields that [`Header::parse`] would not accept.
    pub fn encode(&self) -> Result<[u8; HEADER_BYTES], HeaderError> {
        self.check()?;
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(self.flags.to_be_bytes());
        bytes.extend(self.page_size.get().to_be_bytes());
        bytes.extend(self.commit.to_be_bytes());
        bytes.extend(self.min_txid.get().to_be_bytes());
        bytes.extend(self.max_txid.get().to_be_bytes());
        bytes.extend(self.timestamp_ms.to_be_bytes());
        bytes.extend(self.pre_apply.to_be_bytes());
        bytes.extend(self.wal_offset.to_be_bytes());
        bytes.extend(self.wal_size.to_be_bytes());
        bytes.extend(self.wal_salts.salt1.to_be_bytes());
        bytes.extend(self.wal_salts.salt2.to_be_bytes());
        bytes.extend(self.node_id.to_be_bytes());
        bytes.extend(self.reserved);
        Ok(bytes.try_into().expect("the fields add up to 100 bytes"))
    }

    /// True for a file that begins at TXID 1 and holds every page.
    pub fn is_snapshot(&self) -> bool {
        self.min_txid == Txid::FIRST
    }

    /// True for a file with database checksums. Such files are read but never written.
    pub fn is_tracked(&self) -> bool {
        self.flags & Self::NO_CHECKSUM == 0
    }

    /// Returns the file name that belongs to this header.
    pub fn file_name(&self) -> crate::FileName {
        crate::FileName {
            min: self.min_txid,
            max: self.max_txid,
        }
    }

    fn check(&self) -> Result<(), HeaderError> {
        if self.flags & !Self::NO_CHECKSUM != 0 {
            return Err(HeaderError::Flags { found: self.flags });
        }
        if self.commit == 0 && !self.is_tracked() {
            return Err(HeaderError::Commit0);
        }
        let (min, max) = (self.min_txid, self.max_txid);
        if min < Txid::FIRST || max < min {
            return Err(HeaderError::Txids { min, max });
        }
        let pre_apply_fits = if self.is_tracked() && !self.is_snapshot() {
            self.pre_apply & CHECKSUM_FLAG != 0
        } else {
            self.pre_apply == 0
        };
        if !pre_apply_fits {
            return Err(HeaderError::PreApply {
                found: self.pre_apply,
            });
        }
        let (offset, size) = (self.wal_offset, self.wal_size);
        let needs_offset = size != 0 || self.wal_salts != Salts::default();
        if offset < 0 || size < 0 || (offset == 0 && needs_offset) {
            return Err(HeaderError::Wal { offset, size });
        }
        Ok(())
    }
}

/// The end of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    /// Database checksum after this file; 0 without checksums.
    pub post_apply: u64,
    /// Checksum of the file, computed over uncompressed pages.
    pub file_checksum: u64,
}

impl Trailer {
    pub(crate) fn parse(bytes: &[u8; TRAILER_BYTES]) -> Trailer {
        let mut fields = Fields(bytes);
        Trailer {
            post_apply: u64::from_be_bytes(fields.take()),
            file_checksum: u64::from_be_bytes(fields.take()),
        }
    }
}

/// Bytes of a fixed layout, read field by field.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self
            .0
            .split_first_chunk()
            .expect("the layout fits its bytes");
        self.0 = rest;
        *field
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> Header {
        Header::new(PageSize::MIN, 3, Txid::new(2), Txid::new(2))
    }

    #[test]
    fn impossible_headers_are_refused_both_ways() {
        let flagged = CHECKSUM_FLAG | 5;
        for (bad, why) in [
            (
                Header {
                    flags: 1,
                    ..header()
                },
                HeaderError::Flags { found: 1 },
            ),
            (
                Header {
                    commit: 0,
                    ..header()
                },
                HeaderError::Commit0,
            ),
            (
                Header {
                    pre_apply: flagged,
                    ..header()
                },
                HeaderError::PreApply { found: flagged },
            ),
            (
                Header {
                    flags: 0,
                    ..header()
                },
                HeaderError::PreApply { found: 0 },
            ),
            (
                Header {
                    flags: 0,
                    pre_apply: 5,
                    ..header()
                },
                HeaderError::PreApply { found: 5 },
            ),
            (
                Header {
                    wal_offset: -1,
                    ..header()
                },
                HeaderError::Wal {
                    offset: -1,
                    size: 0,
                },
            ),
            (
                Header {
                    wal_size: 536,
                    ..header()
                },
                HeaderError::Wal {
                    offset: 0,
                    size: 536,
                },
            ),
            (
                Header {
                    wal_salts: Salts { salt1: 1, salt2: 0 },
                    ..header()
                },
                HeaderError::Wal { offset: 0, size: 0 },
            ),
            (
                Header {
                    min_txid: Txid::ZERO,
                    ..header()
                },
                HeaderError::Txids {
                    min: Txid::ZERO,
                    max: Txid::new(2),
                },
            ),
            (
                Header {
                    max_txid: Txid::FIRST,
                    ..header()
                },
                HeaderError::Txids {
                    min: Txid::new(2),
                    max: Txid::FIRST,
                },
            ),
        ] {
            assert_eq!(bad.encode(), Err(why));
        }
        let mut bytes = header().encode().unwrap();
        bytes[15] = 0;
        assert_eq!(Header::parse(&bytes), Err(HeaderError::Commit0));
        bytes[0] = b'l';
        assert_eq!(Header::parse(&bytes), Err(HeaderError::Magic));
    }

    proptest! {
        #[test]
        fn what_parses_encodes_to_the_same_bytes(tail: [[u8; 20]; 5], tame in 0u8..3) {
            let mut bytes: [u8; 100] = tail.concat().try_into().unwrap();
            if tame > 0 {
                let usual = header().encode().unwrap();
                bytes[..32].copy_from_slice(&usual[..32]);
                bytes[40..48].copy_from_slice(&usual[40..48]);
                if tame > 1 {
                    bytes[48] &= 0x7f;
                    bytes[56] &= 0x7f;
                    bytes[55] |= 1;
                }
            }
            match Header::parse(&bytes) {
                Ok(header) => prop_assert_eq!(header.encode(), Ok(bytes)),
                Err(_) => prop_assert!(tame < 2),
            }
        }
    }
}
