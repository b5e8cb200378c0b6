//! Deletes files that no promised restore needs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use store::{SharedStore, Store, StoreError, StoreErrorKind};
use tokio::time::Instant;

use crate::env::causes::describe;
use crate::env::threads::Threads;
use crate::replica::manifest::{self, RemoteFile};
use crate::replica::retention::{RetentionPlan, RetentionPolicy, plan_retention};

use super::lane::Lane;
use super::upload::confirm_lease;
use super::{LeasedReplica, RETENTION_PAUSE, TargetError, Upkeep, Uploader};

/// Files deleted in one run. More may be due.
const DELETE_FILES: usize = 64;
/// Pause before a refused deletion is retried: object locks last for days.
const REFUSED_PAUSE: Duration = Duration::from_secs(24 * 3600);

/// Files that the store refused to delete.
#[derive(Debug, Default)]
pub(super) struct UndeletableObjects {
    files: BTreeSet<RemoteFile>,
    /// When the first of them was refused.
    since: Option<Instant>,
}

/// Result of a run of retention.
pub(super) struct Retained {
    deleted: Vec<RemoteFile>,
    refused: Vec<RemoteFile>,
    /// The first refusal.
    refusal: Option<StoreError>,
    /// More files can be deleted at once.
    has_more: bool,
    result: Result<(), TargetError>,
}

impl Uploader {
    /// Starts to delete some of the files that no promised restore needs.
    pub(super) fn begin_retention(&self, replica: &mut LeasedReplica) {
        let retention = self.retention(replica);
        replica.upkeep = Some(Lane::begin(|_| async move {
            Ok(Upkeep::Retained(retention.run().await))
        }));
    }

    fn retention(&self, replica: &mut LeasedReplica) -> Retention {
        let undeletable = &mut replica.undeletable;
        if undeletable
            .since
            .is_some_and(|since| since.elapsed() >= REFUSED_PAUSE)
        {
            *undeletable = UndeletableObjects::default();
        }
        Retention {
            threads: Arc::clone(&self.env.host.threads),
            store: Arc::clone(&self.settings.store),
            holder: self.holder.clone(),
            epoch: replica.epoch,
            policy: self.settings.retention,
            now_ms: replica.clock.cautious_ms(&*self.env.host.clock),
            files: replica.files.clone(),
            undeletable: undeletable.files.clone(),
        }
    }

    /// Records the result of a run: forgets deleted files, remembers refused ones.
    pub(super) fn retained(
        &self,
        replica: &mut LeasedReplica,
        retained: Retained,
    ) -> Result<(), TargetError> {
        for file in &retained.deleted {
            replica.files.remove(file);
        }
        if let Some(refusal) = &retained.refusal {
            self.warn_of(replica, refusal, retained.refused.len());
        }
        replica.undeletable.files.extend(retained.refused);
        let now = Instant::now();
        // After a failure another pause applies, see `Failures`.
        replica.next_retention = match retained.has_more || retained.result.is_err() {
            true => now,
            false => now + RETENTION_PAUSE,
        };
        retained.result
    }

    /// Logs only once, not for further files, that the store refuses to delete.
    fn warn_of(&self, replica: &mut LeasedReplica, refusal: &StoreError, files: usize) {
        let error = describe(refusal);
        if replica.undeletable.since.is_some() {
            tracing::debug!(%error, files, "the store refuses to delete");
            return;
        }
        replica.undeletable.since = Some(Instant::now());
        tracing::warn!(
            %error, files,
            "the store refuses to delete: these files stay, and the deletion is tried again in a day; \
             backups continue"
        );
    }
}

/// One run of retention.
struct Retention {
    threads: Arc<dyn Threads>,
    store: SharedStore,
    holder: String,
    epoch: u64,
    policy: RetentionPolicy,
    now_ms: i64,
    files: BTreeSet<RemoteFile>,
    undeletable: BTreeSet<RemoteFile>,
}

impl Retention {
    async fn run(mut self) -> Retained {
        let mut retained = Retained {
            deleted: Vec::new(),
            refused: Vec::new(),
            refusal: None,
            has_more: false,
            result: Ok(()),
        };
        let plan = self.plan().await;
        let expired = plan.expired.into_iter();
        let due = expired.filter(|file| !self.undeletable.contains(file));
        let mut due: Vec<RemoteFile> = due.take(DELETE_FILES + 1).collect();
        if due.is_empty() {
            return retained;
        }
        let more = due.len() > DELETE_FILES;
        due.truncate(DELETE_FILES);
        // Put-if-absent does not protect deletions, so check the lease first.
        retained.result = match confirm_lease(&self.store, &self.holder, self.epoch).await {
            Ok(()) => self.delete(&due, &mut retained).await,
            Err(error) => Err(error),
        };
        // A store that refuses all of them would refuse the next ones, too.
        retained.has_more = more && !retained.deleted.is_empty() && retained.result.is_ok();
        retained
    }

    /// Plans on another thread: the proof for 100,000 files takes 17 ms.
    async fn plan(&mut self) -> RetentionPlan {
        let (files, policy) = (std::mem::take(&mut self.files), self.policy);
        let now_ms = self.now_ms;
        let planning = move || plan_retention(&files, &policy, now_ms);
        let plan = self.threads.run(planning).await;
        for spared in &plan.spared {
            let (level, file) = (spared.file.level, spared.file.name());
            let (point, reason) = (spared.point, spared.reason);
            tracing::error!(
                level, %file, %point, ?reason,
                "retention picked a file that a promised position needs: it stays"
            );
        }
        plan
    }

    /// Deletes files in one call, or one by one if the store refuses.
    async fn delete(
        &self,
        files: &[RemoteFile],
        retained: &mut Retained,
    ) -> Result<(), TargetError> {
        match delete_all(&self.store, files).await {
            Err(error) if is_refusal(&error) => {}
            result => {
                result?;
                retained.deleted.extend(files);
                return Ok(());
            }
        }
        for file in files {
            match delete_all(&self.store, &[*file]).await {
                Ok(()) => retained.deleted.push(*file),
                Err(error) if is_refusal(&error) => {
                    retained.refused.push(*file);
                    retained.refusal.get_or_insert(error);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

async fn delete_all(store: &SharedStore, files: &[RemoteFile]) -> Result<(), StoreError> {
    let key = |file: &RemoteFile| manifest::key(store.layout(), file.level, file.name());
    let keys: Vec<String> = files.iter().map(key).collect();
    store.delete(&keys).await
}

/// Whether the error is about these objects or about the right to delete. Stores share no error
/// code for an object lock.
fn is_refusal(error: &StoreError) -> bool {
    matches!(
        error.kind(),
        StoreErrorKind::Denied | StoreErrorKind::Conflict | StoreErrorKind::Other
    )
}

#[cfg(test)]
mod tests;
