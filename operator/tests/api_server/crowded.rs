//! Namespaces whose SqliteBackups share webhook entries.

use std::collections::BTreeMap;
use std::time::Duration;

use api::{PodSelector, SqliteBackup};
use jiff::Timestamp;
use kube::api::DynamicObject;
use kube::{Api, Error};
use operator::plan::webhook::{CONFIGURATION_BYTES, ENTRIES_PER_NAMESPACE};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Value, json};

use crate::policy::Policy;
use crate::replica::{Replica, uninstall};
use crate::{cluster, dry_run, pods, selectors};

fn backup(namespace: &str, name: &str, selector: &Value) -> SqliteBackup {
    let backup = json!({
        "apiVersion": "sqlite-backup.dev/v1alpha1",
        "kind": "SqliteBackup",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "selector": selector,
            "databases": [{"path": "/data/app.db"}],
            "targets": [{"name": "primary", "s3": {"bucket": "shop"},
                         "credentials": {"secretRef": {"name": "keys"}}}],
        },
    });
    serde_json::from_value(backup).unwrap()
}

/// SqliteBackups that select by `app`, one more than may have their own entries.
fn crowd(namespace: &str) -> Vec<SqliteBackup> {
    let names = (0..=ENTRIES_PER_NAMESPACE).map(|index| format!("b{index}"));
    names
        .map(|name| backup(namespace, &name, &json!({"matchLabels": {"app": name}})))
        .collect()
}

fn pod(labels: &Value) -> DynamicObject {
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "pod-", "labels": labels},
        "spec": {
            "containers": [{"name": "app", "image": "app",
                            "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
            "volumes": [{"name": "data", "emptyDir": {}}],
        },
    });
    serde_json::from_value(pod).unwrap()
}

/// Answer of the API server for a Pod with these labels; `Err` holds the refusal.
async fn create(pods: &Api<DynamicObject>, labels: &Value) -> Result<DynamicObject, String> {
    match pods.create(&dry_run(), &pod(labels)).await {
        Ok(created) => Ok(created),
        Err(Error::Api(status)) => Err(status.message),
        Err(other) => panic!("{other}"),
    }
}

