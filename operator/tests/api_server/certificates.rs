//! Certificates in a Secret that several replicas share.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use operator::certs::manage::{CaBundles, Inputs, Manager, Settings};
use operator::certs::rotation::{PROPAGATION, SETTLE};
use operator::certs::{Certs, mint, secret};
use tokio::sync::watch;

use crate::cluster;

/// Hours that the managers' clock is ahead.
static AHEAD: AtomicU64 = AtomicU64::new(0);

fn clock() -> Timestamp {
    Timestamp::now() + Duration::from_secs(AHEAD.load(Ordering::SeqCst))
}

/// One replica of the operator, limited to its certificates.
struct Replica {
    certs: Certs,
    leader: watch::Sender<bool>,
    published: watch::Sender<CaBundles>,
    stop: watch::Sender<bool>,
}

impl Replica {
    fn start(api: Api<Secret>, leads: bool) -> Self {
        let (leader, leader_rx) = watch::channel(leads);
        let (published, published_rx) = watch::channel(None);
        let (stop, stop_rx) = watch::channel(false);
        let settings = Settings {
            secret: "tls".to_owned(),
            names: vec!["hook.ns.svc".to_owned()],
            clock,
        };
        let inputs = Inputs {
            leader: leader_rx,
            published: published_rx,
        };
        let (manager, certs) = Manager::new(api, settings, inputs);
        tokio::spawn(manager.run(stop_rx));
        Replica {
            certs,
            leader,
            published,
            stop,
        }
    }

    /// Makes the webhook configuration hold the bundle that this replica publishes.
    fn publish(&self) {
        let bundle = self.bundle().into_bytes();
        self.published.send_replace(Some(BTreeSet::from([bundle])));
    }

    /// Makes the replica read the Secret at once instead of at the next poll.
    fn look(&self) {
        self.leader.send_modify(|_| {});
    }

    fn bundle(&self) -> String {
        self.certs
            .bundle
            .borrow()
            .clone()
            .map(|bundle| bundle.ca_pem)
            .unwrap_or_default()
    }

    /// Waits until this number of authorities is published.
    async fn authorities(&self, count: usize) {
        let mut bundle = self.certs.bundle.clone();
        self.look();
        let published = bundle.wait_for(|bundle| {
            let pem = bundle
                .as_ref()
                .map(|b| b.ca_pem.as_str())
                .unwrap_or_default();
            pem.matches("BEGIN CERTIFICATE").count() == count
        });
        let waited = tokio::time::timeout(Duration::from_secs(60), published).await;
        waited
            .unwrap_or_else(|_| panic!("never {count} authorities"))
            .unwrap();
    }

    /// Returns the served certificate, once one is served.
    async fn served(&self) -> Vec<u8> {
        let mut serving = self.certs.serving.clone();
        let serving = serving.wait_for(Option::is_some).await.unwrap();
        serving.as_ref().unwrap().key.cert[0].to_vec()
    }

    /// Waits until this certificate is served.
    async fn serves(&self, wanted: &[u8]) {
        let mut serving = self.certs.serving.clone();
        self.look();
        let served =
            serving.wait_for(|s| s.as_ref().is_some_and(|s| s.key.cert[0].as_ref() == wanted));
        let waited = tokio::time::timeout(Duration::from_secs(60), served).await;
        waited.expect("serves it").unwrap();
    }
}

fn advance(by: Duration) {
    AHEAD.fetch_add(by.as_secs(), Ordering::SeqCst);
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_rotate_through_one_secret() {
    let (client, namespace) = cluster("certs").await;
    let api: Api<Secret> = Api::namespaced(client, &namespace);
    let metadata = ObjectMeta {
        name: Some("tls".to_owned()),
        ..ObjectMeta::default()
    };
    let empty = Secret {
        metadata,
        ..Secret::default()
    };
    api.create(&PostParams::default(), &empty).await.unwrap();

    let (leader, follower) = (
        Replica::start(api.clone(), true),
        Replica::start(api.clone(), false),
    );
    leader.authorities(1).await;
    follower.authorities(1).await;
    follower.serves(&leader.served().await).await;

    // Phase 1: both authorities are published, and the certificate stays.
    advance(mint::AUTHORITY_LIFE * 2 / 3);
    leader.authorities(2).await;
    let leaf_of_the_old = leader.served().await;
    advance(PROPAGATION * 2);
    leader.look();
    assert_eq!(
        leader.served().await,
        leaf_of_the_old,
        "the new authority was not observed yet"
    );

    // Phase 2: observed everywhere, so a certificate of the new authority is served.
    leader.publish();
    let mut switched = false;
    for _ in 0..100 {
        // The time counts from the manager's observation of the bundle, which may be after this
        // step.
        advance(PROPAGATION);
        leader.look();
        let mut serving = leader.certs.serving.clone();
        let other = serving.wait_for(|s| {
            s.as_ref()
                .is_some_and(|s| *s.key.cert[0] != *leaf_of_the_old)
        });
        switched = tokio::time::timeout(Duration::from_millis(200), other)
            .await
            .is_ok();
        if switched {
            break;
        }
    }
    assert!(switched, "a certificate of the new authority is served");
    follower.authorities(2).await;

    // The end: the old authority is removed once every replica had time to load the new
    // certificate.
    advance(SETTLE);
    leader.publish();
    leader.authorities(1).await;
    follower.authorities(1).await;
    let leaf_of_the_new = leader.served().await;
    assert_ne!(leaf_of_the_new, leaf_of_the_old);
    follower.serves(&leaf_of_the_new).await;

    // An emptied Secret means new keys, introduced in the same two phases.
    let before = leader.bundle();
    let mut emptied = api.get("tls").await.unwrap();
    emptied.data = None;
    api.replace("tls", &PostParams::default(), &emptied)
        .await
        .unwrap();
    leader.authorities(2).await;
    assert!(
        leader.bundle().starts_with(&before),
        "the current one stays published"
    );
    let held = api.get("tls").await.unwrap().data.unwrap();
    assert!(secret::decode(&held).unwrap().unwrap().next.is_some());
    leader.stop.send_replace(true);
    follower.stop.send_replace(true);
}
