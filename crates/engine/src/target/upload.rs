//! Storing captured files and full copies under names that nobody has.

use std::fs::File;
use std::io::{BufReader, SeekFrom};
use std::path::Path;

use bytes::Bytes;
use jiff::Timestamp;
use ltx::{FileName, Level, Txid};
use protocol::status::Position;
use store::{Body, PutMeta, PutMode, SharedStore, Store, StoreError, StoreErrorKind};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::chain::{Captured, ChainState, SnapshotFile};
use crate::lease::{self, Lease, LeaseError, StoredLease};
use crate::remote::{self, RemoteFile};

use super::maintain::check;
use super::{Connection, Target, TargetError, local_error, position};

impl Target {
    /// What follows `above` is no longer on the local disk: go on from a full copy. The store is
    /// asked first, because a copy made while it is away would be too old when it comes back.
    pub(super) async fn ask_for_snapshot(
        &self,
        connection: &Connection,
        above: Txid,
    ) -> Result<(), TargetError> {
        self.confirm_lease(connection).await?;
        self.set_progress(|progress| progress.needs_snapshot = Some(above));
        Ok(())
    }

    pub(super) async fn upload(
        &self,
        connection: &mut Connection,
        captured: Captured,
    ) -> Result<(), TargetError> {
        self.follow_source(connection).await?;
        let file = captured.file;
        let path = self.local.captured_path(file.txid);
        // Proven when it was sealed, and again when it has lain since an earlier run.
        if captured.checksum.is_none() {
            // It may hold all that was written in an outage: neither in memory nor on this thread.
            let opened = File::open(&path).map_err(local_error)?;
            let checked = tokio::task::spawn_blocking(move || check(BufReader::new(opened)));
            if let Err(error) = checked.await.expect("checking does not panic") {
                tracing::error!("{}: {error}: a new full copy is stored", path.display());
                let above = Txid::new(file.txid.get() - 1);
                return self.ask_for_snapshot(connection, above).await;
            }
        }
        let name = FileName {
            min: file.txid,
            max: file.txid,
        };
        let body = Body::File {
            path,
            len: file.bytes,
        };
        self.put(connection, 0, name, body, file.timestamp_ms)
            .await?;
        let at = |sum| position(file.txid, sum, file.timestamp_ms);
        self.acknowledge(captured.checksum.and_then(at));
        self.set_progress(|progress| progress.acked = file.txid);
        Ok(())
    }

    /// Stores a full copy that everything after it builds on, and a first file after it, because
    /// the newest file of level 0 has to be a single TXID.
    pub(super) async fn upload_base(
        &self,
        connection: &mut Connection,
        snapshot: &SnapshotFile,
    ) -> Result<(), TargetError> {
        // A copy of what is stored changes nothing, but this one is news, and its name is no claim
        // that a later writer meets. So the lease says that it is coming: whoever takes over while
        // it is on its way stores a newer one.
        let announce = |lease: &mut Lease| lease.announced = lease.announced.max(snapshot.txid);
        self.amend_lease(connection, announce).await?;
        self.upload_snapshot(connection, snapshot).await?;
        // What is not ours to say is not acknowledged.
        self.confirm_lease(connection).await?;
        let at = position(snapshot.txid, snapshot.checksum, snapshot.timestamp_ms);
        self.acknowledge(at);
        // The captured file of that very TXID goes, too: level 0 must not end before the copy.
        let own = self.chain.lock().captured(snapshot.txid).is_some();
        let before = Txid::new(snapshot.txid.get() - u64::from(own));
        self.set_progress(|progress| {
            progress.acked = before;
            progress.merged = snapshot.txid;
            progress.needs_snapshot = None;
        });
        connection.step_to_merge = true;
        self.chain.update(ChainState::release_snapshot);
        Ok(())
    }

