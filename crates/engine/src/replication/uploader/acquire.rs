//! Takes or confirms the lease of a target, and lists the stored files.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use ltx::{FileName, Txid};
use protocol::config::OnDivergence;
use store::{Body, SharedStore, Store, StoreErrorKind};
use tokio::time::Instant;

use crate::env::files;
use crate::replica::lease::{self, Claim, Lease, LeaseError};
use crate::replica::manifest::{self, RemoteError, RemoteFile};
use crate::replica::restore_plan::plan_restore;
use crate::replication::snapshot::Effort;
use crate::spool::progress::{Lost, TargetPhase, TargetProgress};
use crate::spool::state_dir::{Home, ReplicaRecord};

use super::clock::StoreClock;
use super::fence::fence;
use super::levels::{LevelClock, spread};
use super::retain::UndeletableObjects;
use super::upload::same_object;
use super::{Failures, LeasedReplica, TargetError, Uploader, position};

impl Uploader {
    /// Takes or confirms the lease, lists the stored files, and decides what the target needs.
    pub(super) async fn connect(&mut self) -> Result<LeasedReplica, TargetError> {
        let store = Arc::clone(&self.settings.store);
        let began = Instant::now();
        let (held, lease) = self.hold_lease(&store).await?;
        let continued = matches!(held, LeaseOutcome::Continued);
        let files = match held {
            LeaseOutcome::Continued => manifest::list(&store).await?,
            LeaseOutcome::Taken => fence(&store, &lease, &*self.env.host.clock).await?,
            LeaseOutcome::Vacant { holder, epoch } => {
                // The previous holder reads the lease again before it acknowledges a file. So this
                // list has every file that it acknowledged, and then the replica is its backup.
                let files = manifest::list(&store).await?;
                if !files.is_empty() {
                    return Err(TargetError::Diverged { holder, epoch });
                }
                files
            }
        };
        let clock = StoreClock::read(&store).await?;
        let files = clock.clamp_to_now(files);
        let epoch = lease.epoch;
        let home = self.local.home().ok();
        self.remember(|record| {
            // Our lease is binding from here on.
            record.epoch = epoch;
            record.resumed.clear();
            record.holders = vec![self.holder.clone()];
            record.home = home;
            record.adopt = false;
        })?;
        let stored = manifest::newest_with_room(store.layout(), &files)?;
        let ours = continued && self.has_stored(&store, stored).await?;
        let newest_snapshot = manifest::newest_snapshot(&files);
        // An announced snapshot that is missing may still arrive. So our next upload has to be a
        // newer snapshot.
        let expected = Some(lease.announced).filter(|announced| *announced > newest_snapshot);
        let ours = ours && expected.is_none();
        // No restore would reach the files that follow an unnoticed hole.
        let leads_on = stored == Txid::ZERO || plan_restore(&files, Some(stored)).is_ok();
        if ours && !leads_on {
            tracing::error!(txid = %stored, "files are missing before this TXID: a new snapshot is stored");
        }
        let ours = ours && leads_on;
        let above = stored.max(expected.unwrap_or(Txid::ZERO));
        let compacted = files
            .iter()
            .filter(|file| file.level == 1 || file.is_snapshot())
            .map(|file| file.max)
            .max()
            .unwrap_or(Txid::ZERO);
        let snapshots = files.iter().filter(|file| file.is_snapshot());
        let snapshot_at_ms = snapshots.map(|file| file.modified_ms).max();
        self.set_report(|report| {
            report.epoch = epoch;
            let at = snapshot_at_ms.and_then(|ms| Timestamp::from_millisecond(ms).ok());
            report.last_snapshot = at;
        });
        let newest_ms = newest_time(&store, &files).await?;
        let mut current = None;
        self.progress.update(|progress| {
            progress.epoch = progress.epoch.max(epoch);
            progress.stored_ms = progress.stored_ms.max(newest_ms);
            let continues = ours && progress.continues(stored);
            if continues && progress.txid == stored {
                current = progress
                    .checksum
                    .map(|checksum| (stored, checksum, progress.timestamp_ms));
            }
            // Nothing of this database counts as stored until a snapshot above `above` is.
            let now_ms = self.env.host.clock.steady_ms();
            let oldest_ms = progress.oldest_waiting_ms(self.index);
            let lost = (!continues).then_some(Lost {
                txid: above.next(),
                oldest_ms: oldest_ms.map_or(now_ms, |ms| ms.min(now_ms)),
            });
            let target = TargetProgress {
                acked: stored,
                hinted: Txid::ZERO,
                compacted: compacted.min(stored),
                needs_snapshot: (!continues).then_some(above),
                newest_snapshot,
                wants_cut: false,
                taken_cut: None,
                lost,
                phase: TargetPhase::Connected,
            };
            progress.targets[self.index] = target;
            // An earlier attempt may have asked for a cut.
            progress.release_cut();
        });
        if let Some((txid, checksum, ms)) = current {
            self.set_report(|report| report.position = position(txid, checksum, ms));
        }
        let now = Instant::now();
        let place = store.describe();
        let age = snapshot_at_ms.map_or(Duration::ZERO, |ms| {
            let ms = u64::try_from(clock.now_ms() - ms).unwrap_or(0);
            Duration::from_millis(ms)
        });
        // A restart does not postpone the snapshot.
        let next_snapshot = now + self.snapshot_interval.saturating_sub(age);
        // Hundreds of databases connect at the same moment, also after an outage.
        let spread = spread(&place, 1, self.settings.compaction_interval);
        Ok(LeasedReplica {
            files,
            clock,
            epoch,
            confirmed: began,
            source: lease.source,
            has_step: false,
            next_compaction: now + self.settings.compaction_interval + spread,
            levels: LevelClock::all(&self.settings.higher_levels, &place, now),
            next_retention: now + self.settings.compaction_interval,
            undeletable: UndeletableObjects::default(),
            next_snapshot,
            effort: Effort::default(),
            is_outrun: false,
            overwritten: None,
            pin: None,
            cut: None,
            snapshot: None,
            upkeep: None,
            failures: Failures::default(),
        })
    }

