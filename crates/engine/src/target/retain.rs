//! Deleting what no promised restore needs.

use std::collections::BTreeSet;
use std::time::Duration;

use store::{SharedStore, Store, StoreError, StoreErrorKind};
use tokio::time::Instant;

use crate::remote::{self, RemoteFile};
use crate::retention::{RetentionPlan, plan_retention};

use super::{Connection, Target, TargetError};

/// Files deleted at once; captured files that wait are uploaded before the next.
const DELETE_FILES: usize = 64;
/// Pause before a file is asked for again that the store refused to delete: a lock ends after days.
const REFUSED_PAUSE: Duration = Duration::from_secs(24 * 3600);

/// Files that the store refused to delete.
#[derive(Debug, Default)]
pub(super) struct Refused {
    files: BTreeSet<RemoteFile>,
    /// When the first of them was refused.
    since: Option<Instant>,
}

impl Target {
    /// Deletes some of what no promised restore needs. True when there is more.
    pub(super) async fn retain(&self, connection: &mut Connection) -> Result<bool, TargetError> {
        let refused = &mut connection.refused;
        if refused
            .since
            .is_some_and(|since| since.elapsed() >= REFUSED_PAUSE)
        {
            *refused = Refused::default();
        }
        let plan = self.retention_plan(connection).await;
        let expired = plan.expired.iter().copied();
        let due = expired.filter(|file| !connection.refused.files.contains(file));
        let mut due: Vec<RemoteFile> = due.take(DELETE_FILES + 1).collect();
        if due.is_empty() {
            return Ok(false);
        }
        let more = due.len() > DELETE_FILES;
        due.truncate(DELETE_FILES);
        self.confirm_lease(connection).await?;
        let deleted = self.delete(connection, &due).await?;
        // A store that refuses all of them refuses the next ones, too.
        Ok(more && deleted > 0)
    }

    /// Plans on another thread: proving 100,000 files takes 17 ms. The set goes there
    /// and comes back packed, because one that grew file by file takes twice the memory.
    async fn retention_plan(&self, connection: &mut Connection) -> RetentionPlan {
        let files = std::mem::take(&mut connection.files);
        let (policy, now_ms) = (self.settings.retention, connection.clock.cautious_ms());
        let planning = tokio::task::spawn_blocking(move || {
            let plan = plan_retention(&files, &policy, now_ms);
            (plan, files.into_iter().collect())
        });
        let (plan, files) = planning.await.expect("planning does not panic");
        connection.files = files;
        for spared in &plan.spared {
            let name = &self.settings.name;
            let (level, file) = (spared.file.level, spared.file.name());
            let (point, reason) = (spared.point, spared.reason);
            tracing::error!(
                target_name = %name, level, %file, %point, ?reason,
                "retention picked a file that a promised position needs: it stays"
            );
        }
        plan
    }

    /// Deletes files, all at once, or one by one when the store refuses. What is gone is
    /// forgotten, what was refused is remembered. Returns how many are gone.
    async fn delete(
        &self,
        connection: &mut Connection,
        files: &[RemoteFile],
    ) -> Result<usize, TargetError> {
        let store = &self.settings.store;
        match delete_all(store, files).await {
            Err(error) if is_refusal(&error) => {}
            result => {
                result?;
                for file in files {
                    connection.files.remove(file);
                }
                return Ok(files.len());
            }
        }
        let (mut refusals, mut failed) = (Vec::new(), None);
        for file in files {
            match delete_all(store, &[*file]).await {
                Ok(()) => {
                    connection.files.remove(file);
                }
                Err(error) if is_refusal(&error) => {
                    connection.refused.files.insert(*file);
                    refusals.push(error);
                }
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        if let Some(first) = refusals.first() {
            self.warn_of(connection, first, refusals.len());
        }
        match failed {
            Some(error) => Err(error.into()),
            None => Ok(files.len() - refusals.len()),
        }
    }

    /// Says once, not each time for more files, that the store refuses to delete.
    fn warn_of(&self, connection: &mut Connection, refusal: &StoreError, files: usize) {
        let name = &self.settings.name;
        if connection.refused.since.is_some() {
            tracing::debug!(target_name = %name, files, "retention: {refusal}");
            return;
        }
        connection.refused.since = Some(Instant::now());
        tracing::warn!(
            target_name = %name, files,
            "retention: {refusal}; what the store refuses to delete stays, and is asked for again in \
             a day; backups go on"
        );
    }
}

async fn delete_all(store: &SharedStore, files: &[RemoteFile]) -> Result<(), StoreError> {
    let key = |file: &RemoteFile| remote::key(store.layout(), file.level, file.name());
    let keys: Vec<String> = files.iter().map(key).collect();
    store.delete(&keys).await
}

/// Whether it is about these objects, or the right to delete any: a lock has no word of its own
/// that all stores share.
fn is_refusal(error: &StoreError) -> bool {
    matches!(
        error.kind(),
        StoreErrorKind::Denied | StoreErrorKind::Conflict | StoreErrorKind::Other
    )
}

#[cfg(test)]
mod tests;
