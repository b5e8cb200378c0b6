//! The [`Store`] trait and what its calls take and return.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;

use crate::{BoxError, CredentialsStatus, StoreError};

/// A store that several tasks use.
pub type SharedStore = Arc<dyn Store>;

/// The bytes of an object in pieces of any size, in order. They can be read once only. An error
/// means that the object will never be complete.
pub type ByteStream = BoxStream<'static, Result<Bytes, BoxError>>;

/// Objects by key, below the prefix or directory of a target.
///
/// Keys are relative: `0000/0000000000000001-0000000000000001.ltx`, `lock.json`. They are not
/// empty, have no empty, `.` or `..` component, no leading or trailing `/`, no NUL, no
/// backslash, and no component that ends in `.tmp`; others are answered with [`StoreError::InvalidKey`].
///
/// # Cancel safety
/// Every call may be dropped. A dropped `put` or `delete` may still have happened, and a dropped
/// multipart upload may leave parts behind that only a lifecycle rule of the bucket removes; no
/// call leaves a partial object visible.
pub trait Store: Send + Sync {
    /// Stores a whole object, atomically: readers see the old object, or the new one.
    ///
    /// After an error other than [`Exists`](StoreError::Exists) and
    /// [`Conflict`](StoreError::Conflict) the object may have been stored all the same. And since
    /// a lost answer is asked for again, `Exists` and `Conflict` may be about the caller's own
    /// earlier attempt: compare the content before you believe in another writer.
    fn put(
        &self,
        key: &str,
        body: Body,
        mode: PutMode,
        meta: &PutMeta,
    ) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Stores a whole object whose bytes arrive in a stream, atomically, and returns its size in
    /// bytes. Memory is a few parts, whatever the size of the object; nothing is kept on disk here.
    ///
    /// `expected_bytes` is about the size of the object: a store that cuts objects into parts
    /// chooses their size by it. Twice as much always fits. A failed call is not repeated here,
    /// because the stream cannot be read again. An error of the stream is answered with
    /// [`StoreError::Other`], and nothing is stored then.
    fn put_stream(
        &self,
        key: &str,
        stream: ByteStream,
        expected_bytes: u64,
        mode: PutMode,
        meta: &PutMeta,
    ) -> BoxFuture<'_, Result<u64, StoreError>>;

    /// Returns an object or a part of it, all in memory: the caller bounds the range.
    ///
    /// What of the range lies past the end is left out, so a range at or past the end is empty.
    fn get(&self, key: &str, range: Option<Range<u64>>)
    -> BoxFuture<'_, Result<Bytes, StoreError>>;

    /// Returns size, time and version of an object.
    fn head(&self, key: &str) -> BoxFuture<'_, Result<ObjectInfo, StoreError>>;

    /// Returns every object whose key starts with `prefix` and sorts after `start_after`, sorted
    /// by the bytes of the key. All pages, so the caller bounds the prefix.
    ///
    /// `prefix` is text, not a directory: `0000` also matches `00001/a`. It may be empty.
    fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
    ) -> BoxFuture<'_, Result<Vec<ObjectInfo>, StoreError>>;

    /// Returns the names directly below `directory` that have objects below them, sorted: for keys
    /// `a/x/1` and `a/y`, below `a` that is `x`. The empty directory is the store itself. Names that
    /// no key can hold are somebody else's, and left out.
    fn directories(&self, directory: &str) -> BoxFuture<'_, Result<Vec<String>, StoreError>>;

    /// Deletes objects; those that are missing already are fine. Stops at the first error, after
    /// which any of the others may be gone.
    fn delete(&self, keys: &[String]) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Returns what this store can do.
    fn capabilities(&self) -> Capabilities;

    /// Returns where this store is, for people, without secrets: `s3://bucket/prefix`.
    fn describe(&self) -> String;

    /// Returns how LTX files are named here.
    fn layout(&self) -> Layout;

    /// Returns how the credentials fared at the last call; `None` where there are none to speak
    /// of. Nothing looks after them between calls, so that an idle store costs nothing.
    fn credentials_status(&self) -> Option<CredentialsStatus> {
        None
    }

    /// Returns how many requests were sent so far; `None` where nothing is sent.
    fn requests(&self) -> Option<Requests> {
        None
    }

    /// Returns the stores at paths that a person may take for this one: with and without slashes at
    /// the ends, cleaned, at the root. None where such paths lead to this very place.
    fn near_misses(&self) -> Vec<SharedStore> {
        Vec::new()
    }
}

impl<S: Store + ?Sized> Store for Arc<S> {
    fn put(
        &self,
        key: &str,
        body: Body,
        mode: PutMode,
        meta: &PutMeta,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        (**self).put(key, body, mode, meta)
    }

