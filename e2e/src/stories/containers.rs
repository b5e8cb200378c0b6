//! The Pods and containers that the injection changes, and those that it leaves alone.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::runner::{self, Context};
use crate::shop::{Shop, Stats};

const DEADLINE: Duration = Duration::from_secs(120);

/// Two containers mount the volume with different users; `spec.container` selects one.
pub(super) fn the_named_container_is_mirrored_in_a_pod_with_several(
    context: &Context<'_>,
) -> Result<()> {
    let several = |object: &mut Value| {
        if object["kind"] == "SqliteBackup" {
            object["spec"]["container"] = "app".into();
        }
        if object["kind"] == "StatefulSet" {
            let containers = &mut object["spec"]["template"]["spec"]["containers"];
            containers[0]["securityContext"]["runAsUser"] = 1001.into();
            let helper = json!({
                "name": "helper",
                "image": context.busybox.name,
                "args": ["-c", "exec sleep 3600"],
                "volumeMounts": [{"name": "data", "mountPath": "/elsewhere"}],
            });
            containers
                .as_array_mut()
                .expect("a StatefulSet has containers")
                .insert(0, helper);
        }
    };
    let shop = Shop::open_with(context, &context.s3, several)?;
    shop.wait_until_replicating()?;
    let pod = shop.pod()?;
    for container in pod["spec"]["initContainers"]
        .as_array()
        .into_iter()
        .flatten()
    {
        ensure!(
            container["securityContext"]["runAsUser"] == 1001,
            "{}",
            container["name"]
        );
        let mounts = container["volumeMounts"].as_array().into_iter().flatten();
        let paths: Vec<_> = mounts.map(|mount| mount["mountPath"].clone()).collect();
        ensure!(
            paths.contains(&json!("/data")) && !paths.contains(&json!("/elsewhere")),
            "{paths:?}"
        );
    }
    let Stats { written_at_ms, .. } = shop.stats()?;
    shop.wait_for_sync_after(written_at_ms)
}

/// The label leaves a selected Pod unchanged.
pub(super) fn an_opted_out_pod_is_left_alone(context: &Context<'_>) -> Result<()> {
    let opted_out = |object: &mut Value| {
        if object["kind"] == "StatefulSet" {
            object["spec"]["template"]["metadata"]["labels"]["sqlite-backup.dev/inject"] =
                "false".into();
        }
    };
    let shop = Shop::open_with(context, &context.s3, opted_out)?;
    context
        .kubectl()
        .wait_for_ready_pod(&context.namespace, crate::shop::POD, DEADLINE)?;
    ensure!(
        shop.pod()?["spec"]["initContainers"].is_null(),
        "the Pod was changed"
    );
    Ok(())
}

/// The same names in another namespace belong to another backup.
pub(super) fn two_namespaces_do_not_touch_each_other(context: &Context<'_>) -> Result<()> {
    let name = format!(
        "{}-b",
        context.namespace.get(..50).unwrap_or(&context.namespace)
    );
    let other = runner::context(context.environment(), &name)?;
    let (one, two) = (Shop::open(context)?, Shop::open(&other)?);
    let told = one
        .wait_until_replicating()
        .and_then(|()| two.wait_until_replicating());
    let told = told.and_then(|()| {
        for (shop, namespace) in [(&one, &context.namespace), (&two, &other.namespace)] {
            let foreign = shop
                .objects()?
                .into_iter()
                .find(|key| !key.starts_with(namespace));
            ensure!(foreign.is_none(), "{namespace} has {foreign:?}");
        }
        // The SqliteBackup of one is deleted; the other one continues to replicate.
        one.kubectl()
            .delete(one.namespace(), "sqlitebackup", crate::shop::NAME)?;
        let rows = two.stats()?;
        two.wait_for_sync_after(rows.written_at_ms)
    });
    context
        .kubectl()
        .delete("", "namespace", &other.namespace)?;
    told
}
