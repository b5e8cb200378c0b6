//! The store is away for minutes while many databases are written.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

use crate::runner::Context;
use crate::shop::Shop;
use crate::wait::wait_for;

const DATABASES: usize = 64;
/// Time without the store.
const OUTAGE: Duration = Duration::from_secs(300);
const DEADLINE: Duration = Duration::from_secs(240);
/// Greatest reported lag of a target that has caught up, in milliseconds.
const CAUGHT_UP_MS: u64 = 10_000;

/// The sidecar has little memory, and a volume for its state that is about as large as what is
/// written during the outage. Its Pod is not evicted, no container ends, and every row comes back.
pub(super) fn an_outage_of_the_store_under_load_harms_no_pod_and_loses_no_row(
    context: &Context<'_>,
) -> Result<()> {
    let s3 = context.start_s3()?;
    let shop = Shop::open_with(context, &s3, |object| match object["kind"].as_str() {
        Some("SqliteBackup") => {
            let spec = &mut object["spec"];
            spec["databases"] = json!([{"path": "/data/*.db"}]);
            spec["sidecar"] = json!({"resources": {"limits": {"memory": "128Mi"}}});
            spec["restoreTest"] = Value::Null;
        }
        Some("StatefulSet") => {
            let pod = &mut object["spec"]["template"]["spec"];
            // 2 MB a second: 600 MB during the outage.
            pod["containers"][0]["args"] = json!([
                "write",
                "/data/app.db",
                format!("--databases={DATABASES}"),
                "--interval-ms=10",
                "--payload-bytes=20000",
            ]);
            // At the end there is much to store.
            pod["terminationGracePeriodSeconds"] = 120.into();
        }
        _ => {}
    })?;
    shop.wait_until_replicating()?;
    wait_until_caught_up(&shop)?;
    let uid = shop.pod()?["metadata"]["uid"].clone();

    s3.stop()?;
    let began = Instant::now();
    wait_for("the end of the outage", OUTAGE + DEADLINE, || {
        check_health(&shop, &uid)?;
        Ok((began.elapsed() >= OUTAGE).then_some(()))
    })?;
    s3.restart()?;
    wait_until_caught_up(&shop)?;
    check_health(&shop, &uid)?;

    let names = 1..=DATABASES;
    let names: Vec<String> = names
        .map(|number| format!("/data/app-{number}.db"))
        .collect();
    let before = shop.stats_of_all("app", &names)?;
    shop.replace_pod(&[])?;
    let after = shop.stats_of_all("app", &names)?;
    ensure!(before.len() == DATABASES && after.len() == DATABASES);
    for (name, (before, after)) in names.iter().zip(before.iter().zip(&after)) {
        ensure!(
            after.newest >= before.newest,
            "{name}: {before:?}, then {after:?}"
        );
    }
    Ok(())
}

fn wait_until_caught_up(shop: &Shop<'_>) -> Result<()> {
    wait_for("all databases to be stored", DEADLINE, || {
        let status = shop.sidecar_status()?;
        let databases = status["databases"].as_array();
        let targets = databases.into_iter().flatten().map(|it| &it["targets"][0]);
        let stored = |target: &&Value| {
            let lag_ms = target["lagMs"].as_u64();
            !target["position"].is_null() && lag_ms.is_some_and(|ms| ms < CAUGHT_UP_MS)
        };
        Ok((targets.filter(stored).count() == DATABASES).then_some(()))
    })
}

/// Nothing was evicted, killed or restarted.
fn check_health(shop: &Shop<'_>, uid: &Value) -> Result<()> {
    let pod = shop.pod()?;
    let phase = &pod["status"]["phase"];
    if pod["metadata"]["uid"] != *uid || phase != "Running" || shop.restarts()? > 0 {
        bail!("the Pod was harmed: {}", pod["status"]);
    }
    Ok(())
}