    fn put_stream(
        &self,
        key: &str,
        stream: ByteStream,
        expected_bytes: u64,
        mode: PutMode,
        meta: &PutMeta,
    ) -> BoxFuture<'_, Result<u64, StoreError>> {
        (**self).put_stream(key, stream, expected_bytes, mode, meta)
    }

    fn get(
        &self,
        key: &str,
        range: Option<Range<u64>>,
    ) -> BoxFuture<'_, Result<Bytes, StoreError>> {
        (**self).get(key, range)
    }

    fn head(&self, key: &str) -> BoxFuture<'_, Result<ObjectInfo, StoreError>> {
        (**self).head(key)
    }

    fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
    ) -> BoxFuture<'_, Result<Vec<ObjectInfo>, StoreError>> {
        (**self).list(prefix, start_after)
    }

    fn directories(&self, directory: &str) -> BoxFuture<'_, Result<Vec<String>, StoreError>> {
        (**self).directories(directory)
    }

    fn delete(&self, keys: &[String]) -> BoxFuture<'_, Result<(), StoreError>> {
        (**self).delete(keys)
    }

    fn capabilities(&self) -> Capabilities {
        (**self).capabilities()
    }

    fn describe(&self) -> String {
        (**self).describe()
    }

    fn layout(&self) -> Layout {
        (**self).layout()
    }

    fn credentials_status(&self) -> Option<CredentialsStatus> {
        (**self).credentials_status()
    }

    fn requests(&self) -> Option<Requests> {
        (**self).requests()
    }

    fn near_misses(&self) -> Vec<SharedStore> {
        (**self).near_misses()
    }
}

/// What to store: something that can be read again, so that a retry never needs a used stream.
#[derive(Debug, Clone)]
pub enum Body {
    /// Bytes in memory.
    Bytes(Bytes),
    /// The first `len` bytes of a file, which must not change until the put has returned.
    File {
        /// Where the file is.
        path: PathBuf,
        /// How much of it to store, in bytes.
        len: u64,
    },
}

impl Body {
    /// Returns the size in bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { len, .. } => *len,
        }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes.into())
    }
}

impl From<&'static [u8]> for Body {
    fn from(bytes: &'static [u8]) -> Self {
        Self::Bytes(Bytes::from_static(bytes))
    }
}

/// What must be there for a put to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PutMode {
    /// Anything.
    Overwrite,
    /// Nothing; [`StoreError::Exists`] otherwise.
    Create,
    /// The object with this [`ObjectInfo::version`]; [`StoreError::Conflict`] otherwise.
    Match(String),
}

/// What to keep with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PutMeta {
    /// When the content was true, in milliseconds since 1970, for a restore to a time.
    ///
    /// S3 keeps it as the user metadata `litestream-timestamp`; a file store as the file's
    /// modification time.
    pub timestamp_ms: Option<i64>,
}

/// What a store knows about an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Relative to the store.
    pub key: String,
    /// In bytes.
    pub size: u64,
    /// [`PutMeta::timestamp_ms`] where the store says it, else when the object was stored, in
    /// milliseconds since 1970.
    ///
    /// [`Store::head`] always says it. [`Store::list`] does when
    /// [`Capabilities::list_timestamps`] is set.
    pub modified_ms: i64,
    /// Changes with the content, for [`PutMode::Match`]. Opaque.
    pub version: Option<String>,
}

/// What a store can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// [`PutMode::Create`] and [`PutMode::Match`] are decided by the store, not by us. A store
    /// may promise it and not do it: whoever relies on it tries it first.
    pub conditional_put: bool,
    /// A list says [`PutMeta::timestamp_ms`]; otherwise only a head does.
    pub list_timestamps: bool,
}

/// How many requests of each kind were sent for a store since it was opened. Each attempt counts,
/// and each page of a list: it is what a bill shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Requests {
    /// Objects and parts of objects, and what begins and completes those of many parts.
    pub put: u64,
    /// Objects and ranges of them.
    pub get: u64,
    /// Asked for size and version only.
    pub head: u64,
    /// Pages of lists.
    pub list: u64,
    /// Objects, and uploads in parts that were given up.
    pub delete: u64,
}

impl Requests {
    /// Returns each kind by name.
    pub fn by_kind(self) -> [(&'static str, u64); 5] {
        [
            ("put", self.put),
            ("get", self.get),
            ("head", self.head),
            ("list", self.list),
            ("delete", self.delete),
        ]
    }
}

/// How LTX files are named. Litestream has two ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `<path>/<level as %04x>/<file>`.
    S3,
    /// `<path>/ltx/<level in decimal>/<file>`.
    Tree,
}
