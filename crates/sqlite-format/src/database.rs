//! The first 100 bytes of a database.

use crate::{FormatError, PageSize, be_u16, be_u32};

/// Length of the header at the start of page 1, in bytes.
pub const DATABASE_HEADER_BYTES: usize = 100;

const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// Read and write version of a database in WAL mode.
const WAL_VERSION: u8 = 2;

/// The header of a database file. In WAL mode newer values may be in the WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatabaseHeader {
    /// Size of every page.
    pub page_size: PageSize,
    /// File format version needed to write: 1 rollback journal, 2 WAL.
    pub write_version: u8,
    /// File format version needed to read: 1 rollback journal, 2 WAL.
    pub read_version: u8,
    /// Bytes at the end of each page that extensions use, for example for encryption.
    pub reserved: u8,
    /// Grows when a transaction changes page 1; in WAL mode most transactions do not.
    pub change_counter: u32,
    /// Size of the database in pages; stale unless [`DatabaseHeader::page_count_is_current`].
    pub page_count: u32,
    /// Number of unused pages in the file.
    pub freelist_count: u32,
    /// Grows when the schema changes.
    pub schema_cookie: u32,
    /// Largest root page if auto-vacuum is on, else 0.
    pub largest_root_pgno: u32,
    /// The application's `PRAGMA user_version`.
    pub user_version: u32,
    /// The application's `PRAGMA application_id`.
    pub application_id: u32,
    /// Change counter at which `page_count` and `sqlite_version` were written.
    pub version_valid_for: u32,
    /// Version of the SQLite that last wrote the file, such as 3054001.
    pub sqlite_version: u32,
}

impl DatabaseHeader {
    /// Parses the first 100 bytes of a database; more bytes are ignored.
    ///
    /// # Errors
    ///
    /// - [`FormatError::NotSqlite`] without SQLite's magic string: no bytes at all (a new database
    ///   before its first commit), an encrypted database, anything else;
    /// - [`FormatError::HeaderTruncated`] with the magic string but fewer than 100 bytes;
    /// - [`FormatError::PageSize`] for a damaged header.
    pub fn parse(bytes: &[u8]) -> Result<DatabaseHeader, FormatError> {
        if !bytes.starts_with(MAGIC) {
            return Err(FormatError::NotSqlite);
        }
        if bytes.len() < DATABASE_HEADER_BYTES {
            return Err(FormatError::HeaderTruncated { found: bytes.len() });
        }
        Ok(DatabaseHeader {
            page_size: PageSize::from_header_field(be_u16(bytes, 16))?,
            write_version: bytes[18],
            read_version: bytes[19],
            reserved: bytes[20],
            change_counter: be_u32(bytes, 24),
            page_count: be_u32(bytes, 28),
            freelist_count: be_u32(bytes, 36),
            schema_cookie: be_u32(bytes, 40),
            largest_root_pgno: be_u32(bytes, 52),
            user_version: be_u32(bytes, 60),
            application_id: be_u32(bytes, 68),
            version_valid_for: be_u32(bytes, 92),
            sqlite_version: be_u32(bytes, 96),
        })
    }

    /// True for a database in WAL mode.
    pub fn is_wal(&self) -> bool {
        self.write_version == WAL_VERSION && self.read_version == WAL_VERSION
    }

    /// True when `page_count` can be trusted: SQLite before 3.7.0 does not maintain it.
    pub fn page_count_is_current(&self) -> bool {
        self.page_count != 0 && self.change_counter == self.version_valid_for
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_not_a_database_is_told_from_a_damaged_one() {
        let random = [0x5a; 4096];
        for foreign in [
            &b""[..],
            b"SQLite",
            b"SQLite format 3",
            b"SQLite format 4\0",
            &random,
        ] {
            assert_eq!(DatabaseHeader::parse(foreign), Err(FormatError::NotSqlite));
        }
        let mut bytes = [0; 100];
        bytes[..16].copy_from_slice(MAGIC);
        let short = FormatError::HeaderTruncated { found: 99 };
        assert_eq!(DatabaseHeader::parse(&bytes[..99]), Err(short));
        assert_eq!(
            DatabaseHeader::parse(&bytes),
            Err(FormatError::PageSize { found: 0 })
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(tail in prop::collection::vec(any::<u8>(), 0..200), magic: bool) {
            let head = if magic { &MAGIC[..] } else { &[] };
            let _ = DatabaseHeader::parse(&[head, &tail].concat());
        }
    }
}
