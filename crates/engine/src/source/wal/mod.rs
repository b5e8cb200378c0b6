//! Capture of one live database with read marks, passed hand over hand.
//!
//! Invariant: everything up to the mark that we hold is captured before anything else happens. Two
//! connections take turns. The next one begins its read transaction before the other ends, so
//! SQLite can never reset the WAL past frames that we have not read. A mark taken when everything
//! is backfilled is in slot 0. The next writer may then restart the WAL once, but no checkpoint can
//! backfill the new one before we move on.
//!
//! Marks that are always held would keep the application's own checkpoints from finishing. So we
//! open a *window* where the WAL is long compared with the write speed, or a checkpoint is due. In
//! a window we hold no mark until the application restarts the WAL, and keep reading. The last
//! frames of the old WAL are then read together with the new one. They are accepted only if the
//! number of commits equals the growth of the wal-index change counter. Anything that cannot be
//! proven is reported as [`Polled::Gap`], and the caller resyncs by page hashes.
//!
//! A blocking checkpoint of the application that waits for a mark waits for its *slot*. If we take
//! that slot again for a newer mark, the checkpoint keeps waiting although no frame is missing. It
//! holds the write lock meanwhile. So each new position is followed by a short window, the
//! *relief*, in which such a checkpoint gets through.
//!
//! Nothing here waits, writes to the database, or touches the store. The rules and the experiments
//! behind them are in `docs/decisions/0002-capture.md`.
//!
//! This module holds the reader and one poll of it. `marks` takes and passes on read marks, `window`
//! releases them, `log` reads frames and proves that none is missing, and `batch` is the result.

mod frames;
mod position;
mod read_marks;
mod window;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use sqlite_format::{PageSize, Salts};

use crate::env::files::{Fingerprint, fingerprint, with_suffix};
use crate::pages::page_set::Spill;
use crate::source::sqlite::{Connection, SqliteError};

use frames::{Kept, ReadError};
pub use position::{Batch, WalPosition};
use read_marks::SHARED_PAUSE;
pub use window::WINDOW_FRAMES;
use window::{Speed, Window};

/// Frames in the WAL at which the application evidently does not checkpoint, so we ask for a
/// PASSIVE checkpoint.
pub const CHECKPOINT_FRAMES: u32 = 2 * WINDOW_FRAMES;

/// Why the frames between two positions are not known. No reason loses data: the caller compares
/// page hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum GapReason {
    /// No earlier position, or one of another WAL.
    Fresh,
    /// The commits found are fewer than the change counter says.
    CommitsMissed,
    /// The chain of checksums does not lead from the old position to the published one.
    ChainBroken,
}

/// Result of one poll.
#[derive(Debug)]
pub enum Polled {
    /// Nothing new.
    Quiet,
    /// New commits that continue the last position.
    Captured(Batch),
    /// Commits may have been missed. The batch holds the whole present WAL.
    Gap(GapReason, Batch),
    /// Another file has taken the path.
    Moved,
}

