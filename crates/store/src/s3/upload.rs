//! Storing objects, in one request or in parts.

use std::ops::Range;

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use futures::stream::{self, StreamExt, TryStreamExt};

use super::kept::with_customer_key;
use super::sent::Kind;
use super::{Inner, TIMESTAMP_METADATA, client, timestamp};
use crate::object::{Body, PutMeta, PutMode};
use crate::{StoreError, key};

/// Objects larger than this go in parts of this size, unless they have too many or the target
/// says otherwise.
pub const PART_BYTES: u64 = 5 << 20;
/// The most parts that S3 puts together.
const MAX_PARTS: u64 = 10_000;
/// How many parts are in memory and on their way at once, unless the target says otherwise.
pub(super) const PARTS_IN_FLIGHT: usize = 3;

/// An object on its way into the store.
pub(super) struct Put<'a> {
    pub(super) store: &'a Inner,
    pub(super) key: &'a str,
    pub(super) body: &'a Body,
    pub(super) mode: &'a PutMode,
    pub(super) meta: PutMeta,
}

impl Put<'_> {
    pub(super) async fn run(&self) -> Result<(), StoreError> {
        let result = if self.body.size() <= self.store.kept.part_bytes {
            self.whole().await
        } else {
            self.parts().await
        };
        result.map_err(|error| self.condition(error))
    }

    /// Says what a failed condition means for this kind of put.
    fn condition(&self, error: StoreError) -> StoreError {
        let key = self.key.to_owned();
        match (error, self.mode) {
            (StoreError::Conflict { .. }, PutMode::Create) => StoreError::Exists { key },
            // Without the object there is nothing that could match.
            (StoreError::Missing { .. }, PutMode::Match(_)) => StoreError::Conflict { key },
            (error, _) => error,
        }
    }

    async fn whole(&self) -> Result<(), StoreError> {
        let bytes = self.body.read_all().await?;
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
            .body(ByteStream::from(bytes))
            .customize()
            .interceptor(self.store.sent(Kind::Put))
            .config_override(client::for_body(size))
            .send()
            .await
            .map(drop)
            .map_err(|error| self.store.failure("put", self.key, error))
    }

    async fn parts(&self) -> Result<(), StoreError> {
        // The loser of a create learns it here, before the bytes are sent.
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
        let result = self.send_and_complete(upload).await;
        if result.is_err() {
            // What cannot be taken back now is for a lifecycle rule; the error is what counts.
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

    async fn send_and_complete(&self, upload: &str) -> Result<(), StoreError> {
        let kept = &self.store.kept;
        let numbered = (1..).zip(parts(self.body.size(), kept.part_bytes));
        let sends = numbered.map(|(number, range)| self.part(upload, number, range));
        let done = stream::iter(sends).buffered(kept.parts_in_flight);
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
        range: Range<u64>,
    ) -> Result<CompletedPart, StoreError> {
        let size = range.end - range.start;
        let bytes = self.body.read(range.start, size).await?;
        let request = self.store.client.upload_part().bucket(&self.store.bucket);
        let answer = with_customer_key!(request, self.store)
            .key(self.full_key())
            .upload_id(upload)
            .part_number(number)
            .body(ByteStream::from(bytes))
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

/// Cuts an object into parts: of `wanted` bytes, or more where that would be too many.
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
