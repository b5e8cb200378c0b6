//! Startup, before the application: restores a missing database, or proves that no backup exists.
//!
//! | local database | stored backup | what happens |
//! | --- | --- | --- |
//! | present | any, even unreachable | nothing: the application starts |
//! | missing | exists | take the lease, fence, restore, prove, publish |
//! | missing | of Litestream 0.3 | restore, prove, publish; no fence can stop its writer |
//! | missing | every target answers that it has none | start empty, if the policy allows |
//! | missing | one could not be asked, and no other has a backup | an error: never start empty |

use std::path::Path;

use jiff::Timestamp;
use ltx::Txid;
use protocol::config::OnMissing;
use store::{SharedStore, Store};

use crate::env::causes::describe;
use crate::env::clock::Clock;
use crate::env::files;
use crate::env::host::Host;
use crate::replica::lease::{self, Claim};
use crate::replica::manifest;
use crate::replication::DatabaseSettings;
use crate::replication::uploader::{TargetError, TargetSettings, fence};
use crate::restore::litestream03;
use crate::restore::{Check, Point, RestoreError, RestoreOptions, Restored, assemble};
use crate::spool::state_dir::{LocalError, LocalState, ReplicaRecord, Replicas};

/// How a database became ready.
#[derive(Debug)]
pub enum Ready {
    /// The database is present.
    Present,
    /// The database was restored from this target.
    Restored {
        /// The target.
        target: String,
        /// The result of the restore.
        restored: Restored,
    },
    /// No backup exists, and the policy is to start empty.
    Empty,
}

/// Why the application must not start yet.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartupError {
    /// No backup exists, and the policy requires one.
    #[error("{database}: no target has a backup, and startup.onMissing is RequireBackup")]
    NoBackup {
        /// The database.
        database: String,
    },
    /// A target could not be asked, so it is unknown whether a backup exists.
    #[error("{database}: target {target} could not be asked for a backup: {source}")]
    CouldNotLook {
        /// The database.
        database: String,
        /// The target.
        target: String,
        /// Its error.
        source: Box<TargetError>,
    },
    /// A backup exists, but could not be restored.
    #[error("{database}: restore from target {target}: {source}")]
    Restore {
        /// The database.
        database: String,
        /// The target.
        target: String,
        /// The error.
        source: Box<RestoreError>,
    },
    /// Our local state failed.
    #[error(transparent)]
    Local(#[from] LocalError),
}

/// Makes one database ready. Safe to repeat and to stop at any point.
///
/// `check` sets the depth of SQLite's check of a restored database, and whether a complaint keeps
/// the application from starting.
///
/// # Errors
///
/// See [`StartupError`]; nothing at the path of the database has changed then.
pub async fn make_ready(
    settings: &DatabaseSettings,
    host: &Host,
    on_missing: OnMissing,
    check: impl Into<Check>,
    progress: &(dyn Fn(u64, u64) + Send + Sync),
) -> Result<Ready, StartupError> {
    let integrity = check.into();
    match std::fs::metadata(&settings.path) {
        // A path that cannot be read is not an empty one.
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            let path = settings.path.clone();
            return Err(LocalError::Io {
                action: "look at",
                path,
                source,
            }
            .into());
        }
        _ if is_present(&settings.path) => return Ok(Ready::Present),
        _ => {}
    }
    if on_missing == OnMissing::StartEmpty {
        return Ok(Ready::Empty);
    }
    let database = settings.path.display().to_string();
    let local = LocalState::open(&settings.state, &host.disk)?;
    let mut failure = None;
    for target in &settings.targets {
        let held = match take_over(&target.store, &settings.holder, &*host.clock).await {
            Ok(Stored::Ours(held)) => Some(held),
            Ok(Stored::Generations) => None,
            Ok(Stored::Nothing) => continue,
            Err(source) => {
                let (database, target) = (database.clone(), target.name.clone());
                failure.get_or_insert(StartupError::CouldNotLook {
                    database,
                    target,
                    source: Box::new(source),
                });
                continue;
            }
        };
        let options = RestoreOptions {
            point: Point::Latest,
            output: settings.path.clone(),
            force: false,
            integrity,
            parallelism: 8,
        };
        let restored = match assemble(&target.store, &options, progress).await {
            Ok((assembly, restored)) => {
                // A history that continues a generation begins with a snapshot, as for any other
                // database.
                let held = held.filter(|_| restored.generation.is_none());
                let ours = held.map(|held| (target.name.as_str(), held, restored.txid));
                let records = records(settings, &local, ours);
                // Write the state before publishing: a crash in between repeats the restore. In the
                // other order the backup would seem to belong to another database.
                local.seed(restored.base(), &records)?;
                match assembly
                    .publish(&options.output, options.force, &host.disk)
                    .await
                {
                    Ok(()) => {
                        name_source(target, settings).await;
                        Ok(restored)
                    }
                    Err(source) => {
                        // The file at the destination is not the restored one.
                        local.unseed()?;
                        Err(source)
                    }
                }
            }
            Err(source) => Err(source),
        };
        match restored {
            Ok(restored) => {
                return Ok(Ready::Restored {
                    target: target.name.clone(),
                    restored,
                });
            }
            Err(source) => {
                let error = describe(&source);
                tracing::warn!(%database, replica = target.name, %error, "not restored from this target");
                let (database, target) = (database.clone(), target.name.clone());
                failure.get_or_insert(StartupError::Restore {
                    database,
                    target,
                    source: Box::new(source),
                });
            }
        }
    }
    match failure {
        Some(failure) => Err(failure),
        None if on_missing == OnMissing::RequireBackup => Err(StartupError::NoBackup { database }),
        None => Ok(Ready::Empty),
    }
}

