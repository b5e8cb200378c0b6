//! A process that replicates: the real state directory, committer, progress and targets. They are
//! driven as `AttachedDriver` drives them, with the model in the place of SQLite and the capture
//! thread.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ltx::{FileName, Txid};
use protocol::config::OnDivergence;
use protocol::status::DatabaseState;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};

use crate::env::budget::{Budgets, Limits};
use crate::pages::page_set::Spill;
use crate::replica::retention::RetentionPolicy;
use crate::replication::committer::Committer;
use crate::replication::status::DatabaseHandle;
use crate::replication::uploader::{TargetReport, TargetSettings, Uploader};
use crate::replication::{DatabaseSettings, RunError};
use crate::source::wal::WalPosition;
use crate::spool::progress::SharedProgress;
use crate::spool::state_dir::LocalState;

use super::chance::{Chance, Log};
use super::machine::{MACHINE, Machine};
use super::model::{Image, Place};
use super::oracle::{Oracle, Promise};
use super::wire::{Server, Wire};

/// Local state of a process, in bytes: some 30 captured files.
const STATE_BYTES: u64 = 240 << 10;

/// The retention of a store. Everything stays longer than a request may be in transit. Otherwise a
/// late request would find the name of a fence free again.
pub(super) const RETENTION: RetentionPolicy = RetentionPolicy {
    enabled: true,
    exact: Duration::from_secs(120),
    window: Duration::from_secs(240),
    daily: 0,
    weekly: 0,
    monthly: 0,
};

