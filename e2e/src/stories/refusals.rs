//! Refusals of the API server, and limits on the operator's rights.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::operator;
use crate::runner::Context;

fn good() -> Value {
    json!({
        "apiVersion": "sqlite-backup.dev/v1alpha1",
        "kind": "SqliteBackup",
        "metadata": {"name": "refused"},
        "spec": {
            "selector": {"matchLabels": {"app": "nothing"}},
            "databases": [{"path": "/data/app.db"}],
            "targets": [{"name": "primary", "s3": {"bucket": "some-bucket"}}],
        },
    })
}

/// Each refusal message names the field.
pub(super) fn bad_backups_are_refused_with_the_field_named(context: &Context<'_>) -> Result<()> {
    let cases = [
        ("selector", "/spec/selector", json!({})),
        ("databases", "/spec/databases", json!([])),
        ("path", "/spec/databases/0/path", json!("relative.db")),
        (
            "path",
            "/spec/databases/0/path",
            json!("/data/../etc/passwd"),
        ),
        ("targets", "/spec/targets", json!([])),
        ("targets", "/spec/targets/0", json!({"name": "primary"})),
        ("bucket", "/spec/targets/0/s3/bucket", json!("x")),
        (
            "schedule",
            "/spec/restoreTest",
            json!({"schedule": "whenever"}),
        ),
        (
            "syncInterval",
            "/spec/replication",
            json!({"syncInterval": "often"}),
        ),
        ("replicas", "/spec/replicas", json!(3)),
    ];
    let file = context
        .cluster
        .scratch()
        .join(format!("{}.json", context.namespace));
    let apply = |object: &Value| {
        std::fs::write(&file, object.to_string())?;
        let file = file.display().to_string();
        let namespace = context.namespace.as_str();
        context.kubectl().attempt(&[
            "create",
            "--dry-run=server",
            "--namespace",
            namespace,
            "--filename",
            &file,
        ])
    };
    let accepted = apply(&good())?;
    ensure!(
        accepted.success,
        "a good one is refused: {}",
        accepted.stderr
    );
    for (field, pointer, value) in cases {
        let mut object = good();
        let (parent, last) = pointer.rsplit_once('/').expect("a pointer has a slash");
        let parent = object
            .pointer_mut(parent)
            .expect("the good one has the parent");
        match parent {
            Value::Array(items) => items[last.parse::<usize>()?] = value.clone(),
            parent => parent[last] = value.clone(),
        }
        let refused = apply(&object)?;
        ensure!(!refused.success, "{pointer} = {value} was accepted");
        ensure!(
            refused.stderr.contains(field),
            "{pointer} = {value}: the message does not name {field}: {}",
            refused.stderr
        );
    }
    Ok(())
}

/// It has access to its own Secret only, cannot create Pods, and has no other rights in the
/// cluster.
pub(super) fn the_operator_runs_with_least_rights(context: &Context<'_>) -> Result<()> {
    let account = format!(
        "--as=system:serviceaccount:{0}:{1}",
        operator::NAMESPACE,
        operator::RELEASE
    );
    let may = |arguments: &[&str]| -> Result<bool> {
        let question = [&["auth", "can-i", account.as_str()], arguments].concat();
        Ok(context.kubectl().attempt(&question)?.stdout.trim() == "yes")
    };
    let namespace = ["--namespace", context.namespace.as_str()];
    for forbidden in [
        ["get", "secrets"],
        ["list", "secrets"],
        ["create", "pods"],
        ["delete", "pods"],
        ["patch", "pods"],
        ["create", "pods/exec"],
        ["delete", "persistentvolumeclaims"],
        ["delete", "sqlitebackups"],
    ] {
        ensure!(
            !may(&[&forbidden[..], &namespace].concat())?,
            "the operator may {forbidden:?}"
        );
    }
    for needed in [
        ["list", "pods"],
        ["create", "jobs"],
        ["patch", "configmaps"],
    ] {
        ensure!(
            may(&[&needed[..], &namespace].concat())?,
            "the operator may not {needed:?}"
        );
    }
    Ok(())
}
