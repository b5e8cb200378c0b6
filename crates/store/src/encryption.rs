//! Encryption of objects in an S3 store.

use std::fmt;

use aws_smithy_types::base64;
use md5::{Digest, Md5};

/// The length of a [`CustomerKey`], in bytes.
const KEY_BYTES: usize = 32;

/// Encryption that a request asks for. Without one, the bucket's own setting applies.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Encryption {
    /// With a key in the store's key service (SSE-KMS): the ID, ARN or alias of that key.
    Kms(String),
    /// With a key that each request carries and the store does not keep (SSE-C).
    Customer(CustomerKey),
}

/// A key that we hold, for AES-256.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct CustomerKey {
    text: String,
    md5: String,
}

impl CustomerKey {
    /// Parses the base64 text of 32 bytes; surrounding white space is ignored. `None` for any other
    /// text.
    pub fn from_base64(text: &str) -> Option<Self> {
        let key = base64::decode(text.trim()).ok()?;
        (key.len() == KEY_BYTES).then(|| Self {
            text: base64::encode(&key),
            md5: base64::encode(Md5::digest(&key)),
        })
    }

    /// Returns the key in the form that requests carry.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Returns the MD5 of the key. Requests carry it so that the store detects a damaged key.
    pub(crate) fn md5(&self) -> &str {
        &self.md5
    }
}

impl fmt::Debug for CustomerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CustomerKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_customer_key_is_32_bytes_and_never_shown() {
        let text = base64::encode([7; 32]);
        let key = CustomerKey::from_base64(&format!(" {text}\n")).unwrap();
        assert_eq!(
            (key.text(), key.md5()),
            (text.as_str(), "y4HAEFCYWuvAXWFTtA1Qpg==")
        );
        let shown = format!("{:?}", Encryption::Customer(key));
        assert!(!shown.contains(&text), "{shown}");
        for wrong in [
            "",
            "secret",
            &base64::encode([7; 31]),
            &base64::encode([7; 33]),
        ] {
            assert_eq!(CustomerKey::from_base64(wrong), None, "{wrong}");
        }
    }
}
