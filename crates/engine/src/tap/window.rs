//! Windows: the times without a mark, in which the application's checkpoints get through, and what
//! is read when they end.

use std::time::{Duration, Instant};

use super::log::ReadError;
use super::{Look, Tap, TapError};

/// Longest time without a mark.
pub(super) const WINDOW_TIME: Duration = Duration::from_millis(100);
/// Pause between two windows that the application did not use.
const WINDOW_PAUSE: Duration = Duration::from_millis(400);
/// Time after a move until the relief. A checkpoint that waits for a slot of ours holds writers
/// up for about this long.
pub(super) const RELIEF_AFTER: Duration = Duration::from_millis(8);
/// Longest relief: SQLite's busy handler tries again after 25 ms at most by then.
pub(super) const RELIEF_TIME: Duration = Duration::from_millis(30);
/// Pause between looks during a window.
const WINDOW_LOOK_PAUSE: Duration = Duration::from_micros(100);
/// Pause between looks during a relief.
const RELIEF_LOOK_PAUSE: Duration = Duration::from_micros(500);

/// When the log is let go.
#[derive(Debug, Clone, Copy)]
pub(super) enum Window {
    /// Closed; the next one opens no earlier.
    Closed { not_before: Instant },
    /// Open until then at the latest; a relief ends with the next commit, too.
    Open { until: Instant, relief: bool },
}

impl Tap {
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

    pub(super) fn open_window(&mut self, until: Instant, relief: bool) {
        if let Some(holder) = self.holder.take() {
            self.connections[holder].end_read();
        }
        self.mark = None;
        self.window = Window::Open { until, relief };
    }

    pub(super) fn close_window(&mut self, now: Instant, now_ms: i64) -> Result<Look, TapError> {
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
}
