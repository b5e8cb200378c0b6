//! One stored page: `pgno u32 | flags u16`, then a block or an LZ4 frame.

use std::io::Read;

use lz4_flex::block;
use sqlite_format::PageSize;

use crate::input::Input;
use crate::{LtxError, PagesError, Section, lz4_frame};

/// Length of the page header, in bytes.
pub(crate) const PAGE_HEADER_BYTES: usize = 6;
/// Flag of a page that is stored as a length and one LZ4 block. Without it an LZ4 frame follows.
pub(crate) const FLAG_BLOCK: u16 = 0x1;
/// Longest frame of a page, in bytes. No encoder comes close to it.
pub(crate) const MAX_FRAME_BYTES: u32 = 2 * 65_536 + 1024;

/// Number and flags before each page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageHeader {
    pub(crate) pgno: u32,
    pub(crate) flags: u16,
}

impl PageHeader {
    pub(crate) fn parse(bytes: [u8; PAGE_HEADER_BYTES]) -> PageHeader {
        let [a, b, c, d, e, f] = bytes;
        PageHeader {
            pgno: u32::from_be_bytes([a, b, c, d]),
            flags: u16::from_be_bytes([e, f]),
        }
    }

    pub(crate) fn encode(self) -> [u8; PAGE_HEADER_BYTES] {
        let [a, b, c, d] = self.pgno.to_be_bytes();
        let [e, f] = self.flags.to_be_bytes();
        [a, b, c, d, e, f]
    }

    /// True for the six zero bytes after the last page.
    pub(crate) fn is_end(self) -> bool {
        self.pgno == 0 && self.flags == 0
    }

    /// True when the page is stored as a length and one LZ4 block.
    pub(crate) fn is_block(self) -> bool {
        self.flags & FLAG_BLOCK != 0
    }
}

/// Decodes one frame, as found through a [`PageIndex`](crate::PageIndex), and returns its page
/// number.
///
/// `frame` is exactly the bytes of one [`IndexEntry`](crate::IndexEntry); `page` becomes the page's
/// `page_size` bytes. Compare the number with the entry's. A frame in the newer of the two forms
/// has no checksum: only the checksum of the whole file, or one kept for each page, proves the
/// page.
///
/// # Errors
///
/// [`LtxError`] of kind `Truncated` or `Corrupt`; the content of `page` is then undefined.
pub fn decode_frame(
    frame: &[u8],
    page_size: PageSize,
    page: &mut Vec<u8>,
) -> Result<u32, LtxError> {
    let mut input = Input::new(frame);
    let header = PageHeader::parse(input.array(Section::Pages)?);
    if header.pgno == 0 {
        return Err(LtxError::Pages(PagesError::Page0));
    }
    read_payload(&mut input, header, page_size, page, &mut Vec::new())?;
    input.end()?;
    Ok(header.pgno)
}

/// Reads the bytes after a page header. `page` becomes the page, and `block` its LZ4 block. For a
/// page stored as an LZ4 frame, the content of `block` has no meaning.
pub(crate) fn read_payload<R: Read>(
    input: &mut Input<R>,
    header: PageHeader,
    page_size: PageSize,
    page: &mut Vec<u8>,
    block: &mut Vec<u8>,
) -> Result<(), LtxError> {
    let PageHeader { pgno, flags } = header;
    if flags & !FLAG_BLOCK != 0 {
        return Err(LtxError::PageFlags { pgno, flags });
    }
    page.resize(page_size.as_usize(), 0);
    let damaged = LtxError::Compressed { pgno, page_size };
    if !header.is_block() {
        return if lz4_frame::read(input, page, block)? {
            Ok(())
        } else {
            Err(damaged)
        };
    }
    let bytes = u32::from_be_bytes(input.array(Section::Pages)?) as usize;
    if bytes > max_block_bytes(page_size.as_usize()) {
        return Err(damaged);
    }
    block.resize(bytes, 0);
    input.fill(block, Section::Pages)?;
    match block::decompress_into(block, page) {
        Ok(length) if length == page.len() => Ok(()),
        _ => Err(damaged),
    }
}

/// Limit on the compressed form of a page, far above the output of any encoder.
pub(crate) fn max_block_bytes(page_bytes: usize) -> usize {
    2 * page_bytes + 64
}
