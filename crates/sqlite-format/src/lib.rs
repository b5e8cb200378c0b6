//! The bytes of SQLite's files: database header, write-ahead log, wal-index header.
//!
//! Everything here is pure: bytes in, values out. The engine reads files, takes locks, and
//! interprets a WAL while SQLite writes it.

mod checksum;
mod database;
mod error;
mod page_size;
mod wal;
mod wal_index;

pub use checksum::WalChecksum;
pub use database::{DATABASE_HEADER_BYTES, DatabaseHeader};
pub use error::{FormatError, FrameError};
pub use page_size::PageSize;
pub use wal::{Chain, FRAME_HEADER_BYTES, FrameHeader, Salts, WAL_HEADER_BYTES, WalHeader};
pub use wal_index::{WAL_INDEX_HEADER_BYTES, WalIndexHeader};

/// Reads the big-endian number at `offset`, which the caller has checked to be inside.
fn be_u32(bytes: &[u8], offset: usize) -> u32 {
    let word = bytes[offset..offset + 4]
        .try_into()
        .expect("a slice of four bytes");
    u32::from_be_bytes(word)
}

/// Reads the big-endian number at `offset`, which the caller has checked to be inside.
fn be_u16(bytes: &[u8], offset: usize) -> u16 {
    let word = bytes[offset..offset + 2]
        .try_into()
        .expect("a slice of two bytes");
    u16::from_be_bytes(word)
}
