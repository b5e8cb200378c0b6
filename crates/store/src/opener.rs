//! Opens stores from targets.

use std::collections::HashMap;
use std::sync::Arc;

use aws_sdk_s3::config::SharedHttpClient;

use crate::StoreError;
use crate::file::FileStore;
use crate::object::SharedStore;
use crate::s3::{self, Bucket, S3Store};
use crate::target::{S3Target, Target};

/// Opens the store of a target, with its own connections; for many stores see [`Opener`].
///
/// Sends no request yet, so an unreachable store opens; the first call reports it.
///
/// # Errors
/// [`StoreError::Other`] when the target or its certificate file is not valid.
pub fn open(target: &Target) -> Result<SharedStore, StoreError> {
    Opener::new().open(target)
}

/// Opens many stores that share resources. Stores with the same bucket, endpoint and credentials
/// share one client, and refresh their credentials together. All stores that trust the system's
/// certificate authorities share their connections.
///
/// A thousand databases in one bucket thus cost little more than one. Connections belong to the
/// runtime that first used them, so use one opener and its stores in one runtime only.
pub struct Opener {
    http: SharedHttpClient,
    buckets: HashMap<S3Target, Bucket>,
}

impl Opener {
    /// Creates an opener without any stores.
    pub fn new() -> Self {
        Self {
            http: s3::system_http_client(),
            buckets: HashMap::new(),
        }
    }

    /// Opens the store of a target; sends no request yet.
    ///
    /// # Errors
    /// As [`open`].
    pub fn open(&mut self, target: &Target) -> Result<SharedStore, StoreError> {
        match target {
            Target::File { path } => Ok(Arc::new(FileStore::new(path))),
            Target::S3(target) => Ok(Arc::new(S3Store::within(self.bucket(target)?, target))),
        }
    }

    fn bucket(&mut self, target: &S3Target) -> Result<Bucket, StoreError> {
        let whole = S3Target {
            prefix: String::new(),
            ..target.clone()
        };
        if let Some(bucket) = self.buckets.get(&whole) {
            return Ok(bucket.clone());
        }
        let bucket = s3::build(&whole, &self.http)?;
        self.buckets.insert(whole, bucket.clone());
        Ok(bucket)
    }
}

impl Default for Opener {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_in_one_bucket_share_and_others_do_not() {
        let mut opener = Opener::new();
        for url in [
            "s3://bucket/a?region=eu-west-1",
            "s3://bucket/b?region=eu-west-1",
            "s3://bucket/b?region=eu-west-2",
            "file:///backups",
        ] {
            opener.open(&Target::from_url(url).unwrap()).unwrap();
        }
        assert_eq!(opener.buckets.len(), 2);
    }

    #[test]
    fn stores_say_where_they_are() {
        for url in ["s3://bucket/a/b", "s3://bucket", "file:///backups/a"] {
            assert_eq!(
                open(&Target::from_url(url).unwrap()).unwrap().describe(),
                url
            );
        }
    }
}
