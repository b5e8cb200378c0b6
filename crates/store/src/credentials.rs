//! Sources of credentials, and their state.

mod directory;
mod rotation;

use std::fmt::{self, Write};
use std::path::PathBuf;

use sha2::{Digest, Sha256};

pub(crate) use directory::{Missing, read as read_directory};
pub(crate) use rotation::{Probe, Rotation, Step};

/// The source of an S3 store's credentials.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub enum Credentials {
    /// The usual chain: `AWS_*` variables, profile files, web identity, container endpoints, and
    /// last the instance metadata service unless `AWS_EC2_METADATA_DISABLED` is `true`.
    #[default]
    Default,
    /// Fixed keys.
    Static(Keys),
    /// A directory with one file for each key, as the kubelet projects a Secret. It is read again
    /// when its content changes.
    ///
    /// Names: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and optionally `AWS_SESSION_TOKEN`; or
    /// `access-key-id`, `secret-access-key`, `session-token`.
    Directory(PathBuf),
}

impl Credentials {
    /// Creates fixed credentials.
    pub fn fixed(access_key_id: impl Into<String>, secret_access_key: impl Into<String>) -> Self {
        Self::Static(Keys {
            access_key_id: access_key_id.into(),
            secret_access_key: secret_access_key.into(),
            session_token: None,
        })
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("Default"),
            Self::Static(keys) => f.debug_tuple("Static").field(keys).finish(),
            Self::Directory(path) => f.debug_tuple("Directory").field(path).finish(),
        }
    }
}

/// An access key of S3.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Keys {
    /// Identifies the key. It is not secret, but is not printed either.
    pub access_key_id: String,
    /// Signs requests.
    pub secret_access_key: String,
    /// Required for temporary keys.
    pub session_token: Option<String>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({})", fingerprint(self))
    }
}

/// Returns an identifier of the keys for logs and statuses: the first 16 hex digits of a SHA-256
/// over all of them. It reveals nothing about the keys.
pub fn fingerprint(keys: &Keys) -> String {
    let mut hash = Sha256::new();
    let token = keys.session_token.as_deref().unwrap_or_default();
    for part in [&keys.access_key_id, &keys.secret_access_key, token] {
        // The length keeps ("ab", "c") and ("a", "bc") apart.
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    let digest = hash.finalize();
    digest[..8].iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes all that is written to it");
        text
    })
}

/// State of a store's credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialsStatus {
    /// Their source: `directory /path`, `static`.
    pub source: String,
    /// [`fingerprint`] of the keys in use; `None` without keys.
    pub fingerprint: Option<String>,
    /// Their state.
    pub state: CredentialsState,
    /// Time at which fingerprint or state last changed, in milliseconds since 1970.
    pub changed_at_ms: i64,
}

/// State of credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CredentialsState {
    /// In use; the store has not refused them.
    Valid,
    /// Newer keys exist, but the store does not accept them yet; the old ones stay in use.
    RotationPending,
    /// The directory or a file in it is missing; keys read earlier stay in use.
    Missing,
    /// The store refuses them.
    Denied,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(id: &str, secret: &str, token: Option<&str>) -> Keys {
        Keys {
            access_key_id: id.to_owned(),
            secret_access_key: secret.to_owned(),
            session_token: token.map(str::to_owned),
        }
    }

    #[test]
    fn a_fingerprint_changes_with_every_part_and_with_where_parts_end() {
        let base = fingerprint(&keys("ab", "c", None));
        assert_eq!(base, fingerprint(&keys("ab", "c", None)));
        for other in [
            keys("a", "bc", None),
            keys("ab", "d", None),
            keys("ab", "c", Some("t")),
        ] {
            assert_ne!(base, fingerprint(&other));
        }
        assert_eq!(base.len(), 16);
    }

    #[test]
    fn debug_output_holds_no_part_of_the_keys() {
        let credentials = Credentials::Static(keys("AKIAEXAMPLE", "hunter2", Some("token")));
        let text = format!("{credentials:?}");
        for part in ["AKIAEXAMPLE", "hunter2", "token"] {
            assert!(!text.contains(part), "{text}");
        }
    }
}
