//! Decides the next action of an attached database: a state machine without I/O or clock.
//!
//! There are two lanes. The *commit lane* writes captured commits, reads the whole database after
//! missed commits, makes room, and takes cuts for snapshots. It runs one of these at a time,
//! because each needs the page hashes. The *checkpoint lane* runs beside it. Snapshots and
//! compaction have separate lanes in each uploader, so nothing here ever waits for a store.
//!
//! The driver reports events with `handle_*` and carries out each action that
//! [`Machine::poll_action`] returns. Once that returns none, the driver waits for an event or
//! until [`Machine::poll_timeout`].

use std::time::Duration;

use tokio::time::Instant;

use super::pacer::Pace;

/// Pause between two PASSIVE checkpoints of ours, from the end of the first one.
const CHECKPOINT_PAUSE: Duration = Duration::from_secs(1);
/// Shortest and longest pause after a last resort that did not help. The pause doubles.
const RESORT_PAUSES: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));
/// Time without a write after which a database is detached when too many are attached. It must be
/// much longer than the resolution of file times, which is some milliseconds.
const REST_AFTER: Duration = Duration::from_secs(5);
/// The same, while other databases wait to be attached.
const REST_SOON: Duration = Duration::from_secs(1);
/// Time without a write after which a database that no other process has open is closed.
const CLOSE_AFTER: Duration = Duration::from_millis(300);
/// Longest such time, where a close may cost a read of the whole database.
const CLOSE_AFTER_MOST: Duration = Duration::from_secs(60);
/// Pause before the local-state budget is checked again.
const FULL_PAUSE: Duration = Duration::from_secs(1);
/// Pause after a failed cut: the snapshot waits, commits do not.
const CUT_PAUSE: Duration = Duration::from_secs(10);

/// State of the capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Captured {
    /// The database is attached.
    pub(super) is_attached: bool,
    /// Captured commits wait to be written to a file.
    pub(super) has_commits: bool,
    /// Commits may have been missed, or there are no page hashes: the database must be read.
    pub(super) has_gap: bool,
    /// The WAL is far longer than applications normally let it grow.
    pub(super) wants_checkpoint: bool,
    /// The WAL has frames, so a later attachment can continue at this position.
    pub(super) can_resume: bool,
    /// No other process has the database open.
    pub(super) is_alone: bool,
}

/// State of the targets, the budgets and the other databases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Surroundings {
    /// A target waits for a cut that is not available.
    pub(super) lacks_cut: bool,
    /// A snapshot found pages that differ from the captured state.
    pub(super) is_in_doubt: bool,
    /// A target has every captured file.
    pub(super) keeps_up: bool,
    /// The local-state budget has no room for this database.
    pub(super) is_full: bool,
    /// Captured files can be removed to make room.
    pub(super) can_make_room: bool,
    /// Captured files that no target needs any more occupy much space.
    pub(super) has_leftovers: bool,
    /// Too many databases are attached.
    pub(super) is_crowded: bool,
    /// Other databases wait to be attached.
    pub(super) others_wait: bool,
}

/// An action for the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Write the captured commits as the next LTX file.
    Commit,
    /// Read the whole database and write the pages that differ.
    Resync,
    /// Remove captured files that no upload needs.
    MakeRoom,
    /// Remove captured files that no target needs any more.
    Tidy,
    /// Freeze the page hashes at the present position for a snapshot.
    TakeCut,
    /// Run a checkpoint. As a last resort, make the application restart its WAL.
    Checkpoint { may_resort: bool },
    /// Detach, unless something was written meanwhile.
    Detach,
    /// Let SQLite remove the WAL, as the application's last close would have, unless something was
    /// written meanwhile.
    Close,
    /// Capture and write the remaining commits, then end.
    Finish,
}

/// Result of an action of the commit lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// A file was written.
    Written,
    /// There was nothing to write, or the action must be repeated.
    Unchanged,
    /// No cut was taken. No commit was lost.
    CutFailed,
}

