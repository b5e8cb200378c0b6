//! Snapshots of one target: a first one, which all later files build on, and periodic ones.

use std::sync::Arc;

use jiff::Timestamp;
use ltx::{FileName, Level, Txid};
use tokio::time::Instant;

use crate::replica::lease::Lease;
use crate::replica::manifest::RemoteFile;
use crate::replication::snapshot::{Effort, Overwritten, Snapshot, StoreSnapshotError};
use crate::spool::cut::Cut;
use crate::spool::progress::ReplicationProgress;

use super::lane::Lane;
use super::{LeasedReplica, TargetError, Uploader, position};

/// Result of a snapshot.
pub(super) struct Stored {
    cut: Arc<Cut>,
    is_base: bool,
    was_pinned: bool,
    bytes: Result<u64, StoreSnapshotError>,
}

impl Uploader {
    /// Asks the database for a cut. If the application has overtaken earlier snapshots, takes a
    /// read mark first.
    pub(super) async fn ask_for_cut(&self, replica: &mut LeasedReplica) -> Result<(), TargetError> {
        // A cut taken while the store is unreachable would be old when the store is back.
        self.confirm_lease(replica).await?;
        if replica.effort == Effort::Pinned && replica.pin.is_none() {
            let (source, path) = (Arc::clone(&self.env.source), self.database.clone());
            let taken = self.env.host.threads.run(move || source.read_mark(&path));
            // Without a read mark, a database that no process has open can still be read.
            replica.pin = taken.await.ok();
        }
        self.update_target(|target| target.wants_cut = true);
        Ok(())
    }

    /// Starts to stream the snapshot of the cut.
    pub(super) async fn begin_snapshot(
        &self,
        replica: &mut LeasedReplica,
        is_base: bool,
    ) -> Result<(), TargetError> {
        // Keep the cut until nothing can fail any more: another one costs the database time.
        let cut = replica.cut.clone();
        let cut = cut.expect("the machine has seen that there is one");
        if is_base {
            // Later deltas build on this snapshot, and put-if-absent cannot fence it. Announce it
            // in the lease first, so that a successor uploads a newer one.
            let announce = |lease: &mut Lease| lease.announced = lease.announced.max(cut.txid);
            self.amend_lease(replica, announce).await?;
        } else {
            // A later writer does not use this name, so put-if-absent cannot fence it.
            self.confirm_lease(replica).await?;
        }
        let snapshots = replica.files.iter().filter(|file| file.is_snapshot());
        let newest = snapshots.max_by_key(|file| file.max);
        let snapshot = Snapshot {
            cut: Arc::clone(&cut),
            database: self.database.clone(),
            target: self.index,
            epoch: replica.epoch,
            effort: replica.effort,
            pin: replica.pin.take(),
            expected_bytes: newest.map(|file| file.size),
            directory: self.local.directory().to_owned(),
            account: self.account(),
        };
        let store = Arc::clone(&self.settings.store);
        let env = self.env.clone();
        let was_pinned = snapshot.pin.is_some();
        replica.cut = None;
        replica.snapshot = Some(Lane::begin(|_| async move {
            let bytes = snapshot
                .store(&store, &env.budgets, &*env.host.threads)
                .await;
            Stored {
                cut,
                is_base,
                was_pinned,
                bytes,
            }
        }));
        Ok(())
    }

    /// Records the result of a snapshot.
    pub(super) async fn snapshot_done(
        &self,
        replica: &mut LeasedReplica,
        stored: Stored,
    ) -> Result<(), TargetError> {
        let Stored {
            cut,
            is_base,
            was_pinned,
            bytes,
        } = stored;
        let bytes = match bytes.inspect_err(|_| self.update_target(|it| it.taken_cut = None)) {
            Ok(bytes) => bytes,
            Err(StoreSnapshotError::Snapshot(error)) => {
                let Some(page) = error.overwritten() else {
                    return Err(error.into());
                };
                self.overtaken(replica, page, is_base, was_pinned);
                return Ok(());
            }
            Err(StoreSnapshotError::Store(error)) => return Err(error.into()),
        };
        let name = FileName {
            min: Txid::FIRST,
            max: cut.txid,
        };
        let now_ms = replica.clock.now_ms();
        let file = RemoteFile::new(Level::SNAPSHOT.get(), name, bytes, now_ms);
        self.stored(replica, file);
        if is_base {
            // An announced snapshot that another writer has superseded is not acknowledged.
            self.confirm_lease(replica).await?;
        }
        self.snapshot_stored(replica);
        if !is_base {
            self.update_target(|target| {
                (target.newest_snapshot, target.taken_cut) = (cut.txid, None)
            });
            return Ok(());
        }
        let checksum = cut.hashes.checksum();
        self.acknowledge(position(cut.txid, checksum, cut.timestamp_ms));
        replica.has_step = true;
        self.progress
            .update(|progress| self.begin_with(progress, cut.txid));
        Ok(())
    }

    /// Records a stored snapshot. The next one is due after the interval.
    pub(super) fn snapshot_stored(&self, replica: &mut LeasedReplica) {
        let now = Instant::now();
        replica.effort = Effort::default();
        replica.is_outrun = false;
        replica.overwritten = None;
        replica.next_snapshot = now + self.snapshot_interval;
        replica.next_retention = now;
        self.set_report(|report| report.last_snapshot = Some(Timestamp::now()));
    }

    /// Makes the uploads continue after this snapshot.
    fn begin_with(&self, progress: &mut ReplicationProgress, snapshot: Txid) {
        // Level 0 must not end before the snapshot, so upload the captured file of its TXID, too.
        let has_own_file = progress.captured(snapshot).is_some();
        let target = &mut progress.targets[self.index];
        target.newest_snapshot = snapshot;
        target.acked = Txid::new(snapshot.get() - u64::from(has_own_file));
        target.compacted = snapshot;
        target.needs_snapshot = None;
        target.taken_cut = None;
        progress.release_cut();
    }

    /// The application was faster: use more effort, or compact stored files.
    fn overtaken(
        &self,
        replica: &mut LeasedReplica,
        page: Overwritten,
        is_base: bool,
        was_pinned: bool,
    ) {
        let (pgno, effort) = (page.pgno, replica.effort);
        tracing::debug!(
            pgno,
            ?effort,
            "a page was overwritten before it was read: the snapshot begins again"
        );
        // Under a read mark no page is overwritten. Otherwise a commit also changes the next cut.
        if was_pinned || replica.overwritten == Some(page) {
            tracing::error!(
                pgno,
                "a page differs from what the captured commits lead to: the database is read again"
            );
            self.progress.update(|progress| progress.is_in_doubt = true);
        }
        replica.overwritten = Some(page);
        replica.pin = None;
        match effort {
            Effort::Spooled if !is_base => replica.is_outrun = true,
            effort => replica.effort = effort.more(),
        }
    }
}
