//! Errors for bytes that are not an LTX file, and for pages that cannot become one.

use std::io;

use sqlite_format::{FormatError, PageSize};

use crate::Txid;

/// How a caller can react to an [`LtxError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// Reading or writing failed; the bytes may be fine. Trying again may help.
    Io,
    /// The bytes end too early: the stream broke off, or the file was never complete.
    Truncated,
    /// The bytes are not those of an LTX file. Trying again does not help.
    Corrupt,
    /// The caller asked for an invalid file.
    Misuse,
}

/// Why an LTX file cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LtxError {
    /// The underlying reader or writer failed.
    #[error("read or write an LTX file")]
    Io(#[from] io::Error),
    /// The file ends inside a part of it.
    #[error("ends inside the {section} that begins at byte {offset}")]
    Truncated {
        /// The incomplete part.
        section: Section,
        /// Offset at which the incomplete read began, in bytes.
        offset: u64,
    },
    /// The header is not one of LTX version 3.
    #[error("invalid header")]
    Header(#[source] HeaderError),
    /// The pages do not match the header.
    #[error("invalid sequence of pages")]
    Pages(#[source] PagesError),
    /// A page has flags of a newer format.
    #[error("page {pgno} has unknown flags {flags:#06x}")]
    PageFlags {
        /// Page number.
        pgno: u32,
        /// All flags of the page.
        flags: u16,
    },
    /// The compressed form of a page is damaged.
    #[error("page {pgno} does not decompress to {page_size} bytes")]
    Compressed {
        /// Page number.
        pgno: u32,
        /// Expected size.
        page_size: PageSize,
    },
    /// The index does not match the pages before it.
    #[error("page index does not match the pages")]
    Index,
    /// The trailer has a forbidden database checksum, or lacks a required one.
    #[error("post-apply checksum {found:#018x} is not allowed here")]
    PostApply {
        /// The stored checksum.
        found: u64,
    },
    /// The pages of a tracked snapshot do not add up to the stored checksum.
    #[error("database checksum is {computed:#018x}, stored is {stored:#018x}")]
    DatabaseChecksum {
        /// Checksum in the trailer.
        stored: u64,
        /// Checksum of the pages.
        computed: u64,
    },
    /// The file was changed after it was written.
    #[error("file checksum is {computed:#018x}, stored is {stored:#018x}")]
    FileChecksum {
        /// Checksum in the trailer.
        stored: u64,
        /// Checksum of the bytes.
        computed: u64,
    },
    /// Bytes follow the end of the file.
    #[error("bytes follow after byte {offset}")]
    TrailingBytes {
        /// Expected end of the file.
        offset: u64,
    },
    /// An input of a merge is invalid.
    #[error("input {input} of the merge")]
    Input {
        /// Position of the input, from 0.
        input: usize,
        /// The fault of the input.
        source: Box<LtxError>,
    },
    /// The caller asked for an invalid file.
    #[error("refused")]
    Misuse(#[source] Misuse),
}

impl LtxError {
    /// Returns how the caller can react.
    pub fn kind(&self) -> ErrorKind {
        match self {
            LtxError::Io(_) => ErrorKind::Io,
            LtxError::Truncated { .. } => ErrorKind::Truncated,
            LtxError::Misuse(_) => ErrorKind::Misuse,
            LtxError::Input { source, .. } => source.kind(),
            _ => ErrorKind::Corrupt,
        }
    }
}

/// A part of an LTX file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Section {
    /// The first 100 bytes.
    Header,
    /// The frames of pages and the six zero bytes that end them.
    Pages,
    /// The page index.
    Index,
    /// The last 16 bytes.
    Trailer,
}

impl std::fmt::Display for Section {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Section::Header => "header",
            Section::Pages => "pages",
            Section::Index => "index",
            Section::Trailer => "trailer",
        })
    }
}

/// Why a header is not one of LTX version 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// The bytes do not begin with the magic of an LTX file.
    #[error("magic is not LTX1")]
    Magic,
    /// The flags belong to a newer or an older format.
    #[error("unknown flags {found:#010x}")]
    Flags {
        /// All flags of the file.
        found: u32,
    },
    /// SQLite does not support the page size.
    #[error(transparent)]
    PageSize(FormatError),
    /// The database has no pages, in a file without database checksums.
    #[error("commit size is zero")]
    Commit0,
    /// TXIDs do not begin at 1, or the range is empty.
    #[error("txids {min} to {max} are not a range")]
    Txids {
        /// First TXID.
        min: Txid,
        /// Last TXID.
        max: Txid,
    },
    /// The checksum is present where it is forbidden, absent where it is required, or without its
    /// flag.
    #[error("pre-apply checksum {found:#018x} is not allowed here")]
    PreApply {
        /// The stored checksum.
        found: u64,
    },
    /// The WAL range is negative, or has a size or salts but no offset.
    #[error("wal range of {size} bytes at {offset} is not possible")]
    Wal {
        /// Offset in the WAL, in bytes.
        offset: i64,
        /// Length in the WAL, in bytes.
        size: i64,
    },
}

/// Why a sequence of pages cannot be the content of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PagesError {
    /// Page numbers start at 1.
    #[error("page 0")]
    Page0,
    /// The page is outside the database.
    #[error("page {pgno} is past the commit size of {commit} pages")]
    PastCommit {
        /// Page number.
        pgno: u32,
        /// Size of the database in pages.
        commit: u32,
    },
    /// The lock page is never stored.
    #[error("page {pgno} is the lock page")]
    LockPage {
        /// Page number.
        pgno: u32,
    },
    /// Page numbers must ascend.
    #[error("page {pgno} follows page {after}, expected a higher number")]
    Order {
        /// Page number.
        pgno: u32,
        /// Number of the page before it.
        after: u32,
    },
    /// A snapshot must hold every page.
    #[error("snapshot lacks page {expected}")]
    Missing {
        /// The first missing page.
        expected: u32,
    },
}

/// Invalid request of a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Misuse {
    /// An invalid header.
    #[error(transparent)]
    Header(HeaderError),
    /// An invalid sequence of pages.
    #[error(transparent)]
    Pages(PagesError),
    /// Files with database checksums are read but never written: Litestream cannot restore them.
    #[error("files with database checksums are not written")]
    Tracked,
    /// The page has the wrong length.
    #[error("page {pgno} has {found} bytes, expected {expected}")]
    PageBytes {
        /// Page number.
        pgno: u32,
        /// Given length.
        found: usize,
        /// Length according to the header.
        expected: PageSize,
    },
    /// The decoder was finished before its last page.
    #[error("finished before the last page was read")]
    Unfinished,
    /// The tail of a file is longer than the file.
    #[error("tail of {tail_bytes} bytes is longer than the file of {file_bytes} bytes")]
    Tail {
        /// Length of the given tail.
        tail_bytes: usize,
        /// Length of the given file.
        file_bytes: u64,
    },
    /// The merge has no inputs.
    #[error("nothing to merge")]
    NoInputs,
    /// The inputs of the merge are not in order, or leave a gap.
    #[error("txids {min} to {max} do not continue {after}")]
    Gap {
        /// Last TXID of the input before.
        after: Txid,
        /// First TXID of the input.
        min: Txid,
        /// Last TXID of the input.
        max: Txid,
    },
    /// The inputs of the merge have different page sizes.
    #[error("page size {found} differs from {expected}")]
    PageSizes {
        /// Page size of the first input.
        expected: PageSize,
        /// The differing page size.
        found: PageSize,
    },
}
