//! Objects by key: put, put-if-absent, compare-and-swap, ranged get, list, delete.
//!
//! A [`Store`] knows keys and bytes, not their meaning. Each implementation passes one conformance
//! suite (`conformance`, with the feature `testing`), so that callers need not distinguish them.
//! The implementations are [`Memory`], [`FileStore`], [`S3Store`], and [`Faulty`], which adds
//! planned failures to any of them. [`open`] creates the right one from a parsed [`Target`].
//!
//! One rule is above all others: a failed read never appears as absence. A refused, throttled or
//! unreachable store is an error, never [`StoreError::Missing`] or an empty list.
//!
//! Everything runs on a current-thread tokio runtime with time enabled.

mod body;
mod credentials;
mod encryption;
mod error;
mod faulty;
mod file;
mod key;
mod memory;
mod object;
mod opener;
mod s3;
mod target;

#[cfg(feature = "testing")]
pub mod conformance;
#[cfg(feature = "testing")]
pub mod testing;

pub use credentials::{Credentials, CredentialsState, CredentialsStatus, Keys, fingerprint};
pub use encryption::{CustomerKey, Encryption};
pub use error::{BoxError, StoreError, StoreErrorKind};
pub use faulty::{Call, Fault, FaultPlan, Faulty};
pub use file::FileStore;
pub use key::check_place;
pub use memory::Memory;
pub use object::{
    Body, ByteStream, Capabilities, Layout, ObjectInfo, PutMeta, PutMode, Requests, SharedStore,
    Store,
};
pub use opener::{Opener, open};
pub use s3::{PART_BYTES, S3Store};
pub use target::{S3Target, Target, UrlError};
