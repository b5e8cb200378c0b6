//! Capture of one live database: read marks hand over hand.
//!
//! Invariant: everything up to the mark that we hold is captured before anything else happens.
//! Two connections take turns. The next one begins its read transaction before the other ends, so
//! SQLite can never reset the log past frames that we have not read. A mark taken when everything
//! is backfilled sits in slot 0: the next writer may restart the log once, but nobody can backfill
//! the new one before we move on.
//!
//! Holding marks for ever would keep the application's own checkpoints from finishing. So near
//! [`WINDOW_FRAMES`] we open a *window*: hold no mark until the application restarts the log, then
//! read the tail of the old log and the new one, and accept them only if the commits found equal
//! the growth of the wal-index change counter. Whatever cannot be proven is reported as
//! [`Look::Broken`]; the caller heals it by page hashes.
//!
//! A blocking checkpoint of the application that waits for a mark waits for its *slot*: when we
//! take that slot again for a newer mark, it goes on waiting, though nothing is missing any more,
//! and holds the write lock meanwhile. So each new position is followed by a short window, the
//! *relief*, in which such a checkpoint gets through.
//!
//! Nothing here waits, writes to the database, or touches the store. The rules and the experiments
//! behind them are in `docs/decisions/0002-capture.md`.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sqlite_format::{
    Chain, FRAME_HEADER_BYTES, PageSize, Salts, WAL_HEADER_BYTES, WalChecksum, WalHeader,
};

use crate::pages::PageSet;
use crate::scan::with_suffix;
use crate::sqlite::{Connection, SqliteError, WalView};

/// Frames in the log at which we let go of it. SQLite's default autocheckpoint is 1000.
pub const WINDOW_FRAMES: u32 = 900;
/// Frames at which the application evidently does not checkpoint, and we ask for a PASSIVE one.
pub const CHECKPOINT_FRAMES: u32 = 2 * WINDOW_FRAMES;
/// Longest time without a mark.
const WINDOW_TIME: Duration = Duration::from_millis(100);
/// Pause between two windows that the application did not use.
const WINDOW_PAUSE: Duration = Duration::from_millis(400);
/// Time after a move until the relief. A checkpoint that waits for a slot of ours holds writers
/// up for about this long.
const RELIEF_AFTER: Duration = Duration::from_millis(8);
/// Longest relief: SQLite's busy handler tries again after 25 ms at most by then.
const RELIEF_TIME: Duration = Duration::from_millis(30);
/// Pause between looks during a window.
const WINDOW_LOOK_PAUSE: Duration = Duration::from_micros(100);
/// Pause between looks during a relief.
const RELIEF_LOOK_PAUSE: Duration = Duration::from_micros(500);
/// Pause before a second attempt to park in slot 0, which a checkpoint may have held.
const PARK_PAUSE: Duration = Duration::from_millis(5);
/// Bytes of log read at once.
const READ_BYTES: usize = 256 << 10;
/// Attempts to find the wal-index at rest; each takes about 100 ns.
const VIEW_ATTEMPTS: u32 = 1000;
/// Attempts to read a whole log that a writer restarts meanwhile.
const ATTACH_ATTEMPTS: u32 = 50;

/// Where capture stands in one life of the log. Stored, so that a later process can go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPosition {
    /// The salts that name this life of the log.
    pub salts: (u32, u32),
    /// Whether its checksums are big-endian.
    pub big_endian: bool,
    /// Frames captured.
    pub frames: u32,
    /// Running checksum at the last captured frame.
    pub checksum: (u32, u32),
    /// The wal-index change counter at that moment; it grows by one with each commit.
    pub change: u32,
}

impl LogPosition {
    fn salts(&self) -> Salts {
        Salts {
            salt1: self.salts.0,
            salt2: self.salts.1,
        }
    }

    fn is_at(&self, view: &WalView) -> bool {
        view.header.salts == self.salts() && view.header.max_frame == self.frames
    }
}

/// Whole commits, in the order of the log, merged page by page.
#[derive(Debug)]
pub struct Batch {
    /// The newest image of each page that changed.
    pub pages: PageSet,
    /// Size of the database in pages after the last commit.
    pub commit: u32,
    /// Where the log stands after it.
    pub log: LogPosition,
    /// Offset in the log of the first frame.
    pub log_offset: u64,
    /// When the oldest commit was seen, in Unix milliseconds.
    pub first_ms: i64,
    /// When the newest commit was seen, in Unix milliseconds.
    pub last_ms: i64,
}

