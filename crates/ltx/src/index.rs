//! The offset of each page in a file, read from the end of the file.

use crate::frame_list::FrameList;
use crate::header::{HEADER_BYTES, TRAILER_BYTES};
use crate::page::{MAX_FRAME_BYTES, PAGE_HEADER_BYTES};
use crate::page_order::PageOrder;
use crate::{Header, LtxError, Misuse, Section, Trailer, varint};

/// Bytes after the entries of the index: their length, then the trailer.
const FOOTER_BYTES: usize = 8 + TRAILER_BYTES;
/// Length of a file without pages.
const MIN_FILE_BYTES: u64 = (HEADER_BYTES + PAGE_HEADER_BYTES + 1 + FOOTER_BYTES) as u64;
/// Bytes to read first, while the size of the index is unknown.
const FIRST_TAIL_BYTES: u64 = 32 << 10;

/// The location of one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexEntry {
    /// Page number.
    pub pgno: u32,
    /// Offset of its frame, in bytes from the start of the file.
    pub offset: u64,
    /// Length of the frame, in bytes.
    pub bytes: u32,
}

impl IndexEntry {
    /// Appends the entry in the format of the file.
    pub(crate) fn append_to(&self, out: &mut Vec<u8>) {
        varint::put(out, u64::from(self.pgno));
        varint::put(out, self.offset);
        varint::put(out, u64::from(self.bytes));
    }
}

/// Result of parsing the end of a file.
#[derive(Debug, Clone)]
pub enum IndexTail {
    /// The whole index.
    Complete(PageIndex),
    /// The tail was too short: parse again with this many bytes from the end of the file.
    Needs(u64),
}

/// The location of each page in a file. Takes about three bytes for each page.
#[derive(Debug, Clone)]
pub struct PageIndex {
    frames: FrameList,
    trailer: Trailer,
}

impl PageIndex {
    /// Parses the index from the last bytes of a file of `file_bytes` bytes.
    ///
    /// A tail of 32 KiB is enough for about 4,000 pages. Two calls are always enough.
    ///
    /// # Errors
    ///
    /// Kind `Corrupt` when the frames do not fill a file of this length, in order and without gaps.
    /// `Truncated` when the file is too short for any LTX file. `Misuse` when the tail is longer
    /// than the file.
    pub fn parse(file_bytes: u64, tail: &[u8]) -> Result<IndexTail, LtxError> {
        if file_bytes < MIN_FILE_BYTES {
            return Err(LtxError::Truncated {
                section: Section::Header,
                offset: file_bytes,
            });
        }
        if tail.len() as u64 > file_bytes {
            let tail_bytes = tail.len();
            return Err(LtxError::Misuse(Misuse::Tail {
                tail_bytes,
                file_bytes,
            }));
        }
        let Some((entries, footer)) = tail.split_last_chunk::<FOOTER_BYTES>() else {
            return Ok(IndexTail::Needs(FIRST_TAIL_BYTES.min(file_bytes)));
        };
        let (length, trailer) = footer
            .split_first_chunk::<8>()
            .expect("the footer holds both");
        let index_bytes = u64::from_be_bytes(*length);
        let before_index = (file_bytes - FOOTER_BYTES as u64)
            .checked_sub(index_bytes)
            .filter(|start| *start >= (HEADER_BYTES + PAGE_HEADER_BYTES) as u64)
            .ok_or(LtxError::Index)?;
        if (entries.len() as u64) < index_bytes {
            return Ok(IndexTail::Needs(index_bytes + FOOTER_BYTES as u64));
        }
        let entries = &entries[entries.len() - index_bytes as usize..];
        let frames = parse_entries(entries).ok_or(LtxError::Index)?;
        if frames.end() + PAGE_HEADER_BYTES as u64 != before_index {
            return Err(LtxError::Index);
        }
        let trailer = trailer
            .try_into()
            .expect("the footer ends with the trailer");
        Ok(IndexTail::Complete(PageIndex {
            frames,
            trailer: Trailer::parse(trailer),
        }))
    }

    /// Returns the pages in ascending order. Their frames follow each other without a gap.
    pub fn entries(&self) -> impl Iterator<Item = IndexEntry> + '_ {
        self.frames.iter()
    }

    /// Number of pages.
    pub fn len(&self) -> u32 {
        self.frames.len()
    }

    /// True for a file without pages.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the trailer of the file.
    pub fn trailer(&self) -> Trailer {
        self.trailer
    }

    /// Checks the pages against `header`: all inside the database, without the lock page, and
    /// complete in a snapshot.
    ///
    /// # Errors
    ///
    /// [`LtxError::Pages`].
    pub fn check(&self, header: &Header) -> Result<(), LtxError> {
        let mut order = PageOrder::new(header);
        for entry in self.entries() {
            order.accept(entry.pgno).map_err(LtxError::Pages)?;
        }
        order.finish().map_err(LtxError::Pages)
    }
}

/// Parses the entries and the zero after them; `None` for anything that no encoder writes.
fn parse_entries(mut bytes: &[u8]) -> Option<FrameList> {
    let mut frames = FrameList::default();
    let mut last_pgno = 0;
    loop {
        let pgno = u32::try_from(varint::take(&mut bytes)?).ok()?;
        if pgno == 0 {
            return bytes.is_empty().then_some(frames);
        }
        let offset = varint::take(&mut bytes)?;
        let length = u32::try_from(varint::take(&mut bytes)?).ok()?;
        let plausible = (1..=MAX_FRAME_BYTES).contains(&length);
        if pgno <= last_pgno || offset != frames.end() || !plausible {
            return None;
        }
        frames.push(pgno, length);
        last_pgno = pgno;
    }
}
