//! Windows: the times without a mark, in which the application's checkpoints get through, and the
//! reads that end a window.
//!
//! A mark only keeps frames from being overwritten before we have read them. Frames that were read
//! are proven by checksums, with a mark or without. So capture continues in a window. Only a WAL
//! that is restarted twice between two polls is lost to it, and a resync by page hashes repairs
//! that. A window opens where this is not expected: where the WAL is long compared with the frames
//! written between two polls. So most of the time we hold no mark that an application's checkpoint
//! could meet.

use std::time::{Duration, Instant};

use super::frames::ReadError;
use super::read_marks::SHARED_PAUSE;
use super::{Polled, WalError, WalReader};
use crate::source::sqlite::WalView;

/// Frames in the WAL at which we release the mark in any case, before the application's checkpoint
/// is due. SQLite's default autocheckpoint is 1000.
pub const WINDOW_FRAMES: u32 = 900;
/// Fewest frames in the WAL at which a window opens.
const LEAST_FRAMES: u32 = 64;
/// A WAL that is this many times longer than the findings of one poll is not restarted twice
/// between two polls.
const SAFE_POLLS: f64 = 8.0;
/// Longest and shortest pause between polls of a changing database in a window.
const WINDOW_POLL_PAUSES: (Duration, Duration) =
    (Duration::from_millis(250), Duration::from_micros(100));
/// Time in which the frames of a poll may have come at worst, where the poll before is longer ago.
const BURST_TIME: Duration = Duration::from_millis(8);
/// Shortest safe pause between polls, at the present write speed, with which a mark is released
/// early.
const EASY_PAUSE: Duration = Duration::from_millis(2);
/// Time after a window that missed commits in which no window opens early. It doubles up to
/// [`MAX_CAUTION`].
const MIN_CAUTION: Duration = Duration::from_secs(60);
/// Longest such time.
const MAX_CAUTION: Duration = Duration::from_secs(3600);
/// Time after a move of the mark until the relief. A checkpoint that waits for our slot delays
/// writers for about this long.
pub(super) const RELIEF_AFTER: Duration = Duration::from_millis(8);
/// Longest relief. SQLite's busy handler tries again after at most 25 ms by then.
pub(super) const RELIEF_TIME: Duration = Duration::from_millis(30);
/// Pause between polls during a relief.
const RELIEF_POLL_PAUSE: Duration = Duration::from_micros(500);

/// Seconds after which a write speed counts half, unless it was seen again.
const SLOWER_IN: f64 = 0.05;

/// How fast the WAL grows, and whether windows have failed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Speed {
    /// Frames per second, the recent maximum.
    frames: f64,
    /// Time of the last poll for frames.
    polled: Instant,
    /// No mark is released early before this time.
    cautious_until: Instant,
    caution: Duration,
}

impl Speed {
    pub(super) fn new(now: Instant) -> Speed {
        Speed {
            frames: 0.0,
            polled: now,
            cautious_until: now,
            caution: MIN_CAUTION,
        }
    }

    /// Records the number of new frames that a poll found.
    pub(super) fn found(&mut self, frames: u32, now: Instant) {
        // After a longer pause the speed of the writer is unknown: assume a burst.
        let time = (now - self.polled).clamp(WINDOW_POLL_PAUSES.1, BURST_TIME);
        let slower = self.frames / (1.0 + (now - self.polled).as_secs_f64() / SLOWER_IN);
        self.frames = slower.max(f64::from(frames) / time.as_secs_f64());
        self.polled = now;
    }

    /// Records that a window missed commits.
    fn missed(&mut self, now: Instant) {
        self.cautious_until = now + self.caution;
        self.caution = (self.caution * 2).min(MAX_CAUTION);
    }

    /// Whether a window missed commits recently.
    fn is_cautious(&self, now: Instant) -> bool {
        now < self.cautious_until
    }

    /// The pause between polls with which a WAL of so many frames is not restarted twice unseen.
    fn safe_pause(&self, frames: u32, now: Instant) -> Duration {
        let (longest, shortest) = WINDOW_POLL_PAUSES;
        if self.is_cautious(now) {
            return shortest;
        }
        let seconds = f64::from(frames) / (SAFE_POLLS * self.frames.max(1.0));
        Duration::try_from_secs_f64(seconds).map_or(longest, |it| it.clamp(shortest, longest))
    }
}

/// Whether the mark is released.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Window {
    /// A mark is held.
    Closed,
    /// No mark is held until the next commit, or until this time.
    Relief { until: Instant },
    /// No mark is held until the application has checkpointed or restarted its WAL.
    Open,
}

impl WalReader {
    /// Latest time at which this reader needs its next poll; none means no hurry.
    pub fn due(&self) -> Option<Instant> {
        match self.window {
            Window::Relief { until } => Some(until),
            Window::Open => None,
            Window::Closed if self.is_shared => Some(self.parked.1 + SHARED_PAUSE),
            Window::Closed if self.mark != Some(self.position.frames) => Some(self.parked.1),
            Window::Closed => (!self.relieved).then(|| self.moved_at + RELIEF_AFTER),
        }
    }

    /// The pause between polls while the database changes; none means the usual one.
    pub fn window_pause(&self, now: Instant) -> Option<Duration> {
        match self.window {
            Window::Closed => None,
            Window::Relief { .. } if self.speed.is_cautious(now) => Some(WINDOW_POLL_PAUSES.1),
            Window::Relief { .. } => Some(RELIEF_POLL_PAUSE),
            Window::Open => Some(self.speed.safe_pause(self.position.frames, now)),
        }
    }

