//! The capture thread: it looks at every attached database often enough and does nothing slow.
//!
//! No fsync, no compression, no store: those belong to whoever takes the batches. A database that
//! changed in the last second is looked at every [`HOT_PAUSE`]; a quiet one when the file system
//! says that its log was written, and each second as a net. Events come *before* a commit is
//! published, so after an event the looks go on until nothing moves any more. They come in the
//! middle of the application's commit, and a thread that wakes up then may take its processor: so
//! there is one for each quiet time, and none while the database is looked at anyway.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use sqlite_format::PageSize;
use tokio::sync::Notify;

use crate::scan::with_suffix;
use crate::tap::{Batch, BreakReason, LogPosition, Look, Tap, TapError};

/// Pause between looks at a database that changed lately. An application's blocking checkpoint
/// waits for our mark at most about this long.
const HOT_PAUSE: Duration = Duration::from_millis(2);
/// How long a database counts as changing after the last sign of it.
const HOT_TIME: Duration = Duration::from_secs(1);
/// Pause between looks at a quiet database.
const QUIET_PAUSE: Duration = Duration::from_secs(1);
/// Pause at a quiet database on whose log a mark is kept.
const STANDING_PAUSE: Duration = Duration::from_millis(20);
/// Pause where the file system gives no events.
const BLIND_PAUSE: Duration = Duration::from_millis(50);

/// What the capture thread has found in one database, until somebody takes it.
#[derive(Debug, Default)]
pub struct Found {
    /// Commits, merged in order.
    pub batch: Option<Batch>,
    /// Commits before `batch` may have been missed; `batch` holds the whole present log.
    pub broken: Option<BreakReason>,
    /// Another file has taken the path; the tap is gone.
    pub moved: bool,
    /// The tap failed and is gone.
    pub failed: Option<TapError>,
    /// The page size, once attached.
    pub page_size: Option<PageSize>,
    /// The log is far longer than applications let it grow.
    pub wants_checkpoint: bool,
    /// The last barrier passed: everything published before it was asked for is in here.
    pub barrier: u64,
    /// At that barrier the log held nothing behind what is captured, published or not.
    pub at_end: bool,
    /// The whole present log, when it was asked for.
    pub log: Option<Batch>,
    /// The tap is gone, and with it every lock of ours: after a detach, a failure, a move.
    pub gone: bool,
}

/// Where the capture thread leaves what it finds in one database.
#[derive(Debug, Default)]
pub struct Inbox {
    found: Mutex<Found>,
    /// Woken after each change of `found`.
    pub changed: Notify,
}

impl Inbox {
    /// What was found, to be read or taken.
    pub fn lock(&self) -> MutexGuard<'_, Found> {
        // The thread that could poison it takes the whole process down.
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut Found)) {
        change(&mut self.lock());
        self.changed.notify_one();
    }

    fn deliver(&self, look: Look) {
        let mut found = self.lock();
        match look {
            Look::Quiet | Look::Moved => return,
            Look::Captured(batch) => match &mut found.batch {
                None => found.batch = Some(batch),
                Some(earlier) => match earlier.append(batch) {
                    // Whoever will take the batch knows of it: a wake-up would cost more than this.
                    Ok(()) => return,
                    Err(error) => {
                        found.batch = None;
                        found.failed = Some(TapError::Spill(error));
                    }
                },
            },
            // Earlier pages may be older than what the database file holds by now: drop them.
            Look::Broken(reason, batch) => {
                found.batch = Some(batch);
                found.broken = Some(reason);
            }
        }
        drop(found);
        self.changed.notify_one();
    }
}

enum Command {
    Attach {
        id: u64,
        path: PathBuf,
        spill: PathBuf,
        resume: Option<LogPosition>,
        inbox: Arc<Inbox>,
    },
    Barrier {
        id: u64,
        token: u64,
    },
    Reread {
        id: u64,
    },
    Detach {
        id: u64,
        inbox: Arc<Inbox>,
    },
}

/// Databases that stay attached however long nothing is written: an attachment costs about 75 KiB
/// and five descriptors, and without one the database may have to be read when it is closed.
const ATTACHED_AT_REST: usize = 64;

/// A handle of the capture thread. The thread ends when the last handle is dropped.
#[derive(Debug, Clone)]
pub struct Capture {
    commands: mpsc::Sender<Command>,
    wake: Arc<Wake>,
    attached: Arc<AtomicUsize>,
    room: usize,
}

