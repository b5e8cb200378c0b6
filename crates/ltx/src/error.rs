//! Why bytes are not an LTX file, or why a caller's pages can't become one.

use std::io;

use sqlite_format::{FormatError, PageSize};

use crate::Txid;

/// What a caller can do about an [`LtxError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// Reading or writing failed; the bytes may be fine. Trying again may help.
    Io,
    /// The bytes end too early: a stream that broke off, or a file that was never complete.
    Truncated,
    /// The bytes are not those of an LTX file. Trying again does not help.
    Corrupt,
    /// The caller asked for a file that may not exist.
    Misuse,
}

/// Why an LTX file can't be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LtxError {
    /// The underlying reader or writer failed.
    #[error("read or write an LTX file")]
    Io(#[from] io::Error),
    /// The file ends inside a part of it.
    #[error("ends inside the {section} that begins at byte {offset}")]
    Truncated {
        /// Part that is incomplete.
        section: Section,
        /// Where the incomplete read began, in bytes.
        offset: u64,
    },
    /// The header is not one of LTX version 3.
    #[error("invalid header")]
    Header(#[source] HeaderError),
    /// The pages are not those that the header announces.
    #[error("invalid sequence of pages")]
    Pages(#[source] PagesError),
    /// A page has flags of a newer format.
    #[error("page {pgno} has unknown flags {flags:#06x}")]
    PageFlags {
        /// Page number.
        pgno: u32,
        /// All its flags.
        flags: u16,
    },
    /// The compressed form of a page is damaged.
    #[error("page {pgno} does not decompress to {page_size} bytes")]
    Compressed {
        /// Page number.
        pgno: u32,
        /// Size that it should have.
        page_size: PageSize,
    },
    /// The index is not that of the pages before it.
    #[error("page index does not match the pages")]
    Index,
    /// The trailer has a database checksum where there must be none, or the other way round.
    #[error("post-apply checksum {found:#018x} is not allowed here")]
    PostApply {
        /// The stored checksum.
        found: u64,
    },
    /// The pages of a tracked snapshot do not add up.
    #[error("database checksum is {computed:#018x}, stored is {stored:#018x}")]
    DatabaseChecksum {
        /// What the trailer says.
        stored: u64,
        /// What the pages add up to.
        computed: u64,
    },
    /// The file was changed after it was written.
    #[error("file checksum is {computed:#018x}, stored is {stored:#018x}")]
    FileChecksum {
        /// What the trailer says.
        stored: u64,
        /// What the bytes add up to.
        computed: u64,
    },
    /// Bytes follow where nothing may follow.
    #[error("bytes follow after byte {offset}")]
    TrailingBytes {
        /// Where the file should have ended.
        offset: u64,
    },
    /// An input of a merge is bad.
    #[error("input {input} of the merge")]
    Input {
        /// Position of the input, from 0.
        input: usize,
        /// What is wrong with it.
        source: Box<LtxError>,
    },
    /// The caller asked for a file that may not exist.
    #[error("refused")]
    Misuse(#[source] Misuse),
}

impl LtxError {
    /// What the caller can do about it.
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
    /// Not an LTX file.
    #[error("magic is not LTX1")]
    Magic,
    /// Flags of a newer format, or of an older one.
    #[error("unknown flags {found:#010x}")]
    Flags {
        /// All flags.
        found: u32,
    },
    /// A page size that SQLite does not have.
    #[error(transparent)]
    PageSize(FormatError),
    /// A database without pages, in a file without database checksums.
    #[error("commit size is zero")]
    Commit0,
    /// TXIDs begin at 1 and a range is not empty.
    #[error("txids {min} to {max} are not a range")]
    Txids {
        /// First TXID.
        min: Txid,
        /// Last TXID.
        max: Txid,
    },
    /// Present where it must be absent, absent where it must be present, or without its flag.
    #[error("pre-apply checksum {found:#018x} is not allowed here")]
    PreApply {
        /// The stored checksum.
        found: u64,
    },
    /// Negative, or a size or salts without an offset.
    #[error("wal range of {size} bytes at {offset} is not possible")]
    Wal {
        /// Offset in the log, in bytes.
        offset: i64,
        /// Length in the log, in bytes.
        size: i64,
    },
}

/// Why a sequence of pages is not that of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PagesError {
    /// Pages are numbered from 1.
    #[error("page 0")]
    Page0,
    /// A page outside the database.
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
    /// Pages ascend.
    #[error("page {pgno} follows page {after}, expected a higher number")]
    Order {
        /// Page number.
        pgno: u32,
        /// Page before it.
        after: u32,
    },
    /// A snapshot holds every page.
    #[error("snapshot lacks page {expected}")]
    Missing {
        /// The first page that is missing.
        expected: u32,
    },
}

/// What a caller may not ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Misuse {
    /// A header that no file may have.
    #[error(transparent)]
    Header(HeaderError),
    /// A sequence of pages that no file may have.
    #[error(transparent)]
    Pages(PagesError),
    /// Files with database checksums are read but never written: Litestream can't restore them.
    #[error("files with database checksums are not written")]
    Tracked,
    /// A page of the wrong length.
    #[error("page {pgno} has {found} bytes, expected {expected}")]
    PageBytes {
        /// Page number.
        pgno: u32,
        /// Length that was given.
        found: usize,
        /// Length that the header announces.
        expected: PageSize,
    },
    /// A decoder was finished before its last page.
    #[error("finished before the last page was read")]
    Unfinished,
    /// The tail of a file is longer than the file.
    #[error("tail of {tail_bytes} bytes is longer than the file of {file_bytes} bytes")]
    Tail {
        /// Length of the tail that was given.
        tail_bytes: usize,
        /// Length of the file that was given.
        file_bytes: u64,
    },
    /// A merge without inputs.
    #[error("nothing to merge")]
    NoInputs,
    /// Inputs of a merge that are not neighbours in order.
    #[error("txids {min} to {max} do not continue {after}")]
    Gap {
        /// Last TXID of the input before.
        after: Txid,
        /// First TXID of the input.
        min: Txid,
        /// Last TXID of the input.
        max: Txid,
    },
    /// Inputs of a merge with different page sizes.
    #[error("page size {found} differs from {expected}")]
    PageSizes {
        /// Page size of the first input.
        expected: PageSize,
        /// Page size that differs.
        found: PageSize,
    },
}
