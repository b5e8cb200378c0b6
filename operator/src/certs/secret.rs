//! State of the rotation as the data of a Secret.
//!
//! | key | content |
//! |---|---|
//! | `tls.crt`, `tls.key` | the served certificate and its key |
//! | `ca.crt`, `ca.key` | the authority that signed it |
//! | `next-ca.crt`, `next-ca.key` | the next authority, while one is introduced |
//! | `old-ca.crt` | the previous authority, while replicas may still serve its certificate |

use std::collections::BTreeMap;

use k8s_openapi::ByteString;

use super::mint::{self, Authority, CertError, Leaf};
use super::rotation::{Anchor, State};

const TLS_CERT: &str = "tls.crt";
const TLS_KEY: &str = "tls.key";
const CA_CERT: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
const NEXT_CA_CERT: &str = "next-ca.crt";
const NEXT_CA_KEY: &str = "next-ca.key";
const OLD_CA_CERT: &str = "old-ca.crt";

/// The data of a Secret.
pub type Data = BTreeMap<String, ByteString>;

/// Reason for which a Secret does not hold a valid state.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// A key is missing or empty while others exist.
    #[error("key {key} is missing")]
    Missing {
        /// The key.
        key: &'static str,
    },
    /// A value is not text.
    #[error("key {key} is not text")]
    NotText {
        /// The key.
        key: &'static str,
    },
    /// A value is not a certificate or key.
    #[error(transparent)]
    Cert(#[from] CertError),
}

/// Reads a state; `None` when the Secret is empty, as the chart creates it.
///
/// # Errors
/// When the data is not a complete state.
pub fn decode(data: &Data) -> Result<Option<State>, SecretError> {
    if data.values().all(|value| value.0.is_empty()) {
        return Ok(None);
    }
    let required = |key| text(data, key)?.ok_or(SecretError::Missing { key });
    let next = match text(data, NEXT_CA_CERT)? {
        Some(cert) => Some(Authority::parse(cert, required(NEXT_CA_KEY)?)?),
        None => None,
    };
    let old = match text(data, OLD_CA_CERT)? {
        Some(cert_pem) => Some(Anchor {
            validity: mint::validity(&cert_pem)?,
            cert_pem,
        }),
        None => None,
    };
    Ok(Some(State {
        current: Authority::parse(required(CA_CERT)?, required(CA_KEY)?)?,
        next,
        old,
        leaf: Leaf::parse(required(TLS_CERT)?, required(TLS_KEY)?)?,
    }))
}

/// Encodes a state. The result replaces all data of the Secret.
pub fn encode(state: &State) -> Data {
    let mut data = Data::new();
    let mut put = |key: &str, value: &str| {
        data.insert(key.to_owned(), ByteString(value.as_bytes().to_vec()));
    };
    put(TLS_CERT, &state.leaf.cert_pem);
    put(TLS_KEY, &state.leaf.key_pem.0);
    put(CA_CERT, &state.current.cert_pem);
    put(CA_KEY, &state.current.key_pem.0);
    if let Some(next) = &state.next {
        put(NEXT_CA_CERT, &next.cert_pem);
        put(NEXT_CA_KEY, &next.key_pem.0);
    }
    if let Some(old) = &state.old {
        put(OLD_CA_CERT, &old.cert_pem);
    }
    data
}

fn text(data: &Data, key: &'static str) -> Result<Option<String>, SecretError> {
    match data.get(key).filter(|value| !value.0.is_empty()) {
        None => Ok(None),
        Some(value) => match String::from_utf8(value.0.clone()) {
            Ok(text) => Ok(Some(text)),
            Err(_) => Err(SecretError::NotText { key }),
        },
    }
}
