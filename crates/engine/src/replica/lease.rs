//! The lease on a replica: `lock.json`, the epoch in it, and the fence that makes it binding.
//!
//! The lease itself is advisory; put-if-absent enforces it. Captured files have consecutive names.
//! A process that takes the lease claims the next name at once with a file that changes no page,
//! the *fence*. A superseded writer's next file then meets a taken name with a higher epoch in it,
//! and that writer stops for good.

use jiff::Timestamp;
use ltx::Txid;
use serde::{Deserialize, Serialize};
use store::{Body, PutMeta, PutMode, SharedStore, Store, StoreError, StoreErrorKind};

use crate::env::files::SourceId;
use crate::replica::manifest::LAST_TXID;

/// Key of the lease under the replica's prefix. Litestream ignores it.
pub const LEASE_KEY: &str = "lock.json";
/// Largest lease that is read; ours have some hundred bytes.
const MAX_BYTES: u64 = 65_536;
/// Epochs from here on are not ours: each start of a process takes one.
const LAST_EPOCH: u64 = u64::MAX / 2;
/// Attempts to take a lease that other processes take at the same time.
const ATTEMPTS: u32 = 10;

/// The content of `lock.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lease {
    /// Grows by one with each process that writes: the fencing token.
    pub epoch: u64,
    /// Unique name of the process that writes.
    pub holder: String,
    /// When the lease was taken, by the holder's clock. For people only.
    pub acquired: Timestamp,
    /// The database file that the holder backs up; none while a restore holds the lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceId>,
    /// TXID of the newest snapshot that this or an earlier holder announced before its upload. The
    /// snapshot may still arrive. So a process that takes over first stores a snapshot of a higher
    /// TXID.
    #[serde(default, with = "txid_text", skip_serializing_if = "is_zero")]
    pub announced: Txid,
}

// serde passes a reference to every such function.
#[expect(clippy::trivially_copy_pass_by_ref)]
fn is_zero(txid: &Txid) -> bool {
    *txid == Txid::ZERO
}

/// A TXID in JSON: 16 hex digits.
mod txid_text {
    use ltx::Txid;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[expect(clippy::trivially_copy_pass_by_ref)]
    pub fn serialize<S: Serializer>(txid: &Txid, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(txid)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Txid, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// The part of a lease that a process writes about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The process.
    pub holder: String,
    /// The database file; none while it does not exist.
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
    /// `lock.json` is not one of ours, and is left alone.
    #[error("{LEASE_KEY} cannot be understood: {0}")]
    Foreign(String),
    /// Other processes kept taking the lease.
    #[error("the lease changes hands all the time")]
    Contended,
    /// The store ignores conditions, so nothing would keep two writers apart.
    #[error(
        "the store accepts conditional writes and ignores them (If-None-Match, If-Match): two \
         writers would overwrite each other's files; use a store that obeys them"
    )]
    Unconditional,
}

/// Reads the lease; none when no process ever wrote with leases here.
///
/// # Errors
///
/// See [`LeaseError`].
pub async fn read(store: &SharedStore) -> Result<Option<StoredLease>, LeaseError> {
    let info = match store.head(LEASE_KEY).await {
        Err(error) if error.kind() == StoreErrorKind::Missing => return Ok(None),
        info => info?,
    };
    if info.size > MAX_BYTES {
        let message = format!("it has {} bytes", info.size);
        return Err(LeaseError::Foreign(message));
    }
    let bytes = store.get(LEASE_KEY, None).await?;
    let lease: Lease =
        serde_json::from_slice(&bytes).map_err(|error| LeaseError::Foreign(error.to_string()))?;
    if lease.epoch >= LAST_EPOCH || lease.announced >= LAST_TXID {
        let message = "no number is left after its epoch or TXID".to_owned();
        return Err(LeaseError::Foreign(message));
    }
    Ok(Some(StoredLease {
        lease,
        version: info.version,
    }))
}

