//! The thread: when each database is polled, and on which thread.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use inotify::WatchDescriptor;
use tokio::runtime::Handle;

use super::attachment::{AttachRequest, Attachment, PollResult, Requests};
use super::file_events::{Events, Wake};
use super::{BLIND_PAUSE, HOT_PAUSE, HOT_TIME, QUIET_PAUSE, STANDING_PAUSE};
use crate::env::files::with_suffix;

pub(super) enum Command {
    /// Attach a database; long work for it goes to this runtime's pool.
    Attach {
        id: u64,
        attach: AttachRequest,
        pool: Handle,
    },
    /// A caller requests something.
    Request { id: u64, requests: Requests },
}

/// Result of work in the pool.
type Answer = (u64, PollResult);

struct Entry {
    /// None while a thread of the pool has it.
    attachment: Option<Box<Attachment>>,
    /// Requests that arrived meanwhile.
    requests: Requests,
    pool: Handle,
    /// Path of the WAL, to be watched.
    log: PathBuf,
    /// Watch on the WAL; it gives one event and ends.
    watch: Option<WatchDescriptor>,
    next_poll: Instant,
    hot_until: Instant,
}

pub(super) struct Thread {
    commands: mpsc::Receiver<Command>,
    answers: (mpsc::Sender<Answer>, mpsc::Receiver<Answer>),
    wake: Arc<Wake>,
    events: Events,
    entries: HashMap<u64, Entry>,
    /// Number of databases attached or about to be; the handles share it.
    attached: Arc<AtomicUsize>,
    /// Every database whose attachment is on this thread, by the time of its next poll.
    due: BTreeSet<(Instant, u64)>,
}

impl Thread {
    pub(super) fn new(
        commands: mpsc::Receiver<Command>,
        wake: Arc<Wake>,
        events: Events,
        attached: Arc<AtomicUsize>,
    ) -> Thread {
        Thread {
            commands,
            answers: mpsc::channel(),
            wake,
            events,
            entries: HashMap::new(),
            attached,
            due: BTreeSet::new(),
        }
    }

    pub(super) fn run(mut self) {
        let _guard = AbortOnPanic;
        loop {
            loop {
                match self.commands.try_recv() {
                    Ok(command) => self.handle(command),
                    Err(mpsc::TryRecvError::Empty) => break,
                    Err(mpsc::TryRecvError::Disconnected) => return,
                }
            }
            while let Ok((id, polled)) = self.answers.1.try_recv() {
                self.take_back(id, polled, Instant::now());
            }
            let now = Instant::now();
            while let Some(&(at, id)) = self.due.first() {
                if at > now {
                    break;
                }
                self.poll(id);
            }
            let next = self.due.first().map(|(at, _)| *at);
            let pause = next.map(|next| next.saturating_duration_since(Instant::now()));
            self.wait(pause);
        }
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Attach { id, attach, pool } => {
                let now = Instant::now();
                let entry = Entry {
                    attachment: None,
                    requests: Requests::default(),
                    pool,
                    log: with_suffix(&attach.path, "-wal"),
                    watch: None,
                    next_poll: now,
                    hot_until: now,
                };
                self.work_aside(id, &entry.pool, move || Attachment::attach(attach));
                self.entries.insert(id, entry);
            }
            Command::Request { id, requests } => {
                // An attachment that has ended has reported that in its mailbox.
                if let Some(entry) = self.entries.get_mut(&id) {
                    entry.requests.add(requests);
                    self.poll(id);
                }
            }
        }
    }

    /// Runs slow work in the pool. A poll of a second at one database must not stop the marks on
    /// other databases from moving.
    fn work_aside(
        &self,
        id: u64,
        pool: &Handle,
        work: impl FnOnce() -> PollResult + Send + 'static,
    ) {
        let (answers, wake) = (self.answers.0.clone(), Arc::clone(&self.wake));
        pool.spawn_blocking(move || {
            let _guard = AbortOnPanic;
            // The receiver is gone when the process ends.
            if answers.send((id, work())).is_ok() {
                wake.signal();
            }
        });
    }

    fn poll(&mut self, id: u64) {
        let now = Instant::now();
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        self.due.remove(&(entry.next_poll, id));
        let Some(mut attachment) = entry.attachment.take() else {
            // The requests are served when the attachment comes back.
            return;
        };
        attachment.requests.add(std::mem::take(&mut entry.requests));
        if attachment.takes_long() {
            let pool = entry.pool.clone();
            return self.work_aside(id, &pool, move || attachment.poll());
        }
        let polled = attachment.poll();
        self.take_back(id, polled, now);
    }

    /// Schedules the next poll after a poll that began at `now`.
    fn take_back(&mut self, id: u64, polled: PollResult, now: Instant) {
        let (mut attachment, found) = match polled {
            PollResult::Continues {
                attachment,
                has_found,
            } => (attachment, has_found),
            PollResult::Ended => return self.forget(id),
        };
        let entry = self
            .entries
            .get_mut(&id)
            .expect("it is there until it ends");
        if found {
            entry.hot_until = now + HOT_TIME;
        }
        let is_hot = now < entry.hot_until || attachment.requests.any() || entry.requests.any();
        let is_new = entry.watch.is_none();
        if !is_hot && is_new {
            entry.watch = self.events.watches.attached(&entry.log, id);
        }
        let pause = match (is_hot, &entry.watch) {
            (true, _) => attachment.reader.window_pause(now).unwrap_or(HOT_PAUSE),
            // A blocking checkpoint that waits for our mark gives no event.
            _ if !attachment.reader.settle(now) => STANDING_PAUSE,
            // A commit just before the watch was added gives no event.
            (false, Some(_)) if is_new => HOT_PAUSE,
            (false, Some(_)) => QUIET_PAUSE,
            (false, None) => BLIND_PAUSE,
        };
        entry.next_poll = attachment.next_poll(now, pause);
        entry.attachment = Some(attachment);
        self.due.insert((entry.next_poll, id));
    }

    fn forget(&mut self, id: u64) {
        let Some(entry) = self.entries.remove(&id) else {
            return;
        };
        if let Some(watch) = entry.watch {
            self.events.watches.remove(&watch);
        }
        self.attached.fetch_sub(1, Ordering::Relaxed);
    }

    fn wait(&mut self, pause: Option<Duration>) {
        let woken = self.events.wait(pause);
        let now = Instant::now();
        if woken.all {
            for entry in self.entries.values_mut() {
                entry.watch = None;
                entry.hot_until = now + HOT_TIME;
            }
        }
        for id in woken.attached {
            let Some(entry) = self.entries.get_mut(&id) else {
                continue;
            };
            entry.watch = None;
            entry.hot_until = now + HOT_TIME;
            if self.due.remove(&(entry.next_poll, id)) {
                entry.next_poll = now;
                self.due.insert((now, id));
            }
        }
    }
}

/// Aborts the process when a thread panics, so that its supervisor starts it again. Capture that
/// stops silently is the worst failure of all.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}
