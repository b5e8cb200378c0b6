//! Configuration of the sidecars.

use api::SqliteBackup;
use api::backup::{DeletionPolicy, OnCheckFailed};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use operator::plan::Change;
use operator::plan::config::{config, config_map};
use protocol::config::Config;
use serde_json::json;

use crate::fixture::{Cluster, backup, start};

#[test]
fn a_policy_for_failed_checks_is_rendered_only_when_it_is_not_the_default() {
    let mut backup = backup("orders");
    let rendered = |backup: &SqliteBackup| config_map(backup).data.unwrap()["config.yml"].clone();
    assert!(
        !rendered(&backup).contains("on-check-failed"),
        "older sidecars know no such key"
    );
    backup.spec.startup.on_check_failed = OnCheckFailed::Block;
    assert!(rendered(&backup).contains("on-check-failed: block"));
}

#[test]
fn the_configuration_is_what_sidecars_read() {
    let mut backup = backup("orders");
    let file = json!({"name": "second", "file": {"claimName": "copies"}});
    backup
        .spec
        .targets
        .push(serde_json::from_value(file).unwrap());
    let map = config_map(&backup);
    assert_eq!(map.metadata.name.as_deref(), Some("orders-sqlite-backup"));
    let owners = serde_json::to_value(map.metadata.owner_references).unwrap();
    assert_eq!(
        owners,
        json!([{
            "apiVersion": "sqlite-backup.dev/v1alpha1", "kind": "SqliteBackup",
            "name": "orders", "uid": "uid-orders", "controller": true,
        }])
    );
    let yaml = &map.data.unwrap()["config.yml"];
    let read: Config = serde_yaml::from_str(yaml).unwrap();
    assert_eq!(read, config(&backup));
    let expected: Config = serde_yaml::from_str(
        r#"
addr: 0.0.0.0:9347
identity: {backup: shop/orders, member: "${SQLITE_BACKUP_MEMBER}"}
state-dir: /var/lib/sqlite-backup
startup: {on-missing: restore, on-divergence: block, when-unreachable: start-if-local-exists}
snapshot: {interval: 24h}
retention: {exact: 24h, window: 168h, daily: 7, weekly: 4, monthly: 3}
shutdown-sync-timeout: 30s
logging: {level: info, type: json}
dbs:
- path: /data/app.db
  replicas:
  - name: primary
    type: s3
    bucket: shop
    path: shop/orders/${SQLITE_BACKUP_MEMBER}/data/app.db
    credentials-dir: /var/run/sqlite-backup/credentials/primary
    sync-interval: 1s
  - name: second
    type: file
    path: /var/run/sqlite-backup/targets/second/shop/orders/${SQLITE_BACKUP_MEMBER}/data/app.db
    sync-interval: 1s
"#,
    )
    .unwrap();
    assert_eq!(read, expected);
}

#[test]
fn a_configuration_is_written_again_when_it_differs() {
    let mut cluster = Cluster::at_rest();
    cluster.edit("orders", |b| {
        b.spec.shutdown.drain = protocol::Span::from_secs(5)
    });
    let changes = cluster.settle();
    assert!(changes.iter().any(|c| matches!(c, Change::ConfigMap(_))));
    cluster.world.config_maps.clear();
    assert_eq!(cluster.settle().len(), 1, "one that is gone comes back");
    cluster.edit("orders", |b| b.metadata.uid = Some("another".into()));
    let changes = cluster.settle();
    assert!(changes.iter().any(|c| matches!(c, Change::ConfigMap(_))));
}

#[test]
fn a_backup_that_is_being_deleted_gets_no_configuration() {
    let mut cluster = Cluster::new([backup("orders")]);
    cluster.edit("orders", |b| {
        b.metadata.deletion_timestamp = Some(Time(start()))
    });
    let changes = cluster.settle();
    assert!(!changes.iter().any(|c| matches!(c, Change::ConfigMap(_))));
}

#[test]
fn a_backup_that_is_refused_later_keeps_the_configuration_of_its_pods() {
    let mut cluster = Cluster::at_rest();
    cluster.edit("orders", |b| {
        b.spec.deletion_policy = DeletionPolicy::Delete
    });
    let changes = cluster.settle();
    assert!(!changes.iter().any(|c| matches!(c, Change::ConfigMap(_))));
}

#[test]
fn a_pattern_is_handed_on_with_the_place_of_its_directory() {
    let mut cluster = Cluster::at_rest();
    cluster.edit("orders", |b| {
        b.spec.databases[0].path = "/data/slots/**/*.db".into();
        b.spec.databases[0].exclude = vec!["$tmp*".into()];
    });
    let changes = cluster.settle();
    let map = changes.iter().find_map(|change| match change {
        Change::ConfigMap(map) => Some(map),
        _ => None,
    });
    let text = &map.unwrap().data.as_ref().unwrap()["config.yml"];
    let config: Config = serde_yaml::from_str(text).unwrap();
    let database = &config.dbs[0];
    assert_eq!(database.path.to_str(), Some("/data/slots/**/*.db"));
    // The sidecar expands variables, and appends the rest of the path to the directory.
    assert_eq!(database.exclude, ["$$tmp*"]);
    let path = database.replicas[0].path.as_deref().unwrap();
    assert!(path.ends_with("/data/slots"), "{path}");
}
