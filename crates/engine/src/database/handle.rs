//! What a database shows of itself.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use ltx::Txid;
use protocol::status::{
    CredentialsReport, DatabaseState, DatabaseStatus, Position, TargetState, TargetStatus,
};
use sqlite_format::PageSize;
use store::CredentialsState;

use crate::capture::unix_ms;
use crate::chain::{Chain, TargetProgress};
use crate::target::{TargetReport, TargetSettings};

/// What a database reports about itself, shared with whoever shows it.
#[derive(Clone)]
pub struct DatabaseHandle {
    pub(super) path: String,
    pub(super) chain: Arc<Chain>,
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

    /// Checkpoints of ours, since the start, for which the application's writers had to wait.
    pub fn blocking_checkpoints(&self) -> u64 {
        self.blocking_checkpoints
            .load(std::sync::atomic::Ordering::Relaxed)
    }

    /// What each target is configured to do.
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

    /// The status at this moment.
    pub fn status(&self) -> DatabaseStatus {
        let (state, message) = lock(&self.state).clone();
        let chain = self.chain.lock();
        let position = chain
            .checksum
            .filter(|_| chain.txid.get() > 0)
            .map(|checksum| Position {
                txid: chain.txid.to_string(),
                checksum: format!("{checksum:016x}"),
                time: timestamp(chain.timestamp_ms),
            });
        let page_size = lock(&self.page_size).map_or(0, |size| u64::from(size.get()));
        let pages = self.pages.load(std::sync::atomic::Ordering::Relaxed);
        let now = unix_ms();
        let targets = self
            .targets
            .iter()
            .enumerate()
            .map(|(index, (settings, report))| {
                let report = lock(report).clone();
                let waiting = chain.oldest_waiting_ms(index);
                TargetStatus {
                    name: settings.name.clone(),
                    state: report.state,
                    message: report.message,
                    position: report.position,
                    lag_ms: waiting.map_or(0, |ms| u64::try_from(now - ms).unwrap_or(0)),
                    backlog_bytes: chain.backlog_bytes(index),
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
    /// True when every target has everything that was captured.
    pub(super) fn is_stored(&self) -> bool {
        let chain = self.chain.lock();
        let stored = |target: &TargetProgress| {
            target.connected && target.needs_snapshot.is_none() && target.acked == chain.txid
        };
        chain.targets.iter().all(stored)
    }

    /// True when a target has said what it has.
    pub(super) fn a_target_answered(&self) -> bool {
        self.chain.lock().targets.iter().any(|it| it.connected)
    }

    /// True when every target has been asked once, whatever came of it.
    pub(super) fn every_target_was_tried(&self) -> bool {
        let chain = self.chain.lock();
        let answered = |index: usize| chain.targets.get(index).is_some_and(|it| it.connected);
        let failed = |index: usize| lock(&self.targets[index].1).state != TargetState::Starting;
        (0..self.targets.len()).all(|index| answered(index) || failed(index))
    }

    /// Why no target takes backups of this database any more, when that is so.
    pub(super) fn verdict(&self) -> Option<(DatabaseState, String)> {
        let mut verdict = None;
        for (_, report) in &self.targets {
            let report = lock(report);
            verdict = match report.state {
                TargetState::Superseded => {
                    Some((DatabaseState::Superseded, report.message.clone()))
                }
                TargetState::Diverged => Some((DatabaseState::Diverged, report.message.clone())),
                _ => return None,
            };
        }
        verdict
    }

    /// Time until the next full copy is due: by the oldest of the targets' newest ones, so that
    /// restarts do not put it off, or by one that waits for a target.
    pub(super) fn until_next_copy(&self, interval: Duration) -> Duration {
        let newest = self
            .targets
            .iter()
            .filter_map(|(_, report)| lock(report).last_snapshot);
        let offered = self
            .chain
            .lock()
            .snapshot
            .as_ref()
            .map(|it| it.timestamp_ms);
        let Some(oldest) = newest.min().max(offered.map(timestamp)) else {
            return interval;
        };
        let age = Timestamp::now().duration_since(oldest);
        let age = if age.is_negative() {
            Duration::ZERO
        } else {
            age.unsigned_abs()
        };
        interval.saturating_sub(age)
    }

    /// True when the database has changed since a target got its newest full copy, or since one was
    /// made that waits for it. The file that follows every copy at once is no change.
    pub(super) fn changed_since_copy(&self) -> bool {
        let chain = self.chain.lock();
        let offered = chain.snapshot.as_ref().map_or(Txid::ZERO, |it| it.txid);
        chain
            .targets
            .iter()
            .any(|target| target.connected && target.copied.max(offered).next() < chain.txid)
    }

    /// True when it is time for a periodic full copy.
    pub(super) fn copy_is_due(&self, interval: Duration) -> bool {
        self.changed_since_copy() && self.until_next_copy(interval).is_zero()
    }

    pub(super) fn set_size(&self, page_size: PageSize, pages: u32) {
        *lock(&self.page_size) = Some(page_size);
        self.pages
            .store(pages, std::sync::atomic::Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::SnapshotFile;

    fn handle() -> DatabaseHandle {
        DatabaseHandle {
            path: String::new(),
            chain: Arc::default(),
            state: Arc::new(Mutex::new((DatabaseState::Starting, String::new()))),
            page_size: Arc::default(),
            pages: Arc::default(),
            blocking_checkpoints: Arc::default(),
            targets: Vec::new(),
        }
    }

    #[test]
    fn all_is_stored_when_every_target_says_so() {
        let has_all = TargetProgress {
            acked: Txid::new(9),
            connected: true,
            ..TargetProgress::default()
        };
        for (other, stored) in [
            (has_all, true),
            (
                TargetProgress {
                    acked: Txid::new(8),
                    ..has_all
                },
                false,
            ),
            (
                TargetProgress {
                    needs_snapshot: Some(Txid::new(9)),
                    ..has_all
                },
                false,
            ),
            (
                TargetProgress {
                    connected: false,
                    ..has_all
                },
                false,
            ),
        ] {
            let handle = handle();
            handle.chain.update(|chain| {
                chain.txid = Txid::new(9);
                chain.targets = vec![has_all, other];
            });
            assert_eq!(handle.is_stored(), stored, "{other:?}");
        }
    }

    #[test]
    fn a_full_copy_that_waits_for_a_target_puts_off_the_next_one() {
        let handle = handle();
        handle.chain.update(|chain| {
            chain.txid = Txid::new(9);
            let progress = TargetProgress {
                copied: Txid::new(3),
                connected: true,
                ..TargetProgress::default()
            };
            chain.targets.insert(0, progress);
        });
        assert!(handle.changed_since_copy());
        handle.chain.update(|chain| {
            let snapshot = SnapshotFile {
                txid: Txid::new(8),
                checksum: 0,
                path: std::path::PathBuf::from("nowhere"),
                bytes: 0,
                timestamp_ms: unix_ms() - 1_800_000,
            };
            chain.snapshot = Some(Arc::new(snapshot));
        });
        assert!(!handle.changed_since_copy(), "but for the file after it");
        let hour = Duration::from_secs(3600);
        let until = handle.until_next_copy(hour);
        assert!(until > hour / 4 && until < hour * 3 / 4, "{until:?}");
        handle.chain.update(|chain| chain.txid = Txid::new(10));
        assert!(handle.changed_since_copy());
        assert!(!handle.copy_is_due(hour));
    }
}
