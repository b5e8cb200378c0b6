//! Reads frames of the WAL and proves that none is missing. Within one WAL the chain of checksums
//! proves it, across a restart the change counter.

use sqlite_format::{
    Chain, FRAME_HEADER_BYTES, FrameHeader, WAL_HEADER_BYTES, WalChecksum, WalHeader,
};

use super::{Batch, GapReason, WalError, WalPosition, WalReader};
use crate::pages::page_set::PageSet;
use crate::source::sqlite::WalView;

/// Bytes of WAL read at once.
const READ_BYTES: usize = 256 << 10;
/// Attempts to find the wal-index at rest; each takes about 100 ns.
const VIEW_ATTEMPTS: u32 = 1000;

/// Of which frames the images are kept.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// Of all.
    All,
    /// Of those that the database file lacks.
    Missing,
    /// Of those that the database file lacks, and of the others while there is memory.
    MissingFirst,
}

/// Why frames could not be read.
pub(super) enum ReadError {
    Gap(GapReason),
    Failed(WalError),
}

impl From<WalError> for ReadError {
    fn from(error: WalError) -> ReadError {
        ReadError::Failed(error)
    }
}

impl WalReader {
    /// Reads from the position to `view` under a mark of connection `index`.
    pub(super) fn read_on(
        &mut self,
        index: usize,
        view: &WalView,
        now_ms: i64,
    ) -> Result<Option<Batch>, ReadError> {
        let mut batch = self.empty_batch(view, now_ms);
        let same_wal = view.header.salts == self.position.salts();
        if same_wal && view.header.max_frame < self.position.frames {
            return Err(ReadError::Gap(GapReason::ChainBroken));
        }
        let commits = if same_wal && self.position.frames > 0 {
            let chain = resume_chain(&self.position);
            batch.wal_offset = self.frame_offset(self.position.frames);
            let frames = (self.position.frames, view.header.max_frame);
            self.read_frames(index, frames, chain, view, (Kept::All, &mut batch.pages))?
        } else {
            self.read_wal_from_start(index, view, (Kept::All, &mut batch.pages))?
        };
        let grown = view.header.change.wrapping_sub(self.position.change);
        // In the same WAL with an unbroken chain, a smaller counter means a recovery: nothing is
        // lost.
        if commits != grown && !same_wal {
            return Err(ReadError::Gap(GapReason::CommitsMissed));
        }
        self.position = batch.position;
        Ok((commits > 0).then_some(batch))
    }

    /// Reads the tail of the WAL that we released, then the new WAL. The change counter proves that
    /// this is everything.
    pub(super) fn read_across(
        &mut self,
        view: &WalView,
        now_ms: i64,
    ) -> Result<Option<Batch>, ReadError> {
        let mut batch = self.empty_batch(view, now_ms);
        let tail = self.read_tail(&mut batch.pages)?;
        let fresh = self.read_wal_from_start(0, view, (Kept::All, &mut batch.pages))?;
        // After more than one restart, a commit of a WAL that we never read could be counted in
        // place of a frame that was written but never published. The first salt grows by one with
        // each restart, or is replaced by an unrelated value.
        let once = view.header.salts.salt1 == self.position.salts.0.wrapping_add(1);
        if !once || tail + fresh != view.header.change.wrapping_sub(self.position.change) {
            return Err(ReadError::Gap(GapReason::CommitsMissed));
        }
        self.position = batch.position;
        Ok((tail + fresh > 0).then_some(batch))
    }

    /// Reads frames of the old WAL after the position while they continue it, whole commits only.
    /// Returns the number of commits.
    fn read_tail(&mut self, pages: &mut PageSet) -> Result<u32, ReadError> {
        let mut chain = resume_chain(&self.position);
        let mut transaction = PageSet::new(self.page_size, &self.spill);
        let mut frame = vec![0u8; self.frame_bytes()];
        let mut commits = Commits::default();
        for number in self.position.frames.. {
            if self.connections[0]
                .read_wal(&mut frame, self.frame_offset(number))
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
                .map_err(WalError::Spill)?;
            commits.add(header, page);
            if header.is_commit() {
                pages.overlay(transaction).map_err(WalError::Spill)?;
                transaction = PageSet::new(self.page_size, &self.spill);
            }
        }
        Ok(commits.number)
    }

