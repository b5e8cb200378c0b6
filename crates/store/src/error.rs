//! Why a store call failed.

use std::io;
use std::path::Path;

/// The underlying error of a [`StoreError`].
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a store call failed. Messages name the call and the object, and hold no secret.
///
/// `what` is the call, such as `put s3://bucket/prefix/lock.json`. `code` is the store's own
/// reason, such as `AccessDenied` or `HTTP 503`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store, asked with valid credentials, reports that the object does not exist.
    #[error("no object {key:?}")]
    Missing {
        /// The requested key.
        key: String,
    },
    /// A create found an existing object.
    #[error("object {key:?} exists already")]
    Exists {
        /// The requested key.
        key: String,
    },
    /// A compare-and-swap found another version, or no object.
    #[error("object {key:?} is no longer the version that was read")]
    Conflict {
        /// The requested key.
        key: String,
    },
    /// The store refused: the credentials are wrong or revoked, or lack a permission.
    #[error("{what}: access denied: {code}")]
    Denied {
        /// The call.
        what: String,
        /// The store's reason.
        code: String,
        /// The underlying error.
        source: Option<BoxError>,
    },
    /// No credentials were found.
    #[error("credentials missing: {what}")]
    CredentialsMissing {
        /// The missing credentials.
        what: String,
        /// The underlying error.
        source: Option<BoxError>,
    },
    /// The store asks us to slow down.
    #[error("{what}: throttled: {code}")]
    Throttled {
        /// The call.
        what: String,
        /// The store's reason.
        code: String,
        /// The underlying error.
        source: Option<BoxError>,
    },
    /// No answer in time, or an answer that reports a fault of the store.
    #[error("{what}: store unreachable: {code}")]
    Unreachable {
        /// The call.
        what: String,
        /// The failure in words.
        code: String,
        /// The underlying error.
        source: Option<BoxError>,
    },
    /// Disk or quota full.
    #[error("{what}: no space left: {code}")]
    NoSpace {
        /// The call.
        what: String,
        /// The store's reason.
        code: String,
        /// The underlying error.
        source: Option<BoxError>,
    },
    /// The bucket does not exist.
    #[error("bucket {bucket:?} does not exist; create it, or correct its name")]
    NoBucket {
        /// Its name.
        bucket: String,
    },
    /// An unusable answer: truncated, unreadable, or for another request.
    #[error("{what}: bad answer: {code}")]
    Corrupt {
        /// The call.
        what: String,
        /// The fault of the answer.
        code: String,
        /// The underlying error.
        source: Option<BoxError>,
    },
    /// The key is one that not every store can keep.
    #[error("key {key:?} cannot be used: {reason}")]
    InvalidKey {
        /// The key.
        key: String,
        /// The fault of the key.
        reason: &'static str,
    },
    /// Any other error. It needs a person.
    #[error("{what}: {code}")]
    Other {
        /// The call.
        what: String,
        /// The failure in words.
        code: String,
        /// The underlying error.
        source: Option<BoxError>,
    },
}

/// The kind of a [`StoreError`], for decisions and counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// [`StoreError::Missing`].
    Missing,
    /// [`StoreError::Exists`].
    Exists,
    /// [`StoreError::Conflict`].
    Conflict,
    /// [`StoreError::Denied`].
    Denied,
    /// [`StoreError::CredentialsMissing`].
    CredentialsMissing,
    /// [`StoreError::Throttled`].
    Throttled,
    /// [`StoreError::Unreachable`].
    Unreachable,
    /// [`StoreError::NoSpace`].
    NoSpace,
    /// [`StoreError::NoBucket`].
    NoBucket,
    /// [`StoreError::Corrupt`].
    Corrupt,
    /// [`StoreError::InvalidKey`].
    InvalidKey,
    /// [`StoreError::Other`].
    Other,
}

impl StoreError {
    /// Returns the kind.
    pub fn kind(&self) -> StoreErrorKind {
        match self {
            Self::Missing { .. } => StoreErrorKind::Missing,
            Self::Exists { .. } => StoreErrorKind::Exists,
            Self::Conflict { .. } => StoreErrorKind::Conflict,
            Self::Denied { .. } => StoreErrorKind::Denied,
            Self::CredentialsMissing { .. } => StoreErrorKind::CredentialsMissing,
            Self::Throttled { .. } => StoreErrorKind::Throttled,
            Self::Unreachable { .. } => StoreErrorKind::Unreachable,
            Self::NoSpace { .. } => StoreErrorKind::NoSpace,
            Self::NoBucket { .. } => StoreErrorKind::NoBucket,
            Self::Corrupt { .. } => StoreErrorKind::Corrupt,
            Self::InvalidKey { .. } => StoreErrorKind::InvalidKey,
            Self::Other { .. } => StoreErrorKind::Other,
        }
    }

