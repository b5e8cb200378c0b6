//! The reported status of a database.

use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use protocol::status::{CredentialsReport, DatabaseState, DatabaseStatus, Position, TargetStatus};
use sqlite_format::PageSize;
use store::CredentialsState;

use crate::env::budget::Account;
use crate::env::clock::Clock;
use crate::replication::uploader::{TargetReport, TargetSettings};
use crate::spool::progress::SharedProgress;

/// Status of a database, shared with the components that report it.
#[derive(Clone)]
pub struct DatabaseHandle {
    pub(super) path: String,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) progress: Arc<SharedProgress>,
    pub(super) state: Arc<Mutex<(DatabaseState, String)>>,
    pub(super) page_size: Arc<Mutex<Option<PageSize>>>,
    pub(super) pages: Arc<std::sync::atomic::AtomicU32>,
    pub(super) blocking_checkpoints: Arc<std::sync::atomic::AtomicU64>,
    pub(super) targets: Vec<(TargetSettings, Arc<Mutex<TargetReport>>)>,
}

impl DatabaseHandle {
    /// The path as configured.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Our checkpoints since the start that made the application's writers wait.
    pub fn blocking_checkpoints(&self) -> u64 {
        self.blocking_checkpoints
            .load(std::sync::atomic::Ordering::Relaxed)
    }

    /// The settings of each target.
    pub fn targets(&self) -> impl Iterator<Item = &TargetSettings> {
        self.targets.iter().map(|(settings, _)| settings)
    }

    /// Counters of each target: name, uploads, bytes, errors.
    pub fn counters(&self) -> Vec<(String, TargetReport)> {
        self.targets
            .iter()
            .map(|(settings, report)| (settings.name.clone(), lock(report).clone()))
            .collect()
    }

    /// The current status.
    pub fn status(&self) -> DatabaseStatus {
        let (state, message) = lock(&self.state).clone();
        let progress = self.progress.lock();
        let position = progress
            .checksum
            .filter(|_| progress.txid.get() > 0)
            .map(|checksum| Position {
                txid: progress.txid.to_string(),
                checksum: format!("{checksum:016x}"),
                time: timestamp(progress.timestamp_ms),
            });
        let page_size = lock(&self.page_size).map_or(0, |size| u64::from(size.get()));
        let pages = self.pages.load(std::sync::atomic::Ordering::Relaxed);
        let now = self.clock.steady_ms();
        let targets = self
            .targets
            .iter()
            .enumerate()
            .map(|(index, (settings, report))| {
                let report = lock(report).clone();
                let waiting = progress.oldest_waiting_ms(index);
                TargetStatus {
                    name: settings.name.clone(),
                    state: report.state,
                    message: report.message,
                    position: report.position,
                    lag_ms: waiting.map_or(0, |ms| u64::try_from(now - ms).unwrap_or(0)),
                    backlog_bytes: progress.backlog_bytes(index),
                    last_sync: report.last_sync,
                    last_snapshot: report.last_snapshot,
                    epoch: report.epoch,
                    credentials: credentials(settings),
                }
            })
            .collect();
        let size_bytes = page_size * u64::from(pages);
        DatabaseStatus {
            path: self.path.clone(),
            state,
            message,
            position,
            size_bytes,
            targets,
        }
    }
}

pub(super) fn credentials(settings: &TargetSettings) -> Option<CredentialsReport> {
    let status = settings.store.credentials_status()?;
    Some(CredentialsReport {
        fingerprint: status.fingerprint?,
        since: timestamp(status.changed_at_ms),
        rotation_pending: status.state == CredentialsState::RotationPending,
    })
}

pub(super) fn timestamp(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap_or(Timestamp::UNIX_EPOCH)
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DatabaseHandle {
    /// True when every target has every captured file, and none has ended.
    pub fn is_all_stored(&self) -> bool {
        let progress = self.progress.lock();
        progress.verdict().is_none() && progress.is_stored()
    }

    /// The account in the local-state budget.
    pub(super) fn account(&self) -> Arc<Account> {
        let account = self.progress.lock().account.clone();
        account.expect("it is there from the beginning")
    }

    /// True when no target will ask for a cut any more, or none takes backups of this database.
    pub(super) fn needs_no_cut(&self) -> bool {
        let progress = self.progress.lock();
        progress.verdict().is_some() || progress.needs_no_cut()
    }

    /// Asks for a cut on behalf of each target that cannot continue without a snapshot.
    pub(super) fn ask_for_needed_cuts(&self) {
        self.progress.update_if(|progress| {
            let (is_offered, mut changed) = (progress.cut.is_some(), false);
            for target in &mut progress.targets {
                let needs = target.is_connected() && target.needs_snapshot.is_some();
                let waits = needs && target.taken_cut.is_none() && !target.wants_cut;
                changed |= waits && !is_offered;
                target.wants_cut |= waits && !is_offered;
            }
            changed
        });
    }

    pub(super) fn set_size(&self, page_size: PageSize, pages: u32) {
        *lock(&self.page_size) = Some(page_size);
        self.pages
            .store(pages, std::sync::atomic::Ordering::Relaxed);
    }
}
