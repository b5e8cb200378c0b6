//! Objects in an S3 bucket, at AWS or any compatible store.
//!
//! Features in which compatible stores differ are avoided: no trailing checksums, no `aws-chunked`
//! bodies, signed payloads with a length, one `DeleteObject` for each key. Keys and user metadata
//! are byte for byte those of Litestream.

mod answer;
mod client;
mod download;
mod kept;
mod list;
mod place;
mod retry;
mod sent;
mod session;
mod timestamp;
mod upload;

use std::future::Future;
use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use aws_sdk_s3::Client;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, TryStreamExt, stream};
use tokio::sync::Semaphore;

use crate::object::{
    Body, ByteStream, Capabilities, Layout, ObjectInfo, PutMeta, PutMode, SharedStore, Store,
};
use crate::target::S3Target;
use crate::{CredentialsStatus, Requests, StoreError, key};
pub(crate) use client::{Bucket, build, system_http_client};
use kept::{Kept, with_customer_key};
use sent::{Counts, Kind, Sent};
use session::Session;
pub use upload::PART_BYTES;

/// User metadata that holds [`PutMeta::timestamp_ms`], under Litestream's name.
const TIMESTAMP_METADATA: &str = "litestream-timestamp";
/// Limit on concurrent deletes within one call.
const DELETES_AT_ONCE: usize = 8;

/// A prefix in a bucket as a store.
#[derive(Clone)]
pub struct S3Store {
    inner: Arc<Inner>,
}

/// State that the calls share.
struct Inner {
    client: Client,
    bucket: String,
    prefix: String,
    session: Arc<Session>,
    calls: Arc<Semaphore>,
    large: Arc<Semaphore>,
    counts: Arc<Counts>,
    kept: Kept,
    /// The store is proven to keep keys with this prefix unchanged.
    is_proven: AtomicBool,
}

impl S3Store {
    /// Creates a store with its own connections and credentials; sends no request yet.
    ///
    /// # Errors
    /// [`StoreError::Other`] when the target or its certificate file is not valid.
    pub fn new(target: &S3Target) -> Result<Self, StoreError> {
        Ok(Self::within(build(target, &system_http_client())?, target))
    }

    /// Creates a store at the prefix of the target, with the shared state of its bucket.
    pub(crate) fn within(shared: Bucket, target: &S3Target) -> Self {
        let Bucket {
            client,
            session,
            calls,
            large,
        } = shared;
        let (bucket, prefix) = (target.bucket.clone(), target.prefix.clone());
        Self {
            inner: Arc::new(Inner {
                client,
                bucket,
                prefix,
                session,
                calls,
                large,
                counts: Arc::default(),
                kept: Kept::new(target),
                is_proven: AtomicBool::new(!place::is_odd(&target.prefix)),
            }),
        }
    }

    /// Returns the store at another prefix of the same bucket.
    fn at(&self, prefix: String) -> Self {
        let inner = &self.inner;
        Self {
            inner: Arc::new(Inner {
                client: inner.client.clone(),
                bucket: inner.bucket.clone(),
                session: Arc::clone(&inner.session),
                calls: Arc::clone(&inner.calls),
                large: Arc::clone(&inner.large),
                counts: Arc::clone(&inner.counts),
                kept: inner.kept.clone(),
                is_proven: AtomicBool::new(!place::is_odd(&prefix)),
                prefix,
            }),
        }
    }
}