/// Takes the lease with an epoch above `above` and above the stored one.
///
/// The write is conditional on the lease that `permit` has seen and allowed, so two takers never
/// both succeed. `permit` returns false to leave the lease to its holder; the answer is then
/// `None`.
///
/// # Errors
///
/// See [`LeaseError`].
pub async fn take(
    store: &SharedStore,
    claim: &Claim,
    above: u64,
    now: Timestamp,
    permit: impl Fn(Option<&Lease>) -> bool,
) -> Result<Option<Lease>, LeaseError> {
    for _ in 0..ATTEMPTS {
        let stored = read(store).await?;
        let before = stored.as_ref().map(|stored| &stored.lease);
        if !permit(before) {
            return Ok(None);
        }
        let lease = Lease {
            epoch: before.map_or(0, |lease| lease.epoch).max(above) + 1,
            holder: claim.holder.clone(),
            acquired: now,
            source: claim.source.clone(),
            announced: before.map_or(Txid::ZERO, |lease| lease.announced),
        };
        if write(store, &lease, stored.as_ref()).await? {
            return Ok(Some(lease));
        }
    }
    Err(LeaseError::Contended)
}

/// Changes our own lease in the same epoch; `change` receives the stored lease. Returns false when
/// the lease is no longer ours.
///
/// # Errors
///
/// See [`LeaseError`].
pub async fn amend(
    store: &SharedStore,
    holder: &str,
    change: impl Fn(&mut Lease),
) -> Result<bool, LeaseError> {
    for _ in 0..ATTEMPTS {
        let Some(stored) = read(store)
            .await?
            .filter(|stored| stored.lease.holder == holder)
        else {
            return Ok(false);
        };
        let mut lease = stored.lease.clone();
        change(&mut lease);
        if lease == stored.lease || write(store, &lease, Some(&stored)).await? {
            return Ok(true);
        }
    }
    Err(LeaseError::Contended)
}

