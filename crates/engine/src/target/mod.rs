//! The driver of one target of one database: lease, uploads, merging, retention.
//!
//! Each target has its own position and its own pace; none holds another back. After its start it
//! never lists: it knows what is stored, because nobody else may write.

mod background;
mod clock;
mod connect;
mod fence;
mod levels;
mod maintain;
mod retain;
mod upload;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use ltx::Txid;
use protocol::config::OnDivergence;
use protocol::status::{Position, TargetState};
use store::{SharedStore, StoreError, StoreErrorKind};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::chain::{Chain, TargetProgress};
use crate::lease::{LeaseError, SourceId};
use crate::local::{LocalState, Replicas};
use crate::remote::{RemoteError, RemoteFile};
use crate::retention::RetentionPolicy;

use background::Background;
use clock::StoreClock;
pub use fence::fence;
use levels::LevelClock;
use retain::Refused;

/// Pause after a first failure; doubles up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause between attempts.
const MAX_PAUSE: Duration = Duration::from_secs(15);
/// Pause between runs of retention while the database changes.
const RETENTION_PAUSE: Duration = Duration::from_secs(600);
/// Files merged at once.
const MERGE_FILES: usize = 256;
/// Bytes merged at once: bounds the memory of one merge.
const MERGE_BYTES: u64 = 16 << 20;
/// Attempts to claim the next name when another writer is still at it.
const FENCE_ATTEMPTS: u32 = 20;

/// What a target is configured to do.
#[derive(Clone)]
pub struct TargetSettings {
    /// Name in logs and status.
    pub name: String,
    /// Where it stores.
    pub store: SharedStore,
    /// Time that one file of level 1 covers.
    pub merge_interval: Duration,
    /// Time that one file of each level from level 2 on covers.
    pub higher_levels: Vec<Duration>,
    /// How long what is kept.
    pub retention: RetentionPolicy,
}

/// What a target reports about itself.
#[derive(Debug, Clone, PartialEq)]
pub struct TargetReport {
    /// How it goes.
    pub state: TargetState,
    /// What failed last; empty when nothing did.
    pub message: String,
    /// The store's part in what failed last, if any.
    pub failure: Option<StoreErrorKind>,
    /// The newest acknowledged position, where its checksum is known.
    pub position: Option<Position>,
    /// When the store last acknowledged anything.
    pub last_sync: Option<Timestamp>,
    /// When the newest full copy was stored.
    pub last_snapshot: Option<Timestamp>,
    /// Our epoch.
    pub epoch: u64,
    /// Objects and bytes stored since the start.
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

/// Why a target cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// The store failed; trying again may help.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another writer has taken over. Final for this process.
    #[error(
        "{by} writes here with epoch {epoch}, ours is {ours}; end it, or this one: to back this \
         database up in its place, remove its local state and set startup.onDivergence to NewLineage"
    )]
    Superseded {
        /// Who.
        by: String,
        /// Its epoch.
        epoch: u64,
        /// Ours.
        ours: u64,
    },
    /// What is stored is not from this database. Final until a person decides.
    #[error(
        "the backup comes from another database file (holder {holder}, epoch {epoch}); to go on from \
         it, restore it with the same configuration; to back this database up in its place, set \
         startup.onDivergence to NewLineage, or use --on-divergence new-lineage"
    )]
    Diverged {
        /// Who wrote it.
        holder: String,
        /// With which epoch.
        epoch: u64,
    },
    /// What is stored cannot be understood.
    #[error(transparent)]
    Remote(RemoteError),
    /// The lease failed.
    #[error(transparent)]
    Lease(LeaseError),
    /// Our own files failed.
    #[error("local files: {0}")]
    Local(String),
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
            TargetError::Lease(_) | TargetError::Local(_) => TargetState::DestinationUnavailable,
        }
    }

    fn is_final(&self) -> bool {
        matches!(
            self,
            TargetError::Superseded { .. } | TargetError::Diverged { .. }
        )
    }
}

/// One target of one database.
pub struct Target {
    /// Its number in the chain.
    pub index: usize,
    /// What it is configured to do.
    pub settings: TargetSettings,
    /// The database file.
    pub database: PathBuf,
    /// Who writes, for the lease.
    pub holder: String,
    /// What to do when the stored backup is not from this database.
    pub on_divergence: OnDivergence,
    /// Our files.
    pub local: Arc<LocalState>,
    /// What we know about targets between runs.
    pub records: Arc<Mutex<Replicas>>,
    /// What is captured.
    pub chain: Arc<Chain>,
    /// What we report.
    pub report: Arc<Mutex<TargetReport>>,
    /// True: store what is captured, then end.
    pub drain: watch::Receiver<bool>,
}

/// What a connected target knows of its store.
struct Connection {
    files: BTreeSet<RemoteFile>,
    clock: StoreClock,
    epoch: u64,
    /// The database file that the lease names.
    source: Option<SourceId>,
    next_merge: Instant,
    /// Level 0 has no file for the step to the newest full copy. A Litestream that takes over merges from
    /// where level 1 ends, so level 1 has to end behind that step, soon.
    step_to_merge: bool,
    levels: Vec<LevelClock>,
    background: Option<Background>,
    next_retention: Instant,
    refused: Refused,
}

