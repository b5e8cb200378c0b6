//! Reading frames of the log, and the proof that they are all there is: the chain of checksums
//! within one life of the log, the change counter from one to the next.

use sqlite_format::{Chain, FRAME_HEADER_BYTES, WAL_HEADER_BYTES, WalChecksum, WalHeader};

use super::{Batch, BreakReason, LogPosition, Tap, TapError};
use crate::pages::PageSet;
use crate::sqlite::WalView;

/// Bytes of log read at once.
const READ_BYTES: usize = 256 << 10;
/// Attempts to find the wal-index at rest; each takes about 100 ns.
const VIEW_ATTEMPTS: u32 = 1000;

/// Why frames could not be read.
pub(super) enum ReadError {
    Broken(BreakReason),
    Tap(TapError),
}

impl From<TapError> for ReadError {
    fn from(error: TapError) -> ReadError {
        ReadError::Tap(error)
    }
}

impl Tap {
    /// Reads from the position to `view` under a mark of connection `index`.
    pub(super) fn read_on(
        &mut self,
        index: usize,
        view: &WalView,
        now_ms: i64,
    ) -> Result<Option<Batch>, ReadError> {
        let mut batch = self.empty_batch(view, now_ms);
        let same_log = view.header.salts == self.position.salts();
        if same_log && view.header.max_frame < self.position.frames {
            return Err(ReadError::Broken(BreakReason::ChainBroken));
        }
        let commits = if same_log && self.position.frames > 0 {
            let chain = resume_chain(&self.position);
            batch.log_offset = self.frame_offset(self.position.frames);
            let frames = (self.position.frames, view.header.max_frame);
            self.read_frames(index, frames, chain, view, &mut batch.pages)?
        } else {
            self.read_log_from_start(index, view, &mut batch.pages)?
        };
        let grown = view.header.change.wrapping_sub(self.position.change);
        // With an unbroken chain in the same log, a smaller counter is a recovery: nothing is lost.
        if commits != grown && !same_log {
            return Err(ReadError::Broken(BreakReason::CommitsMissed));
        }
        self.position = batch.log;
        Ok((commits > 0).then_some(batch))
    }

    /// Reads the tail of the log that we let go, then the new log, and asks the change counter
    /// whether that is all.
    pub(super) fn read_across(
        &mut self,
        view: &WalView,
        now_ms: i64,
    ) -> Result<Option<Batch>, ReadError> {
        let mut batch = self.empty_batch(view, now_ms);
        let tail = self.read_tail(&mut batch.pages)?;
        let fresh = self.read_log_from_start(0, view, &mut batch.pages)?;
        if tail + fresh != view.header.change.wrapping_sub(self.position.change) {
            return Err(ReadError::Broken(BreakReason::CommitsMissed));
        }
        self.position = batch.log;
        Ok((tail + fresh > 0).then_some(batch))
    }

    /// Reads frames of the old log behind the position for as long as they continue it, whole
    /// commits only. Returns the number of commits.
    fn read_tail(&mut self, pages: &mut PageSet) -> Result<u32, ReadError> {
        let mut chain = resume_chain(&self.position);
        let mut transaction = PageSet::new(self.page_size, &self.spill);
        let mut frame = vec![0u8; self.frame_bytes()];
        let mut commits = 0;
        for number in self.position.frames.. {
            if self.connections[0]
                .read_log(&mut frame, self.frame_offset(number))
                .is_err()
            {
                break;
            }
            let (header, page) = split_frame(&frame);
            let Ok(header) = chain.accept(header, page) else {
                break;
            };
            transaction
                .insert(header.pgno, page)
                .map_err(TapError::Spill)?;
            if header.is_commit() {
                commits += 1;
                pages.overlay(transaction).map_err(TapError::Spill)?;
                transaction = PageSet::new(self.page_size, &self.spill);
            }
        }
        Ok(commits)
    }

    pub(super) fn last_frame_stands(&self) -> bool {
        let mut bytes = [0u8; FRAME_HEADER_BYTES];
        let offset = self.frame_offset(self.position.frames - 1);
        if self.connections[0].read_log(&mut bytes, offset).is_err() {
            return false;
        }
        let header = sqlite_format::FrameHeader::parse(&bytes);
        header.salts == self.position.salts()
            && (header.checksum.s1, header.checksum.s2) == self.position.checksum
    }