/// Writes a lease in place of the one that was read. Returns false when that one is no longer
/// stored.
async fn write(
    store: &SharedStore,
    lease: &Lease,
    before: Option<&StoredLease>,
) -> Result<bool, LeaseError> {
    let put = store.put(
        LEASE_KEY,
        body(lease),
        mode(store, before),
        &PutMeta::default(),
    );
    match put.await {
        Ok(()) => Ok(true),
        Err(error)
            if matches!(
                error.kind(),
                StoreErrorKind::Exists | StoreErrorKind::Conflict | StoreErrorKind::Missing
            ) =>
        {
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// Proves on our own lease that the store obeys conditions, by two writes that it has to refuse.
/// Some S3 servers silently ignore the headers, and then nothing keeps two writers apart.
///
/// # Errors
///
/// [`LeaseError::Unconditional`] when the store ignores them; otherwise the store's error.
pub async fn prove_conditions(store: &SharedStore, lease: &Lease) -> Result<(), LeaseError> {
    let impossible = PutMode::Match("\"00000000000000000000000000000000\"".to_owned());
    for mode in [PutMode::Create, impossible] {
        let put = store.put(LEASE_KEY, body(lease), mode, &PutMeta::default());
        match put.await {
            Ok(()) => return Err(LeaseError::Unconditional),
            Err(error)
                if matches!(
                    error.kind(),
                    StoreErrorKind::Exists | StoreErrorKind::Conflict
                ) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn body(lease: &Lease) -> Body {
    let bytes = serde_json::to_vec(lease).expect("a lease has string keys and plain values");
    Body::Bytes(bytes.into())
}

/// The write mode that replaces no other lease than the one that was read.
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

    fn claim(holder: &str) -> Claim {
        Claim {
            holder: holder.into(),
            source: None,
        }
    }

    fn taken(store: &SharedStore, holder: &str, above: u64) -> Lease {
        let claim = claim(holder);
        let taken = take(store, &claim, above, Timestamp::UNIX_EPOCH, |_| true);
        block_on(taken).unwrap().unwrap()
    }

    #[test]
    fn each_taker_gets_a_higher_epoch_and_the_permit_decides() {
        let store: SharedStore = Arc::new(Memory::new());
        assert_eq!(block_on(read(&store)).unwrap(), None);
        let first = taken(&store, "a", 0);
        let second = taken(&store, "b", 6);
        assert_eq!((first.epoch, second.epoch), (1, 7));
        let permit = |held: Option<&Lease>| held.is_none();
        let late = claim("c");
        let refused = take(&store, &late, 0, Timestamp::UNIX_EPOCH, permit);
        assert_eq!(block_on(refused).unwrap(), None);
        assert_eq!(block_on(read(&store)).unwrap().unwrap().lease, second);
    }

    #[test]
    fn an_amended_lease_keeps_its_epoch_and_replaces_nobody_elses() {
        let store: SharedStore = Arc::new(Memory::new());
        let first = taken(&store, "a", 0);
        let announce = |txid| move |lease: &mut Lease| lease.announced = Txid::new(txid);
        assert!(block_on(amend(&store, "a", announce(7))).unwrap());
        let amended = block_on(read(&store)).unwrap().unwrap().lease;
        assert_eq!(
            (amended.epoch, amended.announced),
            (first.epoch, Txid::new(7))
        );
        let second = taken(&store, "b", 0);
        assert_eq!(second.announced, Txid::new(7), "it may still be on its way");
        assert!(!block_on(amend(&store, "a", announce(9))).unwrap());
        assert_eq!(block_on(read(&store)).unwrap().unwrap().lease, second);
    }

    #[test]
    fn a_foreign_lock_file_is_left_alone() {
        let store: SharedStore = Arc::new(Memory::new());
        let body = Body::Bytes("not ours".into());
        let meta = PutMeta::default();
        block_on(store.put(LEASE_KEY, body, PutMode::Create, &meta)).unwrap();
        let claim = claim("a");
        let taken = take(&store, &claim, 0, Timestamp::UNIX_EPOCH, |_| true);
        assert!(matches!(block_on(taken), Err(LeaseError::Foreign(_))));
        assert_eq!(block_on(store.get(LEASE_KEY, None)).unwrap(), "not ours");
    }

    #[test]
    fn a_lease_that_leaves_no_number_or_is_no_lease_by_its_size_is_foreign() {
        let lease = |epoch: u64, announced: u64| {
            format!(
                r#"{{"epoch":{epoch},"holder":"a","acquired":"1970-01-01T00:00:00Z","announced":"{announced:016x}"}}"#
            )
        };
        for (content, is_ours) in [
            (lease(7, 7), true),
            (lease(u64::MAX, 7), false),
            (lease(7, u64::MAX), false),
            (lease(7, 7) + &" ".repeat(1 << 16), false),
        ] {
            let store: SharedStore = Arc::new(Memory::new());
            let put = store.put(
                LEASE_KEY,
                Body::Bytes(content.into()),
                PutMode::Create,
                &PutMeta::default(),
            );
            block_on(put).unwrap();
            let read = block_on(read(&store));
            assert_eq!(read.is_ok(), is_ours);
            assert!(is_ours || matches!(read, Err(LeaseError::Foreign(_))));
        }
    }

    #[test]
    fn a_store_that_ignores_conditions_is_found_out() {
        let good: SharedStore = Arc::new(Memory::new());
        let lease = taken(&good, "a", 0);
        block_on(prove_conditions(&good, &lease)).unwrap();
        assert_eq!(block_on(read(&good)).unwrap().unwrap().lease, lease);
        for careless in [
            Memory::new().ignoring_create(),
            Memory::new().ignoring_match(),
        ] {
            let careless: SharedStore = Arc::new(careless);
            let proven = block_on(prove_conditions(&careless, &taken(&careless, "a", 0)));
            assert!(matches!(proven, Err(LeaseError::Unconditional)));
        }
    }
}
