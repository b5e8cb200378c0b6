//! One attached database and one poll of it. All of it moves to another thread when a poll is slow.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::mailbox::{Mailbox, PendingCapture};
use super::{HOT_PAUSE, QUIET_PAUSE};
use crate::env::clock::{steady_ms, unix_ms};
use crate::pages::page_set::Spill;
use crate::source::wal::{Polled, Start, WalReader};

/// Bytes of WAL that a poll reads on the capture thread, between polls of other databases: about 10
/// ms of work.
const QUICK_BYTES: u64 = 8 << 20;
/// Pause between two questions whether another process has the database open.
const ALONE_PAUSE: Duration = Duration::from_millis(250);

/// Requests of callers.
#[derive(Debug, Default, Clone, Copy)]
pub struct Requests {
    /// Report this token once everything published by now is captured.
    pub barrier: Option<u64>,
    /// Report this token after the next poll, whatever it finds.
    pub poll: Option<u64>,
    /// Read the whole present WAL.
    pub reread: bool,
    /// Copy the WAL into the database file if no other process has it open.
    pub checkpoint: bool,
    /// Poll a last time, then end.
    pub detach: bool,
    /// At the end, let SQLite remove the WAL if no other process has the database open.
    pub close: bool,
}

impl Requests {
    /// Adds requests made since.
    pub fn add(&mut self, later: Requests) {
        self.barrier = later.barrier.or(self.barrier);
        self.poll = later.poll.or(self.poll);
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
pub(super) struct AttachRequest {
    pub(super) path: PathBuf,
    pub(super) spill: Spill,
    pub(super) start: Start,
    pub(super) mailbox: Arc<Mailbox>,
}

/// One attached database.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) reader: WalReader,
    mailbox: Arc<Mailbox>,
    pub(super) requests: Requests,
    next_identity_check: Instant,
    next_alone_check: Instant,
}

/// Result of a poll.
#[derive(Debug)]
pub(super) enum PollResult {
    /// The attachment continues.
    Continues {
        /// The attachment.
        attachment: Box<Attachment>,
        /// Whether the poll found something.
        has_found: bool,
    },
    /// The attachment has ended, and its mailbox says so.
    Ended,
}

impl Attachment {
    /// Attaches. The mailbox receives everything found, including a failure.
    pub(super) fn attach(attach: AttachRequest) -> PollResult {
        let now = Instant::now();
        let AttachRequest {
            path,
            spill,
            start,
            mailbox,
        } = attach;
        match WalReader::attach(&path, &spill, start, now, unix_ms()) {
            Ok((reader, poll)) => {
                let page_size = reader.page_size();
                mailbox.update(|pending| pending.page_size = Some(page_size));
                mailbox.deliver(aged(poll));
                let attachment = Attachment {
                    reader,
                    mailbox,
                    requests: Requests::default(),
                    next_identity_check: now + QUIET_PAUSE,
                    next_alone_check: now,
                };
                PollResult::Continues {
                    attachment: Box::new(attachment),
                    has_found: true,
                }
            }
            Err(error) => {
                mailbox.update(|pending| {
                    pending.failed = Some(error);
                    pending.has_ended = true;
                    pending.gone = true;
                });
                PollResult::Ended
            }
        }
    }

    /// Whether a poll may read so much that other databases should not wait for it.
    pub(super) fn takes_long(&self) -> bool {
        self.requests.checkpoint
            || self.requests.close
            || self.reader.bytes_to_read(self.requests.reread) > QUICK_BYTES
    }

    /// Polls, and leaves the findings in the mailbox.
    pub(super) fn poll(mut self: Box<Self>) -> PollResult {
        let now = Instant::now();
        if self.requests.barrier.is_some() || self.requests.reread {
            self.reader.end_window(now);
        }
        let mut poll = self.reader.poll(now, unix_ms());
        if now >= self.next_identity_check || self.requests.barrier.is_some() {
            self.next_identity_check = now + QUIET_PAUSE;
            if self.reader.has_moved() {
                poll = Ok(Polled::Moved);
            }
        }
        let has_found = match poll {
            Ok(Polled::Moved) => {
                return self.end(false, |pending| {
                    (pending.moved, pending.has_ended) = (true, true)
                });
            }
            Ok(poll) => {
                let is_quiet = matches!(poll, Polled::Quiet);
                self.mailbox.deliver(aged(poll));
                !is_quiet
            }
            Err(error) => {
                return self.end(false, |pending| {
                    pending.failed = Some(error);
                    pending.has_ended = true;
                });
            }
        };
        self.serve(now);
        if std::mem::take(&mut self.requests.checkpoint)
            && let Err(error) = self.reader.checkpoint_alone()
        {
            tracing::debug!(%error, "checkpoint");
        }
        if self.requests.detach {
            // The next attachment finds commits that came last in the WAL.
            let close = self.requests.close && !has_found && self.reader.is_at_end();
            return self.end(close, |_| {});
        }
        PollResult::Continues {
            attachment: self,
            has_found,
        }
    }

    fn serve(&mut self, now: Instant) {
        if now >= self.next_alone_check || self.requests.barrier.is_some() {
            self.next_alone_check = now + ALONE_PAUSE;
            let mut is_alone = self.reader.is_alone();
            match is_alone {
                true => is_alone = self.reader.is_file_known(),
                false => self.reader.note_file(),
            }
            if self.mailbox.lock().is_alone != is_alone {
                self.mailbox.update(|pending| pending.is_alone = is_alone);
            }
        }
        if self.reader.is_current()
            && let Some(token) = self.requests.barrier.take()
        {
            let (at_end, is_backfilled) = (self.reader.is_at_end(), self.reader.is_backfilled());
            self.mailbox.update(|pending| {
                pending.barrier = token;
                pending.at_end = at_end;
                pending.is_backfilled = is_backfilled;
            });
        }
        if let Some(token) = self.requests.poll.take() {
            self.mailbox.update(|pending| pending.poll = token);
        }
        if self.requests.reread
            && let Some(position) = self.reader.reread(unix_ms()).transpose()
        {
            self.requests.reread = false;
            self.mailbox.update(|pending| pending.wal = Some(position));
        }
        if self.reader.wants_checkpoint() && !self.mailbox.lock().wants_checkpoint {
            self.mailbox
                .update(|pending| pending.wants_checkpoint = true);
        }
    }

    /// Detaches or closes the reader, then records the end with `last`. A reader of the mailbox then finds
    /// no lock of ours.
    fn end(self, close: bool, last: impl FnOnce(&mut PendingCapture)) -> PollResult {
        match close {
            true => {
                if let Err(error) = self.reader.close() {
                    tracing::debug!(%error, "the WAL stays");
                }
            }
            false => self.reader.detach(),
        }
        self.mailbox.update(|pending| {
            last(pending);
            pending.gone = true;
        });
        PollResult::Ended
    }

    /// Time of the next poll: `pause` after `now`, or earlier when the reader is due.
    pub(super) fn next_poll(&self, now: Instant, pause: Duration) -> Instant {
        let due = self.reader.due().map(|due| due.max(now + HOT_PAUSE));
        let next = now + pause;
        due.map_or(next, |due| due.min(next))
    }
}

/// Begins the age of the commits by a clock that is not set.
fn aged(mut poll: Polled) -> Polled {
    if let Polled::Captured(batch) | Polled::Gap(_, batch) = &mut poll {
        batch.first_ms = steady_ms();
    }
    poll
}
