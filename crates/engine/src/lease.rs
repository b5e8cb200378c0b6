//! Who may write a replica: `lock.json`, the epoch in it, and the fence that makes it binding.
//!
//! The lease alone would be a promise among gentlemen. What binds is put-if-absent: captured files
//! have consecutive names, and whoever takes the lease next claims the next name at once, with a
//! file that changes nothing, the *fence*. A superseded writer's next file then meets a taken name
//! with a higher epoch in it, and stops for good.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use store::{Body, PutMeta, PutMode, SharedStore, Store, StoreError, StoreErrorKind};

/// Key of the lease under the replica's prefix. Litestream ignores it.
pub const LEASE_KEY: &str = "lock.json";
/// Attempts to take a lease that others take at the same time.
const ATTEMPTS: u32 = 10;

/// Identity of a database file, from which a later process without local state can tell whether
/// the file at the path is still the one that was backed up. We never write into the database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceId {
    /// File system identity, from `statvfs`.
    pub filesystem: String,
    /// Inode number.
    pub inode: u64,
    /// Time of birth of the inode, as text; empty where the file system does not keep it.
    pub born: String,
}

/// The content of `lock.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lease {
    /// Grows by one with each writer: the fencing token.
    pub epoch: u64,
    /// Who writes, for people.
    pub holder: String,
    /// When the lease was taken, by the holder's clock, for people.
    pub acquired: Timestamp,
    /// The database file that the holder backs up; none while a restore holds the lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceId>,
}

/// A lease as stored, with the version that a conditional write needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredLease {
    /// Its content.
    pub lease: Lease,
    version: Option<String>,
}

/// Why a lease could not be read or taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseError {
    /// The store did not answer, or refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// `lock.json` is not one of ours. It is left alone.
    #[error("{LEASE_KEY} cannot be understood: {0}")]
    Foreign(#[source] serde_json::Error),
    /// Others kept taking it.
    #[error("the lease changes hands all the time")]
    Contended,
}

/// Reads the lease; none when nobody ever wrote with leases here.
///
/// # Errors
///
/// See [`LeaseError`].
pub async fn read(store: &SharedStore) -> Result<Option<StoredLease>, LeaseError> {
    let info = match store.head(LEASE_KEY).await {
        Err(error) if error.kind() == StoreErrorKind::Missing => return Ok(None),
        info => info?,
    };
    let bytes = store.get(LEASE_KEY, None).await?;
    let lease = serde_json::from_slice(&bytes).map_err(LeaseError::Foreign)?;
    Ok(Some(StoredLease {
        lease,
        version: info.version,
    }))
}

