//! Writing a file page by page.

use std::io::Write;

use lz4_flex::block::{self, CompressTable};

use crate::checksum::Crc;
use crate::frame_list::FrameList;
use crate::page::{FLAG_BLOCK, PAGE_HEADER_BYTES, PageHeader};
use crate::page_order::PageOrder;
use crate::{Header, LtxError, Misuse, varint};

/// Number of index bytes written at a time.
const INDEX_CHUNK_BYTES: usize = 16 << 10;
/// Length of page header and block length before a page's block.
const PREFIX_BYTES: usize = PAGE_HEADER_BYTES + 4;
/// Database checksum in the trailer of a file without database checksums.
const NO_POST_APPLY: u64 = 0;

/// Writes one file: pages in ascending order, then [`Encoder::finish`].
///
/// Each page is one write. When the encoder was not finished, or failed, the output is not an LTX
/// file: discard it. Memory is a few pages plus about three bytes for each page written.
#[derive(Debug)]
pub struct Encoder<W> {
    writer: W,
    crc: Crc,
    header: Header,
    order: PageOrder,
    frames: FrameList,
    compressor: Compressor,
    scratch: Vec<u8>,
}

/// Length and checksum of a written file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Length of the file.
    pub bytes: u64,
    /// Checksum of the file, as in its trailer.
    pub file_checksum: u64,
    /// Number of pages in the file.
    pub pages: u32,
}

impl<W: Write> Encoder<W> {
    /// Writes the header.
    ///
    /// # Errors
    ///
    /// Kind `Misuse` for an invalid header, or one with database checksums; kind `Io`.
    pub fn new(mut writer: W, header: Header) -> Result<Encoder<W>, LtxError> {
        if header.is_tracked() {
            return Err(LtxError::Misuse(Misuse::Tracked));
        }
        let bytes = header
            .encode()
            .map_err(|error| LtxError::Misuse(Misuse::Header(error)))?;
        writer.write_all(&bytes)?;
        let mut crc = Crc::new();
        crc.update(&bytes);
        Ok(Encoder {
            writer,
            crc,
            header,
            order: PageOrder::new(&header),
            frames: FrameList::default(),
            compressor: Compressor::default(),
            scratch: Vec::new(),
        })
    }

    /// Writes a page.
    ///
    /// # Errors
    ///
    /// Kind `Misuse`, with nothing written, for an invalid page: of the wrong length, out of order,
    /// past the commit size, the lock page, or after a gap in a snapshot. Kind `Io`.
    pub fn encode_page(&mut self, pgno: u32, page: &[u8]) -> Result<(), LtxError> {
        self.accept(pgno, page)?;
        self.scratch.clear();
        self.scratch.resize(PREFIX_BYTES, 0);
        self.compressor.append(page, &mut self.scratch);
        self.write_scratch(pgno, page)
    }

    /// Writes a page whose LZ4 block is already known, which saves the compression.
    pub(crate) fn encode_block(
        &mut self,
        pgno: u32,
        page: &[u8],
        block: &[u8],
    ) -> Result<(), LtxError> {
        self.accept(pgno, page)?;
        self.scratch.clear();
        self.scratch.resize(PREFIX_BYTES, 0);
        self.scratch.extend_from_slice(block);
        self.write_scratch(pgno, page)
    }

    /// Writes index and trailer, flushes, and returns the writer.
    ///
    /// The caller makes the bytes durable.
    ///
    /// # Errors
    ///
    /// Kind `Misuse` for a snapshot that lacks pages; kind `Io`.
    pub fn finish(mut self) -> Result<(W, Summary), LtxError> {
        self.order
            .finish()
            .map_err(|error| LtxError::Misuse(Misuse::Pages(error)))?;
        self.write_hashed(&[0; PAGE_HEADER_BYTES])?;
        let index_bytes = self.write_index()?;
        self.write_hashed(&index_bytes.to_be_bytes())?;
        self.write_hashed(&NO_POST_APPLY.to_be_bytes())?;
        let file_checksum = self.crc.flagged();
        self.writer.write_all(&file_checksum.to_be_bytes())?;
        self.writer.flush()?;
        let tail_bytes = (PAGE_HEADER_BYTES + 8 + crate::TRAILER_BYTES) as u64;
        let bytes = self.frames.end() + tail_bytes + index_bytes;
        Ok((
            self.writer,
            Summary {
                bytes,
                file_checksum,
                pages: self.frames.len(),
            },
        ))
    }

    fn accept(&mut self, pgno: u32, page: &[u8]) -> Result<(), LtxError> {
        let expected = self.header.page_size;
        if page.len() != expected.as_usize() {
            let found = page.len();
            return Err(LtxError::Misuse(Misuse::PageBytes {
                pgno,
                found,
                expected,
            }));
        }
        self.order
            .accept(pgno)
            .map_err(|error| LtxError::Misuse(Misuse::Pages(error)))
    }

    /// Writes the block in the scratch buffer, which starts with space for the block's prefix.
    fn write_scratch(&mut self, pgno: u32, page: &[u8]) -> Result<(), LtxError> {
        let block_bytes = (self.scratch.len() - PREFIX_BYTES) as u32;
        let header = PageHeader {
            pgno,
            flags: FLAG_BLOCK,
        };
        self.scratch[..PAGE_HEADER_BYTES].copy_from_slice(&header.encode());
        self.scratch[PAGE_HEADER_BYTES..PREFIX_BYTES].copy_from_slice(&block_bytes.to_be_bytes());
        self.crc.update(&self.scratch[..PREFIX_BYTES]);
        self.crc.update(page);
        self.frames.push(pgno, self.scratch.len() as u32);
        Ok(self.writer.write_all(&self.scratch)?)
    }

    /// Writes the entries of the index and the zero after them; returns their length.
    fn write_index(&mut self) -> Result<u64, LtxError> {
        let mut written = 0;
        let mut chunk = Vec::with_capacity(INDEX_CHUNK_BYTES + 32);
        for entry in self.frames.iter() {
            entry.append_to(&mut chunk);
            if chunk.len() >= INDEX_CHUNK_BYTES {
                written += chunk.len() as u64;
                self.crc.update(&chunk);
                self.writer.write_all(&chunk)?;
                chunk.clear();
            }
        }
        varint::put(&mut chunk, 0);
        self.write_hashed(&chunk)?;
        Ok(written + chunk.len() as u64)
    }

    fn write_hashed(&mut self, bytes: &[u8]) -> Result<(), LtxError> {
        self.crc.update(bytes);
        Ok(self.writer.write_all(bytes)?)
    }
}

/// An LZ4 block compressor that keeps its table between pages.
#[derive(Default)]
struct Compressor(CompressTable);

impl Compressor {
    fn append(&mut self, page: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        out.resize(start + block::get_maximum_output_size(page.len()), 0);
        let bytes = block::compress_into_with_table(page, &mut out[start..], &mut self.0)
            .expect("the buffer has the maximum output size");
        out.truncate(start + bytes);
    }
}

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Compressor")
    }
}
