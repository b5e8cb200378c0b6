//! The driver of one database: finds it, captures, writes, resyncs, takes snapshots, and stops in
//! order.

mod attached;
mod commit_lane;
mod committer;
mod lifecycle;
mod machine;
mod pacer;
pub mod snapshot;
mod status;
pub mod uploader;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use protocol::config::OnDivergence;
use protocol::status::DatabaseState;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::Instrument;

use crate::env::budget::{Budgets, Limits};
use crate::env::causes::describe;
use crate::env::files::Fingerprint;
use crate::env::host::Host;
use crate::pages::page_set::Spill;
use crate::replication::uploader::{TargetReport, TargetSettings, Uploader};
use crate::source::Source;
use crate::source::probe::Probe;
use crate::source::scan::ScanError;
use crate::source::wal::WalError;
use crate::spool::ltx_writer::WriteError;
use crate::spool::progress::SharedProgress;
use crate::spool::state_dir::{LocalError, LocalState, Replicas};

use committer::Committer;
use lifecycle::Lifecycle;
use pacer::Pace;
pub use status::DatabaseHandle;
use status::lock;

/// Pause between two probes of a database that is missing, not ready, or failed.
const PROBE_PAUSE: Duration = Duration::from_secs(1);

/// State that all databases of a process share.
#[derive(Clone)]
pub struct Env {
    /// The machine that it runs on.
    pub host: Host,
    /// Access to the databases, with the capture thread.
    pub source: Arc<dyn Source>,
    /// Limits on the memory and disk space that the process may use.
    pub budgets: Arc<Budgets>,
}

impl Env {
    /// Creates an environment on this machine with the default limits.
    pub fn new(source: impl Source + 'static) -> Env {
        Env {
            host: Host::default(),
            source: Arc::new(source),
            budgets: Budgets::new(Limits::default()),
        }
    }
}

/// Settings for the replication of one database.
#[derive(Clone)]
pub struct DatabaseSettings {
    /// The database file.
    pub path: PathBuf,
    /// Directory of our local state.
    pub state: PathBuf,
    /// Targets of backups, in order of preference for restores.
    pub targets: Vec<TargetSettings>,
    /// Average time between objects under load; shorter after quiet times. No commit waits longer.
    pub sync_interval: Duration,
    /// Time between snapshots while the database changes.
    pub snapshot_interval: Duration,
    /// Name of this writer in the lease.
    pub holder: String,
    /// Policy for a stored backup that is not from this database.
    pub on_divergence: OnDivergence,
}

/// The driver of one database. [`Database::run`] ends after `stop` turns true.
pub struct Database {
    settings: DatabaseSettings,
    env: Env,
    handle: DatabaseHandle,
    stop: watch::Receiver<bool>,
}

