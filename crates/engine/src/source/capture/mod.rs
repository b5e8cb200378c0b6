//! The capture thread: it polls every attached database often enough and does nothing slow.
//!
//! It does no fsync, no compression and no store call: these belong to the consumer of the batches.
//! Slow work, that is attaching or reading megabytes of WAL, runs in the runtime's blocking pool,
//! one poll of a database at a time.
//!
//! A database that changed in the last second is polled every [`HOT_PAUSE`]. A quiet one is polled
//! when the file system reports a write to its WAL, and each second as a safety net. Events come
//! *before* a commit is published, so after an event polling continues until nothing changes. They
//! come in the middle of the application's commit, and a thread that wakes up then may take its
//! processor. So a quiet database has a watch that gives one event, and a database that is polled
//! anyway has none.
//!
//! This module holds the handle. `thread` schedules the polls, `attachment` is one poll, `events`
//! wakes the thread, and `mailbox` keeps the findings until they are taken.

mod attachment;
mod file_events;
mod mailbox;
mod thread;

use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tokio::runtime::Handle;

use crate::pages::page_set::Spill;
use crate::source::wal::Start;

use attachment::AttachRequest;
pub use attachment::Requests;
pub use file_events::IdleWatch;
use file_events::{Events, Wake, Watches};
pub use mailbox::{Mailbox, PendingCapture, UnwrittenCommits};
use thread::{Command, Thread};

/// Pause between polls of a database that changed recently. An application's blocking checkpoint
/// waits for our mark at most about this long.
const HOT_PAUSE: Duration = Duration::from_millis(2);
/// Time for which a database counts as changing after its last sign of change.
const HOT_TIME: Duration = Duration::from_secs(1);
/// Pause between polls of a quiet database.
const QUIET_PAUSE: Duration = Duration::from_secs(1);
/// Pause between polls of a quiet database on whose WAL a mark is kept.
const STANDING_PAUSE: Duration = Duration::from_millis(20);
/// Pause between polls where the file system gives no events.
const BLIND_PAUSE: Duration = Duration::from_millis(50);

/// Number of databases that stay attached however long nothing is written. An attachment costs
/// about 75 KiB and five descriptors. Without one the database may have to be read when it is
/// closed.
const ATTACHED_AT_REST: usize = 64;
/// Number of attached databases beyond which a first attachment waits for its turn.
const ATTACHED_AT_ONCE: usize = 256;
/// Pause between two such first attachments, in which quiet databases can make room.
const TURN_PAUSE: Duration = Duration::from_millis(10);
/// Polls of idle databases per second, all together, beside those that follow an event.
const IDLE_POLLS: u32 = 200;

/// Handle of the capture thread. The thread ends at its next poll after the last handle is dropped.
#[derive(Debug, Clone)]
pub struct Capture {
    commands: mpsc::Sender<Command>,
    wake: Arc<Wake>,
    watches: Watches,
    attached: Arc<AtomicUsize>,
    turn: Arc<tokio::sync::Mutex<()>>,
    waiting: Arc<AtomicUsize>,
    next_id: Arc<AtomicU64>,
    room: usize,
}

/// One attached database. Dropping it detaches.
pub struct Attached {
    /// Findings of the thread.
    pub mailbox: Arc<Mailbox>,
    send: Box<dyn Fn(Requests) + Send + Sync>,
}

impl Capture {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// The system provides no descriptor or no thread.
    pub fn start() -> std::io::Result<Capture> {
        Capture::with_room(ATTACHED_AT_REST)
    }

    /// As [`Capture::start`], with another limit: more than `room` databases are attached only
    /// while they are written.
    ///
    /// # Errors
    ///
    /// The system provides no descriptor or no thread.
    pub fn with_room(room: usize) -> std::io::Result<Capture> {
        let wake = Arc::new(Wake::new()?);
        let events = Events::new(Arc::clone(&wake));
        let (commands, receiver) = mpsc::channel();
        let capture = Capture {
            commands,
            wake: Arc::clone(&wake),
            watches: events.watches.clone(),
            attached: Arc::default(),
            turn: Arc::default(),
            waiting: Arc::default(),
            next_id: Arc::default(),
            room,
        };
        let thread = Thread::new(receiver, wake, events, Arc::clone(&capture.attached));
        std::thread::Builder::new()
            .name("capture".into())
            .spawn(move || thread.run())?;
        Ok(capture)
    }

