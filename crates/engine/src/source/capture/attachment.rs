//! One attached database and one poll of it. All of it moves to another thread when a poll is slow.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::mailbox::{Found, Inbox};
use super::{HOT_PAUSE, QUIET_PAUSE, unix_ms};
use crate::pages::page_set::Spill;
use crate::source::wal::{Look, Start, Tap};

/// Bytes of WAL that a poll reads on the capture thread, between polls of other databases: about 10
/// ms of work.
const QUICK_BYTES: u64 = 8 << 20;
/// Pause between two questions whether another process has the database open.
const ALONE_PAUSE: Duration = Duration::from_millis(250);

/// Requests of callers.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Wishes {
    /// Report this token once everything published by now is captured.
    pub(super) barrier: Option<u64>,
    /// Read the whole present WAL.
    pub(super) reread: bool,
    /// Copy the WAL into the database file if no other process has it open.
    pub(super) checkpoint: bool,
    /// Poll a last time, then end.
    pub(super) detach: bool,
    /// At the end, let SQLite remove the WAL if no other process has the database open.
    pub(super) close: bool,
}

impl Wishes {
    /// Adds requests made since.
    pub(super) fn add(&mut self, later: Wishes) {
        self.barrier = later.barrier.or(self.barrier);
        self.reread |= later.reread;
        self.checkpoint |= later.checkpoint;
        self.detach |= later.detach;
        self.close |= later.close;
    }

    /// Whether a caller waits for something that only further polls deliver.
    pub(super) fn any(&self) -> bool {
        self.barrier.is_some() || self.reread || self.checkpoint || self.detach
    }
}

/// Parameters of an attachment.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) spill: Spill,
    pub(super) start: Start,
    pub(super) inbox: Arc<Inbox>,
}

/// One attached database.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) tap: Tap,
    inbox: Arc<Inbox>,
    pub(super) wishes: Wishes,
    next_identity_check: Instant,
    next_alone_check: Instant,
}

/// Result of a poll.
#[derive(Debug)]
pub(super) enum Looked {
    /// The attachment continues; true when the poll found something.
    On(Box<Attachment>, bool),
    /// The attachment has ended, and its inbox says so.
    Ended,
}

impl Attachment {
    /// Attaches. The inbox receives everything found, including a failure.
    pub(super) fn attach(place: Place) -> Looked {
        let now = Instant::now();
        let Place {
            path,
            spill,
            start,
            inbox,
        } = place;
        match Tap::attach(&path, &spill, start, now, unix_ms()) {
            Ok((tap, look)) => {
                let page_size = tap.page_size();
                inbox.update(|found| found.page_size = Some(page_size));
                inbox.deliver(look);
                let attachment = Attachment {
                    tap,
                    inbox,
                    wishes: Wishes::default(),
                    next_identity_check: now + QUIET_PAUSE,
                    next_alone_check: now,
                };
                Looked::On(Box::new(attachment), true)
            }
            Err(error) => {
                inbox.update(|found| {
                    found.failed = Some(error);
                    found.has_ended = true;
                    found.gone = true;
                });
                Looked::Ended
            }
        }
    }

    /// Whether a poll may read so much that other databases should not wait for it.
    pub(super) fn takes_long(&self) -> bool {
        self.wishes.checkpoint
            || self.wishes.close
            || self.tap.bytes_to_read(self.wishes.reread) > QUICK_BYTES
    }

    /// Polls, and leaves the findings in the inbox.
    pub(super) fn look(mut self: Box<Self>) -> Looked {
        let now = Instant::now();
        if self.wishes.barrier.is_some() || self.wishes.reread {
            self.tap.end_window(now);
        }
        let mut look = self.tap.look(now, unix_ms());
        if now >= self.next_identity_check || self.wishes.barrier.is_some() {
            self.next_identity_check = now + QUIET_PAUSE;
            if self.tap.has_moved() {
                look = Ok(Look::Moved);
            }
        }
        let found_something = match look {
            Ok(Look::Moved) => {
                return self.end(false, |found| (found.moved, found.has_ended) = (true, true));
            }
            Ok(look) => {
                let is_quiet = matches!(look, Look::Quiet);
                self.inbox.deliver(look);
                !is_quiet
            }
            Err(error) => {
                return self.end(false, |found| {
                    found.failed = Some(error);
                    found.has_ended = true;
                });
            }
        };
        self.serve(now);
        if std::mem::take(&mut self.wishes.checkpoint)
            && let Err(error) = self.tap.checkpoint_alone()
        {
            tracing::debug!(%error, "checkpoint");
        }
        if self.wishes.detach {
            // Commits that came last are found in the WAL by the next attachment.
            let close = self.wishes.close && !found_something && self.tap.is_at_end();
            return self.end(close, |_| {});
        }
        Looked::On(self, found_something)
    }

    fn serve(&mut self, now: Instant) {
        if now >= self.next_alone_check || self.wishes.barrier.is_some() {
            self.next_alone_check = now + ALONE_PAUSE;
            let is_alone = self.tap.is_alone();
            if self.inbox.lock().is_alone != is_alone {
                self.inbox.update(|found| found.is_alone = is_alone);
            }
        }
        if self.tap.is_current()
            && let Some(token) = self.wishes.barrier.take()
        {
            let (at_end, is_backfilled) = (self.tap.is_at_end(), self.tap.is_backfilled());
            self.inbox.update(|found| {
                found.barrier = token;
                found.at_end = at_end;
                found.is_backfilled = is_backfilled;
            });
        }
        if self.wishes.reread
            && let Some(log) = self.tap.reread(unix_ms()).transpose()
        {
            self.wishes.reread = false;
            self.inbox.update(|found| found.log = Some(log));
        }
        if self.tap.wants_checkpoint() && !self.inbox.lock().wants_checkpoint {
            self.inbox.update(|found| found.wants_checkpoint = true);
        }
    }

    /// Detaches or closes the tap, then records the end with `last`. A reader of the inbox then finds
    /// no lock of ours.
    fn end(self, close: bool, last: impl FnOnce(&mut Found)) -> Looked {
        match close {
            true => {
                if let Err(error) = self.tap.close() {
                    tracing::debug!(%error, "the WAL stays");
                }
            }
            false => self.tap.detach(),
        }
        self.inbox.update(|found| {
            last(found);
            found.gone = true;
        });
        Looked::Ended
    }

    /// Time of the next poll: `pause` after `now`, or earlier when the tap is due.
    pub(super) fn next_look(&self, now: Instant, pause: Duration) -> Instant {
        let due = self.tap.due().map(|due| due.max(now + HOT_PAUSE));
        let next = now + pause;
        due.map_or(next, |due| due.min(next))
    }
}
