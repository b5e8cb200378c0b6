//! Reads objects and parts of them.

use std::ops::Range;

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use bytes::{Bytes, BytesMut};

use super::kept::with_customer_key;
use super::sent::Kind;
use super::{Inner, client};
use crate::{StoreError, key};

/// Limit on the requests for a body that breaks off. The SDK itself retries errors before the body.
const MAX_BODIES: u32 = 5;
/// Limit on the allocation before the first byte has arrived.
const MAX_FIRST_ALLOCATION_BYTES: u64 = 16 << 20;

/// Returns an object or a part of it.
pub(super) async fn get(
    store: &Inner,
    key: &str,
    range: Option<Range<u64>>,
) -> Result<Bytes, StoreError> {
    if range.as_ref().is_some_and(Range::is_empty) {
        // A range header cannot express an empty range.
        return store.head(key).await.map(|_| Bytes::new());
    }
    let mut bodies = 1;
    loop {
        let Some(answer) = send(store, key, range.as_ref()).await? else {
            return Ok(Bytes::new());
        };
        match body(store, key, range.as_ref(), answer).await {
            Err(StoreError::Unreachable { .. }) if bodies < MAX_BODIES => bodies += 1,
            result => return result,
        }
    }
}

/// Returns the answer; `None` for a range past the end.
async fn send(
    store: &Inner,
    key: &str,
    range: Option<&Range<u64>>,
) -> Result<Option<GetObjectOutput>, StoreError> {
    let request = store.client.get_object().bucket(&store.bucket);
    let header = range.map(|range| format!("bytes={}-{}", range.start, range.end - 1));
    let answer = with_customer_key!(request, store)
        .key(key::join(&store.prefix, key))
        .set_range(header)
        .customize()
        .config_override(client::for_download())
        .interceptor(store.sent(Kind::Get))
        .send()
        .await;
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(SdkError::ServiceError(answer))
            if range.is_some()
                && (answer.raw().status().as_u16() == 416
                    || answer.err().code() == Some("InvalidRange")) =>
        {
            Ok(None)
        }
        Err(error) => Err(store.failure("get", key, error)),
    }
}

async fn body(
    store: &Inner,
    key: &str,
    range: Option<&Range<u64>>,
    mut answer: GetObjectOutput,
) -> Result<Bytes, StoreError> {
    let size = store.size("get", key, answer.content_length())?;
    if let Some(fault) = range.and_then(|range| fault(range, size, answer.content_range())) {
        return Err(store.bad_answer("get", key, fault));
    }
    // At most 16 MiB, so it fits.
    let mut bytes = BytesMut::with_capacity(size.min(MAX_FIRST_ALLOCATION_BYTES) as usize);
    loop {
        match answer.body.try_next().await {
            Ok(Some(chunk)) if (bytes.len() + chunk.len()) as u64 > size => {
                return Err(store.bad_answer("get", key, "more bytes than promised"));
            }
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
            Ok(None) => break,
            Err(error) => {
                let what = store.what("get", key);
                let code = format!("the body broke off at {} of {size} bytes", bytes.len());
                return Err(StoreError::Unreachable {
                    what,
                    code,
                    source: Some(error.into()),
                });
            }
        }
    }
    if (bytes.len() as u64) < size {
        return Err(store.bad_answer("get", key, "fewer bytes than promised"));
    }
    Ok(bytes.freeze())
}

/// Returns the fault in an answer of `size` bytes to a request for `range`, which is not empty.
fn fault(range: &Range<u64>, size: u64, content_range: Option<&str>) -> Option<&'static str> {
    let start = match content_range {
        Some(text) => match first_byte(text) {
            Some(start) => start,
            None => return Some("a content range that is none"),
        },
        // Some stores omit the header when the range covers the whole object.
        None => 0,
    };
    if start != range.start {
        Some("another range than the one asked for")
    } else if size > range.end - range.start {
        Some("more than the range asked for")
    } else {
        None
    }
}

/// Parses `bytes FIRST-LAST/SIZE`.
fn first_byte(content_range: &str) -> Option<u64> {
    content_range
        .strip_prefix("bytes ")?
        .split_once('-')?
        .0
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_must_be_the_range_asked_for() {
        assert_eq!(fault(&(10..20), 10, Some("bytes 10-19/100")), None);
        assert_eq!(fault(&(10..20), 5, Some("bytes 10-14/15")), None);
        assert_eq!(fault(&(0..20), 15, None), None);
        for (size, content_range) in [
            (10, Some("bytes 0-9/100")),
            (11, Some("bytes 10-20/100")),
            (10, Some("10-19")),
            (100, None),
            (10, None),
        ] {
            assert!(
                fault(&(10..20), size, content_range).is_some(),
                "{size} {content_range:?}"
            );
        }
    }
}
