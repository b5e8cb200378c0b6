//! A store in memory, for tests: deterministic, with the semantics of the real stores.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, Range};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;

use crate::body::Parts;
use crate::object::{Body, ByteStream, Capabilities, Layout, ObjectInfo, PutMeta, PutMode, Store};
use crate::{StoreError, key};

/// Objects in memory.
///
/// Versions count up from 1. Times come from the given clock; without one, the n-th put happens n
/// milliseconds after 1970.
pub struct Memory {
    state: Mutex<State>,
    clock: Box<dyn Fn() -> i64 + Send + Sync>,
    layout: Layout,
    /// Put modes that this store ignores.
    ignores_create: bool,
    ignores_match: bool,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Object>,
    versions: u64,
}

#[derive(Clone)]
struct Object {
    bytes: Bytes,
    modified_ms: i64,
    version: u64,
}

impl Memory {
    /// Creates an empty store whose clock ticks once for each put.
    pub fn new() -> Self {
        let ticks = AtomicI64::new(0);
        Self::with_clock(move || ticks.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Creates an empty store; `clock` returns milliseconds since 1970.
    pub fn with_clock(clock: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        Self {
            state: Mutex::default(),
            clock: Box::new(clock),
            layout: Layout::Tree,
            ignores_create: false,
            ignores_match: false,
        }
    }

    /// Reports this layout instead of [`Layout::Tree`].
    #[must_use]
    pub fn with_layout(mut self, layout: Layout) -> Self {
        self.layout = layout;
        self
    }

    /// Handles [`PutMode::Create`] as an overwrite, like some S3 servers.
    #[must_use]
    pub fn ignoring_create(mut self) -> Self {
        self.ignores_create = true;
        self
    }

    /// Handles [`PutMode::Match`] as an overwrite, like some S3 servers.
    #[must_use]
    pub fn ignoring_match(mut self) -> Self {
        self.ignores_match = true;
        self
    }

    /// Returns all keys, sorted.
    pub fn keys(&self) -> Vec<String> {
        self.state().objects.keys().cloned().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic happens under this lock")
    }

    fn store(
        &self,
        key: String,
        bytes: Bytes,
        mode: &PutMode,
        meta: PutMeta,
    ) -> Result<(), StoreError> {
        let now_ms = (self.clock)();
        let state = &mut *self.state();
        let object = Object {
            bytes,
            modified_ms: meta.timestamp_ms.unwrap_or(now_ms),
            version: state.versions + 1,
        };
        let mode = match mode {
            PutMode::Create if self.ignores_create => &PutMode::Overwrite,
            PutMode::Match(_) if self.ignores_match => &PutMode::Overwrite,
            mode => mode,
        };
        match (state.objects.entry(key), mode) {
            (Entry::Occupied(entry), PutMode::Create) => {
                return Err(StoreError::Exists {
                    key: entry.key().clone(),
                });
            }
            (Entry::Vacant(entry), PutMode::Match(_)) => {
                return Err(StoreError::Conflict {
                    key: entry.key().clone(),
                });
            }
            (Entry::Occupied(entry), PutMode::Match(version))
                if entry.get().version.to_string() != *version =>
            {
                return Err(StoreError::Conflict {
                    key: entry.key().clone(),
                });
            }
            (entry, _) => {
                entry.insert_entry(object);
            }
        }
        state.versions += 1;
        Ok(())
    }

    fn find(&self, key: &str) -> Result<Object, StoreError> {
        let missing = || StoreError::Missing {
            key: key.to_owned(),
        };
        self.state().objects.get(key).cloned().ok_or_else(missing)
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Store for Memory {
    fn put(
        &self,
        key: &str,
        body: Body,
        mode: PutMode,
        meta: &PutMeta,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        let (key, meta) = (key.to_owned(), *meta);
        async move {
            key::check(&key)?;
            self.store(key, body.read_all().await?, &mode, meta)
        }
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
        let (key, meta) = (key.to_owned(), *meta);
        async move {
            key::check(&key)?;
            let mut parts = Parts::new(stream, usize::MAX);
            let bytes = parts.next(&format!("put {key}")).await?.unwrap_or_default();
            let size = bytes.len() as u64;
            self.store(key, bytes, &mode, meta)?;
            Ok(size)
        }
        .boxed()
    }

    fn get(
        &self,
        key: &str,
        range: Option<Range<u64>>,
    ) -> BoxFuture<'_, Result<Bytes, StoreError>> {
        let key = key.to_owned();
        async move {
            key::check(&key)?;
            let bytes = self.find(&key)?.bytes;
            let len = bytes.len() as u64;
            let range = range.unwrap_or(0..len);
            let (start, end) = (range.start.min(len), range.end.min(len));
            // Both are at most the length of a buffer in memory, so they fit.
            Ok(bytes.slice(start as usize..end.max(start) as usize))
        }
        .boxed()
    }

    fn head(&self, key: &str) -> BoxFuture<'_, Result<ObjectInfo, StoreError>> {
        let key = key.to_owned();
        async move {
            key::check(&key)?;
            Ok(info(&key, &self.find(&key)?))
        }
        .boxed()
    }

    fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
    ) -> BoxFuture<'_, Result<Vec<ObjectInfo>, StoreError>> {
        let (prefix, start_after) = (prefix.to_owned(), start_after.map(str::to_owned));
        async move {
            key::check_prefix(&prefix)?;
            let after = start_after.map_or(Bound::Unbounded, Bound::Excluded);
            let state = self.state();
            let found = state.objects.range::<String, _>((after, Bound::Unbounded));
            let found = found.filter(|(key, _)| key.starts_with(&prefix));
            Ok(found.map(|(key, object)| info(key, object)).collect())
        }
        .boxed()
    }

    fn directories(&self, directory: &str) -> BoxFuture<'_, Result<Vec<String>, StoreError>> {
        let prefix = key::below(directory);
        async move {
            key::check_prefix(&prefix)?;
            let state = self.state();
            let below = state
                .objects
                .keys()
                .filter_map(|key| key.strip_prefix(&prefix));
            let names = below.filter_map(|key| Some(key.split_once('/')?.0.to_owned()));
            Ok(names.collect::<BTreeSet<_>>().into_iter().collect())
        }
        .boxed()
    }

    fn delete(&self, keys: &[String]) -> BoxFuture<'_, Result<(), StoreError>> {
        let keys = keys.to_owned();
        async move {
            for key in keys {
                key::check(&key)?;
                self.state().objects.remove(&key);
            }
            Ok(())
        }
        .boxed()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            conditional_put: true,
            list_timestamps: true,
        }
    }

    fn describe(&self) -> String {
        "memory".to_owned()
    }

    fn layout(&self) -> Layout {
        self.layout
    }
}

fn info(key: &str, object: &Object) -> ObjectInfo {
    ObjectInfo {
        key: key.to_owned(),
        size: object.bytes.len() as u64,
        modified_ms: object.modified_ms,
        version: Some(object.version.to_string()),
    }
}