/// Result of one of our checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Checkpointed {
    /// It waited for no other connection.
    Passive,
    /// Writers waited for a moment. `helped`: the WAL restarts.
    LastResort { helped: bool },
}

/// The lane of checkpoints.
#[derive(Debug)]
struct CheckpointLane {
    is_busy: bool,
    next: Instant,
    next_resort: Instant,
    resort_pause: Duration,
}

/// The state machine; see the module documentation.
#[derive(Debug)]
pub(super) struct Machine {
    captured: Captured,
    surroundings: Surroundings,
    is_stopping: bool,
    pace: Pace,
    commit_is_busy: bool,
    checkpoint: CheckpointLane,
    /// Time of the last write.
    quiet_since: Instant,
    /// Time at which the budget is checked again.
    full_until: Option<Instant>,
    /// Earliest time of the next cut after a failed one.
    next_cut: Instant,
    /// Time without a write before the database is closed.
    close_after: Duration,
}

impl Machine {
    /// Creates the machine of a database that is about to be attached. `pace` continues from an
    /// earlier attachment.
    ///
    /// `scan_time` is the duration of the last read of the whole database, if there was one. A
    /// close may require another, so the machine waits ten times as long before it closes.
    pub(super) fn new(pace: Pace, scan_time: Duration, now: Instant) -> Machine {
        Machine {
            captured: Captured::default(),
            surroundings: Surroundings::default(),
            is_stopping: false,
            pace,
            commit_is_busy: false,
            checkpoint: CheckpointLane {
                is_busy: false,
                next: now,
                next_resort: now,
                resort_pause: RESORT_PAUSES.0,
            },
            quiet_since: now,
            full_until: None,
            next_cut: now,
            close_after: (scan_time * 10).clamp(CLOSE_AFTER, CLOSE_AFTER_MOST),
        }
    }

    /// The pace, for the next attachment.
    pub(super) fn pace(&self) -> Pace {
        self.pace
    }

    /// The state of the capture has changed.
    pub(super) fn handle_captured(&mut self, captured: Captured) {
        self.captured = captured;
    }

    /// The state of a target, a budget or another database has changed.
    pub(super) fn handle_surroundings(&mut self, surroundings: Surroundings) {
        if self.surroundings.is_full && !surroundings.is_full {
            self.full_until = None;
        }
        self.surroundings = surroundings;
    }

    /// The driver is asked to stop.
    pub(super) fn handle_stop(&mut self) {
        self.is_stopping = true;
    }

    /// The action of the commit lane has ended.
    pub(super) fn handle_commit_done(&mut self, outcome: Outcome, now: Instant) {
        self.commit_is_busy = false;
        match outcome {
            Outcome::Written => {
                self.pace.made(now);
                self.quiet_since = now;
            }
            Outcome::Unchanged => {}
            Outcome::CutFailed => self.next_cut = now + CUT_PAUSE,
        }
    }

    /// Something was written after the decision to detach or close.
    pub(super) fn handle_not_quiet(&mut self, now: Instant) {
        self.commit_is_busy = false;
        self.quiet_since = now;
    }

    /// The checkpoint has ended.
    pub(super) fn handle_checkpoint_done(&mut self, done: Checkpointed, now: Instant) {
        let lane = &mut self.checkpoint;
        lane.is_busy = false;
        // Counted from its end, so that a long checkpoint leaves time for other work.
        lane.next = now + CHECKPOINT_PAUSE;
        match done {
            Checkpointed::Passive => {}
            Checkpointed::LastResort { helped: true } => lane.resort_pause = RESORT_PAUSES.0,
            Checkpointed::LastResort { helped: false } => {
                lane.next_resort = now + lane.resort_pause;
                lane.resort_pause = (lane.resort_pause * 2).min(RESORT_PAUSES.1);
            }
        }
    }

