//! The [`Store`] trait, and the types of its calls.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;

use crate::{BoxError, CredentialsStatus, StoreError};

/// A store that several tasks share.
pub type SharedStore = Arc<dyn Store>;

/// The bytes of an object in pieces of any size, in order. They can be read only once. An error
/// means that the object will never be complete.
pub type ByteStream = BoxStream<'static, Result<Bytes, BoxError>>;

/// Objects by key, below the prefix or directory of a target.
///
/// Keys are relative: `0000/0000000000000001-0000000000000001.ltx`, `lock.json`. A key is not
/// empty, has no empty, `.` or `..` component, no leading or trailing `/`, no NUL, no backslash,
/// and no component that ends in `.tmp`. Other keys give [`StoreError::InvalidKey`].
///
/// # Cancel safety
/// Every call may be dropped. A dropped `put` or `delete` may still take effect. A dropped
/// multipart upload may leave parts behind that only a lifecycle rule of the bucket removes. No
/// call leaves a partial object visible.
pub trait Store: Send + Sync {
    /// Stores a whole object, atomically: readers see the old object or the new one.
    ///
    /// After an error other than [`Exists`](StoreError::Exists) and
    /// [`Conflict`](StoreError::Conflict) the object may have been stored nevertheless. A call
    /// whose answer was lost is repeated, so `Exists` and `Conflict` may refer to the caller's own
    /// earlier attempt: compare the content before you assume another writer.
    fn put(
        &self,
        key: &str,
        body: Body,
        mode: PutMode,
        meta: &PutMeta,
    ) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Stores a whole object from a stream, atomically, and returns its size in bytes. Memory is a
    /// few parts, whatever the size of the object; no local disk is used.
    ///
    /// `expected_bytes` is the approximate size of the object. A store that cuts objects into parts
    /// derives their size from it. Twice as many bytes always fit. A failed call is not repeated,
    /// because the stream cannot be read again. An error of the stream gives [`StoreError::Other`];
    /// then nothing is stored.
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
    /// The range is clipped to the end of the object, so a range at or past the end gives no bytes.
    fn get(&self, key: &str, range: Option<Range<u64>>)
    -> BoxFuture<'_, Result<Bytes, StoreError>>;

    /// Returns size, time and version of an object.
    fn head(&self, key: &str) -> BoxFuture<'_, Result<ObjectInfo, StoreError>>;

    /// Returns every object whose key starts with `prefix` and sorts after `start_after`, sorted by
    /// the bytes of the key. All pages are read, so the caller bounds the prefix.
    ///
    /// `prefix` is text, not a directory: `0000` also matches `00001/a`. It may be empty.
    fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
    ) -> BoxFuture<'_, Result<Vec<ObjectInfo>, StoreError>>;

    /// Returns the names directly below `directory` that have objects below them, sorted. For the
    /// keys `a/x/1` and `a/y`, the name below `a` is `x`. The empty directory is the store itself.
    /// Names that no key can hold belong to other programs and are left out.
    fn directories(&self, directory: &str) -> BoxFuture<'_, Result<Vec<String>, StoreError>>;

    /// Deletes objects; missing ones are ignored. Stops at the first error; then any of the others
    /// may already be deleted.
    fn delete(&self, keys: &[String]) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Returns the capabilities of this store.
    fn capabilities(&self) -> Capabilities;

    /// Returns the address of this store for people, without secrets: `s3://bucket/prefix`.
    fn describe(&self) -> String;

    /// Returns the naming scheme of LTX files in this store.
    fn layout(&self) -> Layout;

    /// Returns the state of the credentials at the last call; `None` for a store without
    /// credentials. No check runs between calls, so that an idle store costs nothing.
    fn credentials_status(&self) -> Option<CredentialsStatus> {
        None
    }

    /// Returns the number of requests sent so far; `None` for a store that sends none.
    fn requests(&self) -> Option<Requests> {
        None
    }

    /// Returns the stores at paths that a person may confuse with this one: with and without
    /// slashes at the ends, cleaned, at the root. Empty when such paths lead to this same store.
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

/// The content to store. It can be read again, so that a retry never needs a used stream.
#[derive(Debug, Clone)]
pub enum Body {
    /// Bytes in memory.
    Bytes(Bytes),
    /// The first `len` bytes of a file, which must not change until the put has returned.
    File {
        /// Path of the file.
        path: PathBuf,
        /// Number of bytes to store.
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

/// Condition of a put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PutMode {
    /// None.
    Overwrite,
    /// No object exists; [`StoreError::Exists`] otherwise.
    Create,
    /// The object has this [`ObjectInfo::version`]; [`StoreError::Conflict`] otherwise.
    Match(String),
}

/// Metadata of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PutMeta {
    /// Time of the content, in milliseconds since 1970, for a restore to a time.
    ///
    /// S3 keeps it as the user metadata `litestream-timestamp`; a file store as the file's
    /// modification time.
    pub timestamp_ms: Option<i64>,
}

/// Metadata of a stored object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Key, relative to the store.
    pub key: String,
    /// Size, in bytes.
    pub size: u64,
    /// [`PutMeta::timestamp_ms`] if the store reports it, else the time at which the object was
    /// stored, in milliseconds since 1970.
    ///
    /// [`Store::head`] always reports it. [`Store::list`] does so when
    /// [`Capabilities::list_timestamps`] is set.
    pub modified_ms: i64,
    /// Version for [`PutMode::Match`], which changes with the content. Opaque.
    pub version: Option<String>,
}

/// Capabilities of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// The store itself decides [`PutMode::Create`] and [`PutMode::Match`]. Some stores promise
    /// this without doing it: test it before you rely on it.
    pub conditional_put: bool,
    /// A list reports [`PutMeta::timestamp_ms`]; otherwise only a head does.
    pub list_timestamps: bool,
}

/// Number of requests of each kind sent for a store since it was opened. Each attempt and each page
/// of a list counts, as on a bill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Requests {
    /// Puts of objects and of parts, and the start and completion of multipart uploads.
    pub put: u64,
    /// Gets of objects and of ranges.
    pub get: u64,
    /// Requests for size and version only.
    pub head: u64,
    /// Pages of lists.
    pub list: u64,
    /// Deletes of objects, and aborted multipart uploads.
    pub delete: u64,
}

impl Requests {
    /// Returns each count with the name of its kind.
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

/// Naming scheme of LTX files. Litestream has two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `<path>/<level as %04x>/<file>`.
    S3,
    /// `<path>/ltx/<level in decimal>/<file>`.
    Tree,
}