    /// Whether the WAL file ends with the captured frames. A frame after them may belong to a
    /// commit that is written but not yet published. Publishing it changes no file, nor does the
    /// recovery that makes it valid after its writer died.
    pub fn is_at_end(&self) -> bool {
        let mut frame = vec![0u8; self.frame_bytes()];
        let offset = self.frame_offset(self.position.frames);
        if self.connections[0].read_wal(&mut frame, offset).is_err() {
            return true;
        }
        let (header, page) = split_frame(&frame);
        resume_chain(&self.position).accept(header, page).is_err()
    }

    pub(super) fn last_frame_stands(&self) -> bool {
        let mut bytes = [0u8; FRAME_HEADER_BYTES];
        let offset = self.frame_offset(self.position.frames - 1);
        if self.connections[0].read_wal(&mut bytes, offset).is_err() {
            return false;
        }
        let header = sqlite_format::FrameHeader::parse(&bytes);
        header.salts == self.position.salts()
            && (header.checksum.s1, header.checksum.s2) == self.position.checksum
    }

    /// Reads frame 1 to the end of the published WAL. Returns the number of commits.
    pub(super) fn read_wal_from_start(
        &mut self,
        index: usize,
        view: &WalView,
        pages: (Kept, &mut PageSet),
    ) -> Result<u32, ReadError> {
        if view.header.max_frame == 0 {
            return Ok(0);
        }
        let mut bytes = [0u8; WAL_HEADER_BYTES];
        self.connections[index]
            .read_wal(&mut bytes, 0)
            .map_err(WalError::from)?;
        let broken = ReadError::Gap(GapReason::ChainBroken);
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
        (kept, pages): (Kept, &mut PageSet),
    ) -> Result<u32, ReadError> {
        let broken = || ReadError::Gap(GapReason::ChainBroken);
        let frame_bytes = self.frame_bytes();
        let at_once = (READ_BYTES / frame_bytes).max(1);
        let (mut next, mut commits, mut complete) = (from, Commits::default(), true);
        while next < to {
            let count = at_once.min((to - next) as usize);
            // The buffer is never cleared: each read fills the part in use.
            let needed = count * frame_bytes;
            if self.buffer.len() < needed {
                self.buffer.resize(needed, 0);
            }
            let offset = self.frame_offset(next);
            match self.connections[index].read_wal(&mut self.buffer[..needed], offset) {
                Err(error) if error.is_short_read() => return Err(broken()),
                read => read.map_err(WalError::from)?,
            }
            for (number, frame) in (next + 1..).zip(self.buffer[..needed].chunks_exact(frame_bytes))
            {
                let (header, page) = split_frame(frame);
                let header = chain.accept(header, page).map_err(|_| broken())?;
                let is_missing = number > view.backfilled;
                match kept {
                    Kept::Missing if !is_missing => {}
                    Kept::MissingFirst if !is_missing => {
                        pages.insert_into_memory(header.pgno, page);
                    }
                    _ => pages.insert(header.pgno, page).map_err(WalError::Spill)?,
                }
                complete = header.is_commit();
                commits.add(header, page);
            }
            next += count as u32;
        }
        if !complete || chain.checksum() != view.header.frame_checksum {
            return Err(broken());
        }
        Ok(commits.number)
    }

