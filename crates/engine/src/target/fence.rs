//! The file that makes a lease binding.

use std::collections::BTreeSet;

use bytes::Bytes;
use ltx::{Encoder, FileName, Header};
use sqlite_format::Salts;
use store::{Body, PutMeta, PutMode, SharedStore, StoreErrorKind};

use crate::capture::unix_ms;
use crate::lease::LeaseError;
use crate::remote::{self, RemoteError, RemoteFile};

use super::{FENCE_ATTEMPTS, TargetError, local_error};

/// Files whose headers are tried, from the newest.
const HEADERS_TRIED: usize = 16;

/// Claims the name after the newest file with a file that changes nothing, and returns what is
/// stored then. An empty replica has nothing to fence: its first file decides.
///
/// # Errors
///
/// The store's, or a replica of which none of the newest files can be read.
pub async fn fence(store: &SharedStore, epoch: u64) -> Result<BTreeSet<RemoteFile>, TargetError> {
    for _ in 0..FENCE_ATTEMPTS {
        let mut files = remote::list(store).await?;
        if files.is_empty() {
            return Ok(files);
        }
        let txid = remote::newest(&files).next();
        let before = newest_header(store, &files).await?;
        let header = Header {
            flags: Header::NO_CHECKSUM,
            page_size: before.page_size,
            commit: before.commit,
            min_txid: txid,
            max_txid: txid,
            timestamp_ms: unix_ms().max(before.timestamp_ms),
            pre_apply: 0,
            wal_offset: sqlite_format::WAL_HEADER_BYTES as i64,
            wal_size: 0,
            wal_salts: Salts { salt1: 1, salt2: 1 },
            node_id: epoch,
            reserved: [0; 20],
        };
        let bytes = empty_file(header)?;
        let name = FileName {
            min: txid,
            max: txid,
        };
        let key = remote::key(store.layout(), 0, name);
        let meta = PutMeta {
            timestamp_ms: Some(header.timestamp_ms),
        };
        let size = bytes.len() as u64;
        match store
            .put(&key, Body::Bytes(bytes), PutMode::Create, &meta)
            .await
        {
            // The old writer was faster once more: its file belongs to the history.
            Err(error) if error.kind() == StoreErrorKind::Exists => {}
            result => {
                result?;
                let (min, max, modified_ms) = (txid, txid, unix_ms());
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

/// The header of the newest file that has one: a damaged file must not keep everybody out.
async fn newest_header(
    store: &SharedStore,
    files: &BTreeSet<RemoteFile>,
) -> Result<Header, TargetError> {
    let mut newest: Vec<&RemoteFile> = files.iter().collect();
    newest.sort_by_key(|file| (std::cmp::Reverse(file.max), file.level));
    let mut damage = None;
    for file in newest.into_iter().take(HEADERS_TRIED) {
        match remote::read_header(store, file).await {
            Ok(header) => return Ok(header),
            Err(RemoteError::Store(error)) if error.kind() != StoreErrorKind::Missing => {
                return Err(error.into());
            }
            Err(error) => {
                tracing::error!("{error}");
                damage = Some(error);
            }
        }
    }
    Err(damage.expect("there is a file").into())
}

pub(super) fn empty_file(header: Header) -> Result<Bytes, TargetError> {
    let encoder = Encoder::new(Vec::new(), header).map_err(local_error)?;
    let (bytes, _summary) = encoder.finish().map_err(local_error)?;
    Ok(bytes.into())
}
