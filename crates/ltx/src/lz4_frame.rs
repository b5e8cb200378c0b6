//! Pages stored as LZ4 frames, the format of Litestream before 0.5.16.
//!
//! The frame is parsed by hand. The usual reader allocates the size that the frame announces, up to
//! 4 MiB for a page of 512 bytes, and does not report where the frame ended.
//!
//! ```text
//! magic 04 22 4d 18 | flags | block size | [content size u64] | header checksum
//! blocks: length u32, its top bit set when stored raw | bytes | [checksum u32]
//! end mark 00 00 00 00 | [content checksum u32]
//! ```
//!
//! All numbers are little-endian; checksums are xxHash32 with seed 0.

use std::io::Read;

use lz4_flex::block;
use twox_hash::XxHash32;

use crate::input::Input;
use crate::page::max_block_bytes;
use crate::{LtxError, Section};

const MAGIC: u32 = 0x184d_2204;
/// Version in the flags, and the bits that hold it.
const VERSION: u8 = 0b0100_0000;
const VERSION_MASK: u8 = 0b1100_0000;
const BLOCKS_CHECKED: u8 = 0b0001_0000;
const CONTENT_SIZED: u8 = 0b0000_1000;
const CONTENT_CHECKED: u8 = 0b0000_0100;
/// A reserved bit, and the bit for a dictionary, which no reader could locate.
const UNSUPPORTED: u8 = 0b0000_0011;
/// Top bit of a block's length: the block is stored uncompressed.
const RAW: u32 = 1 << 31;

/// Reads one frame. Returns false when it is damaged or does not hold exactly `page.len()` bytes.
pub(crate) fn read<R: Read>(
    input: &mut Input<R>,
    page: &mut [u8],
    block: &mut Vec<u8>,
) -> Result<bool, LtxError> {
    let Some(flags) = read_header(input, page.len())? else {
        return Ok(false);
    };
    let mut filled = 0;
    loop {
        let length = read_u32(input)?;
        if length == 0 {
            break;
        }
        let bytes = (length & !RAW) as usize;
        if bytes > max_block_bytes(page.len()) {
            return Ok(false);
        }
        block.resize(bytes, 0);
        input.fill(block, Section::Pages)?;
        if flags & BLOCKS_CHECKED != 0 && read_u32(input)? != XxHash32::oneshot(0, block) {
            return Ok(false);
        }
        match decode_block(block, length & RAW != 0, page, filled) {
            Some(length @ 1..) => filled += length,
            // Writers never emit empty blocks. Accepting them would permit an endless sequence.
            _ => return Ok(false),
        }
    }
    if flags & CONTENT_CHECKED != 0 && read_u32(input)? != XxHash32::oneshot(0, &page[..filled]) {
        return Ok(false);
    }
    Ok(filled == page.len())
}

/// Reads the header and returns its flags; `None` for a header that is not supported.
fn read_header<R: Read>(input: &mut Input<R>, page_bytes: usize) -> Result<Option<u8>, LtxError> {
    if read_u32(input)? != MAGIC {
        return Ok(None);
    }
    let [flags, block_size] = input.array(Section::Pages)?;
    if flags & VERSION_MASK != VERSION || flags & UNSUPPORTED != 0 {
        return Ok(None);
    }
    let mut descriptor = vec![flags, block_size];
    if flags & CONTENT_SIZED != 0 {
        let size: [u8; 8] = input.array(Section::Pages)?;
        if u64::from_le_bytes(size) != page_bytes as u64 {
            return Ok(None);
        }
        descriptor.extend(size);
    }
    let [checksum] = input.array(Section::Pages)?;
    let expected = (XxHash32::oneshot(0, &descriptor) >> 8) as u8;
    Ok((checksum == expected).then_some(flags))
}

/// Decodes a block to after the `filled` bytes of `page`. The block may refer back to these bytes.
fn decode_block(bytes: &[u8], raw: bool, page: &mut [u8], filled: usize) -> Option<usize> {
    let (before, rest) = page.split_at_mut(filled);
    if raw {
        rest.get_mut(..bytes.len())?.copy_from_slice(bytes);
        return Some(bytes.len());
    }
    block::decompress_into_with_dict(bytes, rest, before).ok()
}

fn read_u32<R: Read>(input: &mut Input<R>) -> Result<u32, LtxError> {
    input.array(Section::Pages).map(u32::from_le_bytes)
}
