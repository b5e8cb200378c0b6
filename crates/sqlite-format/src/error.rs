//! Why bytes are not what they should be.

use crate::{Salts, WalChecksum};

/// Why bytes are not part of a SQLite file. None of these heals by trying again on the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// Neither a power of two nor within 512 to 65536.
    #[error("page size {found} is not a power of two within 512 to 65536")]
    PageSize {
        /// The number that was read or given.
        found: u32,
    },
    /// The bytes do not begin like a SQLite database: empty, encrypted or something else.
    #[error("not a SQLite database")]
    NotSqlite,
    /// A SQLite database, cut short inside its header.
    #[error("database header has {found} bytes, needs 100")]
    HeaderTruncated {
        /// Bytes that were given.
        found: usize,
    },
    /// The log does not begin with SQLite's magic number.
    #[error("wal magic {found:#010x} is unknown")]
    WalMagic {
        /// The number that was read.
        found: u32,
    },
    /// The log or wal-index has a version that this code does not know.
    #[error("wal version {found} is unknown")]
    WalVersion {
        /// The number that was read; 3007000 is the only one known.
        found: u32,
    },
    /// A log or wal-index header is torn or damaged.
    #[error("header checksum is {computed}, stored is {stored}")]
    HeaderChecksum {
        /// What the header says.
        stored: WalChecksum,
        /// What its bytes add up to.
        computed: WalChecksum,
    },
}

/// Why a frame is not the next frame of a log. At the end of a log this is the normal case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The frame belongs to another log: an earlier one whose tail is still in the file, or a later.
    #[error("frame has salts {found}, the log has {expected}")]
    Salts {
        /// Salts of the log.
        expected: Salts,
        /// Salts of the frame.
        found: Salts,
    },
    /// The frame is torn, damaged or not a successor of the frame before.
    #[error("frame checksum is {computed}, stored is {stored}")]
    Checksum {
        /// What the frame says.
        stored: WalChecksum,
        /// What the frames so far add up to.
        computed: WalChecksum,
    },
    /// Pages are numbered from 1.
    #[error("frame is for page 0")]
    Page0,
}
