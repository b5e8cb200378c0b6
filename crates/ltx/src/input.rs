//! A reader that tracks its offset.

use std::io::{self, Read};

use crate::{LtxError, Section};

/// Counts bytes and turns an early end into [`LtxError::Truncated`].
#[derive(Debug)]
pub(crate) struct Input<R> {
    reader: R,
    offset: u64,
}

impl<R: Read> Input<R> {
    pub(crate) fn new(reader: R) -> Input<R> {
        Input { reader, offset: 0 }
    }

    /// Returns the number of bytes read so far.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Fills `buffer` with bytes of `section`.
    pub(crate) fn fill(&mut self, buffer: &mut [u8], section: Section) -> Result<(), LtxError> {
        self.reader
            .read_exact(buffer)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => LtxError::Truncated {
                    section,
                    offset: self.offset,
                },
                _ => LtxError::Io(error),
            })?;
        self.offset += buffer.len() as u64;
        Ok(())
    }

    /// Reads `N` bytes of `section`.
    pub(crate) fn array<const N: usize>(&mut self, section: Section) -> Result<[u8; N], LtxError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, section)?;
        Ok(bytes)
    }

    /// Checks that no bytes follow.
    pub(crate) fn end(&mut self) -> Result<(), LtxError> {
        let mut byte = [0];
        loop {
            match self.reader.read(&mut byte) {
                Ok(0) => return Ok(()),
                Ok(_) => {
                    return Err(LtxError::TrailingBytes {
                        offset: self.offset,
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(LtxError::Io(error)),
            }
        }
    }
}
