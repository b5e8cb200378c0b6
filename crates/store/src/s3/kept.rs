//! Storage options of objects: class, encryption, parts.

use aws_sdk_s3::types::{ServerSideEncryption, StorageClass};

use super::upload::{PART_BYTES, PARTS_IN_FLIGHT};
use crate::target::S3Target;
use crate::{CustomerKey, Encryption};

/// The storage options of a target.
#[derive(Clone)]
pub(super) struct Kept {
    pub(super) storage_class: Option<StorageClass>,
    pub(super) kms_key: Option<String>,
    pub(super) customer_key: Option<CustomerKey>,
    pub(super) part_bytes: u64,
    pub(super) parts_in_flight: usize,
}

impl Kept {
    pub(super) fn new(target: &S3Target) -> Self {
        let (kms_key, customer_key) = match target.encryption.clone() {
            None => (None, None),
            Some(Encryption::Kms(key)) => (Some(key), None),
            Some(Encryption::Customer(key)) => (None, Some(key)),
        };
        Self {
            storage_class: target.storage_class.as_deref().map(StorageClass::from),
            kms_key,
            customer_key,
            part_bytes: target.part_bytes.unwrap_or(PART_BYTES),
            parts_in_flight: target.parts_in_flight.unwrap_or(PARTS_IN_FLIGHT),
        }
    }

    /// Returns the encryption setting of a request that creates an object, without the key's name.
    pub(super) fn sse(&self) -> Option<ServerSideEncryption> {
        self.kms_key.as_ref().map(|_| ServerSideEncryption::AwsKms)
    }
}

/// Adds the customer key to a request that writes or reads an object's bytes, if one is configured.
/// The builders of requests have no trait in common.
macro_rules! with_customer_key {
    ($request:expr, $store:expr) => {{
        let key = $store.kept.customer_key.as_ref();
        $request
            .set_sse_customer_algorithm(key.map(|_| "AES256".to_owned()))
            .set_sse_customer_key(key.map(|key| key.text().to_owned()))
            .set_sse_customer_key_md5(key.map(|key| key.md5().to_owned()))
    }};
}
pub(super) use with_customer_key;