/// Restores a database to its own path, on a person's request. The replica is left to its writer;
/// when replication starts here, it takes the replica over.
///
/// # Errors
///
/// See [`RestoreError`]; nothing at the path of the database has changed then.
pub async fn restore_in_place(
    settings: &DatabaseSettings,
    store: &SharedStore,
    options: &RestoreOptions,
    progress: &(dyn Fn(u64, u64) + Send + Sync),
) -> Result<Restored, RestoreError> {
    let host = Host::default();
    let failed = |error| match error {
        LocalError::InUse { directory: path } => RestoreError::InUse { path },
        LocalError::Io { path, source, .. } => RestoreError::Io { path, source },
    };
    let local = LocalState::open(&settings.state, &host.disk).map_err(failed)?;
    let (assembly, restored) = assemble(store, options, progress).await?;
    assembly
        .publish(&options.output, options.force, &host.disk)
        .await?;
    // Write the state after publishing: an earlier error leaves the state of the old database.
    // After a crash in between, the restored database seems to be another one, and a person
    // decides.
    let records = records(settings, &local, None);
    let seeded = local.seed(restored.base(), &records);
    seeded.map_err(failed)?;
    Ok(restored)
}

/// Names the restored file in our lease, so that it is recognised without our state as well. This
/// is only a help: the next writer names it otherwise.
async fn name_source(target: &TargetSettings, settings: &DatabaseSettings) {
    let source = files::identify(&settings.path).ok();
    let name = |lease: &mut lease::Lease| lease.source.clone_from(&source);
    if let Err(error) = lease::amend(&target.store, &settings.holder, name).await {
        let error = describe(&error);
        tracing::warn!(replica = target.name, %error, "the lease does not name the restored file");
    }
}

/// True when an application would find data here. An empty file does not count.
pub fn is_present(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| !meta.is_file() || meta.len() > 0)
}

/// The lease that a restore holds on a replica.
#[derive(Clone, Copy)]
struct Hold {
    epoch: u64,
    /// Whether an announced snapshot is missing: it may still arrive.
    copy_expected: bool,
}

/// The content of a target.
enum Stored {
    Nothing,
    /// Only files of Litestream 0.3.
    Generations,
    /// Our files, with the lease held.
    Ours(Hold),
}

/// Takes the lease from its previous holder and fences it, so that no file is added during the
/// restore. Only a replica with files of ours can be held.
async fn take_over(
    store: &SharedStore,
    holder: &str,
    clock: &dyn Clock,
) -> Result<Stored, TargetError> {
    if manifest::list(store).await?.is_empty() {
        let generations = litestream03::list(store).await?;
        return Ok(match generations.is_empty() {
            true => Stored::Nothing,
            false => Stored::Generations,
        });
    }
    let claim = Claim {
        holder: holder.to_owned(),
        source: None,
    };
    let taken = lease::take(store, &claim, 0, Timestamp::now(), |_| true).await?;
    let lease = taken.ok_or(TargetError::Lease(lease::LeaseError::Contended))?;
    let files = fence(store, &lease, clock).await?;
    Ok(Stored::Ours(Hold {
        epoch: lease.epoch,
        copy_expected: lease.announced > manifest::newest_snapshot(&files),
    }))
}