/// Why a poll failed. The next one may succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WalError {
    /// SQLite refused.
    #[error(transparent)]
    Sqlite(#[from] SqliteError),
    /// The pages of a large transaction could not be written to the local disk.
    #[error("keep captured pages: {0}")]
    Spill(#[source] std::io::Error),
    /// The wal-index or the WAL changed during every attempt to read it.
    #[error("the log changes too fast to be read")]
    Restless,
    /// The page size is not one that SQLite has.
    #[error(transparent)]
    Format(#[from] sqlite_format::FormatError),
}

/// Where capture of a database continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Nothing is known of the database, or it was changed.
    Unknown,
    /// At a position in the WAL: frames and checksums prove that it holds everything since.
    At(WalPosition),
    /// At the first frame of a WAL, after the database was closed without one. An unchanged file
    /// proves that the WAL holds everything since.
    AfterClose(Fingerprint),
}

/// Capture of one database that the application has open.
#[derive(Debug)]
pub struct WalReader {
    connections: [Connection; 2],
    /// The connection that holds a mark; none during a window.
    holder: Option<usize>,
    /// The holder's mark, where known.
    mark: Option<u32>,
    page_size: PageSize,
    position: WalPosition,
    path: PathBuf,
    /// Device and inode of the `-wal` and `-shm` files that SQLite has open. SQLite never replaces
    /// them while our connections are open.
    beside: [Option<(u64, u64)>; 2],
    spill: Spill,
    /// Whether the mark may be older than it should be, because every slot is taken.
    is_shared: bool,
    /// Attempts to park in slot 0 at this position, and the time of the last one.
    parked: (u8, Instant),
    window: Window,
    speed: Speed,
    /// Time at which the position last moved, and whether it had its relief.
    moved_at: Instant,
    relieved: bool,
    /// Whether the last poll captured everything that was published when it began.
    current: bool,
    /// Whether some published frames are not in the database file.
    unfinished: bool,
    /// The database file, and the part of the WAL that was copied into it, at the last note.
    noted: Option<(Option<Fingerprint>, (Salts, u32))>,
    buffer: Vec<u8>,
}

impl WalReader {
    /// Attaches to a database that is open in WAL mode.
    ///
    /// Continues at `start` if that is proven: the answer is then `Quiet` or `Captured`. Otherwise
    /// the answer is `Broken`, with every page that the database file lacks.
    ///
    /// # Errors
    ///
    /// SQLite's error, a WAL that is restarted all the time, or a full local disk.
    pub fn attach(
        path: &Path,
        spill: &Spill,
        start: Start,
        now: Instant,
        now_ms: i64,
    ) -> Result<(WalReader, Polled), WalError> {
        let connections = [Connection::open(path)?, Connection::open(path)?];
        connections[0].begin_read()?;
        let page_size = PageSize::new(connections[0].page_size()?)?;
        connections[0].end_read();
        let position = match start {
            Start::At(position) => position,
            Start::Unknown | Start::AfterClose(_) => WalPosition {
                salts: (0, 0),
                big_endian: false,
                frames: 0,
                checksum: (0, 0),
                change: 0,
            },
        };
        let mut reader = WalReader {
            connections,
            holder: None,
            mark: None,
            page_size,
            position,
            path: path.to_owned(),
            beside: files_beside(path),
            spill: spill.clone(),
            is_shared: false,
            parked: (0, now),
            window: Window::Closed,
            speed: Speed::new(now),
            moved_at: now,
            relieved: false,
            current: false,
            unfinished: false,
            noted: None,
            buffer: Vec::new(),
        };
        let poll = match start {
            Start::At(position) if position.frames > 0 => reader.resume(now, now_ms)?,
            Start::AfterClose(closed) => reader.start_after_close(closed, now_ms)?,
            Start::At(_) | Start::Unknown => reader.restart(GapReason::Fresh, now_ms)?,
        };
        Ok((reader, poll))
    }

    /// The position of capture.
    pub fn position(&self) -> WalPosition {
        self.position
    }

    /// The page size, fixed while the database is in WAL mode.
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// True when the last poll captured everything that was published when it began. False while
    /// another process kept us from taking a mark.
    pub fn is_current(&self) -> bool {
        self.current
    }

    /// True when the WAL has grown far beyond the size at which applications checkpoint. The caller
    /// should then run a PASSIVE checkpoint, off this thread.
    pub fn wants_checkpoint(&self) -> bool {
        self.unfinished && self.position.frames >= CHECKPOINT_FRAMES
    }

    /// Estimates the bytes of WAL that the next poll reads; with `whole`, a [`WalReader::reread`] is
    /// included.
    pub fn bytes_to_read(&self, whole: bool) -> u64 {
        let Some(view) = self.connections[self.holder.unwrap_or(0)].wal_view() else {
            return 0;
        };
        let frames = view.header.max_frame;
        let known = if view.header.salts == self.position.salts() {
            self.position.frames
        } else {
            0
        };
        let mut bytes = u64::from(frames.saturating_sub(known)) * self.frame_bytes() as u64;
        if known == 0 && self.window != Window::Closed {
            // The old WAL may continue after the captured frames, up to the end of the file.
            let file = std::fs::metadata(with_suffix(&self.path, "-wal"));
            let end = file.map_or(0, |meta| meta.len());
            bytes += end.saturating_sub(self.frame_offset(self.position.frames));
        }
        if whole {
            bytes += self.frame_offset(frames);
        }
        bytes
    }

    /// Polls once: captures new commits and moves the mark.
    ///
    /// # Errors
    ///
    /// As [`WalError`]; the reader stays usable and nothing captured before is lost.
    pub fn poll(&mut self, now: Instant, now_ms: i64) -> Result<Polled, WalError> {
        let before = self.position;
        let poll = self.poll_once(now, now_ms);
        self.speed.found(self.position.frames_since(&before), now);
        poll
    }

    fn poll_once(&mut self, now: Instant, now_ms: i64) -> Result<Polled, WalError> {
        self.current = false;
        let Some(view) = self.connections[self.holder.unwrap_or(0)].wal_view() else {
            return Ok(Polled::Quiet);
        };
        self.unfinished = view.backfilled < view.header.max_frame;
        let copied = (view.header.salts, view.backfilled);
        if self.noted.is_none_or(|(_, then)| then != copied) {
            self.note_file();
        }
        match (self.window, self.holder) {
            (Window::Relief { until }, _) => {
                self.current = self.position.is_at(&view);
                if self.current && now < until {
                    return Ok(Polled::Quiet);
                }
                self.close_window(now, now_ms)
            }
            (Window::Open, _) => self.poll_in_window(&view, now, now_ms),
            (Window::Closed, None) => self.restart(GapReason::Fresh, now_ms),
            (Window::Closed, Some(holder)) => {
                self.current = self.position.is_at(&view);
                let lags = self.mark != Some(self.position.frames)
                    && (!self.is_shared || now >= self.parked.1 + SHARED_PAUSE);
                let behind = !self.current || lags;
                let poll = if behind || self.may_park(&view, now) {
                    self.hand_over(holder, view, now, now_ms)?
                } else {
                    Polled::Quiet
                };
                // Writers that never pause are ahead again by the next poll: release the mark now
                // or never.
                if self.current {
                    self.let_go(&view, now);
                }
                Ok(poll)
            }
        }
    }

    /// Whether the path of the database or of its WAL leads to another file than the open one, or
    /// the database file was emptied. The next process to open the database then uses other files
    /// or another content than we do.
    pub fn has_moved(&self) -> bool {
        self.connections[0].has_moved()
            || self.beside != files_beside(&self.path)
            || self.connections[0]
                .database_bytes()
                .is_ok_and(|bytes| bytes == 0)
    }

    /// Reads the whole present WAL again, for a cut: every page that the database file lacks, and of
    /// the others as many as there is memory for, because they may be overwritten soon. None while
    /// no mark is held or the WAL restarts; then ask again.
    ///
    /// # Errors
    ///
    /// As [`WalError`].
    pub fn reread(&mut self, now_ms: i64) -> Result<Option<Batch>, WalError> {
        let Some(holder) = self.holder else {
            return Ok(None);
        };
        let Some(view) = self.settled_view(holder) else {
            return Ok(None);
        };
        let mut batch = self.empty_batch(&view, now_ms);
        let pages = (Kept::MissingFirst, &mut batch.pages);
        match self.read_wal_from_start(holder, &view, pages) {
            Ok(_) => {
                self.complete(holder, &mut batch)?;
                Ok(Some(batch))
            }
            Err(ReadError::Gap(_)) => Ok(None),
            Err(ReadError::Failed(error)) => Err(error),
        }
    }

    /// The header of an empty WAL may not state the size of the database; SQLite then reports it.
    fn complete(&self, index: usize, batch: &mut Batch) -> Result<(), WalError> {
        if batch.commit == 0 {
            batch.commit = self.connections[index].page_count()?;
        }
        Ok(())
    }

    /// Whether this process alone has the database open; false if the file system cannot tell.
    pub fn is_alone(&self) -> bool {
        let index = with_suffix(&self.path, "-shm");
        let elsewhere = self.connections[0].is_open_elsewhere(&index);
        elsewhere.is_ok_and(|elsewhere| !elsewhere)
    }

    /// Notes the database file as it is, and how much of the WAL was copied into it. Call it while
    /// other processes have the database open: they may copy more at any time.
    pub fn note_file(&mut self) {
        self.noted = self.file_and_copied();
    }

    /// Whether nothing but checkpoints has changed the database file since the last note. Otherwise
    /// another program, such as `cp`, has put a database in its place, which a checkpoint would
    /// destroy. Call it while no other process has the database open.
    pub fn is_file_known(&mut self) -> bool {
        let now = self.file_and_copied();
        let is_foreign = match (self.noted, now) {
            (Some((file_then, copied_then)), Some((file, copied))) => {
                file_then != file && copied_then == copied
            }
            _ => false,
        };
        if !is_foreign {
            self.noted = now;
        }
        !is_foreign
    }

    fn file_and_copied(&self) -> Option<(Option<Fingerprint>, (Salts, u32))> {
        let view = self.connections[self.holder.unwrap_or(0)].wal_view()?;
        let file = fingerprint(&self.path).ok().flatten();
        Some((file, (view.header.salts, view.backfilled)))
    }

    /// True when the last poll found every published frame in the database file.
    pub fn is_backfilled(&self) -> bool {
        !self.unfinished
    }

    /// Copies the WAL into the database file as far as it can, if no other process has them open.
    /// Does nothing once a file was removed or replaced: the next process would use other files.
    ///
    /// # Errors
    ///
    /// SQLite's refusal.
    pub fn checkpoint_alone(&mut self) -> Result<(), SqliteError> {
        // The holder of a mark has a transaction open.
        let free = self.holder.map_or(0, |holder| 1 - holder);
        if self.has_moved() || !self.is_alone() || !self.is_file_known() {
            return Ok(());
        }
        let done = self.connections[free].checkpoint_passive().map(drop);
        // The change of the file is ours.
        self.note_file();
        done
    }

    /// Releases every mark. Call after a last [`WalReader::poll`].
    pub fn detach(self) {
        for connection in &self.connections {
            connection.end_read();
        }
    }

    /// As [`WalReader::detach`], and closes the database as an application would: if no other process
    /// has it open, SQLite removes the WAL. Takes as long as a checkpoint of the frames that
    /// [`WalReader::is_backfilled`] does not cover.
    ///
    /// # Errors
    ///
    /// SQLite's refusal; the WAL stays.
    pub fn close(mut self) -> Result<(), SqliteError> {
        let is_known = !self.has_moved() && self.is_file_known();
        for connection in &self.connections {
            connection.end_read();
        }
        if !is_known {
            return Ok(());
        }
        let [first, second] = self.connections;
        drop(second);
        first.close_and_checkpoint()
    }
}

/// Device and inode of `-wal` and `-shm`.
fn files_beside(path: &Path) -> [Option<(u64, u64)>; 2] {
    ["-wal", "-shm"].map(|suffix| {
        let meta = std::fs::metadata(with_suffix(path, suffix)).ok()?;
        Some((meta.dev(), meta.ino()))
    })
}
