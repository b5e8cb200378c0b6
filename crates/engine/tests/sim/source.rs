//! The simulated databases, as the engine reaches them, and their capture.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine::env::files::{Fingerprint, with_suffix};
use engine::pages::page_hashes::PageHashes;
use engine::pages::page_set::Spill;
use engine::source::Source;
use engine::source::capture::{Attached, IdleWatch, Mailbox, Requests, UnwrittenCommits};
use engine::source::probe::Probe;
use engine::source::read_mark::ReadMark;
use engine::source::scan::{OnFull, Scan, ScanError, scan_pages};
use engine::source::sqlite::SqliteError;
use engine::source::wal::{GapReason, Polled, Start, WalError};
use futures::FutureExt;
use futures::future::BoxFuture;
use protocol::status::DatabaseState;
use sqlite_format::PageSize;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::chance::Chance;
use super::machine::Clock;
use super::model::{App, Place, page_size};

/// Longest pause between polls of a quiet database.
const QUIET_MS: u64 = 900;

/// The access of one process to the database of its place.
#[derive(Clone)]
pub(super) struct ModelSource {
    pub(super) process: u64,
    place: Arc<Place>,
    clock: Clock,
    chance: Arc<Mutex<Chance>>,
    /// Other databases of the process need room.
    is_crowded: bool,
    captures: Arc<Mutex<Vec<AbortHandle>>>,
}

impl fmt::Debug for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "place {}", self.place.number)
    }
}

impl ModelSource {
    pub(super) fn new(
        process: u64,
        place: &Arc<Place>,
        clock: &Clock,
        mut chance: Chance,
    ) -> ModelSource {
        ModelSource {
            process,
            place: Arc::clone(place),
            clock: clock.clone(),
            is_crowded: chance.one_in(2),
            chance: Arc::new(Mutex::new(chance)),
            captures: Arc::default(),
        }
    }

    /// Ends everything, as the end of the process does.
    pub(super) fn kill(&self) {
        for capture in self.captures.lock().unwrap().drain(..) {
            capture.abort();
        }
        self.app(|app| app.kill(self.process));
    }

    fn app<T>(&self, work: impl FnOnce(&mut App) -> T) -> T {
        work(&mut self.place.app.lock().unwrap())
    }

    fn one_in(&self, times: u64) -> bool {
        self.chance.lock().unwrap().one_in(times)
    }

    fn scan(
        &self,
        path: &Path,
        known: Option<&PageHashes>,
        on_full: OnFull,
        spill: &Spill,
    ) -> Result<Scan, ScanError> {
        let failed = |source| ScanError::Read {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        scan_pages(
            page_size(),
            bytes,
            (known, on_full),
            spill,
            |buffer, offset| file.read_exact_at(buffer, offset).map_err(failed),
        )
    }

    fn busy(&self) -> SqliteError {
        SqliteError {
            action: "checkpoint",
            code: 5,
            message: "database is locked".to_owned(),
        }
    }
}

impl Source for ModelSource {
    fn probe(&self, path: &Path) -> Probe {
        if self.one_in(50) {
            return Probe::InUse;
        }
        self.app(|app| match app.fingerprint() {
            None => Probe::Unfit(
                DatabaseState::Missing,
                format!("{} is missing", path.display()),
            ),
            Some(_) if app.has_wal() => Probe::Live,
            Some(fingerprint) => Probe::Cold(fingerprint),
        })
    }

    fn fingerprint(&self, path: &Path) -> io::Result<Option<Fingerprint>> {
        let is_wal = path == with_suffix(&self.place.database(), "-wal");
        Ok(self.app(|app| match is_wal {
            true => app.wal_fingerprint(),
            false => app.fingerprint(),
        }))
    }

    fn attach(
        &self,
        _path: &Path,
        spill: &Spill,
        start: Start,
        unwritten: &Arc<UnwrittenCommits>,
    ) -> Attached {
        let mailbox = Arc::new(Mailbox::new(Arc::clone(unwritten)));
        let (sender, receiver) = mpsc::unbounded_channel();
        let capture = ModelCapture {
            source: self.clone(),
            mailbox: Arc::clone(&mailbox),
            spill: spill.clone(),
            position: 0,
        };
        let task = tokio::spawn(capture.run(start, receiver));
        self.captures.lock().unwrap().push(task.abort_handle());
        Attached::new(mailbox, move |requests| {
            // It is gone once it has said so.
            let _sent = sender.send(requests);
        })
    }

    fn scan_live(
        &self,
        path: &Path,
        _page_size: PageSize,
        known: Option<&PageHashes>,
        on_full: OnFull,
        spill: &Spill,
    ) -> Result<Scan, ScanError> {
        self.scan(path, known, on_full, spill)
    }

    fn scan_cold(
        &self,
        path: &Path,
        fingerprint: Fingerprint,
        known: Option<&PageHashes>,
        on_full: OnFull,
        spill: &Spill,
    ) -> Result<Scan, ScanError> {
        let is_as_it_was = |app: &mut App| !app.has_wal() && app.fingerprint() == Some(fingerprint);
        if !self.app(is_as_it_was) {
            return Err(ScanError::Disturbed);
        }
        self.scan(path, known, on_full, spill)
    }

    fn checkpoint(&self, _path: &Path, _may_resort: bool) -> Result<Option<bool>, SqliteError> {
        if self.one_in(5) {
            return Err(self.busy());
        }
        self.app(App::checkpoint);
        Ok(None)
    }

