//! Stores objects, in one request or in parts.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_sdk_s3::primitives::ByteStream as SdkBody;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use futures::FutureExt;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};

use super::kept::with_customer_key;
use super::sent::Kind;
use super::{Inner, TIMESTAMP_METADATA, client, timestamp};
use crate::body::Parts;
use crate::object::{Body, ByteStream, PutMeta, PutMode};
use crate::{StoreError, key};

/// Size of a part, and limit above which an object is stored in parts. The target can set another
/// size, and very large objects need larger parts.
pub const PART_BYTES: u64 = 5 << 20;
/// Limit of S3 on the parts of an object.
const MAX_PARTS: u64 = 10_000;
/// Number of parts in memory and in flight at once, unless the target sets another one.
pub(super) const PARTS_IN_FLIGHT: usize = 3;

/// The parts of an object, in order. Each is read just before it is sent.
type PartStream<'a> = BoxStream<'a, Result<Bytes, StoreError>>;

/// One put in progress.
pub(super) struct Put<'a> {
    pub(super) store: &'a Inner,
    pub(super) key: &'a str,
    pub(super) mode: &'a PutMode,
    pub(super) meta: PutMeta,
}

impl Put<'_> {
    /// Stores a body, which can be read again for each attempt.
    pub(super) async fn run(&self, body: &Body) -> Result<(), StoreError> {
        let (size, wanted) = (body.size(), self.store.kept.part_bytes);
        let result = if size <= wanted {
            match body.read_all().await {
                Ok(bytes) => self.whole(bytes).await,
                Err(error) => Err(error),
            }
        } else {
            let ranges = stream::iter(parts(size, wanted));
            let read = |range: Range<u64>| body.read(range.start, range.end - range.start);
            self.parts(ranges.then(read).boxed()).await
        };
        result.map_err(|error| self.condition(error))
    }

    /// Stores the content of a stream, and returns its size in bytes. The first part stays in
    /// memory until it is known whether a second one follows.
    pub(super) async fn run_stream(
        &self,
        bytes: ByteStream,
        expected_bytes: u64,
    ) -> Result<u64, StoreError> {
        let wanted = self.store.kept.part_bytes;
        // Room for twice as many bytes as expected.
        let part_bytes = wanted.max(expected_bytes.div_ceil(MAX_PARTS / 2));
        let part_bytes = usize::try_from(part_bytes).unwrap_or(usize::MAX);
        let what = self.store.what("put", self.key);
        let mut parts = Parts::new(bytes, part_bytes);
        let first = parts.next(&what).await?.unwrap_or_default();
        let second = match first.len() < part_bytes {
            true => None,
            false => parts.next(&what).await?,
        };
        let mut size = first.len() as u64;
        let Some(second) = second else {
            let stored = self.whole(first).await;
            return stored.map(|()| size).map_err(|error| self.condition(error));
        };
        let counted = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&counted);
        let rest = stream::try_unfold(parts, move |mut parts| {
            let (what, count) = (what.clone(), Arc::clone(&count));
            async move {
                let part = parts.next(&what).await?;
                let part = part.inspect(|part| {
                    count.fetch_add(part.len() as u64, Ordering::Relaxed);
                });
                Ok(part.map(|part| (part, parts)))
            }
        });
        size += second.len() as u64;
        let all = stream::iter([Ok(first), Ok(second)]).chain(rest).boxed();
        let stored = self.parts(all).await;
        stored.map_err(|error| self.condition(error))?;
        Ok(size + counted.load(Ordering::Relaxed))
    }

    /// Converts a failed condition into the error for this kind of put.
    fn condition(&self, error: StoreError) -> StoreError {
        let key = self.key.to_owned();
        match (error, self.mode) {
            (StoreError::Conflict { .. }, PutMode::Create) => StoreError::Exists { key },
            // A missing object cannot match the version.
            (StoreError::Missing { .. }, PutMode::Match(_)) => StoreError::Conflict { key },
            (error, _) => error,
        }
    }

    async fn whole(&self, bytes: Bytes) -> Result<(), StoreError> {
        let size = bytes.len() as u64;
        let request = self.store.client.put_object().bucket(&self.store.bucket);
        with_customer_key!(request, self.store)
            .key(self.full_key())
            .set_metadata(self.metadata())
            .set_storage_class(self.store.kept.storage_class.clone())
            .set_server_side_encryption(self.store.kept.sse())
            .set_ssekms_key_id(self.store.kept.kms_key.clone())
            .set_if_none_match(self.if_none_match())
            .set_if_match(self.if_match())
            .body(SdkBody::from(bytes))
            .customize()
            .interceptor(self.store.sent(Kind::Put))
            .config_override(client::for_body(size))
            .send()
            .await
            .map(drop)
            .map_err(|error| self.store.failure("put", self.key, error))
    }

    /// Stores parts in order, several at the same time. Each is read just before it is sent.
    async fn parts(&self, parts: PartStream<'_>) -> Result<(), StoreError> {
        // Most creates that lose fail here, before the bytes are sent.
        if *self.mode == PutMode::Create {
            match self.store.head(self.key).await {
                Ok(_) => {
                    return Err(StoreError::Exists {
                        key: self.key.to_owned(),
                    });
                }
                Err(StoreError::Missing { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let request = self
            .store
            .client
            .create_multipart_upload()
            .bucket(&self.store.bucket);
        let answer = with_customer_key!(request, self.store)
            .key(self.full_key())
            .set_metadata(self.metadata())
            .set_storage_class(self.store.kept.storage_class.clone())
            .set_server_side_encryption(self.store.kept.sse())
            .set_ssekms_key_id(self.store.kept.kms_key.clone())
            .customize()
            .interceptor(self.store.sent(Kind::Put))
            .send()
            .await;
        let answer = answer.map_err(|error| self.store.failure("put", self.key, error))?;
        let Some(upload) = answer.upload_id() else {
            return Err(self
                .store
                .bad_answer("put", self.key, "an upload without an id"));
        };
        let result = self.send_and_complete(upload, parts).await;
        if result.is_err() {
            // Ignore the error of the abort: a lifecycle rule removes the parts. The first error
            // counts.
            let request = self
                .store
                .client
                .abort_multipart_upload()
                .bucket(&self.store.bucket);
            let request = request.key(self.full_key()).upload_id(upload).customize();
            let sent = self.store.sent(Kind::Delete);
            let _ = request.interceptor(sent).send().await;
        }
        result
    }

    async fn send_and_complete(
        &self,
        upload: &str,
        parts: PartStream<'_>,
    ) -> Result<(), StoreError> {
        let kept = &self.store.kept;
        let numbered = stream::iter(1..).zip(parts);
        let sends = numbered.map(|(number, part)| self.part(upload, number, part).boxed());
        let done = sends.buffered(kept.parts_in_flight);
        let done = done.try_collect::<Vec<_>>().await?;
        let done = CompletedMultipartUpload::builder()
            .set_parts(Some(done))
            .build();
        let request = self
            .store
            .client
            .complete_multipart_upload()
            .bucket(&self.store.bucket);
        request
            .key(self.full_key())
            .upload_id(upload)
            .multipart_upload(done)
            .set_if_none_match(self.if_none_match())
            .set_if_match(self.if_match())
            .customize()
            .interceptor(self.store.sent(Kind::Put))
            // Some stores copy the parts before they answer.
            .config_override(client::for_body(kept.part_bytes))
            .send()
            .await
            .map(drop)
            .map_err(|error| self.store.failure("put", self.key, error))
    }

    async fn part(
        &self,
        upload: &str,
        number: i32,
        bytes: Result<Bytes, StoreError>,
    ) -> Result<CompletedPart, StoreError> {
        let bytes = bytes?;
        let size = bytes.len() as u64;
        let request = self.store.client.upload_part().bucket(&self.store.bucket);
        let answer = with_customer_key!(request, self.store)
            .key(self.full_key())
            .upload_id(upload)
            .part_number(number)
            .body(SdkBody::from(bytes))
            .customize()
            .interceptor(self.store.sent(Kind::Put))
            .config_override(client::for_body(size))
            .send()
            .await
            .map_err(|error| self.store.failure("put", self.key, error))?;
        let part = CompletedPart::builder().part_number(number);
        Ok(part.set_e_tag(answer.e_tag().map(str::to_owned)).build())
    }

    fn full_key(&self) -> String {
        key::join(&self.store.prefix, self.key)
    }

    fn metadata(&self) -> Option<std::collections::HashMap<String, String>> {
        let text = self.meta.timestamp_ms.and_then(timestamp::format)?;
        Some([(TIMESTAMP_METADATA.to_owned(), text)].into())
    }

    fn if_none_match(&self) -> Option<String> {
        (*self.mode == PutMode::Create).then(|| "*".to_owned())
    }

    fn if_match(&self) -> Option<String> {
        match self.mode {
            PutMode::Match(version) => Some(version.clone()),
            PutMode::Overwrite | PutMode::Create => None,
        }
    }
}

/// Cuts an object into parts of `wanted` bytes, or of more when there would be too many.
fn parts(size: u64, wanted: u64) -> impl Iterator<Item = Range<u64>> {
    let part = wanted.max(size.div_ceil(MAX_PARTS));
    (0..size.div_ceil(part)).map(move |index| index * part..((index + 1) * part).min(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_the_object_in_order_and_are_never_too_many() {
        for size in [PART_BYTES + 1, 20 << 20, 3 << 40, 80_000 * (1 << 20) + 1] {
            let parts: Vec<_> = parts(size, PART_BYTES).collect();
            assert!(parts.len() as u64 <= MAX_PARTS, "{size}");
            assert_eq!((parts[0].start, parts[parts.len() - 1].end), (0, size));
            assert!(parts.windows(2).all(|pair| pair[0].end == pair[1].start));
            let last = parts.len() - 1;
            assert!(
                parts[..last]
                    .iter()
                    .all(|part| part.end - part.start >= PART_BYTES)
            );
        }
    }
}