    pub(super) fn empty_batch(&self, view: &WalView, now_ms: i64) -> Batch {
        let header = &view.header;
        Batch {
            pages: PageSet::new(self.page_size, &self.spill),
            commit: header.page_count,
            position: WalPosition {
                salts: (header.salts.salt1, header.salts.salt2),
                big_endian: header.big_endian_checksums,
                frames: header.max_frame,
                checksum: (header.frame_checksum.s1, header.frame_checksum.s2),
                change: header.change,
            },
            wal_offset: WAL_HEADER_BYTES as u64,
            first_ms: now_ms,
            last_ms: now_ms,
        }
    }

    pub(super) fn settled_view(&self, index: usize) -> Option<WalView> {
        (0..VIEW_ATTEMPTS).find_map(|_| self.connections[index].wal_view())
    }

    pub(super) fn frame_bytes(&self) -> usize {
        FRAME_HEADER_BYTES + self.page_size.as_usize()
    }

    /// Offset of the frame that follows `frames` frames.
    pub(super) fn frame_offset(&self, frames: u32) -> u64 {
        WAL_HEADER_BYTES as u64 + u64::from(frames) * self.frame_bytes() as u64
    }
}

/// Counts commits as the change counter does.
///
/// Where SQLite pads a commit to the end of a sector, it writes the last frame again with its
/// commit mark: one commit, several commit frames. Two commits that write one page with the same
/// content therefore count once, and are then reported as missed.
#[derive(Default)]
struct Commits {
    number: u32,
    /// Page and database size of the last frame, if that was a commit frame.
    last: Option<(u32, u32)>,
    image: Vec<u8>,
}

impl Commits {
    fn add(&mut self, header: FrameHeader, page: &[u8]) {
        let this = header.is_commit().then_some((header.pgno, header.commit));
        let again = this == self.last && self.image == page;
        if this.is_some() && !again {
            self.number += 1;
            self.image.clear();
            self.image.extend_from_slice(page);
        }
        self.last = this;
    }
}

