//! A store behind a gate: it holds the writes in flight of a writer that was cut off.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, TryStreamExt};
use store::{
    Body, ByteStream, Capabilities, Layout, Memory, ObjectInfo, PutMeta, PutMode, Store, StoreError,
};
use tokio::sync::watch;

/// A store in which some writes wait while its gate is closed, as behind a network that is cut.
pub struct Gated {
    inner: Arc<Memory>,
    pub gate: watch::Sender<Gate>,
    /// Number of writes that pass although the gate is closed.
    passes: AtomicU32,
    /// Keys of writes that waited.
    pub waiting: Mutex<Vec<String>>,
}

#[derive(Debug, Clone, Copy)]
pub enum Gate {
    Open,
    /// Writes of keys with this prefix wait.
    Closed(&'static str),
    /// The lease cannot be read.
    LeaseUnreadable,
    /// The waiting writes are carried out, but their writer has gone and gets no answer.
    Late,
}

impl Gated {
    pub fn new(inner: Arc<Memory>) -> Gated {
        Gated {
            inner,
            gate: watch::Sender::new(Gate::Open),
            passes: AtomicU32::new(0),
            waiting: Mutex::default(),
        }
    }
}

impl Gated {
    /// Lets this many writes pass a closed gate.
    pub fn let_pass(&self, writes: u32) {
        self.passes.store(writes, Ordering::SeqCst);
        self.gate.send_modify(|_| {});
    }

    /// Waits until the gate is open for a key.
    async fn pass(&self, key: &str) {
        let shut = |gate: &Gate| matches!(gate, Gate::Closed(prefix) if key.starts_with(prefix));
        let shut = |gate: &Gate| shut(gate) && !self.take_pass();
        let mut gate = self.gate.subscribe();
        if shut(&gate.borrow()) {
            self.waiting.lock().unwrap().push(key.to_owned());
            gate.wait_for(|gate| !shut(gate)).await.unwrap();
        }
    }

    async fn store(
        &self,
        key: &str,
        body: Body,
        mode: PutMode,
        meta: &PutMeta,
    ) -> Result<(), StoreError> {
        let gate = *self.gate.borrow();
        let stored = self.inner.put(key, body, mode, meta).await;
        if matches!(gate, Gate::Late) {
            std::future::pending::<()>().await;
        }
        stored
    }

    fn take_pass(&self) -> bool {
        let one_less = |passes: u32| passes.checked_sub(1);
        let order = Ordering::SeqCst;
        self.passes.fetch_update(order, order, one_less).is_ok()
    }
}

impl Store for Gated {
    fn put(
        &self,
        key: &str,
        body: Body,
        mode: PutMode,
        meta: &PutMeta,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        let (key, meta) = (key.to_owned(), *meta);
        async move {
            self.pass(&key).await;
            self.store(&key, body, mode, &meta).await
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
            // The stream is not read while the gate is closed.
            self.pass(&key).await;
            let pieces: Result<Vec<Bytes>, _> = stream.try_collect().await;
            let pieces = pieces.map_err(|source| StoreError::Other {
                what: format!("put {key}"),
                code: "the stream failed".into(),
                source: Some(source),
            })?;
            let bytes = Bytes::from(pieces.concat());
            let size = bytes.len() as u64;
            self.store(&key, Body::Bytes(bytes), mode, &meta).await?;
            Ok(size)
        }
        .boxed()
    }

    fn get(
        &self,
        key: &str,
        range: Option<Range<u64>>,
    ) -> BoxFuture<'_, Result<Bytes, StoreError>> {
        if key == engine::replica::lease::LEASE_KEY
            && matches!(*self.gate.borrow(), Gate::LeaseUnreadable)
        {
            let what = format!("get {key}");
            return std::future::ready(Err(StoreError::Denied {
                what,
                code: "AccessDenied".into(),
                source: None,
            }))
            .boxed();
        }
        self.inner.get(key, range)
    }

    fn head(&self, key: &str) -> BoxFuture<'_, Result<ObjectInfo, StoreError>> {
        self.inner.head(key)
    }

    fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
    ) -> BoxFuture<'_, Result<Vec<ObjectInfo>, StoreError>> {
        self.inner.list(prefix, after)
    }

    fn directories(&self, directory: &str) -> BoxFuture<'_, Result<Vec<String>, StoreError>> {
        self.inner.directories(directory)
    }

    fn delete(&self, keys: &[String]) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.delete(keys)
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn layout(&self) -> Layout {
        self.inner.layout()
    }
}
