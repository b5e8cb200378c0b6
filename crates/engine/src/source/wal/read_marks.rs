//! Read marks: taking the first one, handing over to the next, and parking where a mark blocks no
//! writer.
//!
//! A hand-over releases the old mark only when everything up to the new one is captured.

use std::time::{Duration, Instant};

use sqlite_format::WalChecksum;

use super::frames::{Kept, ReadError};
use super::{Batch, GapReason, Polled, WalError, WalReader};
use crate::env::files::{Fingerprint, fingerprint};
use crate::source::sqlite::WalView;

/// Pause before a second attempt to park in slot 0: a checkpoint may have held the slot.
const PARK_PAUSE: Duration = Duration::from_millis(5);
/// Pause before another attempt while readers of the application hold every slot.
pub(super) const SHARED_PAUSE: Duration = Duration::from_millis(20);
/// Attempts to read a whole WAL while a writer restarts it.
const ATTACH_ATTEMPTS: u32 = 50;

impl WalReader {
    /// Whether everything is backfilled while the mark may still be above slot 0. There it would
    /// keep the next writer from restarting the WAL.
    pub(super) fn may_park(&self, view: &WalView, now: Instant) -> bool {
        let (attempts, last) = self.parked;
        view.header.max_frame > 0
            && view.backfilled == view.header.max_frame
            && (attempts == 0 || attempts == 1 && now >= last + PARK_PAUSE)
    }

    pub(super) fn hand_over(
        &mut self,
        holder: usize,
        before: WalView,
        now: Instant,
        now_ms: i64,
    ) -> Result<Polled, WalError> {
        let next = 1 - holder;
        match self.connections[next].begin_read() {
            Err(error) if error.is_busy() => return Ok(Polled::Quiet),
            begun => begun?,
        }
        let Some(after) = self.settled_view(next) else {
            self.connections[next].end_read();
            return Ok(Polled::Quiet);
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
                Ok(batch.map_or(Polled::Quiet, Polled::Captured))
            }
            Err(ReadError::Gap(reason)) => self.restart(reason, now_ms),
            Err(ReadError::Failed(error)) => {
                self.connections[next].end_read();
                Err(error)
            }
        }
    }

    pub(super) fn hold(
        &mut self,
        next: usize,
        before: &WalView,
        after: &WalView,
        moved: bool,
        now: Instant,
    ) {
        self.holder = Some(next);
        self.current = true;
        if moved {
            self.moved_at = now;
            self.relieved = false;
        }
        // The mark lies between the two views; unless they agree, it counts as out of date. When
        // readers of the application hold every slot, we share one with an older mark.
        let newest = after.header.max_frame;
        self.is_shared = after.backfilled < newest && !after.marks.contains(&newest);
        self.mark = (before.header == after.header && !self.is_shared).then_some(newest);
        let attempts = if moved || after.backfilled < after.header.max_frame {
            0
        } else {
            self.parked.0.saturating_add(1)
        };
        self.parked = (attempts, now);
    }

    /// Continues at the stored position, if its last frame is still in the WAL.
    pub(super) fn resume(&mut self, now: Instant, now_ms: i64) -> Result<Polled, WalError> {
        let Some(before) = self.settled_view(0) else {
            return Err(WalError::Restless);
        };
        self.connections[0].begin_read()?;
        let Some(after) = self.settled_view(0) else {
            self.connections[0].end_read();
            return Err(WalError::Restless);
        };
        let continues = after.header.salts == self.position.salts()
            && after.header.max_frame >= self.position.frames
            && self.last_frame_stands();
        if !continues {
            return self.restart(GapReason::Fresh, now_ms);
        }
        if self.position.is_at(&after) {
            let stored = WalChecksum {
                s1: self.position.checksum.0,
                s2: self.position.checksum.1,
            };
            if after.header.frame_checksum != stored {
                return self.restart(GapReason::ChainBroken, now_ms);
            }
            self.position.change = after.header.change;
            self.hold(0, &before, &after, false, now);
            return Ok(Polled::Quiet);
        }
        match self.read_on(0, &after, now_ms) {
            Ok(batch) => {
                self.hold(0, &before, &after, true, now);
                Ok(batch.map_or(Polled::Quiet, Polled::Captured))
            }
            Err(ReadError::Gap(reason)) => self.restart(reason, now_ms),
            Err(ReadError::Failed(error)) => {
                self.connections[0].end_read();
                Err(error)
            }
        }
    }

    /// Takes a first mark and reads the whole present WAL.
    pub(super) fn restart(&mut self, reason: GapReason, now_ms: i64) -> Result<Polled, WalError> {
        let (batch, _) = self.read_present(now_ms)?;
        Ok(Polled::Gap(reason, batch))
    }

    /// Continues at the first frame of a WAL that was made after the database was closed with this
    /// file. An unchanged file proves it: no frame has been copied into it, so none was overwritten.
    pub(super) fn start_after_close(
        &mut self,
        closed: Fingerprint,
        now_ms: i64,
    ) -> Result<Polled, WalError> {
        let (batch, commits) = self.read_present(now_ms)?;
        // Asked after the mark is taken and all frames are read.
        let is_unchanged = fingerprint(&self.path).is_ok_and(|now| now == Some(closed));
        Ok(match (is_unchanged, commits) {
            (true, 0) => Polled::Quiet,
            (true, _) => Polled::Captured(batch),
            (false, _) => Polled::Gap(GapReason::Fresh, batch),
        })
    }

    /// Takes a first mark and reads the frames that the database file lacks. Returns them with the
    /// number of commits in the WAL.
    fn read_present(&mut self, now_ms: i64) -> Result<(Batch, u32), WalError> {
        for connection in &self.connections {
            connection.end_read();
        }
        self.holder = None;
        self.mark = None;
        for _ in 0..ATTACH_ATTEMPTS {
            self.connections[0].begin_read()?;
            if let Some(view) = self.settled_view(0) {
                let mut batch = self.empty_batch(&view, now_ms);
                // The database is read after it, and has the frames that are backfilled.
                let pages = (Kept::Missing, &mut batch.pages);
                match self.read_wal_from_start(0, &view, pages) {
                    Ok(commits) => {
                        self.complete(0, &mut batch)?;
                        self.holder = Some(0);
                        self.current = true;
                        (self.moved_at, self.relieved) = (Instant::now(), false);
                        self.parked = (0, self.moved_at);
                        self.position = batch.position;
                        return Ok((batch, commits));
                    }
                    // A mark in slot 0 does not keep a writer from restarting the WAL: try again.
                    Err(ReadError::Gap(_)) => {}
                    Err(ReadError::Failed(error)) => {
                        self.connections[0].end_read();
                        return Err(error);
                    }
                }
            }
            self.connections[0].end_read();
        }
        Err(WalError::Restless)
    }
}