    /// Whether the newest stored file is the one that we captured under its number.
    ///
    /// Equal numbers prove nothing: a volume rolled back to an earlier state takes our own state
    /// with it, and continues with numbers that are already stored. Right after a restore no
    /// captured file exists yet, and the record holds the restored position.
    async fn has_stored(&self, store: &SharedStore, stored: Txid) -> Result<bool, TargetError> {
        let Some(captured) = self.progress.lock().captured(stored) else {
            let restored = self.record().map_or(0, |record| record.restored);
            return Ok(stored > Txid::ZERO && stored.get() == restored);
        };
        let name = FileName {
            min: stored,
            max: stored,
        };
        let body = Body::File {
            path: self.local.captured_path(stored),
            len: captured.file.bytes,
        };
        match same_object(store, &manifest::key(store.layout(), 0, name), &body).await {
            Err(TargetError::Store(error)) if error.kind() == StoreErrorKind::Missing => Ok(false),
            same => same,
        }
    }

    /// Takes the lease, or finds that this very process holds it.
    async fn hold_lease(&self, store: &SharedStore) -> Result<(LeaseOutcome, Lease), TargetError> {
        let record = self.record();
        let mut claim = Claim {
            holder: self.holder.clone(),
            source: files::identify(&self.database).ok(),
        };
        let home = self.local.home().ok();
        let stored = lease::read(store).await?.map(|stored| stored.lease);
        let held = match decide_ownership(stored.as_ref(), record.as_deref(), &claim, home.as_ref())
        {
            Ownership::Held { binding } => {
                let lease = stored.expect("what is held is there");
                if binding {
                    return Ok((LeaseOutcome::Continued, lease));
                }
                lease::prove_conditions(store, &lease).await?;
                return Ok((LeaseOutcome::Taken, lease));
            }
            Ownership::Resumed => LeaseOutcome::Continued,
            Ownership::TakeOver => LeaseOutcome::Taken,
            Ownership::Superseded { by, epoch, ours } => {
                return Err(TargetError::Superseded { by, epoch, ours });
            }
            Ownership::Diverged { holder, epoch } if self.on_divergence == OnDivergence::Block => {
                if !manifest::list(store).await?.is_empty() {
                    return Err(TargetError::Diverged { holder, epoch });
                }
                // The lease must not name our database as its source before it is certain that no
                // file is stored.
                claim.source = None;
                LeaseOutcome::Vacant { holder, epoch }
            }
            Ownership::Diverged { .. } => LeaseOutcome::Taken,
        };
        let above = self.progress.lock().epoch;
        let epoch = stored.as_ref().map_or(0, |lease| lease.epoch).max(above) + 1;
        // Record the claim first: if a crash loses the answer, the next process knows that the
        // lease is ours.
        self.remember(|record| {
            if !record.holders.contains(&claim.holder) {
                record.holders.push(claim.holder.clone());
            }
            match held {
                LeaseOutcome::Continued => record.resumed.push(epoch),
                LeaseOutcome::Taken | LeaseOutcome::Vacant { .. } => record.resumed.clear(),
            }
        })?;
        let permit = |now: Option<&Lease>| {
            now.map(|lease| (lease.epoch, &lease.holder))
                == stored.as_ref().map(|lease| (lease.epoch, &lease.holder))
        };
        let taken = lease::take(store, &claim, above, Timestamp::now(), permit).await?;
        let lease = taken.ok_or(TargetError::Lease(LeaseError::Contended))?;
        lease::prove_conditions(store, &lease).await?;
        tracing::info!(epoch = lease.epoch, "took the lease");
        Ok((held, lease))
    }

