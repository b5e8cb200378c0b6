//! Configuration of the sidecars: a ConfigMap for each SqliteBackup.

use std::collections::BTreeMap;
use std::path::PathBuf;

use api::SqliteBackup;
use api::backup::DatabaseSpec;
use api::names::{self, CONFIG_KEY};
use api::target::{Place, Target};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Resource;
use kube::api::ObjectMeta;
use protocol::config::{
    Config, Database, Identity, Logging, OnCheckFailed, OnDivergence, OnMissing, Replica,
    Retention, Snapshot, Startup, WhenUnreachable,
};
use protocol::names::{MEMBER_ENV, STATE_DIR, STATUS_PORT};

use super::acceptance::Acceptance;
use super::{Change, Plan, key, labels};
use crate::cache::Key;
use crate::cluster_state::ClusterState;

/// Plans the ConfigMaps of every SqliteBackup that is in force.
///
/// A refused SqliteBackup keeps its previous ConfigMap: its running Pods continue unchanged.
pub fn plan(cluster: &ClusterState, acceptances: &BTreeMap<Key, Acceptance>, plan: &mut Plan) {
    for backup in &cluster.backups {
        let own = key(backup);
        let accepted = acceptances
            .get(&own)
            .is_some_and(|j| j.schedule().is_some());
        if !accepted || backup.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let wanted = config_map(backup);
        let held = cluster.config_maps.get(&(own.0, names::config_map(&own.1)));
        let same = held.is_some_and(|held| {
            held.data == wanted.data
                && held.metadata.owner_references == wanted.metadata.owner_references
        });
        if !same {
            plan.changes.push(Change::ConfigMap(Box::new(wanted)));
        }
    }
}

/// Builds the ConfigMap of a SqliteBackup. Kubernetes deletes it with the SqliteBackup; running
/// sidecars keep the configuration that they have read.
pub fn config_map(backup: &SqliteBackup) -> ConfigMap {
    let (namespace, name) = key(backup);
    let yaml = serde_yaml::to_string(&config(backup)).expect("a configuration is plain data");
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(names::config_map(&name)),
            namespace: Some(namespace),
            labels: Some(labels(&name)),
            owner_references: backup.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(CONFIG_KEY.to_owned(), yaml)])),
        ..ConfigMap::default()
    }
}

/// Builds the configuration that all sidecars of a SqliteBackup share. The name of the member comes
/// from their environment.
pub fn config(backup: &SqliteBackup) -> Config {
    let spec = &backup.spec;
    let (namespace, name) = key(backup);
    Config {
        addr: Some(format!("0.0.0.0:{STATUS_PORT}")),
        identity: Some(Identity {
            backup: format!("{namespace}/{name}"),
            member: format!("${{{MEMBER_ENV}}}"),
        }),
        state_dir: Some(PathBuf::from(STATE_DIR)),
        startup: Some(startup(backup)),
        snapshot: Some(Snapshot {
            interval: Some(spec.snapshots.interval),
            retention: None,
        }),
        retention: Some(Retention {
            enabled: None,
            exact: Some(spec.retention.exact),
            window: Some(spec.retention.window),
            daily: Some(spec.retention.daily),
            weekly: Some(spec.retention.weekly),
            monthly: Some(spec.retention.monthly),
        }),
        shutdown_sync_timeout: Some(spec.shutdown.drain),
        logging: Some(Logging {
            level: Some(spec.sidecar.log_level.as_str().to_owned()),
            format: Some("json".to_owned()),
            ..Logging::default()
        }),
        dbs: spec.databases.iter().map(|d| database(backup, d)).collect(),
        ..Config::default()
    }
}

fn startup(backup: &SqliteBackup) -> Startup {
    use api::backup as from;
    let startup = &backup.spec.startup;
    Startup {
        on_missing: match startup.on_missing {
            from::OnMissing::Restore => OnMissing::Restore,
            from::OnMissing::RequireBackup => OnMissing::RequireBackup,
            from::OnMissing::StartEmpty => OnMissing::StartEmpty,
        },
        on_divergence: match startup.on_divergence {
            from::OnDivergence::Block => OnDivergence::Block,
            from::OnDivergence::NewLineage => OnDivergence::NewLineage,
        },
        when_unreachable: match startup.when_unreachable {
            from::WhenUnreachable::StartIfLocalExists => WhenUnreachable::StartIfLocalExists,
            from::WhenUnreachable::Wait => WhenUnreachable::Wait,
        },
        on_check_failed: match startup.on_check_failed {
            from::OnCheckFailed::Start => OnCheckFailed::Start,
            from::OnCheckFailed::Block => OnCheckFailed::Block,
        },
    }
}

fn database(backup: &SqliteBackup, database: &DatabaseSpec) -> Database {
    let replicas = backup
        .spec
        .targets
        .iter()
        .filter_map(|t| replica(backup, t, database.place()));
    let literal = |pattern: &String| pattern.replace('$', "$$");
    Database {
        path: PathBuf::from(&database.path),
        exclude: database.exclude.iter().map(literal).collect(),
        replicas: replicas.collect(),
        ..Database::default()
    }
}

/// One target of one database. `None` for a kind that is not supported: such a spec is refused
/// before.
fn replica(backup: &SqliteBackup, target: &Target, database: &str) -> Option<Replica> {
    let place = target.place()?;
    let path = expand(backup, place.prefix(), database);
    let common = Replica {
        name: Some(target.name.clone()),
        sync_interval: Some(backup.spec.replication.sync_interval),
        credentials_dir: (target.secret())
            .map(|_| PathBuf::from(names::credentials_dir(&target.name))),
        ..Replica::default()
    };
    match place {
        Place::S3(s3) => Some(Replica {
            kind: Some("s3".to_owned()),
            bucket: Some(s3.bucket.clone()),
            path: Some(path),
            region: s3.region.clone(),
            endpoint: s3.endpoint.clone(),
            force_path_style: s3.force_path_style,
            ..common
        }),
        Place::File(_) => Some(Replica {
            kind: Some("file".to_owned()),
            path: Some(format!("{}/{path}", names::target_dir(&target.name))),
            credentials_dir: None,
            ..common
        }),
        Place::Gcs(_) | Place::Azure(_) | Place::Sftp(_) => None,
    }
}

/// Replaces the placeholders of a prefix. `{member}` becomes a variable that each sidecar expands.
fn expand(backup: &SqliteBackup, prefix: &str, database: &str) -> String {
    let (namespace, name) = key(backup);
    prefix
        .replace("{namespace}", &namespace)
        .replace("{backup}", &name)
        .replace("{member}", &format!("${{{MEMBER_ENV}}}"))
        .replace("{database}", database.trim_start_matches('/'))
}