/// The records for the sidecar. The target that we hold is ours; the others are to be taken over,
/// with a snapshot. So is the held one, when a snapshot that is still in flight may take the number
/// of our next file.
fn records(
    settings: &DatabaseSettings,
    local: &LocalState,
    held: Option<(&str, Hold, Txid)>,
) -> Replicas {
    let record = |target: &TargetSettings| {
        let location = target.store.describe();
        if let Some((name, hold, restored)) = held
            && target.name == name
            && !hold.copy_expected
        {
            return ReplicaRecord {
                location,
                epoch: hold.epoch,
                resumed: Vec::new(),
                holders: vec![settings.holder.clone()],
                home: local.home().ok(),
                restored: restored.get(),
                adopt: false,
            };
        }
        ReplicaRecord {
            location,
            adopt: true,
            ..ReplicaRecord::default()
        }
    };
    let targets = settings.targets.iter();
    targets
        .map(|target| (target.name.clone(), Box::new(record(target))))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use ltx::{Encoder, Header};
    use protocol::config::OnDivergence;
    use sqlite_format::PageSize;
    use store::{Body, Memory, PutMeta, PutMode};

    use super::*;
    use crate::replica::retention::RetentionPolicy;
    use crate::restore::IntegrityCheck;

    /// A snapshot of one page, and the lease of another holder that has announced one.
    async fn stored(announced: u64) -> SharedStore {
        let store: SharedStore = Arc::new(Memory::new());
        let header = Header::new(PageSize::MIN, 1, Txid::FIRST, Txid::FIRST);
        let mut encoder = Encoder::new(Vec::new(), header).unwrap();
        encoder.encode_page(1, &[0; 512]).unwrap();
        let (bytes, _) = encoder.finish().unwrap();
        let key = manifest::key(store.layout(), 9, header.file_name());
        let put = store.put(
            &key,
            Body::from(bytes),
            PutMode::Create,
            &PutMeta::default(),
        );
        put.await.unwrap();
        let claim = Claim {
            holder: "another".into(),
            source: None,
        };
        let taken = lease::take(&store, &claim, 0, Timestamp::UNIX_EPOCH, |_| true).await;
        assert!(taken.unwrap().is_some());
        let announce = |lease: &mut lease::Lease| lease.announced = Txid::new(announced);
        lease::amend(&store, "another", announce).await.unwrap();
        store
    }

    fn settings(directory: &Path, store: SharedStore) -> DatabaseSettings {
        DatabaseSettings {
            path: directory.join("db"),
            state: directory.join("state"),
            targets: vec![TargetSettings {
                name: "here".into(),
                store,
                compaction_interval: Duration::from_secs(30),
                higher_levels: Vec::new(),
                retention: RetentionPolicy::default(),
            }],
            sync_interval: Duration::from_secs(1),
            snapshot_interval: Duration::from_secs(3600),
            holder: "us".into(),
            on_divergence: OnDivergence::Block,
        }
    }

    fn known(settings: &DatabaseSettings) -> (bool, Replicas) {
        let loaded = LocalState::open(&settings.state, &Host::default().disk)
            .unwrap()
            .load()
            .unwrap();
        (loaded.hashes.is_some(), loaded.replicas)
    }

    #[tokio::test]
    async fn a_database_that_comes_while_one_is_restored_is_not_taken_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let settings = settings(directory.path(), stored(0).await);
        let come = |_, _| std::fs::write(&settings.path, "somebody's").unwrap();
        let ready = make_ready(
            &settings,
            &Host::default(),
            OnMissing::Restore,
            IntegrityCheck::None,
            &come,
        )
        .await;
        assert!(
            matches!(ready, Err(StartupError::Restore { .. })),
            "{ready:?}"
        );
        assert_eq!(known(&settings), (false, Replicas::new()));
        assert_eq!(std::fs::read(&settings.path).unwrap(), b"somebody's");
    }

    #[tokio::test]
    async fn what_follows_a_restore_is_a_full_copy_when_another_one_may_still_come() {
        for announced in [0, 9] {
            let directory = tempfile::tempdir().unwrap();
            let settings = settings(directory.path(), stored(announced).await);
            let (host, none) = (Host::default(), |_, _| {});
            let ready = make_ready(
                &settings,
                &host,
                OnMissing::Restore,
                IntegrityCheck::None,
                &none,
            );
            assert!(matches!(ready.await, Ok(Ready::Restored { .. })));
            let (is_known, records) = known(&settings);
            assert!(is_known);
            assert_eq!(records["here"].adopt, announced > 0);
        }
    }
}
