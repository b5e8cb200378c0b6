//! Before the application starts: an unreachable store is never mistaken for an empty one, and an
//! existing database never waits for the network.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::runner::Context;
use crate::shop::{NAME, POD, Shop};
use crate::wait::wait_for;

const DEADLINE: Duration = Duration::from_secs(180);

/// Replaces the keys in the Secret by unknown ones.
fn with_wrong_keys(object: &mut Value) {
    if object["kind"] == "Secret" {
        object["stringData"] = json!({
            "AWS_ACCESS_KEY_ID": "nobody-access",
            "AWS_SECRET_ACCESS_KEY": "nobody-secret",
        });
    }
}

/// Puts the data on a volume that outlives the Pod.
fn with_lasting_volume(context: &Context<'_>, object: &mut Value) {
    if object["kind"] == "StatefulSet" {
        let pod = &mut object["spec"]["template"]["spec"];
        let folder = format!("/tmp/{}", context.namespace);
        pod["volumes"] =
            json!([{"name": "data", "hostPath": {"path": folder, "type": "DirectoryOrCreate"}}]);
        pod["securityContext"] = json!({"runAsUser": 0, "runAsGroup": 0});
    }
}

/// Without a local database, the application waits until a store accepts the credentials.
pub(super) fn wrong_credentials_never_start_an_empty_database(context: &Context<'_>) -> Result<()> {
    let shop = Shop::open_with(context, &context.s3, with_wrong_keys)?;
    wait_for("the restore to say why it waits", DEADLINE, || {
        let log = context
            .kubectl()
            .logs(&context.namespace, POD, "sqlite-backup-restore")?;
        Ok((log.contains("the application waits") && log.contains("denied")).then_some(()))
    })?;
    ensure!(
        !app_started(&shop)?,
        "the application started without its data"
    );
    // The right keys resolve it, without deleting the Pod.
    shop.apply(|_| {})?;
    shop.wait_until_replicating()
}

/// With a local database it starts, and reports that nothing is stored.
pub(super) fn wrong_credentials_do_not_stop_an_application_with_a_database(
    context: &Context<'_>,
) -> Result<()> {
    let with_database = |object: &mut Value| {
        with_wrong_keys(object);
        with_lasting_volume(context, object);
    };
    let shop = Shop::open_with(context, &context.s3, |object| {
        with_database(object);
        // First start without a backup, so that a database exists.
        if object["kind"] == "SqliteBackup" {
            object["spec"]["selector"] = json!({"matchLabels": {"app": "nothing-yet"}});
        }
    })?;
    shop.wait_until_running()?;
    shop.wait_for_rows_beyond(5)?;
    shop.apply(with_database)?;
    shop.wait_for_condition("Ready", "True")?;
    wait_for("the Pod to be injected", DEADLINE, || {
        shop.replace_pod(&[])?;
        let containers = &shop.pod()?["spec"]["initContainers"];
        Ok(containers
            .as_array()
            .is_some_and(|all| all.len() == 2)
            .then_some(()))
    })?;
    let rows = shop.stats()?;
    shop.wait_for_rows_beyond(rows.newest)?;
    let condition = shop.wait_for_condition("CredentialsValid", "False")?;
    ensure!(condition["reason"] == "Denied", "{condition}");
    shop.wait_for_condition("Replicating", "False")?;
    Ok(())
}

/// Where the volume of the database outlives the Pod, so does the sidecar's state: the next Pod
/// continues, and stores no new snapshot.
pub(super) fn a_pod_on_a_lasting_volume_continues_without_a_snapshot(
    context: &Context<'_>,
) -> Result<()> {
    let shop = Shop::open_with(context, &context.s3, |object| {
        with_lasting_volume(context, object);
    })?;
    shop.wait_until_replicating()?;
    for _ in 0..2 {
        let rows = shop.stats()?;
        let rows = shop.wait_for_rows_beyond(rows.newest + 5)?;
        shop.wait_for_sync_after(rows.written_at_ms)?;
        shop.replace_pod(&[])?;
        shop.wait_until_running()?;
        let rows = shop.wait_for_rows_beyond(rows.newest)?;
        shop.wait_for_sync_after(rows.written_at_ms)?;
    }
    let objects = shop.objects()?;
    let snapshots: Vec<_> = objects
        .iter()
        .filter(|key| key.contains("/0009/"))
        .collect();
    ensure!(snapshots.len() == 1, "{snapshots:?}");
    Ok(())
}

/// When a Pod without a database starts while the store is down, it waits for the store.
pub(super) fn a_store_that_is_down_at_start_is_waited_for(context: &Context<'_>) -> Result<()> {
    let s3 = context.start_s3()?;
    let shop = Shop::open_with(context, &s3, |_| {})?;
    shop.wait_until_replicating()?;
    let rows = shop.wait_for_rows_beyond(20)?;
    shop.wait_for_sync_after(rows.written_at_ms)?;

    s3.stop()?;
    let scale = |replicas: u32| {
        let replicas = format!("--replicas={replicas}");
        let namespace = context.namespace.as_str();
        context
            .kubectl()
            .run(&["scale", "statefulset", NAME, "-n", namespace, &replicas])
    };
    scale(0)?;
    wait_for("the Pod to be gone", DEADLINE, || {
        Ok(context
            .kubectl()
            .object(&context.namespace, "pod", POD)?
            .is_none()
            .then_some(()))
    })?;
    scale(1)?;
    wait_for("the restore to say why it waits", DEADLINE, || {
        let log = context
            .kubectl()
            .logs(&context.namespace, POD, "sqlite-backup-restore")?;
        Ok(log.contains("the application waits").then_some(()))
    })?;
    ensure!(
        !app_started(&shop)?,
        "the application started without its data"
    );

    s3.restart()?;
    shop.wait_until_running()?;
    ensure!(
        shop.rows_at_start()? >= rows.newest,
        "rows that were stored are gone"
    );
    Ok(())
}

fn app_started(shop: &Shop<'_>) -> Result<bool> {
    let pod = shop.pod()?;
    Ok(!pod["status"]["containerStatuses"][0]["state"]["running"].is_null())
}
