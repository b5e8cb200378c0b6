//! TLS connections to a store, with a private certificate authority.

use std::sync::Arc;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use store::testing::Weed;
use store::{Body, Credentials, PutMeta, PutMode, S3Store, Store, StoreErrorKind};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

/// Serves TLS in front of `upstream`; returns the port.
async fn terminate_tls(upstream: String, certified: &CertifiedKey<rcgen::KeyPair>) -> u16 {
    let key = PrivateKeyDer::Pkcs8(certified.signing_key.serialize_der().into());
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring knows the usual versions")
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .expect("the key is that of the certificate");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("bind a free port");
    let port = listener
        .local_addr()
        .expect("a bound socket has one")
        .port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (acceptor, upstream) = (acceptor.clone(), upstream.clone());
            tokio::spawn(async move {
                let mut client = acceptor.accept(client).await?;
                let mut server = TcpStream::connect(upstream).await?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    port
}

#[tokio::test]
async fn only_the_authority_of_the_target_is_trusted() {
    let weed = Weed::shared();
    weed.create_bucket("tls").await;
    let certified = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let port = terminate_tls(weed.address(), &certified).await;
    let authority = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(authority.path(), certified.cert.pem()).unwrap();

    let mut target = weed.target("tls", "db", Credentials::Static(weed.admin()));
    target.endpoint = Some(format!("https://localhost:{port}"));
    let stranger = S3Store::new(&target).unwrap();
    let refused = stranger.list("", None).await.unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::Unreachable);
    assert!(refused.to_string().contains("certificate"), "{refused}");

    target.ca_file = Some(authority.path().to_owned());
    let store = S3Store::new(&target).unwrap();
    for (key, bytes) in [("small", 10), ("big", 20 << 20)] {
        let body = Body::from(vec![7; bytes]);
        store
            .put(key, body, PutMode::Create, &PutMeta::default())
            .await
            .unwrap();
        assert_eq!(store.get(key, None).await.unwrap().len(), bytes);
    }
}