/// A process. It lives until its tasks end.
pub(super) struct Process {
    pub(super) name: String,
    pub(super) place: Arc<Place>,
    pub(super) state: usize,
    pub(super) handle: DatabaseHandle,
    pub(super) machine: Machine,
    /// The application writes.
    pub(super) busy: Arc<AtomicBool>,
    stop: watch::Sender<bool>,
    /// Kept here, so that targets never outlive it.
    _drain: Arc<watch::Sender<bool>>,
    driver: JoinHandle<bool>,
    targets: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl Process {
    pub(super) fn start(
        serial: u64,
        place: &Arc<Place>,
        state: usize,
        settings: DatabaseSettings,
        oracle: &Arc<Oracle>,
        machine: Machine,
        chance: Chance,
    ) -> Process {
        let (stop, stopped) = watch::channel(false);
        let targets: Arc<Mutex<Vec<JoinHandle<()>>>> = Arc::default();
        let reports = settings.targets.iter();
        let budgets = Budgets::new(Limits {
            state_bytes: STATE_BYTES,
            ..Limits::default()
        });
        let account = budgets.account();
        let progress = SharedProgress::default();
        progress.update(|progress| progress.account = Some(Arc::clone(&account)));
        let spill = Spill::new(&settings.state, &budgets, account);
        let handle = DatabaseHandle {
            path: settings.holder.clone(),
            progress: Arc::new(progress),
            state: Arc::new(Mutex::new((DatabaseState::Starting, String::new()))),
            page_size: Arc::default(),
            pages: Arc::default(),
            blocking_checkpoints: Arc::default(),
            targets: reports
                .map(|target| (target.clone(), Arc::default()))
                .collect(),
        };
        let busy = Arc::new(AtomicBool::new(true));
        let drain = Arc::new(watch::Sender::new(false));
        let driver = Driver {
            drain: Arc::clone(&drain),
            actor: actor(serial),
            name: settings.holder.clone(),
            place: Arc::clone(place),
            handle: handle.clone(),
            oracle: Arc::clone(oracle),
            log: Arc::clone(&machine.clock.log),
            machine: machine.clone(),
            busy: Arc::clone(&busy),
            stop: stopped,
            tasks: Arc::clone(&targets),
            told: vec![Txid::ZERO; settings.targets.len()],
            budgets,
            spill,
            settings,
            chance,
        };
        let driver = tokio::spawn(MACHINE.scope(machine.clone(), driver.run()));
        Process {
            name: handle.path.clone(),
            place: Arc::clone(place),
            state,
            handle,
            machine,
            busy,
            stop,
            _drain: drain,
            driver,
            targets,
        }
    }

    /// Ends it as SIGKILL does.
    pub(super) async fn kill(mut self) {
        if !self.driver.is_finished() {
            self.driver.abort();
        }
        let _ended = ended((&mut self.driver).await);
        self.end_targets().await;
    }

    /// Ends it gracefully. True when everything is stored.
    pub(super) async fn stop(mut self) -> bool {
        self.stop.send_replace(true);
        let drained = tokio::time::timeout(Duration::from_secs(30), &mut self.driver).await;
        let Ok(drained) = drained else {
            self.kill().await;
            return false;
        };
        self.end_targets().await;
        ended(drained).unwrap_or(false)
    }

    async fn end_targets(&self) {
        let targets = std::mem::take(&mut *self.targets.lock().unwrap());
        for target in targets {
            target.abort();
            ended(target.await);
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.driver.is_finished()
    }
}

/// The residue of a process. Those of its targets follow.
pub(super) fn actor(serial: u64) -> u64 {
    1 + serial * 3
}

/// The settings of a process.
pub(super) fn settings(
    serial: u64,
    seed: u64,
    name: String,
    place: &Place,
    state: usize,
    servers: &[Arc<Server>],
) -> DatabaseSettings {
    let target = |server: &Arc<Server>| {
        let actor = actor(serial) + 1 + server.index as u64;
        let chance = |purpose| Mutex::new(Chance::new(seed, purpose + actor));
        TargetSettings {
            name: format!("target{}", server.index),
            store: Arc::new(Wire {
                server: Arc::clone(server),
                actor,
                name: name.clone(),
                chance: chance(1000),
                threads: chance(2000),
                restores: name.starts_with("restore"),
            }),
            compaction_interval: Duration::from_secs(5),
            higher_levels: vec![Duration::from_secs(20), Duration::from_secs(60)],
            retention: RETENTION,
        }
    };
    DatabaseSettings {
        path: place.database(),
        state: place.state(state),
        targets: servers.iter().map(target).collect(),
        sync_interval: Duration::from_secs(1),
        snapshot_interval: Duration::from_secs(40),
        holder: name,
        on_divergence: OnDivergence::Block,
    }
}

/// The result of a task, unless it was aborted. A panic in it becomes ours.
fn ended<T>(task: Result<T, JoinError>) -> Option<T> {
    match task.map_err(JoinError::try_into_panic) {
        Ok(value) => Some(value),
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        Err(Err(_aborted)) => None,
    }
}

struct Driver {
    actor: u64,
    name: String,
    place: Arc<Place>,
    settings: DatabaseSettings,
    handle: DatabaseHandle,
    oracle: Arc<Oracle>,
    log: Arc<Log>,
    machine: Machine,
    busy: Arc<AtomicBool>,
    stop: watch::Receiver<bool>,
    drain: Arc<watch::Sender<bool>>,
    tasks: Arc<Mutex<Vec<JoinHandle<()>>>>,
    /// The newest position that each target acknowledged.
    told: Vec<Txid>,
    budgets: Arc<Budgets>,
    spill: Spill,
    chance: Chance,
}

/// The commit up to which everything is written; none: the database must be read.
type Seen = Option<usize>;

impl Driver {
    async fn run(mut self) -> bool {
        let local = loop {
            match LocalState::open(&self.settings.state) {
                Ok(local) => break Arc::new(local),
                Err(_) => self.log.pause(self.actor, 1000).await,
            }
            if *self.stop.borrow() {
                return false;
            }
        };
        let loaded = loop {
            match local.load() {
                Ok(loaded) => break loaded,
                Err(error) => self.note_error(&error),
            }
            if self.machine.disk.is_frozen() || *self.stop.borrow() {
                return false;
            }
            self.log.pause(self.actor, 1000).await;
        };
        let records = Arc::new(Mutex::new(loaded.replicas.clone()));
        let log = loaded.position.filter(|_| loaded.hashes.is_some());
        let progress = Arc::clone(&self.handle.progress);
        let count = self.settings.targets.len();
        let spill = self.spill.clone();
        let mut committer = Committer::resume(Arc::clone(&local), spill, progress, loaded, count);
        let mut seen = log.and_then(|log| self.seen(&log));
        let drained = self.drain.subscribe();
        for (index, (settings, report)) in self.handle.targets.iter().enumerate() {
            let target = Uploader {
                index,
                settings: settings.clone(),
                database: self.settings.path.clone(),
                holder: self.settings.holder.clone(),
                on_divergence: self.settings.on_divergence,
                snapshot_interval: self.settings.snapshot_interval,
                budgets: Arc::clone(&self.budgets),
                local: Arc::clone(&local),
                records: Arc::clone(&records),
                progress: Arc::clone(&self.handle.progress),
                report: Arc::clone(report),
                drain: drained.clone(),
            };
            let task = tokio::spawn(MACHINE.scope(self.machine.clone(), target.run()));
            self.tasks.lock().unwrap().push(task);
        }
        loop {
            let wait = 100 + self.chance.below(15) * 100;
            self.log.pause(self.actor, wait).await;
            self.listen();
            let verdict = self.handle.progress.lock().verdict();
            if let Some((state, _)) = verdict {
                self.note(format!("{state:?}"));
                return false;
            }
            let stopping = *self.stop.borrow();
            let (tried, answered) = {
                let progress = self.handle.progress.lock();
                (
                    progress.every_target_was_tried(),
                    progress.a_target_answered(),
                )
            };
            let numbered = committer.hashes.is_some() || (tried && answered);
            if !numbered {
                if stopping && tried {
                    return false;
                }
                continue;
            }
            if self.busy.load(Ordering::Relaxed) && !stopping {
                let mut app = self.place.app.lock().unwrap();
                for _ in 0..self.chance.below(4) {
                    app.commit();
                    app.may_checkpoint(&self.place.database());
                }
            }
            if self.chance.one_in(25) {
                // Frames were missed.
                seen = None;
            }
            self.step(&mut committer, &mut seen);
            if self.machine.disk.is_frozen() {
                self.note("ends in the middle".to_owned());
                self.end_targets();
                return false;
            }
            let all = seen == Some(self.place.app.lock().unwrap().newest());
            if stopping && all && tried {
                self.handle.ask_for_needed_cuts();
                if self.handle.needs_no_cut() {
                    break;
                }
            }
        }
        committer.save();
        self.drain.send_replace(true);
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap());
        let aborts: Vec<_> = tasks.iter().map(JoinHandle::abort_handle).collect();
        let ending = AbortOnDrop(aborts);
        for task in tasks {
            task.await.expect("a target does not panic");
        }
        drop(ending);
        self.listen();
        self.handle.is_all_stored()
    }

    fn end_targets(&self) {
        for task in self.tasks.lock().unwrap().iter() {
            task.abort();
        }
    }

    /// The commit at a WAL position, unless the WAL was restarted meanwhile.
    fn seen(&mut self, log: &WalPosition) -> Seen {
        let restarted = self.chance.one_in(3);
        let at = self.place.app.lock().unwrap().at(log);
        at.filter(|_| !restarted)
    }

    /// The next step of `AttachedDriver`, without a pause in it.
    fn step(&mut self, committer: &mut Committer, seen: &mut Seen) {
        let before = self.handle.progress.lock().txid;
        if let Err(error) = self.try_step(committer, seen) {
            self.note_error(&error);
            *seen = None;
        }
        let progress = self.handle.progress.lock();
        if progress.txid != before {
            let line = format!("written {} {:x?}", progress.txid, progress.checksum);
            drop(progress);
            self.note(line);
        }
    }

    fn try_step(&mut self, committer: &mut Committer, seen: &mut Seen) -> Result<(), RunError> {
        let place = Arc::clone(&self.place);
        let app = place.app.lock().unwrap();
        let (image, newest, now_ms) = (app.image(), app.newest(), self.machine.clock.now_ms());
        let spill = self.spill.clone();
        let (lacks_cut, is_in_doubt, is_full, can_make_room, keeps_up) = {
            let progress = self.handle.progress.lock();
            let is_full = progress.is_full();
            (
                progress.lacks_cut(),
                progress.is_in_doubt,
                is_full,
                is_full && progress.removable_under_pressure() > 0,
                progress.keeps_up(),
            )
        };
        let at = match *seen {
            Some(at) if committer.hashes.is_some() && !is_in_doubt => at,
            _ => {
                let (scan, delta) = app.scan(committer.hashes.as_ref(), &spill, now_ms);
                self.writing(&image, || committer.write_scan(scan, delta, now_ms))?;
                committer.record(app.log());
                *seen = Some(newest);
                return Ok(());
            }
        };
        if at < newest && !lacks_cut {
            if can_make_room {
                return committer.make_room();
            }
            if is_full && !keeps_up {
                return Ok(());
            }
        }
        if at < newest {
            let mut delta = app.delta(Some(at), &spill, now_ms);
            self.writing(&image, || committer.write(&mut delta, now_ms))?;
            committer.record(app.log());
            *seen = Some(newest);
        }
        if lacks_cut {
            self.writing(&image, || committer.offer_cut(app.in_wal(&spill)))?;
        }
        Ok(())
    }

    /// Runs work that writes, and reports the new files to the oracle.
    fn writing(
        &self,
        image: &Arc<Image>,
        write: impl FnOnce() -> Result<(), RunError>,
    ) -> Result<(), RunError> {
        let before = self.handle.progress.lock().txid;
        let written = write();
        // A failed write may still have published its file. The next start finds it.
        let captured = std::fs::read_dir(self.settings.state.join("ltx/0"));
        let paths: Vec<PathBuf> = captured
            .expect("our directory can be read")
            .map(|entry| entry.expect("it can be read").path())
            .filter(|path| txid_of(path).is_some_and(|txid| txid > before))
            .collect();
        if let Some(cut) = &self.handle.progress.lock().cut {
            self.oracle.cut(&self.name, cut.txid, image);
        }
        for path in paths {
            let bytes = std::fs::read(path).expect("what was written is there");
            self.oracle.written(&self.name, &bytes, image);
        }
        written
    }

    /// Reads the reports of the targets.
    fn listen(&mut self) {
        for (index, (_, report)) in self.handle.targets.iter().enumerate() {
            let position = lock(report).position.clone();
            let Some(position) = position else { continue };
            let txid: Txid = position.txid.parse().expect("a position has a TXID");
            let checksum = u64::from_str_radix(&position.checksum, 16).expect("hex digits");
            if txid < self.told[index] {
                let (name, told) = (&self.name, self.told[index]);
                let broken = format!("store {index}: {name} was told of {told}, then of {txid}");
                self.oracle.broken(Promise::P2, broken);
            }
            self.told[index] = txid;
            self.oracle.acked(index, &self.name, txid, checksum);
        }
    }

    /// Notes an error without names that differ from run to run.
    fn note_error(&self, error: &dyn std::error::Error) {
        let directory = self.place.directory.display().to_string();
        self.note(error.to_string().replace(&directory, ""));
    }

    fn note(&self, what: String) {
        self.log.note(self.actor, format!("{}: {what}", self.name));
    }
}

/// The TXID of a captured file.
fn txid_of(path: &Path) -> Option<Txid> {
    let name = FileName::parse(path.file_name()?.to_str()?)?;
    Some(name.max)
}

fn lock(report: &Mutex<TargetReport>) -> std::sync::MutexGuard<'_, TargetReport> {
    report.lock().unwrap()
}

/// Aborts tasks together with the task that waits for them.
struct AbortOnDrop(Vec<tokio::task::AbortHandle>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}
