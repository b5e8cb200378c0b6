//! The rotation, step by step and at random, against a real verifier.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

use super::mint::{AUTHORITY_LIFE, LEAF_LIFE};
use super::rotation::*;
use super::secret;

const NAME: &str = "hook.ns.svc";
const DAY: Duration = Duration::from_secs(24 * 3600);

fn start() -> Timestamp {
    "2026-11-21T10:00:00Z".parse().unwrap()
}

fn names() -> Vec<String> {
    vec![NAME.to_owned()]
}

/// Verifies a certificate as an API server does.
fn verifies(leaf_pem: &str, bundle_pem: &str, now: Timestamp) -> bool {
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(bundle_pem.as_bytes()) {
        roots.add(cert.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .unwrap();
    let leaf = CertificateDer::from_pem_slice(leaf_pem.as_bytes()).unwrap();
    let now = Duration::from_secs(u64::try_from(now.as_second()).unwrap());
    let name = ServerName::try_from(NAME).unwrap();
    verifier
        .verify_server_cert(&leaf, &[], &name, &[], UnixTime::since_unix_epoch(now))
        .is_ok()
}

fn facts(names: &[String], published: Published) -> Facts<'_> {
    Facts {
        names,
        published,
        forced: false,
    }
}

fn step(state: &State, action: Action, now: Timestamp) -> State {
    advance(action, Some(state), &names(), now)
        .unwrap()
        .unwrap()
}

#[test]
fn each_situation_has_its_step() {
    let now = start();
    let names = names();
    let fresh = advance(Action::Bootstrap, None, &names, now)
        .unwrap()
        .unwrap();
    let adding = step(&fresh, Action::AddAuthority, now);
    let switched = step(&adding, Action::SwitchAuthority, now);
    let not_yet = facts(&names, Published::NotYet);
    let since = |at| facts(&names, Published::Since(at));
    let other_names = vec!["other".to_owned()];
    let forced = Facts {
        forced: true,
        ..not_yet.clone()
    };
    let leaf_due = now + LEAF_LIFE * 2 / 3;
    let authority_due = now + AUTHORITY_LIFE * 2 / 3;
    let table: Vec<(&str, Timestamp, Option<&State>, Facts<'_>, Action)> = vec![
        (
            "an empty secret",
            now,
            None,
            not_yet.clone(),
            Action::Bootstrap,
        ),
        (
            "all fresh",
            now,
            Some(&fresh),
            not_yet.clone(),
            Action::Wait(leaf_due),
        ),
        (
            "leaf due",
            leaf_due,
            Some(&fresh),
            not_yet.clone(),
            Action::IssueLeaf,
        ),
        (
            "renamed",
            now,
            Some(&fresh),
            facts(&other_names, Published::NotYet),
            Action::IssueLeaf,
        ),
        (
            "new keys wanted",
            now,
            Some(&fresh),
            forced,
            Action::AddAuthority,
        ),
        (
            "unpublished",
            now,
            Some(&adding),
            not_yet.clone(),
            Action::Wait(now + PROPAGATION),
        ),
        (
            "just published",
            now,
            Some(&adding),
            since(now),
            Action::Wait(now + PROPAGATION),
        ),
        (
            "known",
            now + PROPAGATION,
            Some(&adding),
            since(now),
            Action::SwitchAuthority,
        ),
        (
            "unsettled",
            now,
            Some(&switched),
            since(now),
            Action::Wait(now + SETTLE),
        ),
        (
            "settled",
            now + SETTLE,
            Some(&switched),
            since(now),
            Action::DropOld,
        ),
        (
            "clock before all",
            now - DAY,
            Some(&fresh),
            not_yet.clone(),
            Action::Bootstrap,
        ),
        (
            "all over",
            now + AUTHORITY_LIFE,
            Some(&fresh),
            not_yet.clone(),
            Action::Bootstrap,
        ),
    ];
    for (what, now, state, facts, expected) in table {
        assert_eq!(decide(now, state, &facts), expected, "{what}");
    }
    let renewed = step(&fresh, Action::IssueLeaf, authority_due);
    assert_eq!(
        decide(authority_due, Some(&renewed), &not_yet),
        Action::AddAuthority
    );
}

#[test]
fn an_authority_that_ends_unobserved_gives_way_to_the_published_next() {
    let names = names();
    let fresh = advance(Action::Bootstrap, None, &names, start())
        .unwrap()
        .unwrap();
    let adding = step(&fresh, Action::AddAuthority, start() + DAY);
    let end = start() + AUTHORITY_LIFE;
    let facts = facts(&names, Published::NotYet);
    assert_eq!(decide(end, Some(&adding), &facts), Action::SwitchAuthority);
}

#[test]
fn every_state_survives_its_secret() {
    let fresh = advance(Action::Bootstrap, None, &names(), start())
        .unwrap()
        .unwrap();
    let adding = step(&fresh, Action::AddAuthority, start());
    let switched = step(&adding, Action::SwitchAuthority, start());
    for state in [fresh, adding, switched] {
        assert_eq!(
            secret::decode(&secret::encode(&state)).unwrap(),
            Some(state)
        );
    }
    assert_eq!(secret::decode(&secret::Data::new()).unwrap(), None);
}

#[test]
fn a_secret_with_a_part_missing_is_an_error_that_names_it() {
    let fresh = advance(Action::Bootstrap, None, &names(), start())
        .unwrap()
        .unwrap();
    let mut data = secret::encode(&fresh);
    data.remove("ca.key");
    assert_eq!(
        secret::decode(&data).unwrap_err().to_string(),
        "key ca.key is missing"
    );
}

/// An event in the cluster.
#[derive(Debug, Clone)]
enum Event {
    /// Time passes.
    Pass(Duration),
    /// The operator writes its bundle into the webhook configuration.
    Publish,
    /// A replica loads the Secret.
    Load(usize),
    /// Another replica becomes the leader and has observed nothing yet.
    NewLeader,
    /// The Secret is emptied.
    Force,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (1u64..3 * 24 * 3600).prop_map(|s| Event::Pass(Duration::from_secs(s))),
        6 => (1u64..120).prop_map(|s| Event::Pass(Duration::from_secs(s))),
        4 => Just(Event::Publish),
        4 => (0usize..3).prop_map(Event::Load),
        1 => Just(Event::NewLeader),
        1 => Just(Event::Force),
    ]
}

