//! Errors of the parsers.

use crate::{Salts, WalChecksum};

/// Why bytes are not part of a SQLite file. A second attempt on the same bytes never helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// Neither a power of two nor within 512 to 65536.
    #[error("page size {found} is not a power of two within 512 to 65536")]
    PageSize {
        /// The given number.
        found: u32,
    },
    /// The bytes do not begin like a SQLite database: they are empty, encrypted or something else.
    #[error("not a SQLite database")]
    NotSqlite,
    /// A SQLite database, truncated inside its header.
    #[error("database header has {found} bytes, needs 100")]
    HeaderTruncated {
        /// Number of given bytes.
        found: usize,
    },
    /// The WAL does not begin with SQLite's magic number.
    #[error("wal magic {found:#010x} is unknown")]
    WalMagic {
        /// The number that was read.
        found: u32,
    },
    /// The WAL or wal-index has an unknown version.
    #[error("wal version {found} is unknown")]
    WalVersion {
        /// The number that was read. Only 3007000 is known.
        found: u32,
    },
    /// A WAL or wal-index header is torn or damaged.
    #[error("header checksum is {computed}, stored is {stored}")]
    HeaderChecksum {
        /// Checksum in the header.
        stored: WalChecksum,
        /// Checksum of its bytes.
        computed: WalChecksum,
    },
}

/// Why a frame is not the next frame of a WAL. At the end of a WAL this is the normal case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The frame belongs to another WAL: an earlier one whose tail is still in the file, or a later
    /// one.
    #[error("frame has salts {found}, the log has {expected}")]
    Salts {
        /// Salts of the WAL.
        expected: Salts,
        /// Salts of the frame.
        found: Salts,
    },
    /// The frame is torn, damaged or not a successor of the frame before it.
    #[error("frame checksum is {computed}, stored is {stored}")]
    Checksum {
        /// Checksum in the frame.
        stored: WalChecksum,
        /// Checksum of the frames so far.
        computed: WalChecksum,
    },
    /// Page numbers start at 1.
    #[error("frame is for page 0")]
    Page0,
}
