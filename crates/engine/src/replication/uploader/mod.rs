//! The driver of one target of one database: lease, uploads, snapshots, compaction, retention.
//!
//! Each target has its own position and pace, and delays no other one. It lists the store only
//! when it connects. After that it knows what is stored, because no other writer may write.
//! `machine` decides the next step, the other modules carry it out.

mod acquire;
mod clock;
mod compact;
mod fence;
mod lane;
mod levels;
mod machine;
mod retain;
mod snapshot;
mod upload;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use ltx::Txid;
use protocol::config::OnDivergence;
use protocol::status::{DatabaseState, Position, TargetState};
use store::{SharedStore, StoreError, StoreErrorKind};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::env::causes::describe;
use crate::env::files::SourceId;
use crate::replica::lease::LeaseError;
use crate::replica::manifest::{RemoteError, RemoteFile};
use crate::replica::retention::RetentionPolicy;
use crate::replication::Env;
use crate::replication::snapshot::{Effort, Overwritten, SnapshotError};
use crate::source::read_mark::ReadMark;
use crate::spool::cut::Cut;
use crate::spool::progress::{SharedProgress, TargetPhase, TargetProgress};
use crate::spool::state_dir::{LocalError, LocalState, Replicas};

use clock::StoreClock;
pub use fence::fence;
use lane::{Lane, over};
use levels::LevelClock;
use machine::{Facts, Step};
use retain::{Retained, UndeletableObjects};

/// Pause after a first failure. It doubles up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause between attempts.
const MAX_PAUSE: Duration = Duration::from_secs(15);
/// Pause between runs of retention while the database changes.
const RETENTION_PAUSE: Duration = Duration::from_secs(600);
/// Time after which a captured file is not uploaded without another look at the lease. The fence of
/// the next writer keeps its name from us only until retention removes it.
const CONFIRMED_TIME: Duration = Duration::from_secs(60);
/// Attempts to claim the next name while another writer still stores files.
const FENCE_ATTEMPTS: u32 = 20;

/// The settings of a target.
#[derive(Clone)]
pub struct TargetSettings {
    /// Name in logs and status.
    pub name: String,
    /// The store.
    pub store: SharedStore,
    /// Time that one file of level 1 covers.
    pub compaction_interval: Duration,
    /// Time that one file of each level from level 2 on covers.
    pub higher_levels: Vec<Duration>,
    /// How long each kind of file is kept.
    pub retention: RetentionPolicy,
}

/// The reported status of a target.
#[derive(Debug, Clone, PartialEq)]
pub struct TargetReport {
    /// Its state.
    pub state: TargetState,
    /// The last failure; empty if there was none.
    pub message: String,
    /// Kind of the store's error in the last failure, if it was one.
    pub failure: Option<StoreErrorKind>,
    /// The newest acknowledged position, if its checksum is known.
    pub position: Option<Position>,
    /// When the store last acknowledged anything.
    pub last_sync: Option<Timestamp>,
    /// When the newest snapshot was stored.
    pub last_snapshot: Option<Timestamp>,
    /// Our epoch.
    pub epoch: u64,
    /// Objects stored since the start.
    pub uploads: u64,
    /// Bytes stored since the start.
    pub uploaded_bytes: u64,
    /// Requests that failed since the start.
    pub errors: u64,
}

impl Default for TargetReport {
    fn default() -> TargetReport {
        TargetReport {
            state: TargetState::Starting,
            message: String::new(),
            failure: None,
            position: None,
            last_sync: None,
            last_snapshot: None,
            epoch: 0,
            uploads: 0,
            uploaded_bytes: 0,
            errors: 0,
        }
    }
}