/// The cluster: the Secret, the webhook configuration as written and as the slowest API server
/// knows it, and the certificate that each replica serves.
struct World {
    now: Timestamp,
    secret: State,
    configuration: String,
    known: VecDeque<(Timestamp, String)>,
    observed: Option<Timestamp>,
    replicas: [(Timestamp, String); 3],
    switches: usize,
}

impl World {
    fn new() -> Self {
        let now = start();
        let secret = advance(Action::Bootstrap, None, &names(), now)
            .unwrap()
            .unwrap();
        let bundle = secret.bundle().ca_pem;
        let leaf = secret.leaf.cert_pem.clone();
        World {
            now,
            configuration: bundle.clone(),
            known: VecDeque::from([(now, bundle)]),
            observed: None,
            replicas: std::array::from_fn(|_| (now, leaf.clone())),
            secret,
            switches: 0,
        }
    }

    fn happen(&mut self, event: &Event) {
        match event {
            Event::Pass(time) => {
                self.now += *time;
                // The assumption behind SETTLE: no replica serves for longer without a read of the
                // Secret.
                for replica in 0..self.replicas.len() {
                    if self
                        .now
                        .duration_since(self.replicas[replica].0)
                        .unsigned_abs()
                        > SETTLE / 2
                    {
                        self.load(replica);
                    }
                }
            }
            Event::Publish => {
                self.configuration = self.secret.bundle().ca_pem;
                self.known.push_back((self.now, self.configuration.clone()));
            }
            Event::Load(replica) => self.load(*replica),
            Event::NewLeader => self.observed = None,
            Event::Force => {}
        }
        // The assumption behind PROPAGATION: the slowest API server needs no longer than that.
        while self.known.len() > 1 && self.known[1].0 + PROPAGATION <= self.now {
            self.known.pop_front();
        }
    }

    fn load(&mut self, replica: usize) {
        self.replicas[replica] = (self.now, self.secret.leaf.cert_pem.clone());
    }

    fn lead(&mut self, forced: bool) {
        let carried = self.configuration == self.secret.bundle().ca_pem;
        self.observed = if carried {
            self.observed.or(Some(self.now))
        } else {
            None
        };
        let published = self.observed.map_or(Published::NotYet, Published::Since);
        let names = names();
        let facts = Facts {
            names: &names,
            published,
            forced,
        };
        let action = decide(self.now, Some(&self.secret), &facts);
        if let Some(next) = advance(action, Some(&self.secret), &names, self.now).unwrap() {
            self.switches += usize::from(action == Action::SwitchAuthority);
            assert_ne!(action, Action::Bootstrap, "nothing is ever begun anew");
            self.secret = next;
            self.observed = None;
        }
    }

    fn check(&self) {
        let (fastest, slowest) = (&self.configuration, &self.known[0].1);
        for (_, leaf) in &self.replicas {
            assert!(
                verifies(leaf, fastest, self.now),
                "the newest configuration"
            );
            assert!(verifies(leaf, slowest, self.now), "an API server that lags");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn no_served_certificate_is_ever_unverifiable(events in prop::collection::vec(event(), 1..250)) {
        let mut world = World::new();
        for event in &events {
            world.happen(event);
            world.lead(matches!(event, Event::Force));
            world.check();
        }
    }
}

#[test]
fn three_years_bring_new_authorities_and_no_gap() {
    let mut world = World::new();
    for hour in 0..3 * 365 * 24 {
        world.happen(&Event::Pass(Duration::from_secs(3600)));
        world.happen(&Event::Publish);
        world.lead(false);
        if hour % 12 == 0 {
            world.check();
        }
    }
    assert_eq!(world.switches, 4, "every eight months");
}
