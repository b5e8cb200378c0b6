//! Merging captured files: what happens when nothing is urgent.

use std::io::Read;

use bytes::Bytes;
use ltx::{Decoder, FileName, Header, LtxError, MergeOptions, Txid};
use store::{Body, StoreErrorKind};
use tokio::time::Instant;

use crate::chain::TargetProgress;
use crate::remote::{self, RemoteError, RemoteFile};

use super::{Connection, MERGE_BYTES, MERGE_FILES, Target, TargetError, local_error};

impl Target {
    /// Merges what was acknowledged since the last merge into one file of level 1.
    pub(super) async fn merge(
        &self,
        connection: &mut Connection,
        progress: TargetProgress,
    ) -> Result<(), TargetError> {
        // The names of merged files are no claims that a later writer meets.
        self.confirm_lease(connection).await?;
        let mut inputs = Vec::new();
        let mut txid = progress.merged.next();
        let mut bytes = 0;
        while txid <= progress.acked && inputs.len() < MERGE_FILES {
            let size = stored_bytes(connection, txid);
            let Some(size) = size.filter(|size| *size <= MERGE_BYTES) else {
                // Too large to be worth it, or a name that another writer's history skipped: a
                // merged file ends before it, and it stays as it is.
                if inputs.is_empty() {
                    txid = txid.next();
                }
                break;
            };
            if bytes + size > MERGE_BYTES {
                break;
            }
            bytes += size;
            match self.merge_input(txid).await {
                Ok(input) => inputs.push(input),
                Err(error) if is_lost(&error) => {
                    // Nobody can go from before it to after it any more: begin again after it.
                    let name = &self.settings.name;
                    tracing::error!(target_name = %name, "{error}: a new full copy is stored");
                    return self.ask_for_snapshot(connection, progress.acked).await;
                }
                Err(error) => return Err(error),
            }
            txid = txid.next();
        }
        let last = Txid::new(txid.get() - 1);
        let epoch = connection.epoch;
        let merged = tokio::task::spawn_blocking(move || merge_bytes(inputs, epoch));
        if let Some((header, bytes)) = merged.await.expect("merging does not panic")? {
            let name = FileName {
                min: header.min_txid,
                max: header.max_txid,
            };
            let body = Body::Bytes(bytes);
            self.put(connection, 1, name, body, header.timestamp_ms)
                .await?;
        }
        self.set_progress(|progress| progress.merged = last);
        connection.next_merge = Instant::now();
        if last == progress.acked {
            connection.next_merge += self.settings.merge_interval;
        }
        Ok(())
    }

    /// The bytes of a captured file, from the local disk while it is whole there, else from the
    /// store.
    async fn merge_input(&self, txid: Txid) -> Result<Bytes, TargetError> {
        match tokio::fs::read(self.local.captured_path(txid)).await {
            Ok(bytes) if check(bytes.as_slice()).is_ok() => return Ok(bytes.into()),
            Ok(_) => tracing::warn!(%txid, "a captured file on our disk is damaged"),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(local_error(error)),
        }
        let name = FileName {
            min: txid,
            max: txid,
        };
        let store = &self.settings.store;
        let key = remote::key(store.layout(), 0, name);
        let bytes = store.get(&key, None).await?;
        match check(bytes.as_ref()) {
            Ok(()) => Ok(bytes),
            Err(source) => Err(TargetError::Remote(RemoteError::Corrupt { key, source })),
        }
    }
}

/// Size of the stored file of one TXID; none when there is none.
fn stored_bytes(connection: &Connection, txid: Txid) -> Option<u64> {
    let of_level_0 = RemoteFile {
        level: 0,
        min: txid,
        max: txid,
        size: 0,
        modified_ms: i64::MIN,
    };
    let file = connection.files.range(of_level_0..).next()?;
    (file.level == 0 && file.min == txid && file.max == txid).then_some(file.size)
}

fn merge_bytes(inputs: Vec<Bytes>, epoch: u64) -> Result<Option<(Header, Bytes)>, TargetError> {
    if inputs.is_empty() {
        return Ok(None);
    }
    let decoders: Result<Vec<_>, _> = inputs
        .into_iter()
        .map(|bytes| Decoder::new(std::io::Cursor::new(bytes)))
        .collect();
    let options = MergeOptions { node_id: epoch };
    let (bytes, merged) = decoders
        .and_then(|decoders| ltx::merge(decoders, options, Vec::new()))
        .map_err(local_error)?;
    Ok(Some((merged.header, bytes.into())))
}

/// Whether an error says that a stored file is damaged or gone.
pub(super) fn is_lost(error: &TargetError) -> bool {
    match error {
        TargetError::Remote(_) => true,
        TargetError::Store(error) => error.kind() == StoreErrorKind::Missing,
        _ => false,
    }
}

/// Reads a whole file, with its checksums, one page at a time.
pub(super) fn check(file: impl Read) -> Result<(), LtxError> {
    let mut decoder = Decoder::new(file)?;
    let mut image = Vec::new();
    while decoder.next_page(&mut image)?.is_some() {}
    decoder.finish().map(|_| ())
}
