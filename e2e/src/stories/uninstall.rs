//! After an uninstall: running Pods and every backup stay.

use anyhow::{Result, ensure};

use crate::operator;
use crate::runner::Context;
use crate::shop::{NAME, Shop};

pub(super) fn deleting_everything_of_ours_leaves_pods_and_data_alone(
    context: &Context<'_>,
) -> Result<()> {
    let shop = Shop::open(context)?;
    shop.wait_until_replicating()?;
    let (restarts, uid) = (shop.restarts()?, shop.pod()?["metadata"]["uid"].clone());
    let goes_on = |what: &str| -> Result<()> {
        let rows = shop.stats()?;
        shop.wait_for_sync_after(rows.written_at_ms)?;
        let pod = shop.pod()?;
        ensure!(
            pod["metadata"]["uid"] == uid,
            "{what}: the Pod was replaced"
        );
        ensure!(
            shop.restarts()? == restarts,
            "{what}: a container was restarted"
        );
        Ok(())
    };

    // Upgrade first: the upgrade must not change the parts of the chart's objects that the operator
    // wrote.
    operator::install(context.environment())?;
    goes_on("the chart is upgraded")?;

    let kubectl = context.kubectl();
    kubectl.run(&[
        "delete",
        "sqlitebackup",
        NAME,
        "--namespace",
        &context.namespace,
    ])?;
    goes_on("the SqliteBackup is deleted")?;
    operator::uninstall(kubectl)?;
    goes_on("the chart is uninstalled")?;
    let crds = ["sqlitebackups", "restoretests", "sqliterestores"]
        .map(|kind| format!("{kind}.sqlite-backup.dev"));
    for crd in &crds {
        kubectl.run(&["delete", "customresourcedefinition", crd])?;
    }
    goes_on("the CRDs are deleted")?;

    // No leftover object prevents a new Pod, and the data still exists.
    shop.kubectl().run(&[
        "delete",
        "pod",
        crate::shop::POD,
        "--namespace",
        &context.namespace,
        "--wait=true",
    ])?;
    shop.wait_until_running()?;
    ensure!(
        shop.pod()?["spec"]["initContainers"].is_null(),
        "the sidecar is still injected"
    );
    ensure!(!shop.objects()?.is_empty(), "the backups are gone");

    operator::install(context.environment())
}