/// One attached database. Dropping it detaches.
#[derive(Debug)]
pub struct Attached {
    id: u64,
    capture: Capture,
    /// What the thread finds.
    pub inbox: Arc<Inbox>,
}

impl Capture {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// The system gives no descriptor or no thread.
    pub fn start() -> std::io::Result<Capture> {
        Capture::with_room(ATTACHED_AT_REST)
    }

    /// As [`Capture::start`]; more than `room` databases are attached only while they are written.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn with_room(room: usize) -> std::io::Result<Capture> {
        let wake = Arc::new(Wake::new()?);
        let (sender, receiver) = mpsc::channel();
        let attached = Arc::new(AtomicUsize::new(0));
        let state = Thread {
            attached: Arc::clone(&attached),
            commands: receiver,
            wake: Arc::clone(&wake),
            events: Inotify::init().ok(),
            watches: HashMap::new(),
            taps: HashMap::new(),
            due: BTreeSet::new(),
        };
        std::thread::Builder::new()
            .name("capture".into())
            .spawn(move || state.run())?;
        Ok(Capture {
            commands: sender,
            wake,
            attached,
            room,
        })
    }

    /// Whether a database that nobody writes should make room for others.
    pub fn is_crowded(&self) -> bool {
        self.attached.load(Ordering::Relaxed) > self.room
    }

    /// Attaches to a database; what is found, also that it failed, comes into the inbox.
    pub fn attach(
        &self,
        id: u64,
        path: &Path,
        spill: &Path,
        resume: Option<LogPosition>,
    ) -> Attached {
        let inbox = Arc::new(Inbox::default());
        self.send(Command::Attach {
            id,
            path: path.to_owned(),
            spill: spill.to_owned(),
            resume,
            inbox: Arc::clone(&inbox),
        });
        Attached {
            id,
            capture: self.clone(),
            inbox,
        }
    }

    fn send(&self, command: Command) {
        // The thread lives as long as a sender does, unless the process is going down with it.
        if self.commands.send(command).is_ok() {
            self.wake.signal();
        }
    }
}

impl Attached {
    /// Asks for everything that is published by now, and whether the path still leads to the same
    /// file; `Found::barrier` reaches `token` once both are known.
    pub fn barrier(&self, token: u64) {
        self.capture.send(Command::Barrier { id: self.id, token });
    }

    /// Asks for the whole present log.
    pub fn reread(&self) {
        self.capture.send(Command::Reread { id: self.id });
    }

    /// Asks for a last look and the end; `Found::gone` is set after it.
    pub fn detach(&self) {
        let inbox = Arc::clone(&self.inbox);
        self.capture.send(Command::Detach { id: self.id, inbox });
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.detach();
    }
}

struct Entry {
    tap: Tap,
    inbox: Arc<Inbox>,
    /// The log, to be watched.
    log: PathBuf,
    /// Gives one event and ends.
    watch: Option<WatchDescriptor>,
    next_look: Instant,
    hot_until: Instant,
    next_identity_check: Instant,
    reread: bool,
    /// Asked for, and not passed yet.
    barrier: Option<u64>,
}

struct Thread {
    commands: mpsc::Receiver<Command>,
    wake: Arc<Wake>,
    events: Option<Inotify>,
    /// Quiet databases by the watch on their log.
    watches: HashMap<WatchDescriptor, u64>,
    taps: HashMap<u64, Entry>,
    /// Their number, for everybody.
    attached: Arc<AtomicUsize>,
    /// Every database by the time of its next look.
    due: BTreeSet<(Instant, u64)>,
}

