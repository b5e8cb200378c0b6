//! Taking or confirming the lease, and learning what is stored.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};

use jiff::Timestamp;
use ltx::{FileName, Txid};
use protocol::config::OnDivergence;
use store::{Body, SharedStore, Store, StoreErrorKind};
use tokio::time::Instant;

use crate::chain::TargetProgress;
use crate::lease::{self, Lease, LeaseError};
use crate::local::ReplicaRecord;
use crate::remote::{self, RemoteError, RemoteFile};

use super::fence::fence;
use super::upload::same_object;
use super::{Connection, Target, TargetError, local_error, position};

impl Target {
    /// Takes or confirms the lease, learns what is stored, and decides what the target needs.
    pub(super) async fn connect(&mut self) -> Result<Connection, TargetError> {
        let store = Arc::clone(&self.settings.store);
        let held = self.hold_lease(&store).await?;
        let (epoch, files) = match held {
            Held::Continued(epoch) => (epoch, remote::list(&store).await?),
            Held::Taken(epoch) => (epoch, fence(&store, epoch).await?),
        };
        self.remember(epoch)?;
        let stored = remote::newest(&files);
        let ours = matches!(held, Held::Continued(_)) && self.has_stored(&store, stored).await?;
        let merged = files
            .iter()
            .filter(|file| file.level == 1 || file.is_snapshot())
            .map(|file| file.max)
            .max()
            .unwrap_or(Txid::ZERO);
        self.set_report(|report| {
            report.epoch = epoch;
            report.last_snapshot = files
                .iter()
                .filter(|file| file.is_snapshot())
                .map(|file| file.modified_ms)
                .max()
                .and_then(|ms| Timestamp::from_millisecond(ms).ok());
        });
        let copied = files
            .iter()
            .filter(|file| file.is_snapshot())
            .map(|file| file.max)
            .max();
        let newest_ms = newest_time(&store, &files).await?;
        let mut current = None;
        self.chain.update(|chain| {
            chain.epoch = chain.epoch.max(epoch);
            // Another machine's clock may have been ahead of ours; times never go back.
            chain.timestamp_ms = chain.timestamp_ms.max(newest_ms);
            let continues = ours && chain.continues(stored);
            if continues && chain.txid == stored {
                current = chain
                    .checksum
                    .map(|checksum| (stored, checksum, chain.timestamp_ms));
            }
            let progress = TargetProgress {
                acked: stored,
                merged: merged.min(stored),
                needs_snapshot: (!continues).then_some(stored),
                copied: copied.unwrap_or(Txid::ZERO),
                connected: true,
            };
            chain.targets.insert(self.index, progress);
        });
        if let Some((txid, checksum, ms)) = current {
            self.set_report(|report| report.position = position(txid, checksum, ms));
        }
        let now = Instant::now();
        Ok(Connection {
            files,
            epoch,
            next_merge: now + self.settings.merge_interval,
            next_retention: now + self.settings.merge_interval,
        })
    }

    /// Whether the newest stored file is the one that we captured under its number.
    ///
    /// Equal numbers prove nothing: a volume rolled back to an earlier state takes our own state
    /// with it, and goes on with numbers that are stored already. Right after a restore there is
    /// no captured file yet, and the restored position is ours by the lease taken for it.
    pub(super) async fn has_stored(
        &self,
        store: &SharedStore,
        stored: Txid,
    ) -> Result<bool, TargetError> {
        let (captured, txid, first) = {
            let chain = self.chain.lock();
            let first = chain.files.front().map(|captured| captured.file.txid);
            (chain.captured(stored), chain.txid, first)
        };
        let Some(captured) = captured else {
            let restored = stored > Txid::ZERO
                && first.map_or(txid, |first| Txid::new(first.get() - 1)) == stored;
            return Ok(restored);
        };
        let name = FileName {
            min: stored,
            max: stored,
        };
        let body = Body::File {
            path: self.local.captured_path(stored),
            len: captured.file.bytes,
        };
        match same_object(store, &remote::key(store.layout(), 0, name), &body).await {
            Err(TargetError::Store(error)) if error.kind() == StoreErrorKind::Missing => Ok(false),
            same => same,
        }
    }

    pub(super) async fn hold_lease(&self, store: &SharedStore) -> Result<Held, TargetError> {
        let record = self.record();
        let stored = lease::read(store).await?;
        let source = lease::identify(&self.database).ok();
        if let (Some(stored), Some(record)) = (&stored, &record)
            && stored.lease.epoch == record.epoch
        {
            // A restore took it before there was a file to name.
            if source.is_some() && stored.lease.source != source {
                lease::amend(store, stored, source).await?;
            }
            return Ok(Held::Continued(record.epoch));
        }
        let stored = stored.map(|stored| stored.lease);
        let adopted = match (&stored, &record) {
            (None, _) => true,
            (Some(_), Some(record)) if record.adopt => true,
            // Ours, from an attempt whose answer was lost.
            (Some(lease), Some(_))
                if lease.holder == self.holder && source.is_some() && lease.source == source =>
            {
                true
            }
            // Whoever was superseded stays so, whatever the policy: two that take the replica from
            // each other would never end.
            (Some(lease), Some(record)) => {
                return Err(TargetError::Superseded {
                    by: lease.holder.clone(),
                    epoch: lease.epoch,
                    ours: record.epoch,
                });
            }
            (Some(lease), None) => lease.source.is_some() && lease.source == source,
        };
        if !adopted && self.on_divergence == OnDivergence::Block {
            let lease = stored.expect("a replica without a lease is adopted");
            return Err(TargetError::Diverged {
                holder: lease.holder,
                epoch: lease.epoch,
            });
        }
        let above = self.chain.lock().epoch;
        let seen = stored.map(|lease| lease.epoch);
        let permit = |held: Option<&Lease>| held.map(|lease| lease.epoch) == seen;
        let now = Timestamp::now();
        match lease::take(store, &self.holder, source, above, now, permit).await? {
            Some(lease) => {
                tracing::info!(target_name = %self.settings.name, epoch = lease.epoch, "took the lease");
                Ok(Held::Taken(lease.epoch))
            }
            None => Err(TargetError::Lease(LeaseError::Contended)),
        }
    }

    pub(super) fn record(&self) -> Option<ReplicaRecord> {
        let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let location = self.settings.store.describe();
        records
            .get(&self.settings.name)
            .filter(|record| record.location == location)
            .cloned()
    }

    pub(super) fn remember(&self, epoch: u64) -> Result<(), TargetError> {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let location = self.settings.store.describe();
        let record = ReplicaRecord {
            location,
            epoch,
            adopt: false,
        };
        if records.insert(self.settings.name.clone(), record.clone()) != Some(record) {
            self.local.write_replicas(&records).map_err(local_error)?;
        }
        Ok(())
    }
}

/// Whether the lease was ours already, and our epoch.
pub(super) enum Held {
    Continued(u64),
    Taken(u64),
}
/// Time of the newest stored file, in Unix milliseconds; zero when there is none that can be read.
pub(super) async fn newest_time(
    store: &SharedStore,
    files: &BTreeSet<RemoteFile>,
) -> Result<i64, TargetError> {
    let newest = files
        .iter()
        .max_by_key(|file| (file.max, std::cmp::Reverse(file.level)));
    let Some(newest) = newest else { return Ok(0) };
    match remote::read_header(store, newest).await {
        Err(RemoteError::Store(error)) => Err(error.into()),
        header => Ok(header.map_or(0, |header| header.timestamp_ms)),
    }
}