    /// Whether a database without writes should make room for others.
    pub fn is_crowded(&self) -> bool {
        self.attached.load(Ordering::Relaxed) > self.room
    }

    /// Whether other databases wait for their turn.
    pub fn others_wait(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Waits for the turn of a database that is attached for the first time. Thousands that are
    /// open at the start are attached one after another, and most soon rest. No database waits for
    /// ever, however many are written.
    pub async fn turn(&self) {
        let _waiting = Waiting::new(&self.waiting);
        let _turn = self.turn.lock().await;
        if self.attached.load(Ordering::Relaxed) >= ATTACHED_AT_ONCE {
            tokio::time::sleep(TURN_PAUSE).await;
        }
    }

    /// Attaches to a database. The mailbox receives everything found, including a failure.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime, whose blocking pool does the slow work.
    pub fn attach(
        &self,
        path: &Path,
        spill: &Spill,
        start: Start,
        unwritten: &Arc<UnwrittenCommits>,
    ) -> Attached {
        let mailbox = Arc::new(Mailbox::new(Arc::clone(unwritten)));
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.attached.fetch_add(1, Ordering::Relaxed);
        self.send(Command::Attach {
            id,
            attach: AttachRequest {
                path: path.to_owned(),
                spill: spill.clone(),
                start,
                mailbox: Arc::clone(&mailbox),
            },
            pool: Handle::current(),
        });
        let capture = self.clone();
        let send = move |requests| capture.send(Command::Request { id, requests });
        Attached::new(mailbox, send)
    }

    /// Watches a file of an idle database: its next change or its next opening ends the rest. None
    /// where the system gives no such events.
    pub fn watch_idle(&self, path: &Path) -> Option<IdleWatch> {
        self.watches.idle(path)
    }

    /// Pause between polls of an idle database that is watched. The polls are only a safety net, so
    /// the pause grows with the number of watches.
    pub fn idle_pause(&self) -> Duration {
        let watched = u32::try_from(self.watches.len()).unwrap_or(u32::MAX);
        QUIET_PAUSE.max(QUIET_PAUSE / IDLE_POLLS * watched)
    }

    fn send(&self, command: Command) {
        // The thread lives as long as a sender does, unless the process is ending.
        if self.commands.send(command).is_ok() {
            self.wake.signal();
        }
    }
}

/// Counts one waiting database for as long as this lives.
struct Waiting<'a>(&'a AtomicUsize);