impl Thread {
    fn run(mut self) {
        // Capture that stops silently is the worst failure there is: take the process down, so
        // that its supervisor starts it again.
        let _guard = AbortOnPanic;
        loop {
            loop {
                match self.commands.try_recv() {
                    Ok(command) => self.handle(command),
                    Err(mpsc::TryRecvError::Empty) => break,
                    Err(mpsc::TryRecvError::Disconnected) => return,
                }
            }
            let now = Instant::now();
            while let Some(&(at, id)) = self.due.first() {
                if at > now {
                    break;
                }
                self.due.pop_first();
                self.look(id);
            }
            let next = self.due.first().map(|(at, _)| *at);
            let pause = next.map(|next| next.saturating_duration_since(Instant::now()));
            self.wait(pause);
        }
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Attach {
                id,
                path,
                spill,
                resume,
                inbox,
            } => {
                self.attach(id, &path, &spill, resume, inbox);
            }
            Command::Barrier { id, token } => {
                if let Some(entry) = self.taps.get_mut(&id) {
                    entry.barrier = Some(token);
                    entry.next_identity_check = Instant::now();
                }
                self.look(id);
            }
            Command::Reread { id } => {
                if let Some(entry) = self.taps.get_mut(&id) {
                    entry.reread = true;
                }
                self.look(id);
            }
            Command::Detach { id, inbox } => {
                self.look(id);
                // A later attachment of the same database has another inbox.
                let ours = |entry: &Entry| Arc::ptr_eq(&entry.inbox, &inbox);
                if self.taps.get(&id).is_some_and(ours) {
                    self.end(id, |_| {});
                } else {
                    inbox.update(|found| found.gone = true);
                }
            }
        }
    }

    fn attach(
        &mut self,
        id: u64,
        path: &Path,
        spill: &Path,
        resume: Option<LogPosition>,
        inbox: Arc<Inbox>,
    ) {
        let now = Instant::now();
        let (tap, look) = match Tap::attach(path, spill, resume, now, unix_ms()) {
            Ok(attached) => attached,
            Err(error) => {
                return inbox.update(|found| {
                    found.failed = Some(error);
                    found.gone = true;
                });
            }
        };
        let page_size = tap.page_size();
        inbox.update(|found| found.page_size = Some(page_size));
        let entry = Entry {
            tap,
            inbox,
            log: with_suffix(path, "-wal"),
            watch: None,
            next_look: now,
            hot_until: now + HOT_TIME,
            next_identity_check: now + QUIET_PAUSE,
            reread: false,
            barrier: None,
        };
        entry.inbox.deliver(look);
        self.due.insert((entry.next_look, id));
        self.taps.insert(id, entry);
        self.attached.store(self.taps.len(), Ordering::Relaxed);
    }

    /// Asks for an event with the next write to the log. False when there will be none.
    fn watch(&mut self, id: u64) -> bool {
        let (Some(entry), Some(events)) = (self.taps.get_mut(&id), &self.events) else {
            return false;
        };
        let mask = WatchMask::MODIFY | WatchMask::ONESHOT;
        let Ok(watch) = events.watches().add(&entry.log, mask) else {
            return false;
        };
        self.watches.insert(watch.clone(), id);
        entry.watch = Some(watch);
        true
    }

    /// Ends a tap, then says so with `last`: whoever hears of it finds no lock of ours any more.
    fn end(&mut self, id: u64, last: impl FnOnce(&mut Found)) {
        if let Some(entry) = self.remove(id) {
            entry.tap.detach();
            entry.inbox.update(|found| {
                last(found);
                found.gone = true;
            });
        }
    }

    fn remove(&mut self, id: u64) -> Option<Entry> {
        let entry = self.taps.remove(&id)?;
        self.due.remove(&(entry.next_look, id));
        self.forget_watch(entry.watch.clone());
        self.attached.store(self.taps.len(), Ordering::Relaxed);
        Some(entry)
    }

    fn forget_watch(&mut self, watch: Option<WatchDescriptor>) {
        if let (Some(watch), Some(events)) = (watch, &self.events)
            && self.watches.remove(&watch).is_some()
        {
            // It fails when the log is gone, and then the watch is gone too.
            let _removed = events.watches().remove(watch);
        }
    }

    fn read_events(&mut self) {
        let Some(events) = &mut self.events else {
            return;
        };
        let mut buffer = [0u8; 4096];
        let now = Instant::now();
        // Without an event it fails.
        while let Ok(batch) = events.read_events(&mut buffer) {
            for event in batch {
                if event.mask.contains(EventMask::Q_OVERFLOW) {
                    // Nobody knows which watches have ended: all are asked for again.
                    self.watches.clear();
                    for entry in self.taps.values_mut() {
                        entry.watch = None;
                        entry.hot_until = now + HOT_TIME;
                    }
                    continue;
                }
                // An event says that the watch has ended, too: the second one is of nobody.
                let Some(id) = self.watches.remove(&event.wd) else {
                    continue;
                };
                if let Some(entry) = self.taps.get_mut(&id) {
                    self.due.remove(&(entry.next_look, id));
                    self.due.insert((now, id));
                    entry.next_look = now;
                    entry.watch = None;
                    entry.hot_until = now + HOT_TIME;
                }
            }
        }
    }

    fn look(&mut self, id: u64) {
        let now = Instant::now();
        let Some(entry) = self.taps.get_mut(&id) else {
            return;
        };
        self.due.remove(&(entry.next_look, id));
        if entry.barrier.is_some() || entry.reread {
            entry.tap.end_window(now);
        }
        let mut look = entry.tap.look(now, unix_ms());
        if now >= entry.next_identity_check {
            entry.next_identity_check = now + QUIET_PAUSE;
            if entry.tap.has_moved() {
                look = Ok(Look::Moved);
            }
        }
        match look {
            Ok(Look::Moved) => return self.end(id, |found| found.moved = true),
            Ok(look) => {
                if !matches!(look, Look::Quiet) {
                    entry.hot_until = now + HOT_TIME;
                }
                entry.inbox.deliver(look);
            }
            Err(error) => return self.end(id, |found| found.failed = Some(error)),
        }
        entry.serve_requests();
        let is_hot = now < entry.hot_until || entry.is_waited_for();
        let (watched, is_new) = match entry.watch {
            Some(_) => (true, false),
            None if is_hot => (false, false),
            None => (self.watch(id), true),
        };
        let entry = self.taps.get_mut(&id).expect("it was there a moment ago");
        let pause = match (is_hot, watched) {
            (true, _) => entry.tap.window_pause(now).unwrap_or(HOT_PAUSE),
            // A blocking checkpoint waits for our mark, and gives no event.
            _ if !entry.tap.settle(now) => STANDING_PAUSE,
            // A commit right before the watch gives no event.
            (false, true) if is_new => HOT_PAUSE,
            (false, true) => QUIET_PAUSE,
            (false, false) => BLIND_PAUSE,
        };
        entry.schedule(now, pause);
        self.due.insert((entry.next_look, id));
    }

    /// Waits for an event, a command, or the pause to pass.
    fn wait(&mut self, pause: Option<Duration>) {
        let mut descriptors = vec![PollFd::new(&self.wake.descriptor, PollFlags::IN)];
        if let Some(events) = &self.events {
            descriptors.push(PollFd::from_borrowed_fd(events.as_fd(), PollFlags::IN));
        }
        // A pause too long for the system is for ever; a signal only makes us look early.
        let timeout = pause.and_then(|pause| pause.try_into().ok());
        let _woken = poll(&mut descriptors, timeout.as_ref());
        let [wake, events] = [0, 1].map(|index| {
            descriptors
                .get(index)
                .is_some_and(|it| !it.revents().is_empty())
        });
        if wake {
            self.wake.clear();
        }
        if events {
            self.read_events();
        }
    }
}