/// Creates until the answer is as expected. A write reaches the API server's admission chain a few
/// milliseconds later, a new kind within half a minute.
async fn until(
    pods: &Api<DynamicObject>,
    labels: &Value,
    wanted: impl Fn(&Result<DynamicObject, String>) -> bool,
) {
    for _ in 0..3000 {
        if wanted(&create(pods, labels).await) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await; // bounded: limited tries
    }
    panic!("never as it should be: a Pod with labels {labels}");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_we_are_down_a_crowded_namespace_refuses_only_selected_pods() {
    let (client, namespace) = cluster("crowded").await;
    let (pods, name) = (pods(&client, &namespace), format!("test-{namespace}"));
    let backups = crowd(&namespace);
    let replica = Replica::down().await;
    let written = replica.install(&client, &name, &backups).await;
    assert_eq!(written.webhooks.map(|entries| entries.len()), Some(1));

    until(&pods, &json!({"app": "b0"}), Result::is_err).await;
    for backup in &backups {
        let refusal = create(&pods, &json!(backup.spec.selector.match_labels)).await;
        let entry =
            format!("failed calling webhook \"sqlitebackups.{namespace}.sqlite-backup.dev\"");
        let refusal = refusal.expect_err("it is selected");
        assert!(refusal.contains(&entry), "{refusal}");
    }

    let calls = replica.calls();
    for labels in [
        json!({"app": "other"}),
        json!({"apps": "b0"}),
        json!({}),
        Value::Null,
        json!({"app": "b0", "sqlite-backup.dev/inject": "false"}),
    ] {
        let created = create(&pods, &labels).await;
        assert!(created.is_ok(), "{labels}: {created:?}");
    }
    assert_eq!(replica.calls(), calls, "we are not even asked");
    uninstall(&client, &name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_we_are_up_a_crowded_namespace_is_served_like_any_other() {
    let (client, namespace) = cluster("crowded-up").await;
    let (pods, name) = (pods(&client, &namespace), format!("test-{namespace}"));
    let backups = crowd(&namespace);
    let replica = Replica::start(&backups).await;
    replica.install(&client, &name, &backups).await;

    let served_by = |answer: &Result<DynamicObject, String>| {
        let annotations = answer.as_ref().unwrap().metadata.annotations.clone();
        annotations.and_then(|all| all.get(api::names::BACKUP).cloned())
    };
    until(&pods, &json!({"app": "b0"}), |a| served_by(a).is_some()).await;
    for backup in &backups {
        let labels = json!(backup.spec.selector.match_labels);
        let created = create(&pods, &labels).await;
        assert_eq!(served_by(&created), backup.metadata.name);
    }
    let calls = replica.calls();
    assert_eq!(
        served_by(&create(&pods, &json!({"app": "other"})).await),
        None
    );
    assert_eq!(replica.calls(), calls);

    // One SqliteBackup less: each has its own entry again, and nothing else changes.
    replica.install(&client, &name, &backups[1..]).await;
    until(&pods, &json!({"app": "b0"}), |a| served_by(a).is_none()).await;
    for backup in &backups[1..] {
        let labels = json!(backup.spec.selector.match_labels);
        let created = create(&pods, &labels).await;
        assert_eq!(served_by(&created), backup.metadata.name);
    }
    uninstall(&client, &name).await;
}

/// The entries, the policy behind them and the sidecars' own rule must select the same Pods.
#[tokio::test(flavor = "multi_thread")]
async fn shared_entries_and_the_policy_select_what_the_selectors_select() {
    let (client, namespace) = cluster("agree").await;
    let (pods, name) = (pods(&client, &namespace), format!("test-{namespace}"));
    let (mut selected, mut labels) = samples();
    // The last write is observed last.
    let mut last = PodSelector::default();
    last.match_labels.insert(CASE.to_owned(), "last".to_owned());
    labels.push(last.match_labels.clone());
    selected.push(last);
    let named = selected.iter().enumerate();
    let backups: Vec<SqliteBackup> = named
        .map(|(index, selector)| backup(&namespace, &format!("b{index}"), &json!(selector)))
        .collect();
    let wanted = |labels| selected.iter().any(|selector| selector.matches(labels));
    assert!(labels.iter().any(|l| !wanted(l)) && labels.iter().filter(|l| wanted(l)).count() > 9);

    let policy = Policy::install(&client).await;
    policy.create_backups(&backups).await;
    let denied = "selects this Pod but its sidecar was not injected";
    until(
        &pods,
        &json!({CASE: "last"}),
        |a| matches!(a, Err(m) if m.contains(denied)),
    )
    .await;
    for labels in &labels {
        let answer = create(&pods, &json!(labels)).await;
        assert_eq!(is_refused(&answer, denied), wanted(labels), "{labels:?}");
    }

    let replica = Replica::down().await;
    let written = replica.install(&client, &name, &backups).await;
    assert_eq!(written.webhooks.map(|entries| entries.len()), Some(1));
    let uncalled = "failed calling webhook";
    until(
        &pods,
        &json!({CASE: "last"}),
        |a| matches!(a, Err(m) if m.contains(uncalled)),
    )
    .await;
    for labels in &labels {
        let answer = create(&pods, &json!(labels)).await;
        assert_eq!(is_refused(&answer, uncalled), wanted(labels), "{labels:?}");
    }
    uninstall(&client, &name).await;
    policy.remove(&backups).await;
}

/// Whether a Pod was refused, for this reason and no other.
fn is_refused(answer: &Result<DynamicObject, String>, reason: &str) -> bool {
    match answer {
        Ok(_) => false,
        Err(message) => {
            assert!(message.contains(reason), "{message}");
            true
        }
    }
}

/// Label that distinguishes the random selectors, so that each is judged alone.
const CASE: &str = "case";

/// Random selectors, and labels for which they differ.
fn samples() -> (Vec<PodSelector>, Vec<BTreeMap<String, String>>) {
    let seed = std::env::var("OPERATOR_TEST_SEED").map_or_else(
        |_| Timestamp::now().as_millisecond() as u64,
        |text| text.parse().expect("OPERATOR_TEST_SEED is a number"),
    );
    println!("OPERATOR_TEST_SEED={seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let (mut selected, mut all) = (Vec::new(), vec![BTreeMap::new()]);
    for case in 0..40 {
        let mut selector = selectors::selector()
            .new_tree(&mut runner)
            .unwrap()
            .current();
        let case = (CASE.to_owned(), case.to_string());
        selector.match_labels.extend([case.clone()]);
        for _ in 0..4 {
            let mut labels = selectors::labels().new_tree(&mut runner).unwrap().current();
            labels.extend([case.clone()]);
            all.push(labels);
        }
        // Labels that only its expressions can refuse.
        all.push(selector.match_labels.clone());
        selected.push(selector);
    }
    (selected, all)
}

/// One expression may hold more selectors than any namespace has. The API server must accept it,
/// and must not reject it as too costly for any Pod.
#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_takes_full_expressions_and_large_selectors() {
    let (client, namespace) = cluster("full").await;
    let (pods, name) = (pods(&client, &namespace), format!("test-{namespace}"));
    let select = |name: String, selector: Value| backup(&namespace, &name, &selector);
    let mut backups: Vec<SqliteBackup> = (0..3000)
        .map(|i| {
            select(
                format!("a{i:04}"),
                json!({"matchLabels": {"a": i.to_string()}}),
            )
        })
        .collect();
    let (largest, labels) = largest();
    backups.push(select("b".to_owned(), largest));

    let replica = Replica::down().await;
    let written = replica.install(&client, &name, &backups).await;
    assert_eq!(written.webhooks.map(|entries| entries.len()), Some(3));
    until(&pods, &json!({"a": "2999"}), Result::is_err).await;
    let entry = |number: &str| {
        format!("failed calling webhook \"sqlitebackups{number}.{namespace}.sqlite-backup.dev\"")
    };
    for (labels, number) in [
        (json!({"a": "0"}), ""),
        (json!({"a": "2999"}), "-2"),
        (json!(labels), "-3"),
    ] {
        let refusal = create(&pods, &labels).await.expect_err("it is selected");
        assert!(refusal.contains(&entry(number)), "{refusal}");
    }
    let mut others = labels.clone();
    others.insert(labels.keys().last().unwrap().clone(), "other".to_owned());
    for labels in [json!({"a": "3000"}), json!({"b": "1"}), json!(others)] {
        let created = create(&pods, &labels).await;
        assert!(created.is_ok(), "{created:?}");
    }
    uninstall(&client, &name).await;
}

/// The largest selector that the schema accepts, and the only labels that it selects.
fn largest() -> (Value, BTreeMap<String, String>) {
    let key = |index: usize| format!("{}/{index:063}", "p".repeat(253));
    let values: Vec<String> = (0..32).map(|index| format!("{index:063}")).collect();
    let labels: BTreeMap<_, _> = (0..16).map(|i| (key(i), values[31].clone())).collect();
    let requirements: Vec<Value> = (0..16)
        .map(|i| json!({"key": key(i), "operator": "In", "values": values}))
        .collect();
    let selector = json!({"matchLabels": labels, "matchExpressions": requirements});
    (selector, labels)
}

/// An object that is too large would keep every new entry and every new authority out.
#[tokio::test(flavor = "multi_thread")]
async fn what_we_take_for_fitting_fits_into_one_object() {
    let (client, namespace) = cluster("size").await;
    let name = format!("test-{namespace}");
    let replica = Replica::down().await;
    let small = json!({"matchLabels": {"app.kubernetes.io/name": "small"}});
    for (selector, name_length, count) in [(small, 52, 870), (largest().0, 8, 28)] {
        let backups: Vec<SqliteBackup> = (0..count)
            .map(|index| {
                let namespace = format!("{namespace}-{}", index / 10);
                backup(&namespace, &format!("{index:0name_length$}"), &selector)
            })
            .collect();
        let written = replica.install(&client, &name, &backups).await;
        let entries = written.webhooks.unwrap();
        assert_eq!(entries.len(), count, "each has its own");
        let bytes = serde_json::to_vec(&entries).unwrap().len();
        assert!(
            (CONFIGURATION_BYTES * 9 / 10..=CONFIGURATION_BYTES).contains(&bytes),
            "{bytes}"
        );
    }
    uninstall(&client, &name).await;
}