impl Waiting<'_> {
    fn new(count: &AtomicUsize) -> Waiting<'_> {
        count.fetch_add(1, Ordering::Relaxed);
        Waiting(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Attached {
    /// Creates the handle of an attachment that leaves its findings in `mailbox` and is sent
    /// requests with `send`.
    pub fn new(mailbox: Arc<Mailbox>, send: impl Fn(Requests) + Send + Sync + 'static) -> Attached {
        Attached {
            mailbox,
            send: Box::new(send),
        }
    }

    /// Requests everything that is published by now, and whether the path still leads to the same
    /// file. `PendingCapture::barrier` reaches `token` once both are known.
    pub fn barrier(&self, token: u64) {
        (self.send)(Requests {
            barrier: Some(token),
            ..Requests::default()
        });
    }

    /// Requests the whole present WAL.
    pub fn reread(&self) {
        (self.send)(Requests {
            reread: true,
            ..Requests::default()
        });
    }

    /// Requests a last poll and the end; `PendingCapture::gone` is set after it.
    pub fn detach(&self) {
        (self.send)(Requests {
            detach: true,
            ..Requests::default()
        });
    }

    /// Requests a poll now. `PendingCapture::poll` reaches `token` after it.
    pub fn poll(&self, token: u64) {
        (self.send)(Requests {
            poll: Some(token),
            ..Requests::default()
        });
    }

    /// Asks to copy the WAL into the database file if no other process has it open. A later barrier
    /// says whether that was done.
    pub fn checkpoint_alone(&self) {
        (self.send)(Requests {
            checkpoint: true,
            ..Requests::default()
        });
    }

    /// As [`Attached::detach`], and lets SQLite remove the WAL where no other process has the
    /// database open.
    pub fn close(&self) {
        (self.send)(Requests {
            close: true,
            detach: true,
            ..Requests::default()
        });
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.detach();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A database that an application has open in WAL mode.
    fn application(path: &Path) -> rusqlite::Connection {
        let connection = rusqlite::Connection::open(path).unwrap();
        let sql = "PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0; CREATE TABLE t(x)";
        connection.execute_batch(sql).unwrap();
        connection
    }

    async fn until(mailbox: &Mailbox, ready: impl Fn(&PendingCapture) -> bool) {
        let mut changes = mailbox.subscribe();
        loop {
            changes.borrow_and_update();
            let (is_ready, failed) = {
                let found = mailbox.lock();
                (ready(&found), found.failed.is_some())
            };
            assert!(!failed);
            if is_ready {
                return;
            }
            changes.changed().await.unwrap();
        }
    }

    #[test]
    fn a_long_look_at_one_database_holds_up_no_other_one() {
        let directory = tempfile::tempdir().unwrap();
        let (one, other) = (directory.path().join("one"), directory.path().join("other"));
        let spill = &Spill::with_memory(directory.path(), 1 << 20);
        let (large, small) = (application(&one), application(&other));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .max_blocking_threads(1)
            .build()
            .unwrap();
        runtime.block_on(async {
            let capture = Capture::start().unwrap();
            let small_one = capture.attach(&other, spill, Start::Unknown, &Arc::default());
            until(&small_one.mailbox, |found| found.batch.is_some()).await;
            small_one.mailbox.lock().batch = None;
            // The blocking pool is occupied from here on.
            let (release, blocked) = std::sync::mpsc::channel::<()>();
            let occupied = tokio::task::spawn_blocking(move || blocked.recv());
            // All of it is in the WAL before the first poll: polls of parts of it would all be
            // short.
            large
                .execute_batch("INSERT INTO t VALUES(zeroblob(20000000))")
                .unwrap();
            let large_one = capture.attach(&one, spill, Start::Unknown, &Arc::default());
            large_one.barrier(1);
            small.execute_batch("INSERT INTO t VALUES(1)").unwrap();
            small_one.barrier(1);
            until(&small_one.mailbox, |found| found.barrier == 1).await;
            assert!(small_one.mailbox.lock().batch.is_some());
            assert!(large_one.mailbox.lock().batch.is_none());
            // The large database is not forgotten, nor are the requests made meanwhile.
            release.send(()).unwrap();
            occupied.await.unwrap().unwrap();
            until(&large_one.mailbox, |found| found.barrier == 1).await;
            let found = large_one.mailbox.lock().batch.take();
            assert!(found.unwrap().pages.bytes() > 20_000_000);
            large_one.detach();
            until(&large_one.mailbox, |found| found.gone).await;
        });
    }

    #[test]
    fn the_more_idle_databases_there_are_the_rarer_are_looks_at_each() {
        let directory = tempfile::tempdir().unwrap();
        let capture = Capture::start().unwrap();
        let watches: Vec<_> = (0..2000)
            .map(|number| {
                let path = directory.path().join(number.to_string());
                std::fs::write(&path, "").unwrap();
                capture.watch_idle(&path).unwrap()
            })
            .collect();
        assert_eq!(capture.idle_pause(), 10 * QUIET_PAUSE);
        drop(watches);
        assert_eq!(capture.idle_pause(), QUIET_PAUSE);
    }

    #[tokio::test(start_paused = true)]
    async fn beyond_many_attached_databases_others_come_one_by_one_and_none_waits_for_ever() {
        let capture = Capture::start().unwrap();
        let waited = async |turns: u32| {
            let began = tokio::time::Instant::now();
            let each = (0..turns).map(|_| capture.turn());
            futures::future::join_all(each).await;
            assert!(!capture.others_wait());
            began.elapsed()
        };
        capture
            .attached
            .store(ATTACHED_AT_ONCE - 1, Ordering::Relaxed);
        assert_eq!(waited(20).await, Duration::ZERO);
        capture.attached.store(ATTACHED_AT_ONCE, Ordering::Relaxed);
        let slow = waited(20).await;
        assert!(
            slow >= 20 * TURN_PAUSE && slow < 40 * TURN_PAUSE,
            "{slow:?}"
        );
        // A caller that gives up no longer waits.
        tokio::select! {
            biased;
            () = capture.turn() => panic!("not so soon"),
            () = async { assert!(capture.others_wait()) } => {}
        }
        assert!(!capture.others_wait());
    }
}
