//! TLS with the current certificate at each handshake.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

use crate::certs::Serving;

/// Resolves the current certificate. Open connections keep theirs.
#[derive(Debug)]
struct Current(watch::Receiver<Option<Serving>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.borrow().as_ref().map(|serving| serving.key.clone())
    }
}

/// The TLS settings of the webhook: TLS 1.2 and 1.3, HTTP/1.1, no client certificates.
pub fn server_config(serving: watch::Receiver<Option<Serving>>) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring supports both versions")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Current(serving)));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}
