//! Snapshots of one target: the first one, which everything that follows builds on, and periodic ones.

use std::sync::Arc;

use jiff::Timestamp;
use ltx::{FileName, Level, Txid};
use tokio::time::Instant;

use crate::chain::ChainState;
use crate::lease::Lease;
use crate::remote::RemoteFile;
use crate::snapshot::{Cut, Effort, Pin, Snapshot, SnapshotError, StoreSnapshotError};

use super::lane::Lane;
use super::{Connection, Target, TargetError, position};

/// What became of a snapshot.
pub(super) struct Stored {
    cut: Arc<Cut>,
    is_base: bool,
    was_pinned: bool,
    bytes: Result<u64, StoreSnapshotError>,
}

impl Target {
    /// Asks the database for a cut. Where the application has overtaken snapshots before, a read mark
    /// is taken first.
    pub(super) async fn ask_for_cut(&self, connection: &mut Connection) -> Result<(), TargetError> {
        // A cut that is made while the store is away would be old when it comes back.
        self.confirm_lease(connection).await?;
        if connection.effort == Effort::Pinned && connection.pin.is_none() {
            let path = self.database.clone();
            let taken = tokio::task::spawn_blocking(move || Pin::take(&path)).await;
            // Without one a database that nobody has open is read all the same.
            connection.pin = taken.expect("taking a read mark does not panic").ok();
        }
        self.set_progress(|progress| progress.wants_cut = true);
        Ok(())
    }

    /// Begins to stream the snapshot of the cut that was taken.
    pub(super) async fn begin_snapshot(
        &self,
        connection: &mut Connection,
        is_base: bool,
    ) -> Result<(), TargetError> {
        let cut = connection.cut.take();
        let cut = cut.expect("the machine has seen that there is one");
        if is_base {
            // Later deltas build on this snapshot, and put-if-absent cannot fence it. Announce it in
            // the lease first, so that a successor uploads a newer one.
            let announce = |lease: &mut Lease| lease.announced = lease.announced.max(cut.txid);
            self.amend_lease(connection, announce).await?;
        } else {
            // Its name is no claim that a later writer meets.
            self.confirm_lease(connection).await?;
        }
        let snapshots = connection.files.iter().filter(|file| file.is_snapshot());
        let newest = snapshots.max_by_key(|file| file.max);
        let snapshot = Snapshot {
            cut: Arc::clone(&cut),
            database: self.database.clone(),
            epoch: connection.epoch,
            effort: connection.effort,
            pin: connection.pin.take(),
            expected_bytes: newest.map(|file| file.size),
            directory: self.local.directory().to_owned(),
            account: self.account(),
        };
        let store = Arc::clone(&self.settings.store);
        let budgets = Arc::clone(&self.budgets);
        let was_pinned = snapshot.pin.is_some();
        connection.snapshot = Some(Lane::begin(|_| async move {
            let bytes = snapshot.store(&store, &budgets).await;
            Stored {
                cut,
                is_base,
                was_pinned,
                bytes,
            }
        }));
        Ok(())
    }

    /// Takes over what became of a snapshot.
    pub(super) async fn snapshot_done(
        &self,
        connection: &mut Connection,
        stored: Stored,
    ) -> Result<(), TargetError> {
        let Stored {
            cut,
            is_base,
            was_pinned,
            bytes,
        } = stored;
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(StoreSnapshotError::Snapshot(error)) if error.is_overtaken() => {
                self.overtaken(connection, &error, was_pinned);
                return Ok(());
            }
            Err(StoreSnapshotError::Snapshot(error)) => return Err(error.into()),
            Err(StoreSnapshotError::Store(error)) => return Err(error.into()),
        };
        let name = FileName {
            min: Txid::FIRST,
            max: cut.txid,
        };
        let now_ms = connection.clock.now_ms();
        let file = RemoteFile::new(Level::SNAPSHOT.get(), name, bytes, now_ms);
        self.stored(connection, file);
        if is_base {
            // An announced snapshot that another writer has superseded is not acknowledged.
            self.confirm_lease(connection).await?;
        }
        connection.effort = Effort::default();
        connection.next_snapshot = Instant::now() + self.snapshot_interval;
        connection.next_retention = Instant::now();
        let now = Timestamp::now();
        self.set_report(|report| report.last_snapshot = Some(now));
        if !is_base {
            self.set_progress(|progress| progress.copied = cut.txid);
            return Ok(());
        }
        let checksum = cut.table.checksum();
        self.acknowledge(position(cut.txid, checksum, cut.timestamp_ms));
        connection.has_step = true;
        self.chain.update(|chain| self.begin_with(chain, cut.txid));
        Ok(())
    }

    /// Everything after this snapshot is uploaded next.
    fn begin_with(&self, chain: &mut ChainState, snapshot: Txid) {
        // The captured file of that very TXID is uploaded, too: level 0 must not end before it.
        let has_own_file = chain.captured(snapshot).is_some();
        let progress = &mut chain.targets[self.index];
        progress.copied = snapshot;
        progress.acked = Txid::new(snapshot.get() - u64::from(has_own_file));
        progress.merged = snapshot;
        progress.needs_snapshot = None;
        chain.release_cut();
    }

    /// The application was faster: try harder.
    fn overtaken(&self, connection: &mut Connection, error: &SnapshotError, was_pinned: bool) {
        let name = &self.settings.name;
        let effort = connection.effort;
        tracing::debug!(target_name = %name, ?effort, "{error}: the snapshot begins again");
        if was_pinned {
            // Under a read mark nothing is overwritten: what we know of the database is wrong.
            tracing::error!(
                target_name = %name,
                "{error}, though nothing can overwrite it: the database is read again"
            );
            self.chain.update(|chain| chain.is_in_doubt = true);
        }
        connection.effort = effort.more();
        connection.pin = None;
    }
}
