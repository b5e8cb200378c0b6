//! The cluster itself has the features that the other stories need.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::runner::Context;
use crate::wait::wait_for;

const DEADLINE: Duration = Duration::from_secs(120);

/// A sidecar that starts before the application sees its writes in a shared volume.
pub(super) fn cluster_runs_a_pod_with_a_native_sidecar(context: &Context<'_>) -> Result<()> {
    let (kubectl, namespace) = (context.kubectl(), context.namespace.as_str());
    let mounts = json!([{"name": "data", "mountPath": "/data"}]);
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "app"},
        "spec": {
            "terminationGracePeriodSeconds": 5,
            "securityContext": {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000},
            "initContainers": [{
                "name": "sidecar",
                "image": context.busybox.name,
                "restartPolicy": "Always",
                "args": ["-c", "echo first > /data/sidecar; exec sleep 3600"],
                "volumeMounts": mounts,
            }],
            "containers": [{
                "name": "app",
                "image": context.images.app.name,
                "args": ["write", "/data/app.db", "--interval-ms=20"],
                "volumeMounts": mounts,
            }],
            "volumes": [{"name": "data", "emptyDir": {}}],
        },
    });
    kubectl.apply(namespace, &pod.to_string())?;
    kubectl.wait_for_ready_pod(namespace, "app", DEADLINE)?;

    let stats = wait_for("rows to be written", DEADLINE, || {
        let stats = kubectl.exec(namespace, "app", "app", &["/demo-app", "stats"])?;
        let stats: Value = serde_json::from_str(&stats)?;
        Ok((stats["count"].as_u64() >= Some(10)).then_some(stats))
    })?;
    ensure!(
        stats["contiguous"] == true && stats["integrity"] == "ok",
        "{stats}"
    );
    let seen = kubectl.exec(namespace, "app", "sidecar", &["ls", "-n", "/data"])?;
    let database = seen.lines().find(|line| line.ends_with("app.db"));
    let database = database.with_context(|| format!("the sidecar sees no database: {seen}"))?;
    ensure!(
        database.contains("1000"),
        "the database is not the user's: {database}"
    );
    let log = kubectl.logs(namespace, "app", "app")?;
    ensure!(log.contains("writing to /data/app.db"), "{log}");
    Ok(())
}