    fn record(&self) -> Option<Box<ReplicaRecord>> {
        let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let location = self.settings.store.describe();
        records
            .get(&self.settings.name)
            .filter(|record| record.location == location)
            .cloned()
    }

    fn remember(&self, change: impl FnOnce(&mut ReplicaRecord)) -> Result<(), TargetError> {
        let known = self.record();
        let mut record = known.clone().unwrap_or_else(|| {
            Box::new(ReplicaRecord {
                location: self.settings.store.describe(),
                ..ReplicaRecord::default()
            })
        });
        change(&mut record);
        if known.as_ref() == Some(&record) {
            return Ok(());
        }
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        records.insert(self.settings.name.clone(), record);
        Ok(self.local.write_replicas(&records)?)
    }
}

/// How this process came to hold the lease.
enum LeaseOutcome {
    /// From ourselves: the stored history continues.
    Continued,
    /// From a holder that may still write: fence before any other step.
    Taken,
    /// From a holder that backs up another database, with no file stored yet.
    Vacant { holder: String, epoch: u64 },
}

/// The right of a process to a replica.
#[derive(Debug, PartialEq, Eq)]
enum Ownership {
    /// The process holds the lease. Not binding when it failed before the fence was stored.
    Held { binding: bool },
    /// The lease is of an earlier process with this very state, which has certainly ended.
    Resumed,
    /// The lease is free, or of a backup of this very database, or of a backup restored here. The
    /// previous holder may still write.
    TakeOver,
    /// Another process took the lease from us. This holds under every policy: two processes that
    /// take a replica from each other would never end.
    Superseded { by: String, epoch: u64, ours: u64 },
    /// The replica is the backup of another database, or our database is a copy.
    Diverged { holder: String, epoch: u64 },
}

/// Decides the right of this process to a replica, from the stored lease, our record of it, our
/// claim, and the location of our state.
fn decide_ownership(
    lease: Option<&Lease>,
    record: Option<&ReplicaRecord>,
    claim: &Claim,
    home: Option<&Home>,
) -> Ownership {
    let Some(lease) = lease else {
        return Ownership::TakeOver;
    };
    let same_database = match (&lease.source, &claim.source) {
        (Some(theirs), Some(ours)) => theirs.is_same_file(ours),
        _ => false,
    };
    let diverged = || Ownership::Diverged {
        holder: lease.holder.clone(),
        epoch: lease.epoch,
    };
    let Some(record) = record else {
        return if same_database {
            Ownership::TakeOver
        } else {
            diverged()
        };
    };
    let binding = record.epoch == lease.epoch || record.resumed.contains(&lease.epoch);
    // No process with this state ever wrote to this replica, and this process has not tried yet:
    // treat the state as if there were none.
    let blank =
        record.epoch == 0 && record.home.is_none() && !record.holders.contains(&claim.holder);
    let known = record.holders.contains(&lease.holder);
    let same_state = match (&record.home, home) {
        (Some(then), Some(now)) => then.state.is_same_file(&now.state),
        _ => false,
    };
    if lease.holder == claim.holder {
        Ownership::Held { binding }
    } else if record.adopt {
        Ownership::TakeOver
    } else if known && binding && home.is_some() && record.home.as_ref() == home {
        // The lock on our state was free, so the process that held it has ended.
        Ownership::Resumed
    } else if known && (same_database || same_state) {
        // The machine restarted, the volume moved or was cloned, or the lease was taken and never
        // became binding. A restore takes the lease before it has a file to name.
        Ownership::TakeOver
    } else if same_database && (same_state || blank) {
        // The volume was rolled back, or is a clone of one: the process that starts last continues.
        // A rollback to before the first upload counts as lost state.
        Ownership::TakeOver
    } else if known {
        diverged()
    } else {
        Ownership::Superseded {
            by: lease.holder.clone(),
            epoch: lease.epoch,
            ours: record.epoch,
        }
    }
}

