//! The fence: the file that makes a lease binding.

use std::collections::BTreeSet;

use bytes::Bytes;
use ltx::{Encoder, FileName, Header, Txid};
use sqlite_format::Salts;
use store::{Body, PutMeta, PutMode, SharedStore, StoreErrorKind};

use crate::env::causes::describe;
use crate::env::clock::Clock;
use crate::replica::lease::{self, Lease, LeaseError};
use crate::replica::manifest::{self, RemoteError, RemoteFile};

use super::{FENCE_ATTEMPTS, TargetError};

/// Files whose headers are tried, from the newest on.
const HEADERS_TRIED: usize = 16;

/// Claims the name after the newest file with a file that changes no page, and returns the files
/// stored then. `lease` is the one that we took. An empty replica needs no fence: its first file
/// decides. Neither does one whose holder stores no file before a snapshot that it announced.
///
/// # Errors
///
/// The store's error, a replica whose newest files are all unreadable, or [`LeaseError::Contended`]
/// when another process took the lease meanwhile.
pub async fn fence(
    store: &SharedStore,
    lease: &Lease,
    clock: &dyn Clock,
) -> Result<BTreeSet<RemoteFile>, TargetError> {
    for _ in 0..FENCE_ATTEMPTS {
        let mut files = manifest::list(store).await?;
        if files.is_empty() || is_copy_coming(&files, lease.announced) {
            return Ok(files);
        }
        let txid = manifest::newest_with_room(store.layout(), &files)?.next();
        let before = newest_header(store, &files).await?;
        let header = Header {
            flags: Header::NO_CHECKSUM,
            page_size: before.page_size,
            commit: before.commit,
            min_txid: txid,
            max_txid: txid,
            timestamp_ms: clock.unix_ms().max(before.timestamp_ms),
            pre_apply: 0,
            wal_offset: sqlite_format::WAL_HEADER_BYTES as i64,
            wal_size: 0,
            wal_salts: Salts { salt1: 1, salt2: 1 },
            node_id: lease.epoch,
            reserved: [0; 20],
        };
        let bytes = empty_file(header)?;
        let name = FileName {
            min: txid,
            max: txid,
        };
        let key = manifest::key(store.layout(), 0, name);
        let meta = PutMeta {
            timestamp_ms: Some(header.timestamp_ms),
        };
        let size = bytes.len() as u64;
        match store
            .put(&key, Body::Bytes(bytes), PutMode::Create, &meta)
            .await
        {
            // The old writer stored one more file, which belongs to the history. Or a new writer
            // did, which must not meet a fence of ours.
            Err(error) if error.kind() == StoreErrorKind::Exists => {
                let now = lease::read(store).await?.map(|stored| stored.lease.epoch);
                if now != Some(lease.epoch) {
                    return Err(TargetError::Lease(LeaseError::Contended));
                }
            }
            result => {
                result?;
                let (min, max, modified_ms) = (txid, txid, clock.unix_ms());
                files.insert(RemoteFile {
                    level: 0,
                    min,
                    max,
                    size,
                    modified_ms,
                });
                return Ok(files);
            }
        }
    }
    Err(TargetError::Lease(LeaseError::Contended))
}

/// Whether an announced snapshot is missing and may still arrive. Then no fence is needed, and none
/// may follow its TXID.
///
/// The announcer uploads nothing else first and reads the lease again afterwards. So does each
/// process that takes over from there. A fence carries the size of the database before it. If the
/// snapshot arrived after all, a restore of the newest point would apply that fence on top of it.
fn is_copy_coming(files: &BTreeSet<RemoteFile>, announced: Txid) -> bool {
    announced > manifest::newest_snapshot(files) && announced >= manifest::newest(files)
}

/// The header of the newest file with a readable one. A damaged file must not keep every writer
/// out.
async fn newest_header(
    store: &SharedStore,
    files: &BTreeSet<RemoteFile>,
) -> Result<Header, TargetError> {
    let mut newest: Vec<&RemoteFile> = files.iter().collect();
    newest.sort_by_key(|file| (std::cmp::Reverse(file.max), file.level));
    let mut damage = None;
    for file in newest.into_iter().take(HEADERS_TRIED) {
        match manifest::read_header(store, file).await {
            Ok(header) => return Ok(header),
            Err(RemoteError::Store(error)) if error.kind() != StoreErrorKind::Missing => {
                return Err(error.into());
            }
            Err(error) => {
                let damaged = describe(&error);
                tracing::error!(error = %damaged, "a stored file is damaged");
                damage = Some(error);
            }
        }
    }
    Err(damage.expect("there is a file").into())
}

pub(super) fn empty_file(header: Header) -> Result<Bytes, TargetError> {
    let encoder = Encoder::new(Vec::new(), header).map_err(TargetError::Encode)?;
    let (bytes, _summary) = encoder.finish().map_err(TargetError::Encode)?;
    Ok(bytes.into())
}
