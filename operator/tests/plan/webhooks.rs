//! The webhook entries.

use api::SqliteBackup;
use api::selector::PodSelector;
use operator::plan::webhook::{ENTRIES_PER_NAMESPACE, entries};
use serde_json::json;

use crate::fixture::{Cluster, backup, endpoint};

fn built(backups: &[SqliteBackup]) -> Vec<serde_json::Value> {
    let entries = entries(backups.iter(), "PEM", &endpoint());
    entries
        .iter()
        .map(|e| serde_json::to_value(e).unwrap())
        .collect()
}

#[test]
fn an_entry_covers_exactly_the_selected_pods_of_one_namespace() {
    let entries = built(&[backup("orders")]);
    assert_eq!(
        entries,
        [json!({
            "name": "orders.shop.sqlite-backup.dev",
            "admissionReviewVersions": ["v1"],
            "clientConfig": {
                "caBundle": "UEVN",
                "service": {"namespace": "system", "name": "hook", "path": "/mutate", "port": 443},
            },
            "failurePolicy": "Fail",
            "matchPolicy": "Equivalent",
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "shop"}},
            "objectSelector": {
                "matchLabels": {"app": "orders"},
                "matchExpressions": [
                    {"key": "sqlite-backup.dev/inject", "operator": "NotIn", "values": ["false"]},
                ],
            },
            "reinvocationPolicy": "IfNeeded",
            "rules": [{
                "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"],
                "resources": ["pods"], "scope": "Namespaced",
            }],
            "sideEffects": "None",
            "timeoutSeconds": 5,
        })]
    );
}

#[test]
fn suspended_and_unusable_backups_have_no_entry() {
    let mut suspended = backup("suspended");
    suspended.spec.suspend = true;
    let mut empty = backup("empty");
    empty.spec.selector = PodSelector::default();
    let mut wrong = backup("wrong");
    wrong.spec.selector.match_labels = [("not a key".to_owned(), String::new())].into();
    assert_eq!(
        built(&[suspended, empty, wrong]),
        Vec::<serde_json::Value>::new()
    );
}

#[test]
fn a_backup_that_is_refused_keeps_its_pods_out() {
    let mut refused = backup("orders");
    refused.spec.databases[0].path = "/data/*.db".into();
    assert_eq!(built(&[refused]).len(), 1);
}

#[test]
fn a_crowded_namespace_shares_one_entry_that_lets_pods_pass() {
    let names: Vec<_> = (0..=ENTRIES_PER_NAMESPACE)
        .map(|i| format!("b{i}"))
        .collect();
    let backups: Vec<_> = names.iter().map(|n| backup(n)).collect();
    let entries = built(&backups);
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0]["name"], "shop.sqlite-backup.dev");
    assert_eq!(entries[0]["failurePolicy"], "Ignore");
    assert_eq!(built(&backups[1..]).len(), ENTRIES_PER_NAMESPACE);
}

#[test]
fn the_configuration_is_filled_and_never_made() {
    let mut cluster = Cluster::new([backup("orders")]);
    cluster.webhooks = None;
    cluster.settle();
    assert_eq!(cluster.webhooks, None);
    cluster.webhooks = Some(Vec::new());
    cluster.settle();
    assert_eq!(cluster.webhooks.as_ref().map(Vec::len), Some(1));
    cluster.ca_pem = "rotated".into();
    assert_eq!(cluster.settle().len(), 1, "a new bundle is published");
    cluster.world.backups.clear();
    cluster.settle();
    assert_eq!(cluster.webhooks, Some(Vec::new()));
}
