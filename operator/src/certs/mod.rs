//! Certificates of the admission webhook.
//!
//! The API server calls the webhook over TLS and trusts only the bundle in the webhook
//! configuration, so bundle and served certificate must fit at every moment, also while both are
//! replaced. Two sources feed the same pair of channels:
//!
//! - [`manage`]: our own authority, kept in one Secret, rotated in two phases ([`rotation`]);
//! - [`files`]: files that somebody else keeps fresh, such as a mounted cert-manager Secret.
//!
//! Decisions are pure ([`rotation::decide`]); [`mint`] makes keys and certificates; [`secret`]
//! maps the state to the Secret's data.

use std::sync::Arc;

use jiff::Timestamp;
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

pub mod files;
pub mod manage;
pub mod mint;
pub mod rotation;
pub mod secret;

#[cfg(test)]
mod rotation_tests;

/// What webhook configurations must trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// One or two certificates of authorities, PEM; the value of `caBundle`.
    pub ca_pem: String,
}

/// What the TLS server presents.
#[derive(Debug, Clone)]
pub struct Serving {
    /// Certificate chain and key.
    pub key: Arc<CertifiedKey>,
    /// When the certificate ends; shown as a metric.
    pub not_after: Timestamp,
}

/// Where the rest of the operator reads certificates. Both hold none until the first load.
#[derive(Debug, Clone)]
pub struct Certs {
    /// The bundle to publish.
    pub bundle: watch::Receiver<Option<Bundle>>,
    /// The certificate to serve.
    pub serving: watch::Receiver<Option<Serving>>,
}

impl Certs {
    /// True once a certificate is served: part of readiness.
    pub fn loaded(&self) -> bool {
        self.serving.borrow().is_some()
    }
}

/// The sending ends of [`Certs`].
#[derive(Debug)]
struct Publisher {
    bundle: watch::Sender<Option<Bundle>>,
    serving: watch::Sender<Option<Serving>>,
}

impl Publisher {
    fn new() -> (Self, Certs) {
        let (bundle, bundle_rx) = watch::channel(None);
        let (serving, serving_rx) = watch::channel(None);
        (
            Publisher { bundle, serving },
            Certs {
                bundle: bundle_rx,
                serving: serving_rx,
            },
        )
    }

    /// Publishes what changed; readers of an equal value are not woken.
    fn publish(&self, bundle: Bundle, serving: Serving) {
        self.bundle.send_if_modified(|held| {
            let changed = held.as_ref() != Some(&bundle);
            *held = Some(bundle);
            changed
        });
        self.serving.send_if_modified(|held| {
            let changed = held
                .as_ref()
                .is_none_or(|held| held.key.cert != serving.key.cert);
            *held = Some(serving);
            changed
        });
    }
}