    /// Returns whether the same call may soon succeed without any change.
    pub fn is_retryable(&self) -> bool {
        self.kind().is_retryable()
    }

    /// Returns an error of this kind, for [`Faulty`](crate::Faulty).
    pub(crate) fn of_kind(kind: StoreErrorKind, what: &str, key: &str) -> Self {
        let (what, code, source) = (what.to_owned(), "planned fault".to_owned(), None);
        let key = key.to_owned();
        match kind {
            StoreErrorKind::Missing => Self::Missing { key },
            StoreErrorKind::Exists => Self::Exists { key },
            StoreErrorKind::Conflict => Self::Conflict { key },
            StoreErrorKind::Denied => Self::Denied { what, code, source },
            StoreErrorKind::CredentialsMissing => Self::CredentialsMissing { what, source },
            StoreErrorKind::Throttled => Self::Throttled { what, code, source },
            StoreErrorKind::Unreachable => Self::Unreachable { what, code, source },
            StoreErrorKind::NoSpace => Self::NoSpace { what, code, source },
            StoreErrorKind::NoBucket => Self::NoBucket {
                bucket: "planned-fault".to_owned(),
            },
            StoreErrorKind::Corrupt => Self::Corrupt { what, code, source },
            StoreErrorKind::InvalidKey => Self::InvalidKey {
                key,
                reason: "planned fault",
            },
            StoreErrorKind::Other => Self::Other { what, code, source },
        }
    }

    /// Converts an error of the local file system. `NotFound` is left to the caller, because only
    /// the caller knows whether a missing path is a valid answer.
    pub(crate) fn from_io(what: &str, path: &Path, error: io::Error) -> Self {
        let what = format!("{what} {}", path.display());
        let kind = error.kind();
        let code = kind.to_string();
        let source: Option<BoxError> = Some(Box::new(error));
        match kind {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Self::Denied { what, code, source }
            }
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => Self::NoSpace { what, code, source },
            io::ErrorKind::NotADirectory => Self::Other {
                what,
                code: "a part of the path is a file, not a directory".to_owned(),
                source,
            },
            io::ErrorKind::TimedOut
            | io::ErrorKind::StaleNetworkFileHandle
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown => Self::Unreachable { what, code, source },
            _ => Self::Other { what, code, source },
        }
    }
}

impl StoreErrorKind {
    /// Returns whether the same call may soon succeed without any change.
    pub fn is_retryable(self) -> bool {
        matches!(self, Self::Throttled | Self::Unreachable | Self::Corrupt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_file_system_are_told_apart() {
        for (kind, expected) in [
            (io::ErrorKind::StorageFull, StoreErrorKind::NoSpace),
            (io::ErrorKind::QuotaExceeded, StoreErrorKind::NoSpace),
            (io::ErrorKind::PermissionDenied, StoreErrorKind::Denied),
            (io::ErrorKind::ReadOnlyFilesystem, StoreErrorKind::Denied),
            (
                io::ErrorKind::StaleNetworkFileHandle,
                StoreErrorKind::Unreachable,
            ),
            (io::ErrorKind::NotADirectory, StoreErrorKind::Other),
            (io::ErrorKind::NotFound, StoreErrorKind::Other),
        ] {
            let error = StoreError::from_io("write", Path::new("/backups/x"), kind.into());
            assert_eq!(error.kind(), expected);
            let source = std::error::Error::source(&error);
            assert!(source.is_some() && error.to_string().starts_with("write /backups/x: "));
        }
    }

    #[test]
    fn only_what_may_pass_by_itself_is_tried_again() {
        use StoreErrorKind as Kind;
        for kind in [Kind::Throttled, Kind::Unreachable, Kind::Corrupt] {
            assert!(StoreError::of_kind(kind, "get x", "x").is_retryable());
        }
        for kind in [
            Kind::Missing,
            Kind::Exists,
            Kind::Conflict,
            Kind::Denied,
            Kind::NoSpace,
        ] {
            assert!(!StoreError::of_kind(kind, "get x", "x").is_retryable());
        }
    }
}
