//! The webhook entries.

use api::SqliteBackup;
use api::backup::DeletionPolicy;
use api::selector::{LabelOperator, LabelRequirement, PodSelector};
use kube::core::cel::cel;
use operator::plan::matching;
use operator::plan::webhook::{CONFIGURATION_BYTES, ENTRIES_PER_NAMESPACE, entries};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::fixture::{Cluster, backup, endpoint};
use crate::selectors::{labels, selector};

fn built(backups: &[SqliteBackup]) -> Vec<Value> {
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
    assert_eq!(built(&[suspended, empty, wrong]), Vec::<Value>::new());
}

#[test]
fn a_backup_that_is_refused_keeps_its_pods_out() {
    let mut refused = backup("orders");
    refused.spec.deletion_policy = DeletionPolicy::Delete;
    assert!(api::validate::validate(&refused.spec).is_err());
    assert_eq!(built(&[refused]).len(), 1);
}

fn named(names: impl Iterator<Item = String>) -> Vec<SqliteBackup> {
    names.map(|name| backup(&name)).collect()
}

#[test]
fn a_crowded_namespace_shares_an_entry_that_fails_like_any_other() {
    let backups = named((0..=ENTRIES_PER_NAMESPACE).map(|index| format!("b{index:02}")));
    assert_eq!(built(&backups[1..]).len(), ENTRIES_PER_NAMESPACE);
    let mut shared = built(&backups);
    assert_eq!(shared.len(), 1);
    let mut own = built(&backups[..1]).remove(0);
    assert_eq!(shared[0]["name"], "sqlitebackups.shop.sqlite-backup.dev");
    assert_eq!(
        shared[0]["objectSelector"],
        json!({"matchExpressions": [
            {"key": "sqlite-backup.dev/inject", "operator": "NotIn", "values": ["false"]},
        ]}),
    );
    let conditions = shared[0]["matchConditions"].as_array().unwrap();
    assert_eq!(conditions.len(), 1);
    let expression = conditions[0]["expression"].as_str().unwrap();
    for backup in &backups {
        let label = &backup.spec.selector.match_labels["app"];
        assert!(expression.contains(&format!("'={label}'")), "{expression}");
    }
    for field in ["name", "objectSelector", "matchConditions"] {
        own.as_object_mut().unwrap().remove(field);
        shared[0].as_object_mut().unwrap().remove(field);
    }
    assert_eq!(shared[0], own, "nothing else differs");
}

#[test]
fn the_order_in_which_backups_come_does_not_show() {
    let mut backups = named((0..3000).map(|index| format!("b{index}")));
    let entries = built(&backups);
    backups.reverse();
    assert_eq!(built(&backups), entries);
    let names: Vec<_> = entries.iter().map(|entry| entry["name"].clone()).collect();
    assert_eq!(
        names,
        [
            "sqlitebackups-2.shop.sqlite-backup.dev",
            "sqlitebackups.shop.sqlite-backup.dev",
        ],
        "more than one expression holds"
    );
}

#[test]
fn a_selector_that_no_expression_holds_keeps_its_own_entry() {
    let mut backups = named((0..=ENTRIES_PER_NAMESPACE).map(|index| format!("b{index}")));
    backups[0].spec.selector.match_expressions = vec![LabelRequirement {
        key: "tier".to_owned(),
        operator: LabelOperator::In,
        values: vec!["v".repeat(63); 1000],
    }];
    let entries = built(&backups);
    let names: Vec<_> = entries.iter().map(|entry| entry["name"].clone()).collect();
    assert_eq!(
        names,
        [
            "b0.shop.sqlite-backup.dev",
            "sqlitebackups.shop.sqlite-backup.dev",
        ]
    );
}

#[test]
fn where_entries_would_not_fit_into_one_object_every_namespace_shares() {
    let cluster = |count: usize| {
        let backups = (0..count).map(|index| {
            let mut backup = backup(&format!("b{index}"));
            backup.metadata.namespace = Some(format!("n{}", index / 10));
            backup
        });
        backups.collect::<Vec<_>>()
    };
    let size = |backups: &[SqliteBackup]| {
        let entries = entries(backups.iter(), &"x".repeat(640), &endpoint());
        let bytes = serde_json::to_vec(&entries).unwrap().len();
        (entries.len(), bytes)
    };
    let sizes = (70..120).map(|tens| (tens * 10, size(&cluster(tens * 10))));
    let (own, shared): (Vec<_>, Vec<_>) =
        sizes.partition(|(backups, (entries, _))| backups == entries);
    let (_, (_, most)) = own.last().unwrap();
    assert!(
        (CONFIGURATION_BYTES * 9 / 10..=CONFIGURATION_BYTES).contains(most),
        "{most}"
    );
    for (backups, (entries, bytes)) in shared {
        assert_eq!(entries, backups / 10);
        assert!(bytes < CONFIGURATION_BYTES / 4, "{bytes}");
    }
    let mut many = cluster(1190);
    // A single SqliteBackup does not share an entry.
    many[0].metadata.namespace = Some("alone".to_owned());
    let entries = built(&many);
    assert_eq!(entries[0]["name"], "b0.alone.sqlite-backup.dev");
}

proptest! {
    #[test]
    fn an_expression_selects_what_its_selectors_select(
        selected in prop::collection::vec(selector(), 1..4),
        pods in prop::collection::vec(prop::option::of(labels()), 1..8),
    ) {
        let expressions = matching::expressions(&selected);
        prop_assert_eq!(expressions.len(), 1);
        for labels in pods {
            let mut pod = json!({"metadata": {"name": "pod"}});
            if let Some(labels) = &labels {
                pod["metadata"]["labels"] = json!(labels);
            }
            let wanted = selected.iter().any(|s| s.matches(&labels.clone().unwrap_or_default()));
            prop_assert_eq!(holds(&expressions[0], &pod), Ok(wanted), "{:?}", labels);
        }
    }
}

/// Returns the value of a CEL expression for an object; `Err` when it fails to compile or evaluate.
fn holds(expression: &str, object: &Value) -> Result<bool, String> {
    let program = cel::Program::compile(expression).map_err(|error| error.to_string())?;
    let mut context = cel::Context::default();
    context.add_variable("object", object).unwrap();
    match program.execute(&context) {
        Ok(cel::Value::Bool(holds)) => Ok(holds),
        other => Err(format!("{other:?}")),
    }
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