/// Time of the newest stored file, in Unix milliseconds; zero without files or when its header is
/// damaged.
async fn newest_time(
    store: &SharedStore,
    files: &BTreeSet<RemoteFile>,
) -> Result<i64, TargetError> {
    let newest = files
        .iter()
        .max_by_key(|file| (file.max, std::cmp::Reverse(file.level)));
    let Some(newest) = newest else { return Ok(0) };
    match manifest::read_header(store, newest).await {
        Err(RemoteError::Store(error)) => Err(error.into()),
        header => Ok(header.map_or(0, |header| header.timestamp_ms)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::files::SourceId;

    fn file(inode: u64) -> SourceId {
        SourceId {
            filesystem: "f".into(),
            inode,
            born: "b".into(),
        }
    }

    fn home(boot: &str, state: u64) -> Home {
        Home {
            boot: boot.into(),
            device: 1,
            state: file(state),
        }
    }

    fn lease(holder: &str, database: u64) -> Option<Lease> {
        Some(Lease {
            epoch: 5,
            holder: holder.into(),
            acquired: Timestamp::UNIX_EPOCH,
            source: Some(file(database)),
            announced: Txid::ZERO,
        })
    }

    fn record(epoch: u64, holders: &[&str], home: Option<Home>) -> Option<ReplicaRecord> {
        Some(ReplicaRecord {
            epoch,
            holders: holders.iter().map(|&holder| holder.to_owned()).collect(),
            home,
            ..ReplicaRecord::default()
        })
    }

    #[test]
    fn who_may_write_follows_from_the_lease_the_record_and_the_files() {
        let superseded = || Ownership::Superseded {
            by: "other".into(),
            epoch: 5,
            ours: 5,
        };
        let diverged = |holder: &str| Ownership::Diverged {
            holder: holder.into(),
            epoch: 5,
        };
        let before = |home| record(5, &["before"], Some(home));
        let here = || home("boot", 2);
        let resuming = Some(ReplicaRecord {
            resumed: vec![5],
            ..record(4, &["x", "before"], Some(here())).unwrap()
        });
        let resuming_again = Some(ReplicaRecord {
            resumed: vec![5, 6],
            ..record(4, &["x", "before", "ended early"], Some(here())).unwrap()
        });
        let adopted = ReplicaRecord {
            adopt: true,
            ..ReplicaRecord::default()
        };
        for (what, lease, record, expected) in [
            ("nobody's", None, None, Ownership::TakeOver),
            (
                "nobody's any more",
                None,
                before(here()),
                Ownership::TakeOver,
            ),
            (
                "ours",
                lease("us", 1),
                record(5, &["us"], Some(here())),
                Ownership::Held { binding: true },
            ),
            (
                "ours, no fence yet",
                lease("us", 1),
                record(4, &["x", "us"], Some(here())),
                Ownership::Held { binding: false },
            ),
            (
                "restart",
                lease("before", 1),
                before(here()),
                Ownership::Resumed,
            ),
            (
                "database exchanged",
                lease("before", 7),
                before(here()),
                Ownership::Resumed,
            ),
            (
                "restart after a lost answer",
                lease("before", 1),
                resuming,
                Ownership::Resumed,
            ),
            (
                "after a lost answer a start that never got to take it",
                lease("before", 1),
                resuming_again,
                Ownership::Resumed,
            ),
            (
                "taken before, no fence yet",
                lease("before", 1),
                record(4, &["x", "before"], Some(here())),
                Ownership::TakeOver,
            ),
            (
                "machine started anew",
                lease("before", 7),
                before(home("earlier", 2)),
                Ownership::TakeOver,
            ),
            (
                "state copied or cloned",
                lease("before", 1),
                before(home("boot", 7)),
                Ownership::TakeOver,
            ),
            (
                "both copied",
                lease("before", 7),
                before(home("boot", 8)),
                diverged("before"),
            ),
            (
                "taken from us",
                lease("other", 7),
                before(here()),
                superseded(),
            ),
            (
                "rolled back, or taken by a clone",
                lease("other", 1),
                before(home("earlier", 2)),
                Ownership::TakeOver,
            ),
            (
                "taken by who lost the state",
                lease("other", 1),
                before(home("boot", 7)),
                superseded(),
            ),
            (
                "restored",
                lease("other", 7),
                Some(adopted),
                Ownership::TakeOver,
            ),
            ("state lost", lease("other", 1), None, Ownership::TakeOver),
            (
                "rolled back to before the first start had stored anything",
                lease("other", 1),
                record(0, &["x"], None),
                Ownership::TakeOver,
            ),
            (
                "the same, and another database",
                lease("other", 7),
                record(0, &["x"], None),
                Ownership::Superseded {
                    by: "other".into(),
                    epoch: 5,
                    ours: 0,
                },
            ),
            (
                "taken from us before we had stored anything",
                lease("other", 1),
                record(0, &["us"], None),
                Ownership::Superseded {
                    by: "other".into(),
                    epoch: 5,
                    ours: 0,
                },
            ),
            (
                "another database",
                lease("other", 7),
                None,
                diverged("other"),
            ),
        ] {
            let us = Claim {
                holder: "us".into(),
                source: Some(file(1)),
            };
            let right = decide_ownership(lease.as_ref(), record.as_ref(), &us, Some(&here()));
            assert_eq!(right, expected, "{what}");
        }
    }
}
