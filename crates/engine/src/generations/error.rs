//! Why a replica of Litestream 0.3 does not lead to a point.

use std::io;

use jiff::Timestamp;
use sqlite_format::{FormatError, FrameError};

use super::GenerationId;

/// Why there is no restore. None of these heals by trying again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerationError {
    /// A TXID was asked for.
    #[error("the backup is of Litestream 0.3, which has no TXIDs: ask for a time")]
    NoTxid,
    /// There are logs, and nothing to lay them over.
    #[error("generation {id} has no snapshot")]
    NoSnapshot {
        /// The generation.
        id: GenerationId,
    },
    /// What was stored at the time is not there any more, though an earlier state is.
    #[error(
        "nothing stored leads to {wanted}: what there is ends at {before} and begins again at {after}"
    )]
    Between {
        /// The time asked for.
        wanted: Timestamp,
        /// The newest state before it.
        before: Timestamp,
        /// The oldest state after it.
        after: Timestamp,
    },
    /// A whole log is missing between others.
    #[error("generation {id} has no log {missing:08x}; the next one stored is {next:08x}")]
    MissingLog {
        /// The generation.
        id: GenerationId,
        /// The first missing log.
        missing: u32,
        /// Where it goes on.
        next: u32,
    },
    /// A segment does not begin where the one before it ends.
    #[error(
        "{key} begins at byte {found} of its log, but what is stored before it ends at byte {expected}"
    )]
    SegmentGap {
        /// The object after the gap.
        key: String,
        /// Where it begins.
        found: u64,
        /// Where it should begin.
        expected: u64,
    },
    /// A log ends inside a transaction, and there are later logs.
    #[error(
        "generation {id}: log {log:08x} ends inside a transaction: its last segment is missing"
    )]
    Unfinished {
        /// The generation.
        id: GenerationId,
        /// The log.
        log: u32,
    },
    /// The snapshot seems to have transactions that were stored as segments only after the time.
    #[error(
        "{key} is further than the segments stored by the time asked for: ask for {certain} or later"
    )]
    SnapshotAhead {
        /// The snapshot.
        key: String,
        /// A time from which on the snapshot is good.
        certain: Timestamp,
    },
    /// An object's bytes are not what they should be.
    #[error("{key} is damaged: {damage}")]
    Damaged {
        /// The object.
        key: String,
        /// What is wrong with it.
        damage: Damage,
    },
}

/// What is wrong with the bytes of an object.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    /// Not an LZ4 frame, or one whose blocks or checksum are wrong.
    #[error("not a good LZ4 frame: {0}")]
    Lz4(#[source] io::Error),
    /// The LZ4 frame is cut short, or there is none.
    #[error("its LZ4 frame ends early")]
    Truncated,
    /// Something follows the LZ4 frame.
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
    /// The header of a log cannot be understood.
    #[error(transparent)]
    Log(FormatError),
    /// A log is of another database.
    #[error("its pages have {found} bytes, those of the snapshot {expected}")]
    PageSize {
        /// Page size of the log.
        found: u32,
        /// Page size of the snapshot.
        expected: u32,
    },
    /// A frame does not follow the frames before it.
    #[error("frame {number}: {source}")]
    Frame {
        /// Number of the frame in its log, from 1.
        number: u64,
        /// Why not.
        source: FrameError,
    },
    /// A segment has no frames, or ends inside one.
    #[error("it ends inside a frame, or before the first one")]
    PartFrame,
}
