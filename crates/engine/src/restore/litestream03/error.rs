//! Why a replica of Litestream 0.3 does not lead to a point.

use std::io;

use jiff::Timestamp;
use sqlite_format::{FormatError, FrameError};

use super::GenerationId;

/// Why a restore is impossible. No error here is cured by a retry.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerationError {
    /// A TXID was requested.
    #[error("the backup is of Litestream 0.3, which has no TXIDs: ask for a time")]
    NoTxid,
    /// WAL segments exist, but no snapshot that they apply to.
    #[error("generation {id} has no snapshot")]
    NoSnapshot {
        /// The generation.
        id: GenerationId,
    },
    /// The state of that time is no longer stored, though an earlier one is.
    #[error(
        "nothing stored leads to {wanted}: what there is ends at {before} and begins again at {after}"
    )]
    Between {
        /// The requested time.
        wanted: Timestamp,
        /// The newest state before it.
        before: Timestamp,
        /// The oldest state after it.
        after: Timestamp,
    },
    /// A whole WAL is missing between others.
    #[error("generation {id} has no log {missing:08x}; the next one stored is {next:08x}")]
    MissingLog {
        /// The generation.
        id: GenerationId,
        /// The first missing WAL.
        missing: u32,
        /// The next stored WAL.
        next: u32,
    },
    /// A segment does not begin where the one before it ends.
    #[error(
        "{key} begins at byte {found} of its log, but what is stored before it ends at byte {expected}"
    )]
    SegmentGap {
        /// The object after the gap.
        key: String,
        /// Offset in bytes at which it begins.
        found: u64,
        /// Offset in bytes at which it should begin.
        expected: u64,
    },
    /// A WAL ends inside a transaction, and later WALs exist.
    #[error(
        "generation {id}: log {log:08x} ends inside a transaction: its last segment is missing"
    )]
    Unfinished {
        /// The generation.
        id: GenerationId,
        /// Number of the WAL.
        log: u32,
    },
    /// The snapshot seems to have transactions whose segments were stored only after the time.
    #[error(
        "{key} is further than the segments stored by the time asked for: ask for {certain} or later"
    )]
    SnapshotAhead {
        /// The snapshot.
        key: String,
        /// A time from which on the snapshot can be restored.
        certain: Timestamp,
    },
    /// The bytes of an object are wrong.
    #[error("{key} is damaged: {damage}")]
    Damaged {
        /// The object.
        key: String,
        /// The damage.
        damage: Damage,
    },
}

/// The damage to the bytes of an object.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    /// Not an LZ4 frame, or one whose blocks or checksum are wrong.
    #[error("not a good LZ4 frame: {0}")]
    Lz4(#[source] io::Error),
    /// The LZ4 frame is cut short or missing.
    #[error("its LZ4 frame ends early")]
    Truncated,
    /// Bytes follow the LZ4 frame.
    #[error("bytes follow its LZ4 frame")]
    TrailingBytes,
    /// A snapshot is not a database.
    #[error(transparent)]
    Database(FormatError),
    /// A snapshot ends inside a page.
    #[error("a database of {bytes} bytes is no whole number of pages of {page_size} bytes")]
    PartPage {
        /// Size of the database.
        bytes: u64,
        /// Its page size.
        page_size: u32,
    },
    /// The header of a WAL cannot be understood.
    #[error(transparent)]
    Log(FormatError),
    /// A WAL is of another database.
    #[error("its pages have {found} bytes, those of the snapshot {expected}")]
    PageSize {
        /// Page size of the WAL.
        found: u32,
        /// Page size of the snapshot.
        expected: u32,
    },
    /// A frame does not follow the frames before it.
    #[error("frame {number}: {source}")]
    Frame {
        /// Number of the frame in its WAL, from 1.
        number: u64,
        /// The reason.
        source: FrameError,
    },
    /// A segment has no frames, or ends inside one.
    #[error("it ends inside a frame, or before the first one")]
    PartFrame,
}