    /// The next action to start. None: wait for an event or [`Machine::poll_timeout`].
    pub(super) fn poll_action(&mut self, now: Instant) -> Option<Action> {
        if let Some(action) = self.poll_checkpoint(now) {
            self.checkpoint.is_busy = true;
            return Some(action);
        }
        let action = self.poll_commit(now)?;
        self.commit_is_busy = true;
        if action == Action::Commit || action == Action::Finish {
            self.full_until = None;
        }
        Some(action)
    }

    fn poll_checkpoint(&self, now: Instant) -> Option<Action> {
        let lane = &self.checkpoint;
        let wants = self.captured.is_attached && self.captured.wants_checkpoint;
        let may = wants && !lane.is_busy && !self.is_stopping && now >= lane.next;
        may.then_some(Action::Checkpoint {
            may_resort: now >= lane.next_resort,
        })
    }

    fn poll_commit(&mut self, now: Instant) -> Option<Action> {
        let (captured, surroundings) = (self.captured, self.surroundings);
        if self.commit_is_busy || !captured.is_attached {
            return None;
        }
        if self.is_stopping {
            // Our checkpoint has the database open, too.
            return (!self.checkpoint.is_busy).then_some(Action::Finish);
        }
        if captured.has_gap || surroundings.is_in_doubt {
            return Some(Action::Resync);
        }
        if surroundings.lacks_cut && now >= self.next_cut {
            return Some(Action::TakeCut);
        }
        if !captured.has_commits && surroundings.has_leftovers {
            return Some(Action::Tidy);
        }
        if self.close_at().is_some_and(|at| now >= at) {
            return Some(Action::Close);
        }
        if !captured.has_commits {
            let rests = self.rest_at().is_some_and(|at| now >= at);
            return (rests && surroundings.is_crowded).then_some(Action::Detach);
        }
        if surroundings.is_full && surroundings.can_make_room {
            return Some(Action::MakeRoom);
        }
        if surroundings.is_full && !surroundings.keeps_up {
            self.full_until = Some(now + FULL_PAUSE);
            return None;
        }
        let due = self.pace.due(surroundings.keeps_up);
        due.is_none_or(|at| now >= at).then_some(Action::Commit)
    }

    /// When a database that no other process has open is closed.
    fn close_at(&self) -> Option<Instant> {
        let captured = self.captured;
        let is_done = !captured.has_commits && !self.surroundings.lacks_cut;
        let closes = captured.is_alone && is_done && !self.checkpoint.is_busy;
        closes.then(|| self.quiet_since + self.close_after)
    }

    /// When the database may be detached because it is quiet.
    fn rest_at(&self) -> Option<Instant> {
        let after = match self.surroundings.others_wait {
            true => REST_SOON,
            false => REST_AFTER,
        };
        let rests = self.captured.can_resume && !self.checkpoint.is_busy;
        rests.then(|| self.quiet_since + after)
    }

    /// When to call [`Machine::poll_action`] again without an event; none: never. Call this after
    /// [`Machine::poll_action`] has returned none.
    pub(super) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let captured = self.captured;
        if !captured.is_attached || self.is_stopping {
            return None;
        }
        let lane = &self.checkpoint;
        let checkpoint = (captured.wants_checkpoint && !lane.is_busy).then_some(lane.next);
        let wants_cut = self.surroundings.lacks_cut && !self.commit_is_busy;
        let cut = wants_cut.then_some(self.next_cut).filter(|at| *at > now);
        let commit = match (self.commit_is_busy, captured.has_commits) {
            (true, _) => None,
            // A quiet database stays attached while there is room. An event reports when there is
            // not.
            (false, false) => self.rest_at().filter(|at| *at > now),
            (false, true) => match self.full_until {
                Some(until) => Some(until),
                None => self.pace.due(self.surroundings.keeps_up),
            },
        };
        let close = self.close_at().filter(|_| !self.commit_is_busy);
        [checkpoint, cut, commit, close].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests;