impl Entry {
    /// Somebody waits for what comes only with further looks.
    fn is_waited_for(&self) -> bool {
        self.reread || self.barrier.is_some()
    }

    fn serve_requests(&mut self) {
        if self.tap.is_current()
            && let Some(token) = self.barrier.take()
        {
            let at_end = self.tap.is_at_end();
            self.inbox.update(|found| {
                found.barrier = token;
                found.at_end = at_end;
            });
        }
        if self.reread
            && let Ok(Some(log)) = self.tap.reread(unix_ms())
        {
            self.reread = false;
            self.inbox.update(|found| found.log = Some(log));
        }
        if self.tap.wants_checkpoint() && !self.inbox.lock().wants_checkpoint {
            self.inbox.update(|found| found.wants_checkpoint = true);
        }
    }

    fn schedule(&mut self, now: Instant, pause: Duration) {
        let due = self.tap.due().map(|due| due.max(now + HOT_PAUSE));
        let next = now + pause;
        self.next_look = due.map_or(next, |due| due.min(next));
    }
}

/// Milliseconds since the Unix epoch, by the system's clock.
pub fn unix_ms() -> i64 {
    #[cfg(test)]
    if let Some(now_ms) = crate::database::simulated_ms() {
        return now_ms;
    }
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

/// A descriptor that another thread can make readable.
#[derive(Debug)]
struct Wake {
    descriptor: OwnedFd,
}

impl Wake {
    fn new() -> std::io::Result<Wake> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Wake {
            descriptor: eventfd(0, flags)?,
        })
    }

    fn signal(&self) {
        // It fails only when 2^64 - 2 signals wait, and then the thread is awake.
        let _signalled = rustix::io::write(&self.descriptor, &1u64.to_ne_bytes());
    }

    fn clear(&self) {
        // It fails when there was no signal.
        let _cleared = rustix::io::read(&self.descriptor, &mut [0u8; 8]);
    }
}
