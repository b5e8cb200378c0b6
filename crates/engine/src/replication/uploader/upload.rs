//! Stores captured files under unused names.

use std::fs::File;
use std::io::{BufReader, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use ltx::{FileName, LtxError, Txid};
use protocol::status::Position;
use store::{Body, PutMeta, PutMode, SharedStore, Store, StoreError, StoreErrorKind};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::time::Instant;

use crate::env::budget::Account;
use crate::env::files;
use crate::replica::lease::{self, Lease, LeaseError, StoredLease};
use crate::replica::manifest::{self, RemoteFile};

use super::compact::check;
use super::{CONFIRMED_TIME, LeasedReplica, TargetError, Uploader, position};

impl Uploader {
    /// The file after `above` is no longer on our disk: continue from a snapshot. Ask the store
    /// first: a snapshot made while it is unreachable would be too old when it is back.
    pub(super) async fn need_snapshot(
        &self,
        replica: &mut LeasedReplica,
        above: Txid,
    ) -> Result<(), TargetError> {
        self.confirm_lease(replica).await?;
        let now_ms = self.env.host.clock.steady_ms();
        self.update_target(|target| {
            target.needs_snapshot = Some(above);
            target.lose(above.next(), now_ms);
        });
        Ok(())
    }

    /// Stores the captured file after the last acknowledged one.
    pub(super) async fn upload_next(&self, replica: &mut LeasedReplica) -> Result<(), TargetError> {
        let captured = {
            let progress = self.progress.lock();
            progress.captured(progress.targets[self.index].acked.next())
        };
        // It may have been removed to make room.
        let Some(captured) = captured else {
            return Ok(());
        };
        self.follow_source(replica).await?;
        let file = captured.file;
        let path = self.local.captured_path(file.txid);
        // The file was verified when it was written. Verify it again if it is from an earlier run.
        if captured.checksum.is_none() {
            // It may hold all commits of an outage: use neither memory nor this thread for it.
            let checked = path.clone();
            let check =
                move || -> Result<(), LtxError> { check(BufReader::new(File::open(checked)?)) };
            match self.env.host.threads.run(check).await {
                Ok(()) => {}
                Err(LtxError::Io(source)) if source.kind() != std::io::ErrorKind::UnexpectedEof => {
                    let action = "read";
                    return Err(TargetError::Captured {
                        action,
                        path,
                        source,
                    });
                }
                Err(error) => {
                    let path = path.display();
                    tracing::error!(%path, %error, "a captured file is damaged: a new snapshot is stored");
                    let above = Txid::new(file.txid.get() - 1);
                    return self.need_snapshot(replica, above).await;
                }
            }
        }
        let _memory = self.env.budgets.upload(self.index, file.bytes).await;
        let name = FileName {
            min: file.txid,
            max: file.txid,
        };
        let body = Body::File {
            path,
            len: file.bytes,
        };
        if replica.confirmed.elapsed() > CONFIRMED_TIME {
            self.confirm_lease(replica).await?;
        }
        if let Err(error) = self.put(replica, 0, name, body, file.timestamp_ms).await {
            let is_gone = self.progress.lock().captured(file.txid).is_none();
            // It was removed to make room while it was read.
            return match is_gone && !error.is_conflict() && error.ends_with().is_none() {
                true => Ok(()),
                false => Err(error),
            };
        }
        let at = |sum| position(file.txid, sum, file.timestamp_ms);
        self.acknowledge(captured.checksum.and_then(at));
        self.update_target(|target| target.acked = file.txid);
        Ok(())
    }

    pub(super) fn acknowledge(&self, position: Option<Position>) {
        let now = Timestamp::now();
        self.set_report(|report| {
            report.last_sync = Some(now);
            report.position = position;
        });
    }

    /// The account in the local-state budget.
    pub(super) fn account(&self) -> Arc<Account> {
        let account = self.progress.lock().account.clone();
        account.unwrap_or_else(|| self.env.budgets.account())
    }

    /// Stores an object under an unused name. If the name is taken by the same bytes, an earlier
    /// attempt of ours succeeded but its answer was lost.
    pub(super) async fn put(
        &self,
        replica: &mut LeasedReplica,
        level: u8,
        name: FileName,
        body: Body,
        timestamp_ms: i64,
    ) -> Result<(), TargetError> {
        let store = &self.settings.store;
        let key = manifest::key(store.layout(), level, name);
        let size = body.size();
        match store_new(store, &key, body, timestamp_ms).await {
            Err(TargetError::Store(error)) if error.kind() == StoreErrorKind::Exists => {
                return Err(self.explain_conflict(replica, &key, error).await);
            }
            stored => stored?,
        }
        let now_ms = replica.clock.now_ms();
        self.stored(replica, RemoteFile::new(level, name, size, now_ms));
        Ok(())
    }

    /// Records a file that we stored.
    pub(super) fn stored(&self, replica: &mut LeasedReplica, file: RemoteFile) {
        replica.files.insert(file);
        self.set_report(|report| {
            report.uploads += 1;
            report.uploaded_bytes += file.size;
        });
    }

    /// Finds out which writer stored the file with the name that we wanted.
    pub(super) async fn explain_conflict(
        &self,
        replica: &mut LeasedReplica,
        key: &str,
        error: StoreError,
    ) -> TargetError {
        match self.confirm_lease(replica).await {
            Err(error) => error,
            Ok(()) => {
                tracing::warn!(key, "another writer's file has the name that comes next");
                TargetError::Store(error)
            }
        }
    }

    /// Changes our lease.
    pub(super) async fn amend_lease(
        &self,
        replica: &mut LeasedReplica,
        change: impl Fn(&mut Lease),
    ) -> Result<(), TargetError> {
        let now = Instant::now();
        if lease::amend(&self.settings.store, &self.holder, change).await? {
            replica.confirmed = now;
            return Ok(());
        }
        self.confirm_lease(replica).await?;
        // The lease was removed: connect again.
        Err(TargetError::Lease(LeaseError::Contended))
    }

    /// Names the database file in the lease again if the file was replaced.
    async fn follow_source(&self, replica: &mut LeasedReplica) -> Result<(), TargetError> {
        let source = files::identify(&self.database).ok();
        if source.is_some() && source != replica.source {
            let name = |lease: &mut Lease| lease.source.clone_from(&source);
            self.amend_lease(replica, name).await?;
            replica.source = source;
        }
        Ok(())
    }

    /// Checks that the lease is ours, before any step that put-if-absent does not protect.
    pub(super) async fn confirm_lease(
        &self,
        replica: &mut LeasedReplica,
    ) -> Result<(), TargetError> {
        let now = Instant::now();
        confirm_lease(&self.settings.store, &self.holder, replica.epoch).await?;
        replica.confirmed = now;
        Ok(())
    }
}

/// Same as [`Uploader::confirm_lease`], for work beside the target's own task.
pub(super) async fn confirm_lease(
    store: &SharedStore,
    holder: &str,
    epoch: u64,
) -> Result<(), TargetError> {
    match lease::read(store).await? {
        Some(StoredLease { lease, .. }) if lease.holder != holder => Err(TargetError::Superseded {
            by: lease.holder,
            epoch: lease.epoch,
            ours: epoch,
        }),
        _ => Ok(()),
    }
}

/// Stores an object under an unused name. If the name is taken by the same bytes, an earlier
/// attempt of ours succeeded but its answer was lost. Other bytes are [`StoreErrorKind::Exists`].
pub(super) async fn store_new(
    store: &SharedStore,
    key: &str,
    body: Body,
    timestamp_ms: i64,
) -> Result<(), TargetError> {
    let meta = PutMeta {
        timestamp_ms: Some(timestamp_ms),
    };
    match store.put(key, body.clone(), PutMode::Create, &meta).await {
        Err(error) if error.kind() == StoreErrorKind::Exists => {
            match same_object(store, key, &body).await? {
                true => Ok(()),
                false => Err(error.into()),
            }
        }
        stored => Ok(stored?),
    }
}

/// Whether an object holds the bytes that we wanted to store.
pub(super) async fn same_object(
    store: &SharedStore,
    key: &str,
    body: &Body,
) -> Result<bool, TargetError> {
    if store.head(key).await?.size != body.size() {
        return Ok(false);
    }
    // The trailer's checksum covers every byte of the file.
    let tail = body.size().saturating_sub(ltx::TRAILER_BYTES as u64)..body.size();
    let theirs = store.get(key, Some(tail.clone())).await?;
    let ours = match body {
        Body::Bytes(bytes) => bytes.slice(tail.start as usize..),
        Body::File { path, .. } => {
            let failed = |source| TargetError::Captured {
                action: "read",
                path: path.clone(),
                source,
            };
            read_from(path, tail.start).await.map_err(failed)?
        }
    };
    Ok(theirs == ours)
}

/// Reads a local file from `start` to its end.
pub(super) async fn read_from(path: &Path, start: u64) -> std::io::Result<Bytes> {
    let mut file = tokio::fs::File::open(path).await?;
    file.seek(SeekFrom::Start(start)).await?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).await?;
    Ok(bytes.into())
}