impl Batch {
    /// Appends a later batch of the same database.
    ///
    /// # Errors
    ///
    /// Local disk errors of a large batch; the batch is incomplete then and must be dropped.
    pub fn append(&mut self, later: &Batch) -> std::io::Result<()> {
        self.pages.overlay(&later.pages)?;
        self.commit = later.commit;
        self.log = later.log;
        self.last_ms = later.last_ms;
        Ok(())
    }
}

/// Why the frames between two positions are not known. None of these loses data: the caller
/// compares page hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum BreakReason {
    /// No earlier position, or one of another log.
    Fresh,
    /// The commits found are fewer than the change counter says.
    CommitsMissed,
    /// The chain of checksums does not lead from the old position to the published one.
    ChainBroken,
}

/// What one look found.
#[derive(Debug)]
pub enum Look {
    /// Nothing new.
    Quiet,
    /// New commits, continuing at the last position.
    Captured(Batch),
    /// Commits may have been missed. The batch holds the whole present log.
    Broken(BreakReason, Batch),
    /// Another file has taken the path.
    Moved,
}

/// Why a look failed. The next one may succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TapError {
    /// SQLite refused.
    #[error(transparent)]
    Sqlite(#[from] SqliteError),
    /// The pages of a large transaction could not be put aside on the local disk.
    #[error("keep captured pages: {0}")]
    Spill(#[source] std::io::Error),
    /// The wal-index or the log did not come to rest.
    #[error("the log changes too fast to be read")]
    Restless,
    /// The page size is not one that SQLite has.
    #[error(transparent)]
    Format(#[from] sqlite_format::FormatError),
}

/// Capture of one database that the application has open.
#[derive(Debug)]
pub struct Tap {
    connections: [Connection; 2],
    /// The connection that holds a mark; none during a window.
    holder: Option<usize>,
    /// The holder's mark, where it is known.
    mark: Option<u32>,
    page_size: PageSize,
    position: LogPosition,
    path: PathBuf,
    /// The `-wal` and `-shm` files that SQLite has open. It never exchanges them while we are here.
    beside: [Option<(u64, u64)>; 2],
    spill: PathBuf,
    /// Attempts to park in slot 0 at this position, and when the last one was.
    parked: (u8, Instant),
    window: Window,
    /// The position at which the last window opened: there is no use in another one there.
    window_at: Option<LogPosition>,
    /// When the position moved last, and whether it had its relief.
    moved_at: Instant,
    relieved: bool,
    /// The last look captured everything that was published when it began.
    current: bool,
    /// Some published frames are not in the database file.
    unfinished: bool,
    buffer: Vec<u8>,
}

/// When the log is let go.
#[derive(Debug, Clone, Copy)]
enum Window {
    /// Closed; the next one opens no earlier.
    Closed { not_before: Instant },
    /// Open until then at the latest; a relief ends with the next commit, too.
    Open { until: Instant, relief: bool },
}

impl Tap {
    /// Attaches to a database that the application has open in WAL mode.
    ///
    /// With a position from before, goes on there if frames and checksums prove that the log holds
    /// everything since: then the answer is `Quiet` or `Captured`. Otherwise `Broken`, with the
    /// whole log as it is now.
    ///
    /// # Errors
    ///
    /// SQLite's refusal, a log that is restarted all the time, or a full local disk.
    pub fn attach(
        path: &Path,
        spill: &Path,
        resume: Option<LogPosition>,
        now: Instant,
        now_ms: i64,
    ) -> Result<(Tap, Look), TapError> {
        let connections = [Connection::open(path)?, Connection::open(path)?];
        connections[0].begin_read()?;
        let page_size = PageSize::new(connections[0].page_size()?)?;
        connections[0].end_read();
        let nowhere = LogPosition {
            salts: (0, 0),
            big_endian: false,
            frames: 0,
            checksum: (0, 0),
            change: 0,
        };
        let mut tap = Tap {
            connections,
            holder: None,
            mark: None,
            page_size,
            position: resume.unwrap_or(nowhere),
            path: path.to_owned(),
            beside: files_beside(path),
            spill: spill.to_owned(),
            parked: (0, now),
            window: Window::Closed { not_before: now },
            window_at: None,
            moved_at: now,
            relieved: false,
            current: false,
            unfinished: false,
            buffer: Vec::new(),
        };
        let look = match resume {
            Some(position) if position.frames > 0 => tap.resume(now, now_ms)?,
            _ => tap.restart(BreakReason::Fresh, now_ms)?,
        };
        Ok((tap, look))
    }

    /// Where capture stands.
    pub fn position(&self) -> LogPosition {
        self.position
    }

    /// The page size, fixed while the database is in WAL mode.
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// When to look again at the latest, seen from this tap alone; none: no hurry.
    pub fn due(&self) -> Option<Instant> {
        match self.window {
            Window::Open { until, .. } => Some(until),
            Window::Closed { .. } if self.mark != Some(self.position.frames) => Some(self.parked.1),
            Window::Closed { .. } => (!self.relieved).then(|| self.moved_at + RELIEF_AFTER),
        }
    }

    /// The pause between looks while no mark is held.
    pub fn window_pause(&self) -> Option<Duration> {
        match self.window {
            Window::Open { relief: false, .. } => Some(WINDOW_LOOK_PAUSE),
            Window::Open { relief: true, .. } => Some(RELIEF_LOOK_PAUSE),
            Window::Closed { .. } => None,
        }
    }

    /// Ends a window with the next look: somebody needs what was committed meanwhile.
    pub fn end_window(&mut self, now: Instant) {
        if let Window::Open { until, .. } = &mut self.window {
            *until = now;
        }
    }

    /// True when the last look captured everything that was published when it began. Not so in a
    /// window, or while another process kept us from taking a mark.
    pub fn is_current(&self) -> bool {
        self.current
    }

    /// True when the log has grown far beyond where applications checkpoint: somebody should run a
    /// PASSIVE checkpoint, off this thread.
    pub fn wants_checkpoint(&self) -> bool {
        self.unfinished && self.position.frames >= CHECKPOINT_FRAMES
    }

    /// Looks once, captures what is new, and moves the mark.
    ///
    /// # Errors
    ///
    /// As [`TapError`]; the tap stays usable and nothing captured before is lost.
    pub fn look(&mut self, now: Instant, now_ms: i64) -> Result<Look, TapError> {
        self.current = false;
        let Some(view) = self.connections[self.holder.unwrap_or(0)].wal_view() else {
            return Ok(Look::Quiet);
        };
        self.unfinished = view.backfilled < view.header.max_frame;
        match (self.window, self.holder) {
            (Window::Open { until, relief }, _) => {
                let unused = view.header.salts == self.position.salts()
                    && (!relief || self.position.is_at(&view));
                if unused && now < until {
                    return Ok(Look::Quiet);
                }
                self.close_window(now, now_ms)
            }
            (Window::Closed { .. }, None) => self.restart(BreakReason::Fresh, now_ms),
            (Window::Closed { not_before }, Some(holder)) => {
                self.current = self.position.is_at(&view);
                let behind = !self.current || self.mark != Some(self.position.frames);
                let look = if behind || self.may_park(&view, now) {
                    self.hand_over(holder, view, now, now_ms)?
                } else {
                    Look::Quiet
                };
                // Writers that never pause are ahead again by the next look: now or never.
                let long = self.position.frames >= WINDOW_FRAMES && now >= not_before;
                if !self.current {
                    return Ok(look);
                }
                if long && self.window_at != Some(self.position) {
                    self.window_at = Some(self.position);
                    self.open_window(now + WINDOW_TIME, false);
                } else if !self.relieved && now >= self.moved_at + RELIEF_AFTER {
                    self.relieved = true;
                    self.open_window(now + RELIEF_TIME, true);
                }
                Ok(look)
            }
        }
    }

    /// Whether the path now leads to another file than the one we have open, or the log does, or
    /// somebody emptied the database: what we have open is not what the next to open it will use.
    pub fn has_moved(&self) -> bool {
        self.connections[0].has_moved()
            || self.beside != files_beside(&self.path)
            || self.connections[0]
                .database_bytes()
                .is_ok_and(|bytes| bytes == 0)
    }

    /// Reads the whole present log again, as the base of a full copy: it holds every page that the
    /// database file may not have yet. None while no mark is held or the log restarts: ask again.
    ///
    /// # Errors
    ///
    /// As [`TapError`].
    pub fn reread(&mut self, now_ms: i64) -> Result<Option<Batch>, TapError> {
        let Some(holder) = self.holder else {
            return Ok(None);
        };
        let Some(view) = self.settled_view(holder) else {
            return Ok(None);
        };
        let mut batch = self.empty_batch(&view, now_ms);
        match self.read_log_from_start(holder, &view, &mut batch.pages) {
            Ok(_) => {
                self.complete(holder, &mut batch)?;
                Ok(Some(batch))
            }
            Err(ReadError::Broken(_)) => Ok(None),
            Err(ReadError::Tap(error)) => Err(error),
        }
    }

    /// The header of an empty log may not say how large the database is: then SQLite knows.
    fn complete(&self, index: usize, batch: &mut Batch) -> Result<(), TapError> {
        if batch.commit == 0 {
            batch.commit = self.connections[index].page_count()?;
        }
        Ok(())
    }

    /// Gives every mark back. Call after a last [`Tap::look`].
    pub fn detach(self) {
        for connection in &self.connections {
            connection.end_read();
        }
    }

    /// All is backfilled, and the mark may still sit above slot 0, where it would keep the next
    /// writer from restarting the log.
    fn may_park(&self, view: &WalView, now: Instant) -> bool {
        let (attempts, last) = self.parked;
        view.header.max_frame > 0
            && view.backfilled == view.header.max_frame
            && (attempts == 0 || attempts == 1 && now >= last + PARK_PAUSE)
    }

    fn hand_over(
        &mut self,
        holder: usize,
        before: WalView,
        now: Instant,
        now_ms: i64,
    ) -> Result<Look, TapError> {
        let next = 1 - holder;
        match self.connections[next].begin_read() {
            Err(error) if error.is_busy() => return Ok(Look::Quiet),
            begun => begun?,
        }
        let Some(after) = self.settled_view(next) else {
            self.connections[next].end_read();
            return Ok(Look::Quiet);
        };
        let read = if self.position.is_at(&after) {
            Ok(None)
        } else {
            self.read_on(next, &after, now_ms)
        };
        match read {
            Ok(batch) => {
                self.connections[holder].end_read();
                self.hold(next, &before, &after, batch.is_some(), now);
                Ok(batch.map_or(Look::Quiet, Look::Captured))
            }
            Err(ReadError::Broken(reason)) => self.restart(reason, now_ms),
            Err(ReadError::Tap(error)) => {
                self.connections[next].end_read();
                Err(error)
            }
        }
    }

    fn hold(&mut self, next: usize, before: &WalView, after: &WalView, moved: bool, now: Instant) {
        self.holder = Some(next);
        self.current = true;
        if moved {
            self.moved_at = now;
            self.relieved = false;
        }
        // The mark lies between the two looks; unless they agree it counts as behind.
        self.mark = (before.header == after.header).then_some(after.header.max_frame);
        let attempts = if moved || after.backfilled < after.header.max_frame {
            0
        } else {
            self.parked.0.saturating_add(1)
        };
        self.parked = (attempts, now);
    }

    /// Reads from the position to `view` under a mark of connection `index`.
    fn read_on(
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

    fn open_window(&mut self, until: Instant, relief: bool) {
        if let Some(holder) = self.holder.take() {
            self.connections[holder].end_read();
        }
        self.mark = None;
        self.window = Window::Open { until, relief };
    }

    fn close_window(&mut self, now: Instant, now_ms: i64) -> Result<Look, TapError> {
        let Some(before) = self.settled_view(0) else {
            return Ok(Look::Quiet);
        };
        match self.connections[0].begin_read() {
            Err(error) if error.is_busy() => return Ok(Look::Quiet),
            begun => begun?,
        }
        let Some(after) = self.settled_view(0) else {
            self.connections[0].end_read();
            return Ok(Look::Quiet);
        };
        let used = after.header.salts != self.position.salts();
        let relief = matches!(self.window, Window::Open { relief: true, .. });
        let again = if used || relief {
            now
        } else {
            now + WINDOW_PAUSE
        };
        self.window = Window::Closed { not_before: again };
        let read = if self.position.is_at(&after) {
            Ok(None)
        } else if used {
            self.read_across(&after, now_ms)
        } else {
            self.read_on(0, &after, now_ms)
        };
        match read {
            Ok(batch) => {
                self.hold(0, &before, &after, batch.is_some(), now);
                Ok(batch.map_or(Look::Quiet, Look::Captured))
            }
            Err(ReadError::Broken(reason)) => self.restart(reason, now_ms),
            Err(ReadError::Tap(error)) => {
                self.connections[0].end_read();
                Err(error)
            }
        }
    }

    /// Reads the tail of the log that we let go, then the new log, and asks the change counter
    /// whether that is all.
    fn read_across(&mut self, view: &WalView, now_ms: i64) -> Result<Option<Batch>, ReadError> {
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
                pages.overlay(&transaction).map_err(TapError::Spill)?;
                transaction = PageSet::new(self.page_size, &self.spill);
            }
        }
        Ok(commits)
    }

    /// Goes on at the stored position, if its last frame still stands in the log.
    fn resume(&mut self, now: Instant, now_ms: i64) -> Result<Look, TapError> {
        let Some(before) = self.settled_view(0) else {
            return Err(TapError::Restless);
        };
        self.connections[0].begin_read()?;
        let Some(after) = self.settled_view(0) else {
            self.connections[0].end_read();
            return Err(TapError::Restless);
        };
        let continues = after.header.salts == self.position.salts()
            && after.header.max_frame >= self.position.frames
            && self.last_frame_stands();
        if !continues {
            return self.restart(BreakReason::Fresh, now_ms);
        }
        if self.position.is_at(&after) {
            let stored = WalChecksum {
                s1: self.position.checksum.0,
                s2: self.position.checksum.1,
            };
            if after.header.frame_checksum != stored {
                return self.restart(BreakReason::ChainBroken, now_ms);
            }
            self.position.change = after.header.change;
            self.hold(0, &before, &after, false, now);
            return Ok(Look::Quiet);
        }
        match self.read_on(0, &after, now_ms) {
            Ok(batch) => {
                self.hold(0, &before, &after, true, now);
                Ok(batch.map_or(Look::Quiet, Look::Captured))
            }
            Err(ReadError::Broken(reason)) => self.restart(reason, now_ms),
            Err(ReadError::Tap(error)) => {
                self.connections[0].end_read();
                Err(error)
            }
        }
    }

    fn last_frame_stands(&self) -> bool {
        let mut bytes = [0u8; FRAME_HEADER_BYTES];
        let offset = self.frame_offset(self.position.frames - 1);
        if self.connections[0].read_log(&mut bytes, offset).is_err() {
            return false;
        }
        let header = sqlite_format::FrameHeader::parse(&bytes);
        header.salts == self.position.salts()
            && (header.checksum.s1, header.checksum.s2) == self.position.checksum
    }

    /// Takes a first mark and reads the whole present log.
    fn restart(&mut self, reason: BreakReason, now_ms: i64) -> Result<Look, TapError> {
        for connection in &self.connections {
            connection.end_read();
        }
        self.holder = None;
        self.mark = None;
        for _ in 0..ATTACH_ATTEMPTS {
            self.connections[0].begin_read()?;
            if let Some(view) = self.settled_view(0) {
                let mut batch = self.empty_batch(&view, now_ms);
                match self.read_log_from_start(0, &view, &mut batch.pages) {
                    Ok(_) => {
                        self.complete(0, &mut batch)?;
                        self.holder = Some(0);
                        self.current = true;
                        (self.moved_at, self.relieved) = (Instant::now(), false);
                        self.parked = (0, self.moved_at);
                        self.position = batch.log;
                        return Ok(Look::Broken(reason, batch));
                    }
                    // A mark in slot 0 does not keep a writer from restarting the log: once more.
                    Err(ReadError::Broken(_)) => {}
                    Err(ReadError::Tap(error)) => {
                        self.connections[0].end_read();
                        return Err(error);
                    }
                }
            }
            self.connections[0].end_read();
        }
        Err(TapError::Restless)
    }

    /// Reads frames 1 to the end of the published log. Returns the number of commits.
    fn read_log_from_start(
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
            self.buffer.resize(count * frame_bytes, 0);
            let offset = self.frame_offset(next);
            match self.connections[index].read_log(&mut self.buffer, offset) {
                Err(error) if error.message == "short read" => return Err(broken()),
                read => read.map_err(TapError::from)?,
            }
            for frame in self.buffer.chunks_exact(frame_bytes) {
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

    fn empty_batch(&self, view: &WalView, now_ms: i64) -> Batch {
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

    fn settled_view(&self, index: usize) -> Option<WalView> {
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

/// Device and inode of `-wal` and `-shm`.
fn files_beside(path: &Path) -> [Option<(u64, u64)>; 2] {
    ["-wal", "-shm"].map(|suffix| {
        let meta = std::fs::metadata(with_suffix(path, suffix)).ok()?;
        Some((meta.dev(), meta.ino()))
    })
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

/// Why frames could not be read.
enum ReadError {
    Broken(BreakReason),
    Tap(TapError),
}

impl From<TapError> for ReadError {
    fn from(error: TapError) -> ReadError {
        ReadError::Tap(error)
    }
}
