//! Certificates of the admission webhook.
//!
//! The API server calls the webhook over TLS and trusts only the bundle in the webhook
//! configuration. So bundle and served certificate must match at every moment, also while both are
//! replaced. There are two sources, and both publish through [`Certs`]:
//!
//! - [`manage`]: an authority of the operator in one Secret, rotated in two phases ([`rotation`]);
//! - [`files`]: files that another program renews, such as a mounted cert-manager Secret.
//!
//! Decisions are pure ([`rotation::decide`]). [`mint`] creates keys and certificates. [`secret`]
//! maps the state to the data of the Secret.

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

/// CA bundle for the webhook configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// One or two certificates of authorities, PEM; the value of `caBundle`.
    pub ca_pem: String,
}

/// Certificate of the TLS server.
#[derive(Debug, Clone)]
pub struct Serving {
    /// Certificate chain and key.
    pub key: Arc<CertifiedKey>,
    /// End of the certificate, which is also a metric.
    pub not_after: Timestamp,
}

/// Channels with the current certificates. Both are `None` until the first load.
#[derive(Debug, Clone)]
pub struct Certs {
    /// The bundle for the webhook configuration.
    pub bundle: watch::Receiver<Option<Bundle>>,
    /// The certificate of the TLS server.
    pub serving: watch::Receiver<Option<Serving>>,
}

impl Certs {
    /// Whether a certificate is served, which readiness requires.
    pub fn loaded(&self) -> bool {
        self.serving.borrow().is_some()
    }
}

/// The senders of [`Certs`].
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

    /// Publishes both values. Receivers of an equal value are not notified.
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