    /// Ends a window with the next poll, because a caller needs the commits made meanwhile, and a
    /// mark.
    pub fn end_window(&mut self, now: Instant) {
        if self.window != Window::Closed {
            self.window = Window::Relief { until: now };
        }
    }

    /// Releases the mark in three cases: polls see every restart of the WAL, the application's
    /// checkpoint is due, or, after a commit, a blocking checkpoint may wait for our slot.
    /// Everything published by `view` is captured.
    pub(super) fn let_go(&mut self, view: &WalView, now: Instant) {
        let frames = self.position.frames;
        let same_wal = view.header.salts == self.position.salts();
        // A mark on a WAL that is completely in the database file blocks no checkpoint.
        let unfinished = !same_wal || view.backfilled < frames;
        let easy = frames >= LEAST_FRAMES && self.speed.safe_pause(frames, now) >= EASY_PAUSE;
        if unfinished && (frames >= WINDOW_FRAMES || easy) {
            self.drop_mark(Window::Open);
        } else if !self.relieved && now >= self.moved_at + RELIEF_AFTER {
            self.relieved = true;
            self.drop_mark(Window::Relief {
                until: now + RELIEF_TIME,
            });
        }
    }

    /// Releases a mark that a checkpoint of the application could meet, because nothing is written
    /// and no poll will come soon. Returns false when the mark is kept after windows that missed
    /// commits: polling must then continue.
    pub fn settle(&mut self, now: Instant) -> bool {
        if self.window != Window::Closed || !self.unfinished || self.holder.is_none() {
            return true;
        }
        let may = self.current && !self.speed.is_cautious(now);
        if may {
            self.drop_mark(Window::Open);
        }
        may
    }

    fn drop_mark(&mut self, window: Window) {
        if let Some(holder) = self.holder.take() {
            self.connections[holder].end_read();
        }
        self.mark = None;
        self.window = window;
    }

    /// Captures new commits without a mark. Takes a mark again once the WAL was restarted or is
    /// completely in the database file. There it blocks no checkpoint.
    pub(super) fn poll_in_window(
        &mut self,
        view: &WalView,
        now: Instant,
        now_ms: i64,
    ) -> Result<Polled, WalError> {
        let restarted = view.header.salts != self.position.salts();
        let finished = view.backfilled == view.header.max_frame;
        if restarted || finished {
            return self.close_window(now, now_ms);
        }
        if self.position.is_at(view) {
            self.current = true;
            return Ok(Polled::Quiet);
        }
        match self.read_on(0, view, now_ms) {
            Ok(batch) => {
                self.current = true;
                Ok(batch.map_or(Polled::Quiet, Polled::Captured))
            }
            // The WAL was restarted while we read.
            Err(ReadError::Gap(_)) => self.close_window(now, now_ms),
            Err(ReadError::Failed(error)) => Err(error),
        }
    }

    pub(super) fn close_window(&mut self, now: Instant, now_ms: i64) -> Result<Polled, WalError> {
        let Some(before) = self.settled_view(0) else {
            return Ok(Polled::Quiet);
        };
        match self.connections[0].begin_read() {
            Err(error) if error.is_busy() => return Ok(Polled::Quiet),
            begun => begun?,
        }
        let Some(after) = self.settled_view(0) else {
            self.connections[0].end_read();
            return Ok(Polled::Quiet);
        };
        self.window = Window::Closed;
        let read = if self.position.is_at(&after) {
            Ok(None)
        } else if after.header.salts == self.position.salts() {
            self.read_on(0, &after, now_ms)
        } else {
            self.read_across(&after, now_ms)
        };
        match read {
            Ok(batch) => {
                self.hold(0, &before, &after, batch.is_some(), now);
                Ok(batch.map_or(Polled::Quiet, Polled::Captured))
            }
            Err(ReadError::Gap(reason)) => {
                self.speed.missed(now);
                self.restart(reason, now_ms)
            }
            Err(ReadError::Failed(error)) => {
                self.connections[0].end_read();
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_come_so_often_that_a_log_is_not_restarted_twice_unseen() {
        let start = Instant::now();
        let (longest, shortest) = WINDOW_POLL_PAUSES;
        let mut speed = Speed::new(start);
        assert_eq!(speed.safe_pause(64, start), longest, "nothing is written");
        // 100 frames in 2 ms: a WAL of 900 is rewritten in 18 ms.
        let now = start + Duration::from_millis(2);
        speed.found(100, now);
        assert_eq!(speed.safe_pause(900, now), Duration::from_micros(2250));
        assert_eq!(speed.safe_pause(10, now), shortest);
        // After a pause the time of the frames is unknown: at worst they came in the last 8 ms.
        let now = now + Duration::from_secs(5);
        speed.found(1000, now);
        assert_eq!(speed.safe_pause(400_000, now), longest);
        assert_eq!(speed.safe_pause(4000, now), Duration::from_millis(4));
    }

    #[test]
    fn after_missed_commits_caution_grows() {
        let start = Instant::now();
        let (longest, shortest) = WINDOW_POLL_PAUSES;
        let mut speed = Speed::new(start);
        let mut now = start;
        for caution in [60, 120, 240, 480, 960, 1920, 3600, 3600] {
            speed.missed(now);
            let end = now + Duration::from_secs(caution);
            assert_eq!(speed.safe_pause(900, end - shortest), shortest);
            assert_eq!(speed.safe_pause(900, end), longest);
            now = end;
        }
    }
}
