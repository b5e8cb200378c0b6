//! Point 7 of the demo: the operator is down for some time.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::operator;
use crate::runner::Context;
use crate::shop::Shop;

const DEADLINE: Duration = Duration::from_secs(120);

pub(super) fn a_stopped_operator_stops_no_application(context: &Context<'_>) -> Result<()> {
    let shop = Shop::open(context)?;
    shop.wait_until_replicating()?;
    operator::stop(context.kubectl())?;
    let told = while_it_is_down(&shop, context);
    operator::start(context.kubectl())?;
    let refusal = told?;
    ensure!(
        refusal.contains("orders"),
        "the refusal does not name the SqliteBackup: {refusal}"
    );
    let selected = selected_pod(context);
    crate::wait::wait_for("a selected Pod to be let in again", DEADLINE, || {
        context.kubectl().apply(&context.namespace, &selected)?;
        Ok(Some(()))
    })?;
    shop.wait_for_condition("Replicating", "True")?;
    Ok(())
}

/// Replication continues, an unrelated Pod starts, and a selected one is refused with this message.
pub fn while_it_is_down(shop: &Shop<'_>, context: &Context<'_>) -> Result<String> {
    let rows = shop.stats()?;
    shop.wait_for_sync_after(rows.written_at_ms)?;

    let unrelated = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "unrelated"},
        "spec": {"containers": [{
            "name": "app",
            "image": context.images.app.name,
            "args": ["write", "/tmp/app.db"],
            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
        }], "volumes": [{"name": "tmp", "emptyDir": {}}]},
    });
    context
        .kubectl()
        .apply(&context.namespace, &unrelated.to_string())?;
    context
        .kubectl()
        .wait_for_ready_pod(&context.namespace, "unrelated", DEADLINE)?;

    let file = context
        .cluster
        .scratch()
        .join(format!("{}-selected.json", context.namespace));
    std::fs::write(&file, selected_pod(context))?;
    let file = file.display().to_string();
    let namespace = context.namespace.as_str();
    let refused =
        context
            .kubectl()
            .attempt(&["create", "--namespace", namespace, "--filename", &file])?;
    ensure!(
        !refused.success,
        "a selected Pod was let in without a sidecar"
    );
    Ok(refused.stderr.replace(&file, "selected.json"))
}

fn selected_pod(context: &Context<'_>) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "selected", "labels": {"app": "orders"}},
        "spec": {
            "securityContext": {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000},
            "containers": [{
                "name": "app",
                "image": context.images.app.name,
                "args": ["write", "/data/app.db"],
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            }],
            "volumes": [{"name": "data", "emptyDir": {}}],
        },
    })
    .to_string()
}