/// Why a run of the driver ended early. The driver then starts again.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error(transparent)]
    Local(#[from] LocalError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Scan(#[from] ScanError),
    #[error(transparent)]
    Capture(#[from] WalError),
    /// The pages of the whole WAL could not be read or kept.
    #[error(transparent)]
    Wal(WalError),
    #[error("another file has taken the path")]
    Moved,
    #[error("no target takes backups of this database any more")]
    Over,
    #[error("capture of this database has ended")]
    Detached,
}

impl RunError {
    fn is_disk_full(&self) -> bool {
        match self {
            RunError::Local(error) => error.is_disk_full(),
            RunError::Write(error) => error.is_disk_full(),
            RunError::Scan(error) => error.is_disk_full(),
            RunError::Capture(WalError::Spill(error)) | RunError::Wal(WalError::Spill(error)) => {
                crate::env::disk::is_disk_full(error)
            }
            RunError::Capture(_)
            | RunError::Wal(_)
            | RunError::Moved
            | RunError::Over
            | RunError::Detached => false,
        }
    }

    /// True when the local-state budget is used up. The disk may still have space.
    fn is_over_budget(&self) -> bool {
        let error = match self {
            RunError::Scan(ScanError::Spill(error))
            | RunError::Capture(WalError::Spill(error))
            | RunError::Wal(WalError::Spill(error)) => error,
            _ => return false,
        };
        error.kind() == std::io::ErrorKind::QuotaExceeded
    }
}

impl Database {
    /// Creates the driver of one database and the handle that reports its status.
    pub fn new(
        settings: DatabaseSettings,
        env: &Env,
        stop: watch::Receiver<bool>,
    ) -> (Database, DatabaseHandle) {
        let progress = SharedProgress::default();
        progress.update(|progress| progress.account = Some(env.budgets.account()));
        let targets = settings
            .targets
            .iter()
            .map(|target| {
                (
                    target.clone(),
                    Arc::new(Mutex::new(TargetReport::default())),
                )
            })
            .collect();
        let handle = DatabaseHandle {
            path: settings.path.display().to_string(),
            clock: Arc::clone(&env.host.clock),
            progress: Arc::new(progress),
            state: Arc::new(Mutex::new((DatabaseState::Starting, String::new()))),
            page_size: Arc::default(),
            pages: Arc::default(),
            blocking_checkpoints: Arc::default(),
            targets,
        };
        let database = Database {
            settings,
            env: env.clone(),
            handle: handle.clone(),
            stop,
        };
        (database, handle)
    }

    /// Storage for page images that do not fit in memory.
    fn spill(&self) -> Spill {
        let account = self.handle.account();
        Spill::new(&self.settings.state, &self.env.budgets, account)
    }

    /// Replicates until `stop` turns true. Then captures and stores the remaining commits, for at
    /// most `drain`.
    ///
    /// Returns true when every target has every commit.
    pub async fn run(self, drain: Duration) -> bool {
        let span = tracing::info_span!("database", path = %self.settings.path.display());
        self.replicate(drain).instrument(span).await
    }

    async fn replicate(mut self, drain: Duration) -> bool {
        self.count_all();
        let Some(local) = self.open_state().await else {
            return false;
        };
        let local = Arc::new(local);
        let loaded = loop {
            // Loading reads a hash for each page, and the captured files.
            let loading = Arc::clone(&local);
            match self.env.host.threads.run(move || loading.load()).await {
                Ok(loaded) => break loaded,
                Err(error) => {
                    self.report(DatabaseState::Failed, error.to_string());
                    self.count_all();
                    if self.pause(PROBE_PAUSE).await {
                        return false;
                    }
                }
            }
        };
        let records = Arc::new(Mutex::new(loaded.replicas.clone()));
        let position = loaded.position;
        let targets = self.settings.targets.iter();
        let names = targets.map(|target| (target.name.clone(), target.store.describe()));
        let committer = Committer::resume(
            Arc::clone(&local),
            self.spill(),
            Arc::clone(&self.handle.progress),
            loaded,
            names.collect(),
            self.env.host.clock.steady_ms(),
        );
        let (drain_sender, drain_receiver) = watch::channel(false);
        let mut lifecycle = Lifecycle {
            env: self.env.clone(),
            committer: Some(committer),
            position,
            cold: None,
            resting: None,
            pace: Pace::new(self.settings.sync_interval),
            had_turn: false,
            scan_time: Duration::ZERO,
            was_closed: false,
            in_use_probes: 0,
            watch: None,
            next_watch: tokio::time::Instant::now(),
        };
        let targets = self
            .wait_for_file_and_start_targets(&local, &records, &drain_receiver)
            .await;
        let Some(targets) = targets else {
            // A database that exists but was never captured is not stored.
            return lock(&self.handle.state).0 == DatabaseState::Missing;
        };
        let time_over = time_over(self.stop.clone(), drain).shared();
        let captured = tokio::select! {
            // The deadline first: the other branch may use up the budget of this task.
            biased;
            () = time_over.clone() => false,
            () = lifecycle.run_to_the_end(&mut self) => true,
        };
        lifecycle.close().await;
        // After a failed last poll, commits may be left that no counter includes.
        let drained = drain_targets(targets, drain_sender, time_over).await;
        lifecycle.record_delivered().await;
        drained && captured && self.handle.is_all_stored()
    }

    /// Starts the uploaders once the database exists: their right to write depends on it.
    async fn wait_for_file_and_start_targets(
        &mut self,
        local: &Arc<LocalState>,
        records: &Arc<Mutex<Replicas>>,
        drain: &watch::Receiver<bool>,
    ) -> Option<JoinSet<()>> {
        loop {
            // Read the flag before the probe, so that a database created before the stop is found.
            let stopping = *self.stop.borrow();
            match self.probe() {
                Probe::Live | Probe::Cold(_) => break,
                Probe::InUse => {}
                Probe::Unfit(state, message) => self.report(state, message),
            }
            match self.data() {
                Some(_) => self.count_all(),
                None => self.handle.progress.lock().unwritten.clear(),
            }
            if stopping {
                return None;
            }
            self.pause(PROBE_PAUSE).await;
        }
        let uploader =
            |(index, (settings, report)): (usize, &(TargetSettings, Arc<Mutex<TargetReport>>))| {
                let target = Uploader {
                    index,
                    settings: settings.clone(),
                    database: self.settings.path.clone(),
                    holder: self.settings.holder.clone(),
                    on_divergence: self.settings.on_divergence,
                    snapshot_interval: self.settings.snapshot_interval,
                    env: self.env.clone(),
                    local: Arc::clone(local),
                    records: Arc::clone(records),
                    progress: Arc::clone(&self.handle.progress),
                    report: Arc::clone(report),
                    drain: drain.clone(),
                };
                let span = tracing::info_span!("target", replica = target.settings.name);
                target.run().instrument(span)
            };
        Some(
            self.handle
                .targets
                .iter()
                .enumerate()
                .map(uploader)
                .collect(),
        )
    }

    async fn open_state(&mut self) -> Option<LocalState> {
        loop {
            match LocalState::open(&self.settings.state, &self.env.host.disk) {
                Ok(local) => return Some(local),
                Err(error) => self.report_error(&error.into()),
            }
            self.count_all();
            if self.pause(PROBE_PAUSE).await {
                return None;
            }
        }
    }

    /// The database file, if it has data.
    fn data(&self) -> Option<Fingerprint> {
        let file = self.env.source.fingerprint(&self.settings.path);
        file.ok().flatten().filter(|file| !file.is_empty())
    }

    /// Counts the whole database as not stored, because nothing is known of it.
    fn count_all(&self) {
        if self.data().is_some() {
            let now_ms = self.env.host.clock.steady_ms();
            self.handle.progress.lock().unwritten.changed(now_ms);
        }
    }

    fn probe(&self) -> Probe {
        self.env.source.probe(&self.settings.path)
    }

    fn report_error(&self, error: &RunError) {
        let state = if error.is_disk_full() {
            DatabaseState::DiskFull
        } else {
            DatabaseState::Failed
        };
        if !matches!(error, RunError::Moved | RunError::Over) {
            let directory = self.settings.state.display();
            let message = format!("{}; local state is in {directory}", describe(error));
            self.report(state, message);
        }
    }

    fn report(&self, state: DatabaseState, message: String) {
        let mut current = lock(&self.handle.state);
        if *current != (state, message.clone()) {
            let reason = Some(message.as_str()).filter(|reason| !reason.is_empty());
            if state.is_healthy()
                || matches!(state, DatabaseState::Starting | DatabaseState::Missing)
            {
                tracing::info!(?state, reason, "state changed");
            } else {
                tracing::warn!(?state, reason, "state changed");
            }
            *current = (state, message);
        }
    }

    /// Waits for `time` or a stop. Returns true when it is time to stop.
    async fn pause(&mut self, time: Duration) -> bool {
        tokio::select! {
            biased;
            () = tokio::time::sleep(time) => {}
            () = changed(&mut self.stop) => {}
        }
        *self.stop.borrow()
    }
}

/// Waits for a change. Without a sender there is none.
async fn changed(stop: &mut watch::Receiver<bool>) {
    if stop.changed().await.is_err() {
        std::future::pending().await
    }
}

/// Completes when the time for the shutdown has passed.
async fn time_over(mut stop: watch::Receiver<bool>, drain: Duration) {
    // A dropped sender counts as a stop, because no other message can arrive.
    drop(stop.wait_for(|stop| *stop).await);
    tokio::time::sleep(drain).await;
}

/// Lets the uploaders finish until `time_over`. True when all did. Aborts the others, so that the
/// local state is free for the next process.
async fn drain_targets(
    mut targets: JoinSet<()>,
    sender: watch::Sender<bool>,
    time_over: impl Future<Output = ()>,
) -> bool {
    sender.send_replace(true);
    let all_ended = async { while targets.join_next().await.is_some() {} };
    tokio::select! {
        biased;
        () = time_over => {
            targets.shutdown().await;
            false
        }
        () = all_ended => true,
    }
}

/// Default directory of the local state: beside the database.
pub fn default_state_directory(database: &Path) -> PathBuf {
    let name = database.file_name().unwrap_or_default().to_string_lossy();
    database.with_file_name(format!(".{name}-sqlite-backup"))
}
