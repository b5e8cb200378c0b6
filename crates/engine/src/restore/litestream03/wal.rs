//! One WAL: its segments are proven on their way into an unnamed file, and its frames read from
//! there.
//!
//! Only the end of a WAL tells which of its frames belong to whole transactions, and a WAL may be
//! larger than memory.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

use sqlite_format::{
    Chain, FRAME_HEADER_BYTES, FrameHeader, PageSize, WAL_HEADER_BYTES, WalHeader,
};

use super::content::Content;
use super::{Damage, GenerationError, Segment};
use crate::pages::page_set::unnamed_file;
use crate::restore::{Objects, RestoreError, failed};

/// Bytes read or written at once.
const CHUNK_BYTES: usize = 1 << 20;

/// One WAL, proven frame by frame on its way into an unnamed file.
pub(super) struct Log {
    file: BufWriter<File>,
    directory: PathBuf,
    page_size: PageSize,
    /// None before the first segment.
    chain: Option<Chain>,
    /// Bytes of the WAL so far.
    bytes: u64,
    pub(super) frames: u64,
    /// Frames up to the last one that ends a transaction.
    pub(super) whole: u64,
}

impl Log {
    pub(super) fn new(directory: &Path, page_size: PageSize) -> Result<Log, RestoreError> {
        let file = unnamed_file(directory).map_err(failed(directory))?;
        Ok(Log {
            file: BufWriter::with_capacity(CHUNK_BYTES, file),
            directory: directory.to_owned(),
            page_size,
            chain: None,
            bytes: 0,
            frames: 0,
            whole: 0,
        })
    }

    pub(super) fn append(
        &mut self,
        segment: &Segment,
        objects: &mut Objects,
    ) -> Result<(), RestoreError> {
        if segment.offset != self.bytes {
            let error = GenerationError::SegmentGap {
                key: segment.object.key.clone(),
                found: segment.offset,
                expected: self.bytes,
            };
            return Err(error.into());
        }
        let mut content = Content::open(objects, &segment.object.key);
        let chain = match &mut self.chain {
            Some(chain) => chain,
            none => {
                self.bytes = WAL_HEADER_BYTES as u64;
                none.insert(Chain::start(&header(&mut content, self.page_size)?))
            }
        };
        let mut frame = vec![0; FRAME_HEADER_BYTES + self.page_size.as_usize()];
        loop {
            match content.fill(&mut frame)? {
                // Litestream stores no segment without content; a WAL may be its header alone.
                0 if self.bytes > segment.offset => return Ok(()),
                bytes if bytes < frame.len() => {
                    return Err(content.damaged(Damage::PartFrame).into());
                }
                bytes => self.bytes += bytes as u64,
            }
            let (head, image) = frame.split_at(FRAME_HEADER_BYTES);
            let head = head.try_into().expect("it was split there");
            let number = self.frames + 1;
            let accepted = chain
                .accept(head, image)
                .map_err(|source| content.damaged(Damage::Frame { number, source }))?;
            self.file
                .write_all(&frame)
                .map_err(failed(&self.directory))?;
            self.frames = number;
            if accepted.is_commit() {
                self.whole = number;
            }
        }
    }

    /// Returns the frames for reading, from the first one.
    pub(super) fn images(self) -> Result<Images, RestoreError> {
        let file = self
            .file
            .into_inner()
            .map_err(|error| failed(&self.directory)(error.into_error()))?;
        let mut images = Images {
            file: BufReader::with_capacity(CHUNK_BYTES, file),
            directory: self.directory,
            frame: vec![0; FRAME_HEADER_BYTES + self.page_size.as_usize()],
        };
        images.rewind()?;
        Ok(images)
    }
}

/// Reads the header at the start of a WAL.
fn header(content: &mut Content<'_>, page_size: PageSize) -> Result<WalHeader, GenerationError> {
    let mut bytes = [0; WAL_HEADER_BYTES];
    if content.fill(&mut bytes)? < bytes.len() {
        return Err(content.damaged(Damage::PartFrame));
    }
    let header = WalHeader::parse(&bytes).map_err(|source| content.damaged(Damage::Log(source)))?;
    if header.page_size != page_size {
        return Err(content.damaged(Damage::PageSize {
            found: header.page_size.get(),
            expected: page_size.get(),
        }));
    }
    Ok(header)
}

/// The frames of a proven WAL.
pub(super) struct Images {
    file: BufReader<File>,
    directory: PathBuf,
    frame: Vec<u8>,
}

impl Images {
    pub(super) fn rewind(&mut self) -> Result<(), RestoreError> {
        self.file.rewind().map_err(failed(&self.directory))
    }

    pub(super) fn next(&mut self) -> Result<(FrameHeader, &[u8]), RestoreError> {
        self.file
            .read_exact(&mut self.frame)
            .map_err(failed(&self.directory))?;
        let (head, image) = self.frame.split_at(FRAME_HEADER_BYTES);
        let head = head.try_into().expect("it was split there");
        Ok((FrameHeader::parse(head), image))
    }
}