    /// Reads frames 1 to the end of the published log. Returns the number of commits.
    pub(super) fn read_log_from_start(
        &mut self,
        index: usize,
        view: &WalView,
        pages: &mut PageSet,
    ) -> Result<u32, ReadError> {
        if view.header.max_frame == 0 {
            return Ok(0);
        }
        let mut bytes = [0u8; WAL_HEADER_BYTES];
        self.connections[index]
            .read_log(&mut bytes, 0)
            .map_err(TapError::from)?;
        let broken = ReadError::Broken(BreakReason::ChainBroken);
        let Ok(header) = WalHeader::parse(&bytes) else {
            return Err(broken);
        };
        if header.salts != view.header.salts {
            return Err(broken);
        }
        let frames = (0, view.header.max_frame);
        self.read_frames(index, frames, Chain::start(&header), view, pages)
    }

    /// Reads frames `from + 1` to `to`, which must continue `chain` and end at the published
    /// checksum with a commit. Returns the number of commits.
    fn read_frames(
        &mut self,
        index: usize,
        (from, to): (u32, u32),
        mut chain: Chain,
        view: &WalView,
        pages: &mut PageSet,
    ) -> Result<u32, ReadError> {
        let broken = || ReadError::Broken(BreakReason::ChainBroken);
        let frame_bytes = self.frame_bytes();
        let at_once = (READ_BYTES / frame_bytes).max(1);
        let (mut next, mut commits, mut complete) = (from, 0, true);
        while next < to {
            let count = at_once.min((to - next) as usize);
            // It is never cleared: each read fills what is used.
            let needed = count * frame_bytes;
            if self.buffer.len() < needed {
                self.buffer.resize(needed, 0);
            }
            let offset = self.frame_offset(next);
            match self.connections[index].read_log(&mut self.buffer[..needed], offset) {
                Err(error) if error.message == "short read" => return Err(broken()),
                read => read.map_err(TapError::from)?,
            }
            for frame in self.buffer[..needed].chunks_exact(frame_bytes) {
                let (header, page) = split_frame(frame);
                let header = chain.accept(header, page).map_err(|_| broken())?;
                pages.insert(header.pgno, page).map_err(TapError::Spill)?;
                complete = header.is_commit();
                commits += u32::from(complete);
            }
            next += count as u32;
        }
        if !complete || chain.checksum() != view.header.frame_checksum {
            return Err(broken());
        }
        Ok(commits)
    }

    pub(super) fn empty_batch(&self, view: &WalView, now_ms: i64) -> Batch {
        let header = &view.header;
        Batch {
            pages: PageSet::new(self.page_size, &self.spill),
            commit: header.page_count,
            log: LogPosition {
                salts: (header.salts.salt1, header.salts.salt2),
                big_endian: header.big_endian_checksums,
                frames: header.max_frame,
                checksum: (header.frame_checksum.s1, header.frame_checksum.s2),
                change: header.change,
            },
            log_offset: WAL_HEADER_BYTES as u64,
            first_ms: now_ms,
            last_ms: now_ms,
        }
    }

    pub(super) fn settled_view(&self, index: usize) -> Option<WalView> {
        (0..VIEW_ATTEMPTS).find_map(|_| self.connections[index].wal_view())
    }

    fn frame_bytes(&self) -> usize {
        FRAME_HEADER_BYTES + self.page_size.as_usize()
    }

    /// Offset of the frame behind `frames` frames.
    fn frame_offset(&self, frames: u32) -> u64 {
        WAL_HEADER_BYTES as u64 + u64::from(frames) * self.frame_bytes() as u64
    }
}

fn resume_chain(position: &LogPosition) -> Chain {
    let checksum = WalChecksum {
        s1: position.checksum.0,
        s2: position.checksum.1,
    };
    Chain::resume(position.big_endian, position.salts(), checksum)
}

fn split_frame(frame: &[u8]) -> (&[u8; FRAME_HEADER_BYTES], &[u8]) {
    frame
        .split_first_chunk()
        .expect("a frame is longer than its header")
}
