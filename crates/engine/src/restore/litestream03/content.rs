//! The content of objects, decoded as it arrives.

use std::io::{self, Read};

use lz4_flex::frame::FrameDecoder;

use super::{Damage, GenerationError};
use crate::restore::Objects;

/// The bytes of one object.
struct Compressed<'a> {
    objects: &'a mut Objects,
    /// Whether the decoder asked for more bytes than the object has.
    ended: bool,
}

impl Read for Compressed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.objects.read(buffer)?;
        self.ended |= bytes == 0;
        Ok(bytes)
    }
}

/// The decoded content of one object, which is one LZ4 frame. Memory is twice the frame's largest
/// block, at most 8 MiB.
pub(super) struct Content<'a> {
    key: &'a str,
    decoder: FrameDecoder<Compressed<'a>>,
    done: bool,
}

impl<'a> Content<'a> {
    /// The content of the next object, which has this key. Read it to its end before the next one.
    pub(super) fn open(objects: &'a mut Objects, key: &'a str) -> Content<'a> {
        let ended = false;
        Content {
            key,
            decoder: FrameDecoder::new(Compressed { objects, ended }),
            done: false,
        }
    }

    /// Fills the buffer. Fewer bytes are read only at the end of the object, which is then proven
    /// to be whole.
    pub(super) fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, GenerationError> {
        let mut filled = 0;
        while filled < buffer.len() && !self.done {
            match self.decoder.read(&mut buffer[filled..]) {
                Ok(0) => self.finish()?,
                Ok(bytes) => filled += bytes,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(self.damaged(Damage::Truncated));
                }
                Err(error) => return Err(self.damaged(Damage::Lz4(error))),
            }
        }
        Ok(filled)
    }

    /// Proves the end of the frame. The decoder takes an end between two blocks for the end of the
    /// frame. But at the true end of the frame it asks for no more bytes.
    fn finish(&mut self) -> Result<(), GenerationError> {
        self.done = true;
        let compressed = self.decoder.get_mut();
        if compressed.ended {
            return Err(self.damaged(Damage::Truncated));
        }
        match compressed.read(&mut [0]) {
            Ok(0) => {
                compressed.objects.next_object();
                Ok(())
            }
            Ok(_) => Err(self.damaged(Damage::TrailingBytes)),
            Err(error) => Err(self.damaged(Damage::Lz4(error))),
        }
    }

    pub(super) fn damaged(&self, damage: Damage) -> GenerationError {
        GenerationError::Damaged {
            key: self.key.to_owned(),
            damage,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};

    use super::*;

    /// A frame with a checksum, as Litestream writes them.
    fn compressed(content: &[u8]) -> Vec<u8> {
        let info = FrameInfo::new()
            .block_size(BlockSize::Max64KB)
            .block_mode(BlockMode::Independent)
            .content_checksum(true);
        let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn decoded(bytes: &[u8], part_bytes: usize) -> Result<Vec<u8>, GenerationError> {
        let mut objects = Objects::of(bytes, part_bytes);
        let mut content = Content::open(&mut objects, "object");
        let (mut all, mut buffer) = (Vec::new(), [0; 1000]);
        loop {
            let bytes = content.fill(&mut buffer)?;
            all.extend_from_slice(&buffer[..bytes]);
            if bytes < buffer.len() {
                return Ok(all);
            }
        }
    }

    /// Three blocks, one of them incompressible.
    fn content() -> Vec<u8> {
        let noise = |n: u32| (n.wrapping_mul(2_654_435_761) >> 13) as u8;
        (0..150_000)
            .map(|n| if n < 65_536 { noise(n) } else { 7 })
            .collect()
    }

    #[test]
    fn content_comes_whole_in_parts_of_any_size() {
        let content = content();
        let bytes = compressed(&content);
        for part_bytes in [1, 3, 4096, usize::MAX] {
            assert_eq!(decoded(&bytes, part_bytes).unwrap(), content);
        }
    }

    #[test]
    fn every_cut_is_noticed_and_so_is_every_byte_more() {
        let bytes = compressed(&content());
        for length in (0..40).chain(65_500..bytes.len()) {
            let cut = decoded(&bytes[..length], 4096);
            let Err(GenerationError::Damaged { damage, .. }) = cut else {
                panic!("{length} of {} bytes are taken for all", bytes.len());
            };
            assert!(matches!(damage, Damage::Truncated), "{length}: {damage}");
        }
        let more = decoded(&[&bytes[..], b"x"].concat(), 4096);
        let Err(GenerationError::Damaged { damage, .. }) = more else {
            panic!("a byte more is left out");
        };
        assert!(matches!(damage, Damage::TrailingBytes), "{damage}");
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let content: Vec<u8> = (0..3000u32).map(|n| (n / 7) as u8).collect();
        let bytes = compressed(&content);
        for offset in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[offset] ^= 0x10;
            assert!(decoded(&bad, 4096).is_err(), "byte {offset}");
        }
    }
}
