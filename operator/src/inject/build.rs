//! Builds the containers and volumes that a SqliteBackup adds to a Pod.

use api::names::{
    self, CONFIG_VOLUME, NO_TOKEN_VOLUME, RESTORE_CONTAINER, SERVICE_ACCOUNT_DIR,
    SIDECAR_CONTAINER, STATE_VOLUME, STATUS_PORT_NAME,
};
use api::{Place, SqliteBackup};
use protocol::names::{
    CONFIG_DIR, CONFIG_FILE, HOLDER_ENV, MEMBER_ENV, STATE_BESIDE_ENV, STATE_DIR, STATE_LIMIT_ENV,
    STATUS_PORT,
};
use serde_json::{Value, json};

use super::Settings;
use super::source::Source;

/// Variable with the Pod's name, for [`HOLDER_ENV`]. A Pod of a Deployment has no name yet at its
/// admission.
const POD_NAME_ENV: &str = "SQLITE_BACKUP_POD_NAME";

/// The init container, which restores missing databases before the application starts.
pub(super) fn restore(
    backup: &SqliteBackup,
    member: &str,
    source: &Source,
    settings: &Settings,
) -> Value {
    let args = [
        "restore",
        "--config",
        CONFIG_FILE,
        "--if-db-not-exists",
        "--wait",
    ];
    container(RESTORE_CONTAINER, &args, backup, member, source, settings)
}

/// The native sidecar, which replicates while the application runs and afterwards until the last
/// upload.
pub(super) fn sidecar(
    backup: &SqliteBackup,
    member: &str,
    source: &Source,
    settings: &Settings,
) -> Value {
    let args = ["replicate", "--config", CONFIG_FILE, "--supervise"];
    let mut sidecar = container(SIDECAR_CONTAINER, &args, backup, member, source, settings);
    sidecar["restartPolicy"] = json!("Always");
    sidecar["ports"] =
        json!([{"name": STATUS_PORT_NAME, "containerPort": STATUS_PORT, "protocol": "TCP"}]);
    sidecar
}

fn container(
    name: &str,
    args: &[&str],
    backup: &SqliteBackup,
    member: &str,
    source: &Source,
    settings: &Settings,
) -> Value {
    json!({
        "name": name,
        "image": settings.image,
        "imagePullPolicy": settings.image_pull_policy,
        "args": args,
        "env": env(backup, member, source, settings),
        "volumeMounts": mounts(backup, source),
        "resources": resources(backup, settings),
        "securityContext": security_context(source),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    })
}

fn env(backup: &SqliteBackup, member: &str, source: &Source, settings: &Settings) -> Vec<Value> {
    let namespace = backup.metadata.namespace.as_deref().unwrap_or_default();
    let own = [
        json!({"name": MEMBER_ENV, "value": member}),
        json!({"name": STATE_BESIDE_ENV, "value": source.is_state_beside.to_string()}),
        json!({"name": STATE_LIMIT_ENV, "value": settings.state_size_limit}),
        json!({"name": POD_NAME_ENV, "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}),
        json!({"name": HOLDER_ENV, "value": format!("{namespace}/$({POD_NAME_ENV})")}),
    ];
    let is_own = |entry: &Value| own.iter().any(|own| own["name"] == entry["name"]);
    let others: Vec<Value> = source.env.iter().filter(|e| !is_own(e)).cloned().collect();
    own.into_iter().chain(others).collect()
}

fn mounts(backup: &SqliteBackup, source: &Source) -> Vec<Value> {
    let mut mounts = source.mounts.clone();
    mounts.push(json!({"name": CONFIG_VOLUME, "mountPath": CONFIG_DIR, "readOnly": true}));
    mounts.push(json!({"name": STATE_VOLUME, "mountPath": STATE_DIR}));
    for (index, target) in backup.spec.targets.iter().enumerate() {
        if target.secret().is_some() {
            mounts.push(json!({
                "name": names::credentials_volume(index),
                "mountPath": names::credentials_dir(&target.name),
                "readOnly": true,
            }));
        }
        if let Some(Place::File(_)) = target.place() {
            let path = names::target_dir(&target.name);
            mounts.push(json!({"name": names::target_volume(index), "mountPath": path}));
        }
    }
    if hides_token(backup) {
        let path = SERVICE_ACCOUNT_DIR;
        mounts.push(json!({"name": NO_TOKEN_VOLUME, "mountPath": path, "readOnly": true}));
    }
    mounts
}

/// The volumes that the mounts need and that the Pod lacks.
pub(super) fn volumes(backup: &SqliteBackup, settings: &Settings) -> Vec<Value> {
    let backup_name = backup.metadata.name.as_deref().unwrap_or_default();
    let mut volumes = vec![
        // Optional, like the Secrets: a missing one would keep the whole Pod from starting.
        json!({
            "name": CONFIG_VOLUME,
            "configMap": {"name": names::config_map(backup_name), "optional": true},
        }),
        json!({"name": STATE_VOLUME, "emptyDir": {"sizeLimit": settings.state_size_limit}}),
    ];
    for (index, target) in backup.spec.targets.iter().enumerate() {
        if let Some(secret) = target.secret() {
            // Readable for all: only the injected containers mount it, and without an fsGroup they
            // are neither its owner nor in its group.
            volumes.push(json!({
                "name": names::credentials_volume(index),
                "secret": {"secretName": secret, "optional": true, "defaultMode": 0o444},
            }));
        }
        if let Some(Place::File(file)) = target.place() {
            volumes.push(json!({
                "name": names::target_volume(index),
                "persistentVolumeClaim": {"claimName": file.claim_name},
            }));
        }
    }
    if hides_token(backup) {
        volumes.push(json!({"name": NO_TOKEN_VOLUME, "emptyDir": {}}));
    }
    volumes
}

/// Mounts an empty volume over the token directory. Otherwise admission would mount the
/// application's token into the container. With workload identity the container needs that token,
/// and keeps it.
fn hides_token(backup: &SqliteBackup) -> bool {
    !backup
        .spec
        .targets
        .iter()
        .any(api::Target::uses_workload_identity)
}

fn resources(backup: &SqliteBackup, settings: &Settings) -> Value {
    let own = &backup.spec.sidecar.resources;
    if own.requests.is_empty() && own.limits.is_empty() {
        return settings.resources.clone();
    }
    json!(own)
}

/// Settings of the "restricted" Pod security standard. They are on the container itself, because
/// some checkers ignore those of the Pod. `runAsNonRoot` is absent only for an application that
/// runs as root.
fn security_context(source: &Source) -> Value {
    let mut context = json!({
        "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": true,
        "runAsNonRoot": source.user != Some(0),
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    if let Some(user) = source.user {
        context["runAsUser"] = json!(user);
    }
    if let Some(group) = source.group {
        context["runAsGroup"] = json!(group);
    }
    if let Some(selinux) = &source.selinux {
        context["seLinuxOptions"] = selinux.clone();
    }
    context
}