impl Target {
    /// Runs until it is drained or superseded.
    pub async fn run(mut self) {
        let mut pause = MIN_PAUSE;
        let mut changes = self.chain.subscribe();
        let mut connection = None;
        loop {
            let worked = match &mut connection {
                // In boxes: thousands of targets that wait carry no room for what they do then.
                None => Box::pin(self.connect()).await.map(|connected| {
                    connection = Some(connected);
                    true
                }),
                Some(connection) => Box::pin(self.step(connection)).await,
            };
            let wake = match worked {
                Ok(true) => {
                    pause = MIN_PAUSE;
                    self.report_success();
                    continue;
                }
                Ok(false) if *self.drain.borrow() => return,
                // What failed is tried until it is done, so nothing is wrong any more.
                Ok(false) => {
                    self.report_success();
                    connection
                        .as_ref()
                        .and_then(|connection| self.next_wake(connection))
                }
                Err(error) => {
                    self.report_error(&error);
                    if error.is_final() {
                        return;
                    }
                    let somebody_wrote = match &error {
                        TargetError::Store(error) => error.kind() == StoreErrorKind::Exists,
                        TargetError::Lease(_) => true,
                        _ => false,
                    };
                    if somebody_wrote {
                        // Look again who may.
                        connection = None;
                    }
                    let wake = Instant::now() + pause;
                    pause = (pause * 2).min(MAX_PAUSE);
                    self.sleep_until(wake).await;
                    continue;
                }
            };
            tokio::select! {
                _ = changes.changed() => {}
                _ = self.drain.changed() => {}
                () = sleep_until(wake) => {}
            }
        }
    }

    /// Waits out a pause after an error, shorter while draining.
    async fn sleep_until(&mut self, wake: Instant) {
        if *self.drain.borrow() {
            tokio::time::sleep(MIN_PAUSE).await;
            return;
        }
        tokio::select! {
            () = tokio::time::sleep_until(wake) => {}
            _ = self.drain.changed() => {}
        }
    }

    fn next_wake(&self, connection: &Connection) -> Option<Instant> {
        let progress = self.progress();
        if progress.needs_snapshot.is_some() {
            // Nothing is merged before it comes.
            return None;
        }
        // Without anything new there is nothing to merge and nothing expires: no wake-up at all.
        let first = (progress.acked > progress.merged).then_some(connection.next_merge);
        // What is under way says itself when it is done.
        let higher = match connection.background {
            Some(_) => None,
            None => connection.next_level_merge(),
        };
        first.into_iter().chain(higher).min()
    }

    fn progress(&self) -> TargetProgress {
        self.chain.lock().targets[self.index]
    }

    fn set_progress(&self, change: impl FnOnce(&mut TargetProgress)) {
        self.chain
            .update(|chain| change(&mut chain.targets[self.index]));
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
        let message = describe(error);
        let (name, database) = (&self.settings.name, self.database.display().to_string());
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        report.errors += 1;
        // Log a change once, not each attempt of an outage.
        if report.message != message {
            if error.is_final() {
                tracing::error!(target_name = %name, %database, "{message}");
            } else {
                tracing::warn!(target_name = %name, %database, "{message}");
            }
        }
        report.state = error.state();
        report.failure = match error {
            TargetError::Store(error) => Some(error.kind()),
            _ => None,
        };
        report.message = message;
        drop(report);
        if error.is_final() {
            // The driver of the database has to hear of it.
            self.chain.update(|_| ());
        }
    }

    /// Does the most urgent thing. False when there is nothing to do.
    async fn step(&mut self, connection: &mut Connection) -> Result<bool, TargetError> {
        if self.conclude(connection).await? {
            return Ok(true);
        }
        let progress = self.progress();
        if let Some(above) = progress.needs_snapshot {
            let (snapshot, continues) = {
                let chain = self.chain.lock();
                let snapshot = chain
                    .snapshot
                    .clone()
                    .filter(|snapshot| snapshot.txid > above);
                let continues = snapshot
                    .as_ref()
                    .is_some_and(|snapshot| chain.continues(snapshot.txid));
                (snapshot, continues)
            };
            let Some(snapshot) = snapshot else {
                return Ok(false);
            };
            if continues {
                self.upload_base(connection, &snapshot).await?;
            } else {
                self.ask_for_snapshot(connection, snapshot.txid).await?;
            }
            return Ok(true);
        }
        let (next, newest) = {
            let chain = self.chain.lock();
            (chain.captured(progress.acked.next()), chain.txid)
        };
        if let Some(captured) = next {
            self.upload(connection, captured).await?;
            return Ok(true);
        }
        if progress.acked < newest {
            self.ask_for_snapshot(connection, progress.acked).await?;
            return Ok(true);
        }
        if connection.step_to_merge && progress.acked > progress.merged {
            self.merge(connection, progress).await?;
            connection.step_to_merge = false;
            return Ok(true);
        }
        if *self.drain.borrow() {
            return Ok(false);
        }
        if self.begin(connection).await? {
            return Ok(true);
        }
        let now = Instant::now();
        if progress.acked > progress.merged && now >= connection.next_merge {
            self.merge(connection, progress).await?;
            return Ok(true);
        }
        // What is being merged must not expire meanwhile.
        if now >= connection.next_retention && connection.background.is_none() {
            let more = self.retain(connection).await?;
            connection.next_retention = if more { now } else { now + RETENTION_PAUSE };
            return Ok(more);
        }
        Ok(false)
    }
}

pub(super) fn position(txid: Txid, checksum: u64, timestamp_ms: i64) -> Option<Position> {
    Some(Position {
        txid: txid.to_string(),
        checksum: format!("{checksum:016x}"),
        time: Timestamp::from_millisecond(timestamp_ms).ok()?,
    })
}
fn local_error(error: impl std::fmt::Display) -> TargetError {
    TargetError::Local(error.to_string())
}

/// An error with what caused it, in one line.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
