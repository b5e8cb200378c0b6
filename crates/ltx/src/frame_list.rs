//! The frames of a file, in about three bytes for each page.

use crate::header::HEADER_BYTES;
use crate::{IndexEntry, varint};

/// Bytes in one chunk. With chunks, the list is not copied when it grows.
const CHUNK_BYTES: usize = 64 << 10;
/// Longest encoding of one frame.
const ENTRY_BYTES: usize = 20;

/// Page numbers and lengths of frames, which follow the header and each other without a gap.
///
/// They are kept as differences: most pages follow their neighbour, and the offset of a frame
/// follows from the lengths before it.
#[derive(Debug, Clone, Default)]
pub(crate) struct FrameList {
    chunks: Vec<Vec<u8>>,
    frames: u32,
    last_pgno: u32,
    frame_bytes: u64,
}

impl FrameList {
    /// Appends a frame. The caller has checked that page numbers ascend.
    pub(crate) fn push(&mut self, pgno: u32, bytes: u32) {
        debug_assert!(pgno > self.last_pgno);
        if self
            .chunks
            .last()
            .is_none_or(|chunk| chunk.len() + ENTRY_BYTES > CHUNK_BYTES)
        {
            // The first chunk grows on demand: most files are small.
            let reserve = if self.chunks.is_empty() {
                0
            } else {
                CHUNK_BYTES
            };
            self.chunks.push(Vec::with_capacity(reserve));
        }
        let chunk = self
            .chunks
            .last_mut()
            .expect("a chunk was just made sure of");
        varint::put(chunk, u64::from(pgno - self.last_pgno));
        varint::put(chunk, u64::from(bytes));
        self.frames += 1;
        self.last_pgno = pgno;
        self.frame_bytes += u64::from(bytes);
    }

    /// Number of frames.
    pub(crate) fn len(&self) -> u32 {
        self.frames
    }

    /// Offset in the file of the byte after the last frame.
    pub(crate) fn end(&self) -> u64 {
        HEADER_BYTES as u64 + self.frame_bytes
    }

    /// The frames in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = IndexEntry> + '_ {
        let mut end = HEADER_BYTES as u64;
        let mut last_pgno = 0;
        self.chunks
            .iter()
            .flat_map(|chunk| Numbers(chunk))
            .map(move |(step, bytes)| {
                let entry = IndexEntry {
                    pgno: last_pgno + step,
                    offset: end,
                    bytes,
                };
                last_pgno = entry.pgno;
                end += u64::from(bytes);
                entry
            })
    }
}

/// Iterator over the pairs of numbers in a chunk.
struct Numbers<'a>(&'a [u8]);

impl Iterator for Numbers<'_> {
    type Item = (u32, u32);

    fn next(&mut self) -> Option<(u32, u32)> {
        let mut number = || varint::take(&mut self.0)?.try_into().ok();
        Some((number()?, number()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_with_their_offsets_across_chunks() {
        let mut list = FrameList::default();
        for pgno in 1..=50_000 {
            list.push(pgno * 3, 1000 + pgno % 7);
        }
        assert!(list.chunks.len() > 1);
        assert_eq!(list.len(), 50_000);
        let mut end = 100;
        for (pgno, entry) in (1..).zip(list.iter()) {
            let bytes = 1000 + pgno % 7;
            assert_eq!(
                entry,
                IndexEntry {
                    pgno: pgno * 3,
                    offset: end,
                    bytes
                }
            );
            end += u64::from(bytes);
        }
        assert_eq!(list.end(), end);
    }
}
