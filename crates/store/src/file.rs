//! Objects as files below a directory: local disks, mounted shares.
//!
//! An object becomes visible by one `link` or `rename` of a complete file that is already on disk,
//! so neither a reader nor a crash finds a partial object. The result matches a `file://` replica
//! of Litestream.
//!
//! Link, rename and unlink happen under a lock on [`LOCK_NAME`] in the directory itself. It is
//! shared for most calls, and exclusive for a compare-and-swap, which takes two steps here. The
//! lock is `flock`, so it also works between processes and, on Linux, between clients of one NFS
//! server. Other programs that write to the directory do not use it.

mod publish;
mod walk;

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;

use crate::body::{Parts, blocking};
use crate::object::{Body, ByteStream, Capabilities, Layout, ObjectInfo, PutMeta, PutMode, Store};
use crate::{StoreError, key};

/// The lock file, directly in the directory of the store; not an object.
const LOCK_NAME: &str = ".store-lock";

/// Number of stream bytes written at a time.
const STREAM_PART_BYTES: usize = 1 << 20;

/// A directory as a store.
#[derive(Debug, Clone)]
pub struct FileStore {
    root: Arc<Path>,
}

impl FileStore {
    /// Creates a store of this directory. The first put creates a missing directory.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into().into(),
        }
    }

    fn path_of(&self, key: &str) -> Result<PathBuf, StoreError> {
        key::check(key)?;
        if key == LOCK_NAME {
            let reason = "it names the lock of the store";
            return Err(StoreError::InvalidKey {
                key: key.to_owned(),
                reason,
            });
        }
        Ok(self.root.join(key))
    }
}

impl Store for FileStore {
    fn put(
        &self,
        key: &str,
        body: Body,
        mode: PutMode,
        meta: &PutMeta,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        let (store, key, meta) = (self.clone(), key.to_owned(), *meta);
        blocking(move || {
            let path = store.path_of(&key)?;
            publish::put(&store.root, &key, &path, &body, &mode, meta)
        })
        .boxed()
    }

    fn put_stream(
        &self,
        key: &str,
        stream: ByteStream,
        _expected_bytes: u64,
        mode: PutMode,
        meta: &PutMeta,
    ) -> BoxFuture<'_, Result<u64, StoreError>> {
        let (store, key, meta) = (self.clone(), key.to_owned(), *meta);
        async move {
            let path = store.path_of(&key)?;
            let what = format!("put {}", path.display());
            let (root, begun) = (Arc::clone(&store.root), (key.clone(), path.clone()));
            let begin = move || publish::begin(&root, &begun.0, &begun.1, mode, meta);
            let mut pending = blocking(begin).await?;
            let mut parts = Parts::new(stream, STREAM_PART_BYTES);
            let mut size = 0;
            while let Some(part) = parts.next(&what).await? {
                size += part.len() as u64;
                pending = blocking(move || pending.append(&part)).await?;
            }
            blocking(move || pending.publish(&store.root, &key, &path)).await?;
            Ok(size)
        }
        .boxed()
    }

    fn get(
        &self,
        key: &str,
        range: Option<Range<u64>>,
    ) -> BoxFuture<'_, Result<Bytes, StoreError>> {
        let (store, key) = (self.clone(), key.to_owned());
        blocking(move || {
            let path = store.path_of(&key)?;
            read(&path, range).map_err(|error| lookup_error("read", &key, &path, error))
        })
        .boxed()
    }

    fn head(&self, key: &str) -> BoxFuture<'_, Result<ObjectInfo, StoreError>> {
        let (store, key) = (self.clone(), key.to_owned());
        blocking(move || {
            let path = store.path_of(&key)?;
            let metadata = object_metadata(&path);
            let metadata = metadata.map_err(|error| lookup_error("stat", &key, &path, error))?;
            Ok(info(key, &metadata))
        })
        .boxed()
    }

    fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
    ) -> BoxFuture<'_, Result<Vec<ObjectInfo>, StoreError>> {
        let (root, prefix) = (self.root.clone(), prefix.to_owned());
        let start_after = start_after.map(str::to_owned);
        blocking(move || {
            key::check_prefix(&prefix)?;
            walk::list(&root, &prefix, start_after.as_deref())
        })
        .boxed()
    }

    fn directories(&self, directory: &str) -> BoxFuture<'_, Result<Vec<String>, StoreError>> {
        let (root, directory) = (self.root.clone(), directory.to_owned());
        blocking(move || {
            key::check_prefix(&key::below(&directory))?;
            walk::directories(&root.join(directory))
        })
        .boxed()
    }

    fn delete(&self, keys: &[String]) -> BoxFuture<'_, Result<(), StoreError>> {
        let (store, keys) = (self.clone(), keys.to_owned());
        blocking(move || {
            let paths = keys
                .iter()
                .map(|key| store.path_of(key))
                .collect::<Result<Vec<_>, _>>()?;
            publish::delete(&store.root, &paths)
        })
        .boxed()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            conditional_put: true,
            list_timestamps: true,
        }
    }

    fn describe(&self) -> String {
        format!("file://{}", self.root.display())
    }

    fn layout(&self) -> Layout {
        Layout::Tree
    }
}

fn read(path: &Path, range: Option<Range<u64>>) -> io::Result<Bytes> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let len = metadata.len();
    let range = range.unwrap_or(0..len);
    let (start, end) = (range.start.min(len), range.end.min(len));
    let size = usize::try_from(end.saturating_sub(start)).map_err(io::Error::other)?;
    let mut buffer = vec![0; size];
    file.read_exact_at(&mut buffer, start)?;
    Ok(buffer.into())
}

/// Returns the metadata of an object; a directory is not an object.
fn object_metadata(path: &Path) -> io::Result<fs::Metadata> {
    let metadata = fs::metadata(path)?;
    if metadata.is_dir() {
        Err(io::ErrorKind::NotFound.into())
    } else {
        Ok(metadata)
    }
}

fn lookup_error(what: &str, key: &str, path: &Path, error: io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::NotFound => StoreError::Missing {
            key: key.to_owned(),
        },
        _ => StoreError::from_io(what, path, error),
    }
}

fn info(key: String, metadata: &fs::Metadata) -> ObjectInfo {
    ObjectInfo {
        key,
        size: metadata.len(),
        modified_ms: metadata.mtime() * 1000 + metadata.mtime_nsec() / 1_000_000,
        version: Some(version(metadata)),
    }
}

/// Returns a text that differs between two puts of one key. Each put creates a new file, so its
/// inode differs while the old file exists. After that its change time differs, which no program
/// can set.
fn version(metadata: &fs::Metadata) -> String {
    format!(
        "{:x}-{:x}-{:x}-{:x}.{:x}",
        metadata.ino(),
        metadata.len(),
        metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec(),
    )
}