/// Why a target cannot continue.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// The store failed. Another attempt may succeed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another writer has taken over. Final for this process.
    #[error(
        "{by} writes here with epoch {epoch}, ours is {ours}; end it, or this one: to back this \
         database up in its place, remove its local state and set startup.onDivergence to NewLineage"
    )]
    Superseded {
        /// Its holder.
        by: String,
        /// Its epoch.
        epoch: u64,
        /// Ours.
        ours: u64,
    },
    /// The stored backup is not from this database. Final until a person decides.
    #[error(
        "the backup comes from another database file (holder {holder}, epoch {epoch}); to go on from \
         it, restore it with the same configuration; to back this database up in its place, set \
         startup.onDivergence to NewLineage, or use --on-divergence new-lineage"
    )]
    Diverged {
        /// Holder of its lease.
        holder: String,
        /// Epoch of its lease.
        epoch: u64,
    },
    /// The stored data cannot be understood.
    #[error(transparent)]
    Remote(RemoteError),
    /// The lease failed.
    #[error(transparent)]
    Lease(LeaseError),
    /// Our local state failed.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// A snapshot could not be read. Another attempt may succeed.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A captured file on our disk could not be read.
    #[error("{action} {}: {source}", path.display())]
    Captured {
        /// The action that failed.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// The encoder rejected our input.
    #[error("encode: {0}")]
    Encode(#[source] ltx::LtxError),
}

impl From<RemoteError> for TargetError {
    fn from(error: RemoteError) -> TargetError {
        match error {
            RemoteError::Store(error) => TargetError::Store(error),
            other => TargetError::Remote(other),
        }
    }
}

impl From<LeaseError> for TargetError {
    fn from(error: LeaseError) -> TargetError {
        match error {
            LeaseError::Store(error) => TargetError::Store(error),
            other => TargetError::Lease(other),
        }
    }
}

impl TargetError {
    fn state(&self) -> TargetState {
        match self {
            TargetError::Store(error) => match error.kind() {
                StoreErrorKind::Denied => TargetState::Denied,
                StoreErrorKind::CredentialsMissing => TargetState::CredentialsMissing,
                StoreErrorKind::NoBucket => TargetState::NoBucket,
                _ => TargetState::DestinationUnavailable,
            },
            TargetError::Superseded { .. } => TargetState::Superseded,
            TargetError::Diverged { .. } => TargetState::Diverged,
            TargetError::Remote(_) | TargetError::Lease(LeaseError::Foreign(_)) => {
                TargetState::Corrupt
            }
            TargetError::Lease(_)
            | TargetError::Local(_)
            | TargetError::Snapshot(_)
            | TargetError::Captured { .. }
            | TargetError::Encode(_) => TargetState::DestinationUnavailable,
        }
    }

    /// The state of a database whose targets have all ended so; none if another attempt may
    /// succeed.
    fn ends_with(&self) -> Option<DatabaseState> {
        match self {
            TargetError::Superseded { .. } => Some(DatabaseState::Superseded),
            TargetError::Diverged { .. } => Some(DatabaseState::Diverged),
            _ => None,
        }
    }

    /// Whether a stored file is damaged or missing.
    fn is_lost_file(&self) -> bool {
        match self {
            TargetError::Remote(_) => true,
            TargetError::Store(error) => error.kind() == StoreErrorKind::Missing,
            _ => false,
        }
    }

    /// Whether another writer may have written. Then the right to write must be decided again.
    fn is_conflict(&self) -> bool {
        match self {
            TargetError::Store(error) => error.kind() == StoreErrorKind::Exists,
            TargetError::Lease(_) => true,
            _ => false,
        }
    }
}

/// One target of one database.
pub struct Uploader {
    /// Its index among the targets in `progress`.
    pub index: usize,
    /// Its settings.
    pub settings: TargetSettings,
    /// The database file.
    pub database: PathBuf,
    /// Name of this writer in the lease.
    pub holder: String,
    /// Policy for a stored backup that is not from this database.
    pub on_divergence: OnDivergence,
    /// Time between snapshots while the database changes.
    pub snapshot_interval: Duration,
    /// State that all databases of the process share.
    pub env: Env,
    /// The local state of the database.
    pub local: Arc<LocalState>,
    /// Records of the replicas, kept between runs.
    pub records: Arc<Mutex<Replicas>>,
    /// Captured files, positions, and the progress of each target.
    pub progress: Arc<SharedProgress>,
    /// The status that we report.
    pub report: Arc<Mutex<TargetReport>>,
    /// True: store every captured file, then end.
    pub drain: watch::Receiver<bool>,
}

/// The state of a connected target and its store.
struct LeasedReplica {
    files: BTreeSet<RemoteFile>,
    clock: StoreClock,
    epoch: u64,
    /// When we last saw that the lease is ours.
    confirmed: Instant,
    /// The database file that the lease names.
    source: Option<SourceId>,
    /// See [`Facts::has_step`].
    has_step: bool,
    next_compaction: Instant,
    levels: Vec<LevelClock>,
    next_retention: Instant,
    undeletable: UndeletableObjects,
    next_snapshot: Instant,
    effort: Effort,
    /// See [`Facts::is_outrun`].
    is_outrun: bool,
    /// The page that ended the previous snapshot.
    overwritten: Option<Overwritten>,
    pin: Option<ReadMark>,
    cut: Option<Arc<Cut>>,
    snapshot: Option<Lane<snapshot::Stored>>,
    upkeep: Option<Lane<Result<Upkeep, TargetError>>>,
    /// The last failures beside the uploads, and the pause after them.
    failures: Failures,
}

/// Failures of the lanes beside the uploads. Uploads continue meanwhile.
#[derive(Debug, Clone, Copy, Default)]
struct Failures {
    pause: Option<Duration>,
    /// Earliest time of new work in these lanes.
    until: Option<Instant>,
}

impl Failures {
    fn failed(&mut self, now: Instant) {
        let pause = self.pause.map_or(MIN_PAUSE, |pause| pause * 2);
        let pause = pause.min(MAX_PAUSE);
        (self.pause, self.until) = (Some(pause), Some(now + pause));
    }
}

/// Result of the upkeep lane.
enum Upkeep {
    Compacted(compact::Compacted),
    Retained(Retained),
}

impl Uploader {
    /// Runs until the target is drained, superseded or diverged.
    pub async fn run(mut self) {
        let mut pause = MIN_PAUSE;
        let mut replica = None;
        loop {
            // Boxed, so that thousands of waiting targets do not reserve memory for it.
            let went = match &mut replica {
                None => match Box::pin(self.connect()).await {
                    Ok(connected) => {
                        replica = Some(connected);
                        Ok(Went::On)
                    }
                    Err(error) => Err(error),
                },
                Some(replica) => Box::pin(self.go_on(replica)).await,
            };
            match went {
                Ok(Went::On) => pause = MIN_PAUSE,
                Ok(Went::ToTheEnd) => return,
                Err(error) => {
                    self.report_error(&error);
                    if error.ends_with().is_some() {
                        return;
                    }
                    if error.is_conflict() {
                        replica = None;
                    }
                    self.pause(pause).await;
                    pause = (pause * 2).min(MAX_PAUSE);
                }
            }
        }
    }

    /// Carries out the most urgent step, or waits for an event.
    async fn go_on(&mut self, replica: &mut LeasedReplica) -> Result<Went, TargetError> {
        let mut changes = self.progress.subscribe();
        if let Some(lane) = replica.snapshot.take_if(|lane| lane.is_over()) {
            let stored = lane.done().await;
            let done = self.snapshot_done(replica, stored).await;
            self.lane_done(replica, done)?;
        }
        if let Some(lane) = replica.upkeep.take_if(|lane| lane.is_over()) {
            let upkeep = lane.done().await;
            let done = self.upkeep_done(replica, upkeep).await;
            self.lane_done(replica, done)?;
        }
        let facts = self.facts(replica);
        match machine::next(&facts, Instant::now()) {
            Step::Upload => self.upload_next(replica).await?,
            Step::NeedSnapshot { above } => self.need_snapshot(replica, above).await?,
            Step::AskForCut => {
                let asked = self.ask_for_cut(replica).await;
                self.begun(replica, asked)?;
            }
            Step::TakeCut => {
                replica.cut = self
                    .progress
                    .update(|progress| progress.take_cut(self.index));
            }
            Step::BeginSnapshot { is_base } => {
                let begun = self.begin_snapshot(replica, is_base).await;
                self.begun(replica, begun)?;
            }
            Step::BeginSnapshotCompaction => {
                let begun = self.begin_snapshot_compaction(replica).await;
                self.begun(replica, begun)?;
            }
            Step::BeginCompaction => {
                let begun = self.begin_compaction(replica).await;
                self.begun(replica, begun)?;
            }
            Step::BeginLevelCompaction => {
                let begun = self.begin_level_compaction(replica).await;
                self.begun(replica, begun)?;
            }
            Step::BeginRetention => self.begin_retention(replica),
            Step::End => return Ok(Went::ToTheEnd),
            Step::Wait { until } => {
                self.report_progress(replica);
                let LeasedReplica {
                    snapshot, upkeep, ..
                } = replica;
                tokio::select! {
                    // In this order, so that a simulation repeats itself.
                    biased;
                    _ = changes.changed() => {}
                    _ = self.drain.changed() => {}
                    () = over(snapshot) => {}
                    () = over(upkeep) => {}
                    () = sleep_until(until) => {}
                }
                return Ok(Went::On);
            }
        }
        self.report_progress(replica);
        Ok(Went::On)
    }

    /// A failed step is retried until it succeeds. So progress clears the error, except beside the
    /// uploads.
    fn report_progress(&self, replica: &LeasedReplica) {
        if replica.failures.until.is_none() {
            self.report_success();
        }
    }

    fn facts(&self, replica: &LeasedReplica) -> Facts {
        let progress = self.progress.lock();
        let target = &progress.targets[self.index];
        Facts {
            acked: target.acked,
            compacted: target.compacted,
            newest: progress.txid,
            has_next: progress.captured(target.acked.next()).is_some(),
            snapshot: target.newest_snapshot,
            needs_snapshot: target.needs_snapshot,
            cut: replica.cut.as_ref().map(|cut| cut.txid),
            is_cut_offered: progress.is_cut_offered(self.index),
            wants_cut: target.wants_cut,
            is_storing_snapshot: replica.snapshot.is_some(),
            is_keeping_up: replica.upkeep.is_some(),
            has_step: replica.has_step,
            is_outrun: replica.is_outrun,
            next_snapshot: replica.next_snapshot,
            next_compaction: replica.next_compaction,
            next_level_compaction: replica.next_level_compaction(),
            next_retention: replica.next_retention,
            not_before: replica.failures.until,
            is_draining: *self.drain.borrow(),
        }
    }

    /// Takes over a failed begin of work beside the uploads: it delays no upload, either.
    fn begun(
        &self,
        replica: &mut LeasedReplica,
        begun: Result<(), TargetError>,
    ) -> Result<(), TargetError> {
        match begun {
            Ok(()) => Ok(()),
            failed => self.lane_done(replica, failed),
        }
    }

    /// Records the result of a lane beside the uploads. A failure there delays no upload, unless
    /// it shows that another writer has taken over.
    fn lane_done(
        &self,
        replica: &mut LeasedReplica,
        result: Result<(), TargetError>,
    ) -> Result<(), TargetError> {
        match result {
            Ok(()) => replica.failures = Failures::default(),
            Err(error) if error.is_conflict() || error.ends_with().is_some() => return Err(error),
            Err(error) => {
                self.report_error(&error);
                replica.failures.failed(Instant::now());
            }
        }
        Ok(())
    }

    async fn upkeep_done(
        &self,
        replica: &mut LeasedReplica,
        upkeep: Result<Upkeep, TargetError>,
    ) -> Result<(), TargetError> {
        match upkeep {
            Ok(Upkeep::Compacted(compacted)) => {
                self.compacted(replica, compacted);
                Ok(())
            }
            Ok(Upkeep::Retained(retained)) => self.retained(replica, retained),
            Err(error) if error.is_lost_file() => {
                // No restore can pass this file: request a snapshot after it.
                let error = describe(&error);
                tracing::error!(%error, "a stored file is lost: a new snapshot is stored");
                let acked = self.target_progress().acked;
                self.need_snapshot(replica, acked).await
            }
            Err(error) => Err(error),
        }
    }

    /// Pauses after an error, for a shorter time while draining.
    async fn pause(&mut self, time: Duration) {
        if *self.drain.borrow() {
            tokio::time::sleep(MIN_PAUSE).await;
            return;
        }
        tokio::select! {
            biased;
            () = tokio::time::sleep(time) => {}
            _ = self.drain.changed() => {}
        }
    }

    fn target_progress(&self) -> TargetProgress {
        self.progress.lock().targets[self.index].clone()
    }

    fn update_target(&self, change: impl FnOnce(&mut TargetProgress)) {
        self.progress
            .update(|progress| change(&mut progress.targets[self.index]));
    }

    fn set_report(&self, change: impl FnOnce(&mut TargetReport)) {
        change(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn report_success(&self) {
        self.set_report(|report| {
            report.state = TargetState::Ok;
            report.message.clear();
            report.failure = None;
        });
    }

    fn report_error(&self, error: &TargetError) {
        let (message, ends_with) = (describe(error), error.ends_with());
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        report.errors += 1;
        // Log a change once, not each attempt of an outage.
        if report.message != message {
            if ends_with.is_some() {
                tracing::error!(error = %message, "this target takes no backups any more");
            } else {
                tracing::warn!(error = %message, "not stored; it is tried again");
            }
        }
        report.state = error.state();
        report.failure = match error {
            TargetError::Store(error) => Some(error.kind()),
            _ => None,
        };
        report.message.clone_from(&message);
        drop(report);
        self.update_target(|target| {
            if let Some(state) = ends_with {
                target.phase = TargetPhase::Ended { state, message };
                target.wants_cut = false;
            } else if target.phase == TargetPhase::Starting {
                target.phase = TargetPhase::Failing;
            }
        });
    }
}

/// How a step of a target ended.
enum Went {
    /// There may be more to do.
    On,
    /// Everything is stored, and the target ends.
    ToTheEnd,
}

pub(super) fn position(txid: Txid, checksum: u64, timestamp_ms: i64) -> Option<Position> {
    Some(Position {
        txid: txid.to_string(),
        checksum: format!("{checksum:016x}"),
        time: Timestamp::from_millisecond(timestamp_ms).ok()?,
    })
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
