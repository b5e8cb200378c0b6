//! Objects in an S3 bucket, at AWS or any compatible store.
//!
//! Features in which compatible stores differ are avoided: no trailing checksums, no `aws-chunked`
//! bodies, signed payloads with a length, one `DeleteObject` for each key. Keys and user metadata
//! are byte for byte those of Litestream.

mod answer;
mod client;
mod download;
mod kept;
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
use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::types::Object;
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
/// Limit on the pages of one list, of 1,000 objects each, in case a broken store never ends its
/// list.
const MAX_PAGES: u32 = 100_000;
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

/// Parameters of a list request.
#[derive(Default, Clone, Copy)]
struct Asked<'a> {
    start: Option<&'a str>,
    token: Option<&'a str>,
    max_keys: Option<i32>,
    delimiter: Option<&'a str>,
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

    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
    ) -> Result<Vec<ObjectInfo>, StoreError> {
        let start = start_after.and_then(safe_start);
        let (full, full_start) = (self.full(prefix), start.map(|start| self.full(start)));
        let mut found = self.pages(prefix, &full, full_start.as_deref()).await?;
        let slashed = self.prefix.is_empty() && full != prefix;
        if found.is_empty() && slashed && self.drops_slashes(prefix).await? {
            found = self.pages(prefix, prefix, start).await?;
        }
        if found.is_empty() {
            self.refuse_other_names(prefix).await?;
        }
        // Some stores ignore `start-after` or do not sort by bytes, and the request starts a little
        // earlier.
        found.retain(|info| start_after.is_none_or(|after| info.key.as_str() > after));
        found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        found.dedup_by(|a, b| a.key == b.key);
        Ok(found)
    }

    /// Returns whether the store drops the slash at the start of our keys, which have one below an
    /// empty prefix. SeaweedFS does, and then lists the keys without it.
    async fn drops_slashes(&self, prefix: &str) -> Result<bool, StoreError> {
        let Some(key) = self.first(prefix).await? else {
            return Ok(false);
        };
        match self.head(&key).await {
            Ok(_) => Ok(true),
            // The object belongs to another program, in a store that distinguishes `/key` and
            // `key`.
            Err(StoreError::Missing { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Returns the names directly below a directory that have objects below them.
    async fn directories(&self, directory: &str) -> Result<Vec<String>, StoreError> {
        let full = key::directory(&self.prefix) + &key::below(directory);
        let mut found = self.common_prefixes(&full).await?;
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Returns the next path component after `full`, for every key that starts with `full`.
    async fn common_prefixes(&self, full: &str) -> Result<Vec<String>, StoreError> {
        let mut found = Vec::new();
        let asked = Asked {
            delimiter: Some("/"),
            ..Asked::default()
        };
        self.every_page(full, asked, |page| {
            let prefixes = page.common_prefixes().iter();
            let names = prefixes.filter_map(|prefix| prefix.prefix()?.strip_prefix(full));
            let names = names.filter_map(|name| name.strip_suffix('/'));
            let names = names.filter(|name| key::is_directory_name(name));
            found.extend(names.map(str::to_owned));
            Ok(())
        })
        .await?;
        Ok(found)
    }

    /// Returns all pages of a list of full keys that start with `full`, which belongs to `prefix`.
    async fn pages(
        &self,
        prefix: &str,
        full: &str,
        start: Option<&str>,
    ) -> Result<Vec<ObjectInfo>, StoreError> {
        let mut found = Vec::new();
        let asked = Asked {
            start,
            ..Asked::default()
        };
        self.every_page(full, asked, |page| {
            for object in page.contents() {
                found.push(self.object_info(prefix, object)?);
            }
            Ok(())
        })
        .await?;
        Ok(found)
    }

    async fn every_page(
        &self,
        full: &str,
        asked: Asked<'_>,
        mut take: impl FnMut(ListObjectsV2Output) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut token: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let asked = Asked {
                token: token.as_deref(),
                ..asked
            };
            let (page, next) = self.page(full, asked).await?;
            take(page)?;
            if next.is_none() {
                return Ok(());
            }
            if next == token {
                break;
            }
            token = next;
        }
        Err(self.bad_answer("list", self.relative(full), "the list does not end"))
    }

    /// Returns the full key of the first object that starts with `full`.
    async fn first(&self, full: &str) -> Result<Option<String>, StoreError> {
        let asked = Asked {
            max_keys: Some(1),
            ..Asked::default()
        };
        let (page, _) = self.page(full, asked).await?;
        Ok(page
            .contents()
            .first()
            .and_then(Object::key)
            .map(str::to_owned))
    }

    /// Returns one page of a list by full keys, and the token of the next one.
    async fn page(
        &self,
        full: &str,
        asked: Asked<'_>,
    ) -> Result<(ListObjectsV2Output, Option<String>), StoreError> {
        let below = self.relative(full);
        let request = self.client.list_objects_v2().bucket(&self.bucket);
        let page = request
            .prefix(full)
            .set_start_after(asked.start.map(str::to_owned))
            .set_continuation_token(asked.token.map(str::to_owned))
            .set_max_keys(asked.max_keys)
            .set_delimiter(asked.delimiter.map(str::to_owned))
            .customize()
            .interceptor(self.sent(Kind::List))
            .send()
            .await
            .map_err(|error| self.failure("list", below, error))?;
        let more = page.is_truncated().unwrap_or_default();
        let next = page.next_continuation_token().map(str::to_owned);
        if more && next.is_none() {
            return Err(self.bad_answer("list", below, "a list goes on without saying where"));
        }
        Ok((page, next.filter(|_| more)))
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

    fn object_info(&self, prefix: &str, object: &Object) -> Result<ObjectInfo, StoreError> {
        let full = object.key().unwrap_or_default();
        let key = place::below(&key::stem(&self.prefix, prefix), full);
        let key = key.filter(|key| key.starts_with(prefix));
        let Some(key) = key else {
            if place::is_odd(&self.prefix) {
                return Err(self.other_name(prefix));
            }
            return Err(self.bad_answer("list", prefix, "a key without the prefix asked for"));
        };
        let stored = object
            .last_modified()
            .and_then(|time| time.to_millis().ok());
        Ok(ObjectInfo {
            key: key.to_owned(),
            size: self.size("list", key, object.size())?,
            modified_ms: stored.unwrap_or_default(),
            version: object.e_tag().map(str::to_owned),
        })
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

/// Returns a start for a list that leaves out nothing after `after`.
///
/// A store that keeps directories (SeaweedFS) skips all of `dir/` when a list starts after `dir`,
/// although `dir/x` sorts after it. So start a little earlier, at a text that ends before a letter
/// or digit: every key in a directory of that name sorts before `after` anyway.
fn safe_start(after: &str) -> Option<&str> {
    let end = after.char_indices().rev().find(|(_, c)| *c > '/')?.0;
    after.get(..end).filter(|start| !start.is_empty())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_starts_early_enough_for_stores_that_skip_directories() {
        let all = [
            "0", "0-", "0/x", "00", "00/x", "1", "1-", "1/", "1/x", "1/x-", "1/x/y", "1/xy",
        ];
        for after in all {
            let start = safe_start(after).unwrap_or_default();
            assert!(start <= after);
            // Such a store leaves out all keys up to the start, and those in a directory of its
            // name.
            let below = format!("{start}/");
            let skipped =
                |key: &&&str| !start.is_empty() && (**key <= start || key.starts_with(&below));
            assert!(
                all.iter().filter(skipped).all(|key| *key <= after),
                "{after}: {start}"
            );
        }
        let name = "0000/00000000000000ff-00000000000000ff.ltx";
        assert_eq!(safe_start(name), Some(&name[..name.len() - 1]));
    }
}
