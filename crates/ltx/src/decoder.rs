//! Reading a file page by page.

use std::io::Read;

use crate::checksum::Crc;
use crate::header::HEADER_BYTES;
use crate::input::Input;
use crate::page::{self, PageHeader};
use crate::page_order::PageOrder;
use crate::{
    CHECKSUM_FLAG, DatabaseChecksum, Header, IndexEntry, LtxError, Misuse, Section, Trailer,
    page_checksum,
};

/// Number of index bytes read at a time.
const INDEX_CHUNK_BYTES: usize = 4096;

/// Reads one file: pages until there are no more, then [`Decoder::finish`], which proves them.
///
/// Until `finish` has returned, pages are only known to be well formed, not to be the pages that
/// were written. Reads are small: wrap files in a `BufReader`. After an error the decoder cannot be
/// used again. Memory is bounded by a few pages.
#[derive(Debug)]
pub struct Decoder<R> {
    input: Input<R>,
    crc: Crc,
    header: Header,
    order: PageOrder,
    index: ExpectedIndex,
    /// Checksum of the pages so far; present when the trailer holds one to compare it with.
    database: Option<DatabaseChecksum>,
    block: Vec<u8>,
    block_is_current: bool,
    at_end: bool,
}

impl<R: Read> Decoder<R> {
    /// Reads the header.
    ///
    /// # Errors
    ///
    /// Kind `Io`, `Truncated` or `Corrupt`.
    pub fn new(reader: R) -> Result<Decoder<R>, LtxError> {
        let mut input = Input::new(reader);
        let bytes: [u8; HEADER_BYTES] = input.array(Section::Header)?;
        let header = Header::parse(&bytes).map_err(LtxError::Header)?;
        let mut crc = Crc::new();
        crc.update(&bytes);
        let complete_and_tracked = header.is_tracked() && header.is_snapshot();
        Ok(Decoder {
            input,
            crc,
            header,
            order: PageOrder::new(&header),
            index: ExpectedIndex::new(),
            database: complete_and_tracked.then_some(DatabaseChecksum::EMPTY),
            block: Vec::new(),
            block_is_current: false,
            at_end: false,
        })
    }

    /// Returns the header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Reads the next page into `page`, whose length becomes the page size, and returns its number;
    /// `None` after the last page.
    ///
    /// # Errors
    ///
    /// Kind `Io`, `Truncated` or `Corrupt`; the content of `page` is then undefined.
    pub fn next_page(&mut self, page: &mut Vec<u8>) -> Result<Option<u32>, LtxError> {
        self.block_is_current = false;
        if self.at_end {
            return Ok(None);
        }
        let offset = self.input.offset();
        let bytes = self.input.array(Section::Pages)?;
        let header = PageHeader::parse(bytes);
        self.crc.update(&bytes);
        if header.is_end() {
            self.order.finish().map_err(LtxError::Pages)?;
            self.at_end = true;
            return Ok(None);
        }
        self.order.accept(header.pgno).map_err(LtxError::Pages)?;
        let page_size = self.header.page_size;
        page::read_payload(&mut self.input, header, page_size, page, &mut self.block)?;
        if header.is_block() {
            self.crc.update(&(self.block.len() as u32).to_be_bytes());
            self.block_is_current = true;
        }
        self.crc.update(page);
        if let Some(database) = &mut self.database {
            database.toggle(page_checksum(header.pgno, page));
        }
        let bytes = (self.input.offset() - offset) as u32;
        self.index.push(IndexEntry {
            pgno: header.pgno,
            offset,
            bytes,
        });
        Ok(Some(header.pgno))
    }

    /// The LZ4 block of the last page; `None` for a page stored as an LZ4 frame.
    pub(crate) fn last_block(&self) -> Option<&[u8]> {
        self.block_is_current.then_some(&self.block)
    }

    /// Reads the rest of the file, after [`Decoder::next_page`] has returned `None`. Proves that
    /// the pages are the ones that were written, and that the index matches them.
    ///
    /// # Errors
    ///
    /// Kind `Io`, `Truncated` or `Corrupt`; `Misuse` when pages remain.
    pub fn finish(mut self) -> Result<Trailer, LtxError> {
        if !self.at_end {
            return Err(LtxError::Misuse(Misuse::Unfinished));
        }
        self.read_index()?;
        let post_apply: [u8; 8] = self.input.array(Section::Trailer)?;
        self.crc.update(&post_apply);
        let file_checksum = u64::from_be_bytes(self.input.array(Section::Trailer)?);
        let trailer = Trailer {
            post_apply: u64::from_be_bytes(post_apply),
            file_checksum,
        };
        if file_checksum != self.crc.flagged() {
            let computed = self.crc.flagged();
            return Err(LtxError::FileChecksum {
                stored: file_checksum,
                computed,
            });
        }
        self.check_post_apply(trailer.post_apply)?;
        self.input.end()?;
        Ok(trailer)
    }

    fn read_index(&mut self) -> Result<(), LtxError> {
        let expected = std::mem::replace(&mut self.index, ExpectedIndex::new()).finish();
        let mut crc = Crc::new();
        let mut chunk = [0; INDEX_CHUNK_BYTES];
        let mut left = expected.bytes;
        while left > 0 {
            let length = left.min(INDEX_CHUNK_BYTES as u64) as usize;
            self.input.fill(&mut chunk[..length], Section::Index)?;
            self.crc.update(&chunk[..length]);
            crc.update(&chunk[..length]);
            left -= length as u64;
        }
        let index_bytes: [u8; 8] = self.input.array(Section::Index)?;
        self.crc.update(&index_bytes);
        let same = crc.flagged() == expected.crc.flagged();
        if same && u64::from_be_bytes(index_bytes) == expected.bytes {
            Ok(())
        } else {
            Err(LtxError::Index)
        }
    }

    fn check_post_apply(&self, found: u64) -> Result<(), LtxError> {
        let allowed = if self.header.is_tracked() {
            found & CHECKSUM_FLAG != 0
        } else {
            found == 0
        };
        if !allowed {
            return Err(LtxError::PostApply { found });
        }
        match self.database {
            Some(computed) if computed.get() != found => {
                let computed = computed.get();
                Err(LtxError::DatabaseChecksum {
                    stored: found,
                    computed,
                })
            }
            _ => Ok(()),
        }
    }
}

/// Expected length and checksum of the index for the pages so far.
///
/// The index can be large, so it is compared by checksum.
#[derive(Debug)]
struct ExpectedIndex {
    bytes: u64,
    crc: Crc,
    scratch: Vec<u8>,
}

impl ExpectedIndex {
    fn new() -> ExpectedIndex {
        ExpectedIndex {
            bytes: 0,
            crc: Crc::new(),
            scratch: Vec::new(),
        }
    }

    fn push(&mut self, entry: IndexEntry) {
        self.scratch.clear();
        entry.append_to(&mut self.scratch);
        self.bytes += self.scratch.len() as u64;
        self.crc.update(&self.scratch);
    }

    /// Adds the zero that ends the index.
    fn finish(mut self) -> ExpectedIndex {
        self.bytes += 1;
        self.crc.update(&[0]);
        self
    }
}