/// Takes the lease with an epoch above `above` and above the stored one.
///
/// The new lease is conditional on the one that `permit` has seen and allowed, so two takers never
/// both succeed. `permit` returns false to leave the lease to its holder; the answer is `None`
/// then.
///
/// # Errors
///
/// See [`LeaseError`].
pub async fn take(
    store: &SharedStore,
    holder: &str,
    source: Option<SourceId>,
    above: u64,
    now: Timestamp,
    permit: impl Fn(Option<&Lease>) -> bool,
) -> Result<Option<Lease>, LeaseError> {
    for _ in 0..ATTEMPTS {
        let stored = read(store).await?;
        if !permit(stored.as_ref().map(|stored| &stored.lease)) {
            return Ok(None);
        }
        let epoch = stored
            .as_ref()
            .map_or(0, |stored| stored.lease.epoch)
            .max(above)
            + 1;
        let source = source.clone();
        let lease = Lease {
            epoch,
            holder: holder.to_owned(),
            acquired: now,
            source,
        };
        let mode = mode(store, stored.as_ref());
        match store
            .put(LEASE_KEY, body(&lease), mode, &PutMeta::default())
            .await
        {
            Ok(()) => return Ok(Some(lease)),
            Err(error)
                if matches!(
                    error.kind(),
                    StoreErrorKind::Exists | StoreErrorKind::Conflict | StoreErrorKind::Missing
                ) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(LeaseError::Contended)
}

/// Writes our own lease again with the identity of the database file, in the same epoch.
///
/// # Errors
///
/// See [`LeaseError`]; [`LeaseError::Contended`] when it is no longer the one that was read.
pub async fn amend(
    store: &SharedStore,
    stored: &StoredLease,
    source: Option<SourceId>,
) -> Result<(), LeaseError> {
    let lease = Lease {
        source,
        ..stored.lease.clone()
    };
    match store
        .put(
            LEASE_KEY,
            body(&lease),
            mode(store, Some(stored)),
            &PutMeta::default(),
        )
        .await
    {
        Err(error)
            if matches!(
                error.kind(),
                StoreErrorKind::Conflict | StoreErrorKind::Missing
            ) =>
        {
            Err(LeaseError::Contended)
        }
        written => Ok(written?),
    }
}

fn body(lease: &Lease) -> Body {
    let bytes = serde_json::to_vec(lease).expect("a lease has string keys and plain values");
    Body::Bytes(bytes.into())
}

/// How to write so that nobody's lease but the one that was read is replaced.
fn mode(store: &SharedStore, stored: Option<&StoredLease>) -> PutMode {
    match stored {
        None => PutMode::Create,
        Some(StoredLease {
            version: Some(version),
            ..
        }) if store.capabilities().conditional_put => PutMode::Match(version.clone()),
        Some(_) => PutMode::Overwrite,
    }
}

/// The identity of a database file.
///
/// # Errors
///
/// The file is missing or cannot be looked at.
pub fn identify(path: &std::path::Path) -> std::io::Result<SourceId> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(path)?;
    let born = meta
        .created()
        .ok()
        .and_then(|time| Timestamp::try_from(time).ok())
        .map_or_else(String::new, |time| time.to_string());
    let filesystem = rustix::fs::statvfs(path)?.f_fsid;
    Ok(SourceId {
        filesystem: format!("{filesystem:016x}"),
        inode: meta.ino(),
        born,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use store::Memory;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(future)
    }

    #[test]
    fn each_taker_gets_a_higher_epoch_and_the_permit_decides() {
        let store: SharedStore = Arc::new(Memory::new());
        block_on(async {
            let now = Timestamp::UNIX_EPOCH;
            assert_eq!(read(&store).await.unwrap(), None);
            let first = take(&store, "a", None, 0, now, |_| true)
                .await
                .unwrap()
                .unwrap();
            let second = take(&store, "b", None, 6, now, |_| true)
                .await
                .unwrap()
                .unwrap();
            assert_eq!((first.epoch, second.epoch), (1, 7));
            let refused = take(&store, "c", None, 0, now, |held| held.is_none())
                .await
                .unwrap();
            assert_eq!(refused, None);
            assert_eq!(read(&store).await.unwrap().unwrap().lease, second);
        });
    }

    #[test]
    fn an_amended_lease_keeps_its_epoch_and_replaces_nobody_elses() {
        let store: SharedStore = Arc::new(Memory::new());
        block_on(async {
            let now = Timestamp::UNIX_EPOCH;
            let taken = take(&store, "a", None, 0, now, |_| true).await.unwrap();
            let first = read(&store).await.unwrap().unwrap();
            let source = SourceId {
                filesystem: "f".into(),
                inode: 7,
                born: String::new(),
            };
            amend(&store, &first, Some(source.clone())).await.unwrap();
            let amended = read(&store).await.unwrap().unwrap().lease;
            assert_eq!(
                (amended.epoch, amended.source),
                (taken.unwrap().epoch, Some(source))
            );
            let late = amend(&store, &first, None).await;
            assert!(matches!(late, Err(LeaseError::Contended)));
        });
    }

    #[test]
    fn a_foreign_lock_file_is_left_alone() {
        let store: SharedStore = Arc::new(Memory::new());
        block_on(async {
            let body = Body::Bytes("not ours".into());
            store
                .put(LEASE_KEY, body, PutMode::Create, &PutMeta::default())
                .await
                .unwrap();
            let taken = take(&store, "a", None, 0, Timestamp::UNIX_EPOCH, |_| true).await;
            assert!(matches!(taken, Err(LeaseError::Foreign(_))));
            assert_eq!(store.get(LEASE_KEY, None).await.unwrap(), "not ours");
        });
    }

    #[test]
    fn a_file_keeps_its_identity_and_a_new_one_has_another() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db");
        std::fs::write(&path, "one").unwrap();
        let first = identify(&path).unwrap();
        std::fs::write(&path, "two, in place").unwrap();
        assert_eq!(identify(&path).unwrap(), first);
        let other = directory.path().join("other");
        std::fs::write(&other, "one").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert_ne!(identify(&path).unwrap(), first);
    }
}
