//! SqliteBackups that conflict with each other, and specs that are not put in force.

use api::SqliteBackup;
use api::names::condition::{READY, WRITER_CONFLICT};
use api::names::reason;
use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use operator::cluster_state::Unreadable;
use operator::plan::Change;
use serde_json::{Value, json};

use crate::fixture::{Cluster, NAMESPACE, backup, pod, start, well};

fn ready(cluster: &Cluster, name: &str) -> (String, String, String) {
    let conditions = cluster.status(name).conditions;
    let ready = conditions.into_iter().find(|c| c.type_ == READY).unwrap();
    (ready.status, ready.reason, ready.message)
}

/// A SqliteBackup that is older than those of the fixture.
fn older(name: &str) -> SqliteBackup {
    let mut older = backup(name);
    older.metadata.creation_timestamp = Some(Time(start() - SignedDuration::from_hours(9)));
    older
}

fn changed(pointer: &str, value: Value) -> SqliteBackup {
    let mut object = serde_json::to_value(backup("orders")).unwrap();
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    object.pointer_mut(parent).unwrap()[field] = value;
    serde_json::from_value(object).unwrap()
}

#[test]
fn of_two_with_one_destination_the_older_goes_on() {
    let place = |mut b: SqliteBackup| {
        b.spec.targets[0].s3.as_mut().unwrap().prefix = "same/{member}".into();
        b
    };
    let mut cluster = Cluster::new([place(backup("a")), place(older("b"))]);
    let changes = cluster.settle();
    assert_eq!(ready(&cluster, "b").0, "True");
    let (status, reason, message) = ready(&cluster, "a");
    assert_eq!(
        (status.as_str(), reason.as_str()),
        ("False", reason::CONFLICT)
    );
    assert!(
        message.contains("SqliteBackup shop/b writes to the same destination"),
        "{message}"
    );
    let configured = changes
        .iter()
        .filter(|c| matches!(c, Change::ConfigMap(_)))
        .count();
    assert_eq!(configured, 1, "the younger one never gets a configuration");
}

#[test]
fn default_prefixes_never_meet() {
    let mut cluster = Cluster::new([backup("a"), backup("b")]);
    cluster.settle();
    assert_eq!(
        (ready(&cluster, "a").0, ready(&cluster, "b").0),
        ("True".into(), "True".into())
    );
}

#[test]
fn of_two_that_select_one_pod_the_older_goes_on() {
    let mut wider = backup("wider");
    wider.spec.selector.match_labels = [("tier".to_owned(), "db".to_owned())].into();
    let mut cluster = Cluster::new([wider, older("orders")]);
    let mut both = pod(&older("orders"), "orders-0");
    both.labels.insert("tier".into(), "db".into());
    cluster.add_pod(both);
    cluster.settle();
    assert_eq!(ready(&cluster, "orders").0, "True");
    let (_, reason, message) = ready(&cluster, "wider");
    assert_eq!(reason, reason::CONFLICT);
    assert!(
        message.contains("orders selects Pod orders-0 too"),
        "{message}"
    );
}

#[test]
fn two_pods_of_one_member_are_a_conflict() {
    let mut cluster = Cluster::at_rest();
    cluster.remove_pods();
    for name in ["web-a", "web-b"] {
        let mut replica = pod(&backup("orders"), name);
        replica.owner_kind = Some("ReplicaSet".into());
        cluster.add_pod(replica);
        cluster.answer(name, Ok(well()));
    }
    cluster.settle();
    cluster.assert_condition(WRITER_CONFLICT, "True", reason::TOO_MANY_REPLICAS);
}

#[test]
fn members_that_share_a_prefix_are_a_conflict() {
    let mut cluster = Cluster::new([changed("/spec/targets/0/s3/prefix", json!("orders"))]);
    for name in ["orders-0", "orders-1"] {
        cluster.add_pod(pod(&backup("orders"), name));
    }
    cluster.settle();
    cluster.assert_condition(WRITER_CONFLICT, "True", reason::SAME_DESTINATION);
}

#[test]
fn what_is_not_served_is_refused_by_the_name_of_the_field() {
    for (pointer, value, field) in [
        (
            "/spec/encryption",
            json!({"age": {"identitySecretRef": {"name": "a", "key": "k"}}}),
            "spec.encryption",
        ),
        (
            "/spec/sidecar",
            json!({"updatePolicy": "InPlace"}),
            "spec.sidecar.updatePolicy",
        ),
        (
            "/spec/deletionPolicy",
            json!("Delete"),
            "spec.deletionPolicy",
        ),
        (
            "/spec/targets",
            json!([{"name": "g", "gcs": {"bucket": "shop"}}]),
            "spec.targets[g].gcs",
        ),
    ] {
        let mut cluster = Cluster::new([changed(pointer, value)]);
        let changes = cluster.settle();
        let (status, reason, message) = ready(&cluster, "orders");
        assert_eq!(
            (status.as_str(), reason.as_str()),
            ("False", reason::NOT_SERVED)
        );
        assert!(message.starts_with(field), "{message}");
        assert!(!changes.iter().any(|c| matches!(c, Change::ConfigMap(_))));
    }
}

#[test]
fn a_schedule_that_cannot_be_is_invalid() {
    let schedule = json!({"schedule": "0 0 31 2 *"});
    let mut cluster = Cluster::new([changed("/spec/restoreTest", schedule)]);
    cluster.settle();
    let (_, reason, message) = ready(&cluster, "orders");
    assert_eq!(reason, reason::INVALID);
    assert!(message.contains("never matches a date"), "{message}");
}

#[test]
fn a_malformed_object_is_told_so_and_stops_nobody() {
    let mut cluster = Cluster::new([backup("orders")]);
    let key = (NAMESPACE.to_owned(), "broken".to_owned());
    cluster.world.unreadable.push(Unreadable {
        key: key.clone(),
        uid: "u".into(),
        generation: Some(4),
        resource_version: None,
        error: "invalid type".into(),
    });
    let changes = cluster.plan().changes;
    let told = changes.iter().find_map(|c| match c {
        Change::BackupStatus(k, status) if *k == key => Some(status.clone()),
        _ => None,
    });
    assert_eq!(told.unwrap().conditions[0].reason, reason::INVALID);
    let others = |c: &Change| matches!(c, Change::BackupStatus((_, name), _) if name == "orders");
    assert!(changes.iter().any(others));
}