    pub(super) async fn upload_snapshot(
        &self,
        connection: &mut Connection,
        snapshot: &SnapshotFile,
    ) -> Result<(), TargetError> {
        let name = FileName {
            min: Txid::FIRST,
            max: snapshot.txid,
        };
        let body = Body::File {
            path: snapshot.path.clone(),
            len: snapshot.bytes,
        };
        let level = Level::SNAPSHOT.get();
        self.put(connection, level, name, body, snapshot.timestamp_ms)
            .await?;
        self.copied(snapshot.txid);
        Ok(())
    }

    pub(super) fn acknowledge(&self, position: Option<Position>) {
        let now = Timestamp::now();
        self.set_report(|report| {
            report.last_sync = Some(now);
            report.position = position;
        });
    }

    /// Stores an object under a name that nobody has. A name that is taken by the very same bytes
    /// is our own, from an attempt whose answer was lost.
    pub(super) async fn put(
        &self,
        connection: &mut Connection,
        level: u8,
        name: FileName,
        body: Body,
        timestamp_ms: i64,
    ) -> Result<(), TargetError> {
        let store = &self.settings.store;
        let key = remote::key(store.layout(), level, name);
        let size = body.size();
        match store_new(store, &key, body, timestamp_ms).await {
            Err(TargetError::Store(error)) if error.kind() == StoreErrorKind::Exists => {
                return Err(self.explain_conflict(connection, &key, error).await);
            }
            stored => stored?,
        }
        let now_ms = connection.clock.now_ms();
        self.stored(connection, RemoteFile::new(level, name, size, now_ms));
        Ok(())
    }

    /// A file of ours is in the store.
    pub(super) fn stored(&self, connection: &mut Connection, file: RemoteFile) {
        connection.files.insert(file);
        self.set_report(|report| {
            report.uploads += 1;
            report.uploaded_bytes += file.size;
        });
    }

    /// Finds out whose file has the name that we wanted.
    pub(super) async fn explain_conflict(
        &self,
        connection: &Connection,
        key: &str,
        error: StoreError,
    ) -> TargetError {
        match self.confirm_lease(connection).await {
            Err(error) => error,
            Ok(()) => {
                tracing::warn!(key, "another writer's file has the name that comes next");
                TargetError::Store(error)
            }
        }
    }

    /// Changes our lease.
    async fn amend_lease(
        &self,
        connection: &Connection,
        change: impl Fn(&mut Lease),
    ) -> Result<(), TargetError> {
        if lease::amend(&self.settings.store, &self.holder, change).await? {
            return Ok(());
        }
        self.confirm_lease(connection).await?;
        // Somebody removed it: connect again.
        Err(TargetError::Lease(LeaseError::Contended))
    }

    /// Names the database file in the lease when another one has taken its place.
    async fn follow_source(&self, connection: &mut Connection) -> Result<(), TargetError> {
        let source = lease::identify(&self.database).ok();
        if source.is_some() && source != connection.source {
            let name = |lease: &mut Lease| lease.source.clone_from(&source);
            self.amend_lease(connection, name).await?;
            connection.source = source;
        }
        Ok(())
    }

    /// Asks who may write, before anything that put-if-absent does not protect.
    pub(super) async fn confirm_lease(&self, connection: &Connection) -> Result<(), TargetError> {
        match lease::read(&self.settings.store).await? {
            Some(StoredLease { lease, .. }) if lease.holder != self.holder => {
                Err(TargetError::Superseded {
                    by: lease.holder,
                    epoch: lease.epoch,
                    ours: connection.epoch,
                })
            }
            _ => Ok(()),
        }
    }
}

/// Stores an object under a name that nobody has. A name that is taken by the very same bytes is our
/// own, from an attempt whose answer was lost; other bytes are [`StoreErrorKind::Exists`].
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

/// Whether an object holds the bytes that we wanted to store there.
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
        Body::File { path, .. } => read_from(path, tail.start).await.map_err(local_error)?,
    };
    Ok(theirs == ours)
}

/// The end of a local file.
pub(super) async fn read_from(path: &Path, start: u64) -> std::io::Result<Bytes> {
    let mut file = tokio::fs::File::open(path).await?;
    file.seek(SeekFrom::Start(start)).await?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).await?;
    Ok(bytes.into())
}