fn resume_chain(position: &WalPosition) -> Chain {
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

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::{Duration, Instant};

    use sqlite_format::Salts;

    use super::*;
    use crate::env::files::with_suffix;
    use crate::pages::page_set::Spill;
    use crate::source::wal::{Polled, Start};

    fn application(path: &Path) -> rusqlite::Connection {
        let connection = rusqlite::Connection::open(path).unwrap();
        let sql =
            "PRAGMA journal_mode=WAL; CREATE TABLE IF NOT EXISTS t(x); INSERT INTO t VALUES(1)";
        connection.execute_batch(sql).unwrap();
        connection
    }

    fn commit(connection: &rusqlite::Connection) {
        connection.execute_batch("INSERT INTO t VALUES(2)").unwrap();
    }

    fn attached(path: &Path, now: Instant) -> WalReader {
        let spill = Spill::with_memory(path.parent().unwrap(), 1 << 20);
        WalReader::attach(path, &spill, Start::Unknown, now, 0)
            .unwrap()
            .0
    }

    #[test]
    fn a_written_frame_that_nobody_has_published_is_seen_behind_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db");
        let _application = application(&path);
        let reader = attached(&path, Instant::now());
        assert!(reader.is_at_end());
        let page = vec![7u8; reader.page_size().as_usize()];
        let frame = |checksum: WalChecksum, salts: (u32, u32)| {
            let mut header = [0u8; FRAME_HEADER_BYTES];
            let words = [2, 2, salts.0, salts.1, checksum.s1, checksum.s2];
            for (at, word) in words.into_iter().enumerate() {
                header[at * 4..at * 4 + 4].copy_from_slice(&u32::to_be_bytes(word));
            }
            [&header[..], &page[..]].concat()
        };
        let position = reader.position();
        let before = WalChecksum {
            s1: position.checksum.0,
            s2: position.checksum.1,
        };
        let mut start = [0u8; 8];
        start[3] = 2;
        start[7] = 2;
        let right = before
            .update(position.big_endian, &start)
            .update(position.big_endian, &page);
        let end = reader.frame_offset(position.frames);
        let write = |frame: &[u8]| {
            use std::os::unix::fs::FileExt;
            let wal = std::fs::File::options()
                .write(true)
                .open(with_suffix(&path, "-wal"));
            wal.unwrap().write_all_at(frame, end).unwrap();
        };
        write(&frame(
            right,
            (position.salts.0.wrapping_add(1), position.salts.1),
        ));
        assert!(reader.is_at_end(), "a frame of another log");
        write(&frame(before, position.salts));
        assert!(reader.is_at_end(), "a torn frame");
        write(&frame(right, position.salts));
        assert!(!reader.is_at_end());
    }

    #[test]
    fn a_padded_commit_counts_once_and_every_other_one_counts() {
        let salts = Salts::default();
        let checksum = WalChecksum::default();
        let frame = |pgno, commit| FrameHeader {
            pgno,
            commit,
            salts,
            checksum,
        };
        let mut commits = Commits::default();
        for (header, page, number) in [
            (frame(2, 0), [1], 0),
            (frame(3, 5), [1], 1),
            (frame(3, 5), [1], 1),
            (frame(3, 5), [2], 2),
            (frame(4, 5), [2], 3),
            (frame(4, 6), [2], 4),
            (frame(4, 0), [2], 4),
            (frame(4, 6), [2], 5),
        ] {
            commits.add(header, &page);
            assert_eq!(commits.number, number, "{header:?} {page:?}");
        }
    }

    #[test]
    fn a_mark_that_shares_an_old_slot_is_not_taken_for_a_new_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db");
        let writer = application(&path);
        let mut now = Instant::now();
        let mut reader = attached(&path, now);
        let readers: Vec<_> = (0..4)
            .map(|_| {
                commit(&writer);
                let reader = rusqlite::Connection::open(&path).unwrap();
                reader
                    .execute_batch("BEGIN; SELECT count(*) FROM t")
                    .unwrap();
                reader
            })
            .collect();
        commit(&writer);
        let poll = |reader: &mut WalReader, now| reader.poll(now, 0).unwrap();
        assert!(matches!(poll(&mut reader, now), Polled::Captured(_)));
        assert!(reader.is_shared && reader.mark.is_none());
        assert_eq!(
            reader.due(),
            Some(now + crate::source::wal::SHARED_PAUSE),
            "another attempt"
        );
        drop(readers);
        now += crate::source::wal::SHARED_PAUSE;
        assert!(matches!(poll(&mut reader, now), Polled::Quiet));
        assert!(!reader.is_shared);
    }

    #[test]
    fn a_log_that_is_restarted_twice_unseen_is_never_taken_for_one_restart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db");
        let writer = application(&path);
        let mut now = Instant::now();
        let mut reader = attached(&path, now);
        for _ in 0..100 {
            commit(&writer);
        }
        for (restarts, expected) in [(1, true), (2, false)] {
            // The reader captures the commits, then opens a window.
            for _ in 0..5 {
                now += Duration::from_millis(50);
                reader.poll(now, 0).unwrap();
            }
            assert_eq!(reader.window, crate::source::wal::Window::Open);
            for _ in 0..restarts {
                let sql = "PRAGMA wal_checkpoint(TRUNCATE); INSERT INTO t VALUES(3)";
                writer.execute_batch(sql).unwrap();
            }
            now += Duration::from_millis(1);
            let poll = reader.poll(now, 0).unwrap();
            assert_eq!(
                matches!(poll, Polled::Captured(_)),
                expected,
                "{restarts}: {poll:?}"
            );
            assert_eq!(
                matches!(poll, Polled::Gap(..)),
                !expected,
                "{restarts}: {poll:?}"
            );
            for _ in 0..100 {
                commit(&writer);
            }
        }
    }

    /// Writes three commits, the only ones in the WAL. Returns the writer, the reader and the view.
    fn three_commits(directory: &Path) -> (rusqlite::Connection, WalReader, WalView) {
        let path = directory.join("db");
        let writer = application(&path);
        writer
            .execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")
            .unwrap();
        for _ in 0..3 {
            commit(&writer);
        }
        let reader = attached(&path, Instant::now());
        let view = reader.settled_view(0).unwrap();
        (writer, reader, view)
    }

    #[test]
    fn a_new_log_is_taken_for_all_only_when_the_change_counter_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let (_writer, mut reader, view) = three_commits(directory.path());
        let change = view.header.change;
        let salt = view.header.salts.salt1;
        for (before, expected) in [(change - 3, true), (change - 4, false), (change - 2, false)] {
            let earlier = WalPosition {
                salts: (salt.wrapping_sub(1), 7),
                change: before,
                ..reader.position()
            };
            reader.position = earlier;
            let read = reader.read_on(0, &view, 0);
            assert_eq!(matches!(read, Ok(Some(_))), expected, "{before} on");
            reader.position = earlier;
            let read = reader.read_across(&view, 0);
            assert_eq!(matches!(read, Ok(Some(_))), expected, "{before} across");
            assert_eq!(
                reader.position() == earlier,
                !expected,
                "what is not proven is not passed"
            );
        }
    }

    #[test]
    fn frames_that_do_not_end_at_the_published_checksum_are_not_taken() {
        let directory = tempfile::tempdir().unwrap();
        let (_writer, mut reader, mut view) = three_commits(directory.path());
        reader.position.frames = 0;
        view.header.frame_checksum.s1 ^= 1;
        let read = reader.read_on(0, &view, 0);
        assert!(matches!(read, Err(ReadError::Gap(GapReason::ChainBroken))));
        view.header.frame_checksum.s1 ^= 1;
        assert!(reader.read_on(0, &view, 0).is_ok());
    }

    #[test]
    fn a_wal_is_continued_from_a_close_only_while_the_database_file_is_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db");
        drop(application(&path));
        let closed = crate::env::files::cold_fingerprint(&path).unwrap().unwrap();
        let writer = application(&path);
        let attach = || {
            let spill = Spill::with_memory(directory.path(), 1 << 20);
            let now = Instant::now();
            WalReader::attach(&path, &spill, Start::AfterClose(closed), now, 0).unwrap()
        };
        let (mut reader, poll) = attach();
        let Polled::Captured(batch) = poll else {
            panic!("{poll:?}");
        };
        assert!(batch.pages.len() == 1 && batch.position.frames == 1);
        commit(&writer);
        let poll = reader.poll(Instant::now(), 0).unwrap();
        assert!(matches!(poll, Polled::Captured(_)), "{poll:?}");
        drop(reader);
        // Its WAL may have begun anew since.
        writer
            .execute_batch("PRAGMA wal_checkpoint(RESTART); INSERT INTO t VALUES(3)")
            .unwrap();
        let (_, poll) = attach();
        assert!(matches!(poll, Polled::Gap(..)), "{poll:?}");
    }

    #[test]
    fn a_place_in_a_log_that_holds_another_frame_there_is_not_gone_on_from() {
        let directory = tempfile::tempdir().unwrap();
        let (writer, reader, _) = three_commits(directory.path());
        let right = reader.position();
        drop(reader);
        let path = directory.path().join("db");
        let resume = |position| {
            let now = Instant::now();
            WalReader::attach(
                &path,
                &Spill::with_memory(directory.path(), 1 << 20),
                Start::At(position),
                now,
                0,
            )
            .unwrap()
            .1
        };
        let wrong = WalPosition {
            checksum: (right.checksum.0 ^ 1, right.checksum.1),
            ..right
        };
        assert!(matches!(resume(right), Polled::Quiet));
        assert!(matches!(resume(wrong), Polled::Gap(GapReason::Fresh, _)));
        commit(&writer);
        assert!(matches!(resume(right), Polled::Captured(_)));
        assert!(matches!(resume(wrong), Polled::Gap(GapReason::Fresh, _)));
    }
}
