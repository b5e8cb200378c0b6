//! Bringing stored objects to this machine: small ones into memory, large ones in ranges into an
//! unnamed file. What they hold is checked when they are applied.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use futures::StreamExt;
use store::{SharedStore, Store};

use super::{RestoreError, failed};
use crate::remote::{self, RemoteFile};

/// Largest object that is held in memory; larger ones go through a temporary file.
const MEMORY_BYTES: u64 = 4 << 20;
/// Bytes of one ranged read.
const RANGE_BYTES: u64 = 4 << 20;

/// An object on this machine.
pub(super) enum Fetched {
    Memory(Bytes),
    Disk(File),
}

/// Brings an object to this machine, small ones into memory.
pub(super) async fn fetch(
    store: &SharedStore,
    file: RemoteFile,
    directory: &Path,
) -> Result<Fetched, RestoreError> {
    let key = remote::key(store.layout(), file.level, file.name());
    if file.size <= MEMORY_BYTES {
        return Ok(Fetched::Memory(store.get(&key, None).await?));
    }
    let target = tempfile_in(directory).map_err(failed(directory))?;
    let starts = (0..file.size).step_by(RANGE_BYTES as usize);
    let ranges = starts.map(|start| start..file.size.min(start + RANGE_BYTES));
    let reads = ranges.map(|range| {
        let read = store.get(&key, Some(range.clone()));
        async move { read.await.map(|bytes| (range.start, bytes)) }
    });
    let mut reads = futures::stream::iter(reads).buffer_unordered(4);
    while let Some(read) = reads.next().await {
        let (start, bytes) = read?;
        target
            .write_all_at(&bytes, start)
            .map_err(failed(directory))?;
    }
    Ok(Fetched::Disk(target))
}

fn tempfile_in(directory: &Path) -> io::Result<File> {
    crate::pages::unnamed_file(directory)
}