    fn read_mark(&self, _path: &Path) -> Result<ReadMark, SqliteError> {
        Err(self.busy())
    }

    fn turn(&self) -> BoxFuture<'_, ()> {
        std::future::ready(()).boxed()
    }

    fn is_crowded(&self) -> bool {
        self.is_crowded
    }

    fn others_wait(&self) -> bool {
        self.is_crowded
    }

    fn watch_idle(&self, _path: &Path) -> Option<IdleWatch> {
        None
    }

    fn idle_pause(&self) -> Duration {
        Duration::from_secs(1)
    }
}

/// The capture of one attachment: what the capture thread and its WAL reader do.
struct ModelCapture {
    source: ModelSource,
    mailbox: Arc<Mailbox>,
    spill: Spill,
    /// The commit up to which everything is captured.
    position: usize,
}

impl ModelCapture {
    async fn run(mut self, start: Start, mut requests: mpsc::UnboundedReceiver<Requests>) {
        if self.source.one_in(40) {
            return self.end(false, |pending| {
                pending.failed = Some(WalError::Restless);
                pending.has_ended = true;
            });
        }
        self.attach(start);
        let mut wanted = Requests::default();
        let mut is_hot = true;
        loop {
            let pause_ms = match is_hot {
                true => self.below(20),
                false => self.below(QUIET_MS),
            };
            tokio::select! {
                biased;
                request = requests.recv() => match request {
                    Some(request) => wanted.add(request),
                    None => return self.end(false, |_| {}),
                },
                () = tokio::time::sleep(Duration::from_millis(1 + pause_ms)) => {}
            }
            is_hot = self.poll();
            if self.source.one_in(500) {
                return self.end(false, |pending| {
                    (pending.moved, pending.has_ended) = (true, true);
                });
            }
            self.serve(&mut wanted);
            if wanted.detach {
                let close = wanted.close && !is_hot;
                return self.end(close, |_| {});
            }
        }
    }

    fn attach(&mut self, start: Start) {
        let (process, wall_ms) = (self.source.process, self.source.clock.now_ms());
        let spill = self.spill.clone();
        let (found, position) = self.source.app(|app| {
            app.connect(process);
            let known = match start {
                Start::Unknown => None,
                Start::At(position) => app.resume(&position),
                Start::AfterClose(file) => {
                    let is_as_it_was = app.fingerprint() == Some(file);
                    is_as_it_was.then(|| app.checkpointed())
                }
            };
            let found = match known {
                Some(at) if at == app.newest() => Polled::Quiet,
                Some(at) => Polled::Captured(app.after(at, &spill, wall_ms)),
                None => Polled::Gap(GapReason::Fresh, app.whole_wal(&spill, wall_ms)),
            };
            (found, app.newest())
        });
        self.position = position;
        self.mailbox
            .update(|pending| pending.page_size = Some(page_size()));
        self.mailbox.deliver(found);
    }

    /// Captures the commits since the last poll. True if there were some.
    fn poll(&mut self) -> bool {
        let wall_ms = self.source.clock.now_ms();
        let is_missed = self.source.one_in(25);
        let (at, spill) = (self.position, self.spill.clone());
        let (found, position) = self.source.app(|app| {
            let found = match app.newest() {
                newest if newest == at => Polled::Quiet,
                _ if is_missed => {
                    Polled::Gap(GapReason::CommitsMissed, app.whole_wal(&spill, wall_ms))
                }
                _ => Polled::Captured(app.after(at, &spill, wall_ms)),
            };
            (found, app.newest())
        });
        self.position = position;
        let is_found = !matches!(found, Polled::Quiet);
        self.mailbox.deliver(found);
        is_found
    }

    fn serve(&mut self, wanted: &mut Requests) {
        let (process, wall_ms) = (self.source.process, self.source.clock.now_ms());
        let refusal = self.below(30);
        let spill = self.spill.clone();
        let wal = self.source.app(|app| {
            let is_alone = app.is_alone(process);
            self.mailbox.update(|pending| {
                pending.is_alone = is_alone;
                pending.wants_checkpoint |= app.wants_checkpoint();
                if let Some(token) = wanted.barrier.take() {
                    pending.barrier = token;
                    pending.at_end = true;
                    pending.is_backfilled = app.is_backfilled();
                }
                if let Some(token) = wanted.poll.take() {
                    pending.poll = token;
                }
            });
            if std::mem::take(&mut wanted.checkpoint) && is_alone {
                app.checkpoint();
            }
            match refusal {
                // No mark is held at the moment.
                1..4 => None,
                _ if !std::mem::take(&mut wanted.reread) => None,
                0 => Some(Err(WalError::Spill(io::ErrorKind::StorageFull.into()))),
                _ => Some(Ok(app.whole_wal(&spill, wall_ms))),
            }
        });
        if let Some(wal) = wal {
            self.mailbox.update(|pending| pending.wal = Some(wal));
        }
    }

    fn end(&self, close: bool, last: impl FnOnce(&mut engine::source::capture::PendingCapture)) {
        let process = self.source.process;
        self.source.app(|app| app.disconnect(process, close));
        self.mailbox.update(|pending| {
            last(pending);
            pending.gone = true;
        });
    }

    fn below(&self, end: u64) -> u64 {
        self.source.chance.lock().unwrap().below(end)
    }
}
