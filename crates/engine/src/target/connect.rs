//! Taking or confirming the lease, and learning what is stored.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};

use jiff::Timestamp;
use ltx::{FileName, Txid};
use protocol::config::OnDivergence;
use store::{Body, SharedStore, Store, StoreErrorKind};
use tokio::time::Instant;

use crate::chain::TargetProgress;
use crate::lease::{self, Claim, Lease, LeaseError, SourceId};
use crate::local::ReplicaRecord;
use crate::remote::{self, RemoteError, RemoteFile};

use super::fence::fence;
use super::upload::same_object;
use super::{Connection, Target, TargetError, local_error, position};

impl Target {
    /// Takes or confirms the lease, learns what is stored, and decides what the target needs.
    pub(super) async fn connect(&mut self) -> Result<Connection, TargetError> {
        let store = Arc::clone(&self.settings.store);
        let (held, lease) = self.hold_lease(&store).await?;
        let files = match held {
            Held::Continued => remote::list(&store).await?,
            Held::Taken => fence(&store, lease.epoch).await?,
        };
        let epoch = lease.epoch;
        self.remember(|record| {
            *record = ReplicaRecord {
                location: record.location.clone(),
                epoch,
                holders: vec![self.holder.clone()],
                adopt: false,
            };
        })?;
        let stored = remote::newest(&files);
        let ours = matches!(held, Held::Continued) && self.has_stored(&store, stored).await?;
        let copied = remote::newest_copy(&files);
        // A full copy that was announced and is not there may still come: what we store next has
        // to be a full copy that is newer.
        let expected = Some(lease.announced).filter(|announced| *announced > copied);
        let ours = ours && expected.is_none();
        let above = stored.max(expected.unwrap_or(Txid::ZERO));
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
        let newest_ms = newest_time(&store, &files).await?;
        let mut current = None;
        self.chain.update(|chain| {
            chain.epoch = chain.epoch.max(epoch);
            chain.stored_ms = chain.stored_ms.max(newest_ms);
            let continues = ours && chain.continues(stored);
            if continues && chain.txid == stored {
                current = chain
                    .checksum
                    .map(|checksum| (stored, checksum, chain.timestamp_ms));
            }
            let progress = TargetProgress {
                acked: stored,
                merged: merged.min(stored),
                needs_snapshot: (!continues).then_some(above),
                copied,
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
            source: lease.source,
            next_merge: now + self.settings.merge_interval,
            next_retention: now + self.settings.merge_interval,
        })
    }

    /// Whether the newest stored file is the one that we captured under its number.
    ///
    /// Equal numbers prove nothing: a volume rolled back to an earlier state takes our own state
    /// with it, and goes on with numbers that are stored already. Right after a restore there is
    /// no captured file yet, and the restored position is ours by the lease taken for it.
    async fn has_stored(&self, store: &SharedStore, stored: Txid) -> Result<bool, TargetError> {
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

    /// Takes the lease, or finds that this very process has it.
    async fn hold_lease(&self, store: &SharedStore) -> Result<(Held, Lease), TargetError> {
        let record = self.record();
        let claim = Claim {
            holder: self.holder.clone(),
            source: lease::identify(&self.database).ok(),
            state: self.local.identify().ok(),
        };
        let stored = lease::read(store).await?.map(|stored| stored.lease);
        let held = match right(stored.as_ref(), record.as_ref(), &claim) {
            Right::Held => {
                let lease = stored.expect("what is held is there");
                return Ok((Held::Continued, lease));
            }
            Right::Resumed => Held::Continued,
            Right::TakeOver => Held::Taken,
            Right::Superseded { by, epoch, ours } => {
                return Err(TargetError::Superseded { by, epoch, ours });
            }
            Right::Diverged { holder, epoch } if self.on_divergence == OnDivergence::Block => {
                return Err(TargetError::Diverged { holder, epoch });
            }
            Right::Diverged { .. } => Held::Taken,
        };
        // Written down first: if the answer is lost with us, the next process knows it for ours.
        self.remember(|record| {
            if !record.holders.contains(&claim.holder) {
                record.holders.push(claim.holder.clone());
            }
        })?;
        let above = self.chain.lock().epoch;
        let permit = |now: Option<&Lease>| {
            now.map(|lease| (lease.epoch, &lease.holder))
                == stored.as_ref().map(|lease| (lease.epoch, &lease.holder))
        };
        let taken = lease::take(store, &claim, above, Timestamp::now(), permit).await?;
        let lease = taken.ok_or(TargetError::Lease(LeaseError::Contended))?;
        lease::prove_conditions(store, &lease).await?;
        tracing::info!(target_name = %self.settings.name, epoch = lease.epoch, "took the lease");
        Ok((held, lease))
    }

    fn record(&self) -> Option<ReplicaRecord> {
        let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let location = self.settings.store.describe();
        records
            .get(&self.settings.name)
            .filter(|record| record.location == location)
            .cloned()
    }

    fn remember(&self, change: impl FnOnce(&mut ReplicaRecord)) -> Result<(), TargetError> {
        let known = self.record();
        let mut record = known.clone().unwrap_or_else(|| ReplicaRecord {
            location: self.settings.store.describe(),
            ..ReplicaRecord::default()
        });
        change(&mut record);
        if known.as_ref() == Some(&record) {
            return Ok(());
        }
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        records.insert(self.settings.name.clone(), record);
        self.local.write_replicas(&records).map_err(local_error)
    }
}

/// How the lease came to be ours.
enum Held {
    /// From ourselves: what we stored before goes on.
    Continued,
    /// From somebody who may still write: fence before anything else.
    Taken,
}

/// What a process may do with a replica.
#[derive(Debug, PartialEq, Eq)]
enum Right {
    /// It holds the lease.
    Held,
    /// The lease is of an earlier process with the same local state and database.
    Resumed,
    /// It is free, or the backup of this very database, or restored here.
    TakeOver,
    /// Another process took it from us. Whatever the policy: two that take a replica from each
    /// other would never end.
    Superseded { by: String, epoch: u64, ours: u64 },
    /// It is the backup of another database, or we are a copy.
    Diverged { holder: String, epoch: u64 },
}

/// Decides who we are to a replica, from the lease in it, our record of it, and what we would
/// write into the lease.
fn right(lease: Option<&Lease>, record: Option<&ReplicaRecord>, claim: &Claim) -> Right {
    let Some(lease) = lease else {
        return Right::TakeOver;
    };
    let same = |theirs: &Option<SourceId>, ours: &Option<SourceId>| match (theirs, ours) {
        (Some(theirs), Some(ours)) => theirs.is_same_file(ours),
        _ => false,
    };
    let same_database = same(&lease.source, &claim.source);
    let same_state = same(&lease.state, &claim.state);
    match record {
        Some(record) if lease.holder == claim.holder => {
            if record.epoch == lease.epoch {
                Right::Held
            } else {
                // Taken, and then something failed before we could make it binding.
                Right::TakeOver
            }
        }
        Some(record) if record.adopt => Right::TakeOver,
        Some(record) if record.holders.contains(&lease.holder) => {
            // A restore takes it before there is a file to name.
            let unnamed = lease.source.is_none() && lease.state.is_none();
            if unnamed || same_database || same_state {
                Right::Resumed
            } else {
                Right::Diverged {
                    holder: lease.holder.clone(),
                    epoch: lease.epoch,
                }
            }
        }
        // A volume that was rolled back, or a clone of it: whoever starts last goes on.
        Some(_) if same_database && same_state => Right::TakeOver,
        Some(record) => Right::Superseded {
            by: lease.holder.clone(),
            epoch: lease.epoch,
            ours: record.epoch,
        },
        None if same_database => Right::TakeOver,
        None => Right::Diverged {
            holder: lease.holder.clone(),
            epoch: lease.epoch,
        },
    }
}

/// Time of the newest stored file, in Unix milliseconds; zero when there is none that can be read.
async fn newest_time(
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

#[cfg(test)]
mod tests {
    use super::*;

    fn file(inode: u64) -> Option<SourceId> {
        Some(SourceId {
            filesystem: "f".into(),
            inode,
            born: "b".into(),
        })
    }

    fn claim(database: u64, state: u64) -> Claim {
        Claim {
            holder: "us".into(),
            source: file(database),
            state: file(state),
        }
    }

    fn lease(holder: &str, database: u64, state: u64) -> Lease {
        Lease {
            epoch: 5,
            holder: holder.into(),
            acquired: Timestamp::UNIX_EPOCH,
            source: file(database),
            state: file(state),
            announced: Txid::ZERO,
        }
    }

    fn record(epoch: u64, holders: &[&str], adopt: bool) -> ReplicaRecord {
        ReplicaRecord {
            location: String::new(),
            epoch,
            holders: holders.iter().map(|&holder| holder.to_owned()).collect(),
            adopt,
        }
    }

    #[test]
    fn who_may_write_follows_from_the_lease_the_record_and_the_files() {
        let superseded = |by: &str| Right::Superseded {
            by: by.into(),
            epoch: 5,
            ours: 4,
        };
        let diverged = |holder: &str| Right::Diverged {
            holder: holder.into(),
            epoch: 5,
        };
        let before = || Some(record(4, &["before", "failed"], false));
        let restored = Lease {
            source: None,
            state: None,
            ..lease("before", 0, 0)
        };
        for (what, lease, record, expected) in [
            ("nobody's", None, None, Right::TakeOver),
            ("nobody's any more", None, before(), Right::TakeOver),
            (
                "ours",
                Some(lease("us", 1, 2)),
                Some(record(5, &["us"], false)),
                Right::Held,
            ),
            (
                "ours, not binding yet",
                Some(lease("us", 1, 2)),
                Some(record(4, &["x", "us"], false)),
                Right::TakeOver,
            ),
            (
                "restart",
                Some(lease("before", 1, 2)),
                before(),
                Right::Resumed,
            ),
            (
                "restart after a lost answer",
                Some(lease("failed", 1, 2)),
                before(),
                Right::Resumed,
            ),
            (
                "database exchanged",
                Some(lease("before", 7, 2)),
                before(),
                Right::Resumed,
            ),
            (
                "state moved",
                Some(lease("before", 1, 7)),
                before(),
                Right::Resumed,
            ),
            ("restored here", Some(restored), before(), Right::Resumed),
            (
                "both copied",
                Some(lease("before", 7, 8)),
                before(),
                diverged("before"),
            ),
            (
                "taken from us",
                Some(lease("other", 7, 8)),
                before(),
                superseded("other"),
            ),
            (
                "taken by a twin, or rolled back",
                Some(lease("other", 1, 2)),
                before(),
                Right::TakeOver,
            ),
            (
                "taken by who lost the state",
                Some(lease("other", 1, 7)),
                before(),
                superseded("other"),
            ),
            (
                "restored from another target",
                Some(lease("other", 7, 8)),
                Some(record(0, &[], true)),
                Right::TakeOver,
            ),
            (
                "state lost",
                Some(lease("other", 1, 7)),
                None,
                Right::TakeOver,
            ),
            (
                "another database",
                Some(lease("other", 7, 7)),
                None,
                diverged("other"),
            ),
        ] {
            assert_eq!(
                right(lease.as_ref(), record.as_ref(), &claim(1, 2)),
                expected,
                "{what}"
            );
        }
    }
}
