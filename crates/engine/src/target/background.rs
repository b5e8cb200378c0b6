//! What may take long and nothing waits for: periodic full copies, merges of stored files. They are
//! done beside the uploads of captured files, one at a time, and given up when the target ends.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;
use ltx::{FileName, Level, Txid};
use store::{Body, Store};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::chain::{Chain, ChainState, SnapshotFile};
use crate::remote::{self, RemoteFile};

use super::levels::{MergeRun, merge_stored};
use super::maintain::is_lost;
use super::upload::store_new;
use super::{Connection, Target, TargetError};

/// One of them.
pub(super) struct Background {
    task: JoinHandle<Result<RemoteFile, TargetError>>,
    /// Threads that cannot be ended look at it.
    ending: Arc<AtomicBool>,
}

impl Drop for Background {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        self.task.abort();
    }
}

/// Tells the target's driver that something is done, however that came about.
struct Wake(Arc<Chain>);

impl Drop for Wake {
    fn drop(&mut self) {
        self.0.update(|_| ());
    }
}

impl Target {
    /// Takes over what was done in the background. False when nothing was.
    pub(super) async fn conclude(&self, connection: &mut Connection) -> Result<bool, TargetError> {
        let finished = |it: &mut Background| it.task.is_finished();
        let Some(mut background) = connection.background.take_if(finished) else {
            return Ok(false);
        };
        let done = (&mut background.task).await;
        let file = match done.expect("it is not aborted before it is dropped, and does not panic") {
            Ok(file) => file,
            Err(error) if is_lost(&error) => {
                // Nobody can go over it any more: begin again after it.
                let name = &self.settings.name;
                tracing::error!(target_name = %name, "{error}: a new full copy is stored");
                let acked = self.progress().acked;
                self.ask_for_snapshot(connection, acked).await?;
                return Ok(true);
            }
            Err(error) => return Err(error),
        };
        self.stored(connection, file);
        if file.level == Level::SNAPSHOT.get() {
            self.copied(file.max);
            self.chain.update(ChainState::release_snapshot);
            connection.next_retention = Instant::now();
        }
        Ok(true)
    }

    /// A full copy is stored.
    pub(super) fn copied(&self, txid: Txid) {
        let now = Timestamp::now();
        self.set_report(|report| report.last_snapshot = Some(now));
        self.set_progress(|progress| progress.copied = txid);
    }

    /// Begins what is due, unless something is under way. False when nothing begins.
    pub(super) async fn begin(&self, connection: &mut Connection) -> Result<bool, TargetError> {
        if connection.background.is_some() {
            return Ok(false);
        }
        if let Some(snapshot) = self.wanted_copy(connection) {
            // Like the names of merged files, its name is no claim that a later writer meets.
            self.confirm_lease(connection).await?;
            self.begin_copy(connection, snapshot);
            return Ok(true);
        }
        if let Some(run) = connection.due_merge() {
            self.confirm_lease(connection).await?;
            self.begin_merge(connection, run);
            return Ok(true);
        }
        Ok(false)
    }

    /// The periodic full copy that is offered and not stored here yet.
    fn wanted_copy(&self, connection: &Connection) -> Option<Arc<SnapshotFile>> {
        let snapshot = self.chain.lock().snapshot.clone()?;
        let known = |file: &RemoteFile| file.is_snapshot() && file.max >= snapshot.txid;
        let stored = connection.files.iter().any(known);
        (!stored && self.progress().acked >= snapshot.txid).then_some(snapshot)
    }

    fn begin_copy(&self, connection: &mut Connection, snapshot: Arc<SnapshotFile>) {
        let (store, clock) = (Arc::clone(&self.settings.store), connection.clock);
        self.spawn(connection, |_| async move {
            let name = FileName {
                min: Txid::FIRST,
                max: snapshot.txid,
            };
            let level = Level::SNAPSHOT.get();
            let body = Body::File {
                path: snapshot.path.clone(),
                len: snapshot.bytes,
            };
            let key = remote::key(store.layout(), level, name);
            store_new(&store, &key, body, snapshot.timestamp_ms).await?;
            let now_ms = clock.now_ms();
            Ok(RemoteFile::new(level, name, snapshot.bytes, now_ms))
        });
    }

    fn begin_merge(&self, connection: &mut Connection, run: MergeRun) {
        let (store, clock) = (Arc::clone(&self.settings.store), connection.clock);
        let (epoch, path) = (connection.epoch, self.merge_path());
        self.spawn(connection, move |ending| async move {
            let level = run.level;
            let merged = merge_stored(&store, epoch, run, path, ending).await?;
            let name = merged.header.file_name();
            let key = remote::key(store.layout(), level, name);
            let body = Body::File {
                path: merged.path().to_owned(),
                len: merged.bytes,
            };
            store_new(&store, &key, body, merged.header.timestamp_ms).await?;
            Ok(RemoteFile::new(level, name, merged.bytes, clock.now_ms()))
        });
    }

    fn merge_path(&self) -> PathBuf {
        let name = format!("merge-{}.tmp", self.index);
        self.local.directory().join(name)
    }

    fn spawn<F>(&self, connection: &mut Connection, work: impl FnOnce(Arc<AtomicBool>) -> F)
    where
        F: Future<Output = Result<RemoteFile, TargetError>> + Send + 'static,
    {
        let ending = Arc::new(AtomicBool::new(false));
        let work = work(Arc::clone(&ending));
        let chain = Arc::clone(&self.chain);
        let work = async move {
            // Dropped when the task is over, but for its answer.
            let _wake = Wake(chain);
            work.await
        };
        #[cfg(test)]
        let work = crate::database::on_this_machine(work);
        let task = tokio::spawn(work);
        connection.background = Some(Background { task, ending });
    }
}