impl Inner {
    /// Returns the error for a call about `key`.
    fn failure<E>(&self, operation: &str, key: &str, error: SdkError<E, HttpResponse>) -> StoreError
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        answer::Call {
            operation,
            bucket: &self.bucket,
            prefix: &self.prefix,
            key,
        }
        .failure(error)
    }

    fn what(&self, operation: &str, key: &str) -> String {
        answer::what(operation, &self.bucket, &self.prefix, key)
    }

    /// Makes a call with the newest credentials. Repeats it once if it is refused and newer
    /// credentials exist.
    async fn call<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let permit = self.calls.acquire().await;
        let _permit = permit.expect("nothing closes it");
        let keys = self
            .session
            .ready(&self.client, &self.bucket, &self.prefix)
            .await?;
        let result = attempt().await;
        self.session.observe(keys.as_ref(), &result);
        if !matches!(result, Err(StoreError::Denied { .. })) {
            return result;
        }
        let renewed = self
            .session
            .renew(keys.as_ref(), &self.client, &self.bucket, &self.prefix)
            .await;
        let Some(renewed) = renewed else {
            return result;
        };
        let result = attempt().await;
        self.session.observe(Some(&renewed), &result);
        result
    }

    async fn head(&self, key: &str) -> Result<ObjectInfo, StoreError> {
        let request = self.client.head_object().bucket(&self.bucket);
        let request = with_customer_key!(request.key(self.full(key)), self).customize();
        let answer = request.interceptor(self.sent(Kind::Head)).send().await;
        let answer = match answer.map_err(|error| self.failure("head", key, error)) {
            Ok(answer) => answer,
            // An answer to HEAD has no body, so it does not distinguish a missing object from a
            // missing bucket or from a proxy without knowledge of the store. A list does.
            Err(missing @ StoreError::Missing { .. }) => {
                self.first(&self.full(key)).await?;
                return Err(missing);
            }
            Err(error) => return Err(error),
        };
        let kept = answer
            .metadata()
            .and_then(|metadata| metadata.get(TIMESTAMP_METADATA));
        let kept = kept.and_then(|text| timestamp::parse(text));
        let stored = answer
            .last_modified()
            .and_then(|time| time.to_millis().ok());
        Ok(ObjectInfo {
            key: key.to_owned(),
            size: self.size("head", key, answer.content_length())?,
            modified_ms: kept.or(stored).unwrap_or_default(),
            version: answer.e_tag().map(str::to_owned),
        })
    }

    /// Returns an interceptor that counts the attempts of a request of this kind.
    fn sent(&self, kind: Kind) -> Sent {
        let counts = Arc::clone(&self.counts);
        Sent { counts, kind }
    }

    /// Returns a full key without the prefix, if it has the prefix.
    fn relative<'a>(&self, full: &'a str) -> &'a str {
        full.strip_prefix(&key::stem(&self.prefix, ""))
            .unwrap_or(full)
    }

    fn full(&self, key: &str) -> String {
        key::join(&self.prefix, key)
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let request = self.client.delete_object().bucket(&self.bucket);
        let request = request.key(self.full(key)).customize();
        let answer = request.interceptor(self.sent(Kind::Delete)).send().await;
        match answer.map_err(|error| self.failure("delete", key, error)) {
            Ok(_) | Err(StoreError::Missing { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn size(&self, operation: &str, key: &str, size: Option<i64>) -> Result<u64, StoreError> {
        let size = size.and_then(|size| u64::try_from(size).ok());
        size.ok_or_else(|| self.bad_answer(operation, key, "an object without a size"))
    }

    fn bad_answer(&self, operation: &str, key: &str, code: &str) -> StoreError {
        let what = self.what(operation, key);
        StoreError::Corrupt {
            what,
            code: code.to_owned(),
            source: None,
        }
    }
}

impl Store for S3Store {
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
            let put = upload::Put {
                store: &self.inner,
                key: &key,
                mode: &mode,
                meta,
            };
            let is_large = body.size() > self.inner.kept.part_bytes;
            let _large = match is_large {
                true => Some(self.inner.large.acquire().await.expect("nothing closes it")),
                false => None,
            };
            let stored = self.inner.call(|| put.run(&body)).await;
            self.inner.prove_place(&put, stored).await
        }
        .boxed()
    }

    fn put_stream(
        &self,
        key: &str,
        stream: ByteStream,
        expected_bytes: u64,
        mode: PutMode,
        meta: &PutMeta,
    ) -> BoxFuture<'_, Result<u64, StoreError>> {
        let (key, meta) = (key.to_owned(), *meta);
        async move {
            key::check(&key)?;
            let put = upload::Put {
                store: &self.inner,
                key: &key,
                mode: &mode,
                meta,
            };
            let is_large = expected_bytes > self.inner.kept.part_bytes;
            let _large = match is_large {
                true => Some(self.inner.large.acquire().await.expect("nothing closes it")),
                false => None,
            };
            let (bytes, counted) = (Mutex::new(Some(stream)), expected_bytes);
            let attempt = || async {
                let bytes = bytes.lock().unwrap_or_else(PoisonError::into_inner).take();
                match bytes {
                    Some(bytes) => put.run_stream(bytes, counted).await,
                    // Only a refused first attempt leads here, and its error gives the reason.
                    None => Err(StoreError::Unreachable {
                        what: self.inner.what("put", &key),
                        code: "the credentials changed meanwhile".to_owned(),
                        source: None,
                    }),
                }
            };
            let stored = self.inner.call(attempt).await;
            self.inner.prove_place(&put, stored).await
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
            self.inner
                .call(|| download::get(&self.inner, &key, range.clone()))
                .await
        }
        .boxed()
    }

    fn head(&self, key: &str) -> BoxFuture<'_, Result<ObjectInfo, StoreError>> {
        let key = key.to_owned();
        async move {
            key::check(&key)?;
            self.inner.call(|| self.inner.head(&key)).await
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
            self.inner
                .call(|| self.inner.list(&prefix, start_after.as_deref()))
                .await
        }
        .boxed()
    }

    fn directories(&self, directory: &str) -> BoxFuture<'_, Result<Vec<String>, StoreError>> {
        let directory = directory.to_owned();
        async move {
            key::check_prefix(&key::below(&directory))?;
            self.inner.call(|| self.inner.directories(&directory)).await
        }
        .boxed()
    }

    fn delete(&self, keys: &[String]) -> BoxFuture<'_, Result<(), StoreError>> {
        let keys = keys.to_owned();
        async move {
            let delete = |key: String| async move {
                key::check(&key)?;
                self.inner.call(|| self.inner.delete(&key)).await
            };
            let each = stream::iter(keys.into_iter().map(Ok));
            each.try_for_each_concurrent(DELETES_AT_ONCE, delete).await
        }
        .boxed()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            conditional_put: true,
            list_timestamps: false,
        }
    }

    fn describe(&self) -> String {
        answer::location(&self.inner.bucket, &self.inner.prefix)
    }

    fn layout(&self) -> Layout {
        Layout::S3
    }

    fn credentials_status(&self) -> Option<CredentialsStatus> {
        self.inner.session.status()
    }

    fn requests(&self) -> Option<Requests> {
        Some(self.inner.counts.requests())
    }

    fn near_misses(&self) -> Vec<SharedStore> {
        let at = |prefix: String| -> SharedStore { Arc::new(self.at(prefix)) };
        place::near(&self.inner.prefix)
            .into_iter()
            .map(at)
            .collect()
    }
}
