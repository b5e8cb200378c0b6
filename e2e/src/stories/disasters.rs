//! Point 4 of the demo: the Pod is lost, gracefully or not, together with its volume.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::runner::Context;
use crate::shop::{DATABASE, Shop, Stats};
use crate::wait::wait_for;

const DEADLINE: Duration = Duration::from_secs(120);

/// Rows that the application had committed, and rows that its successor started with.
#[derive(Debug, Clone, Copy)]
pub struct Disaster {
    /// The newest committed row.
    pub committed: Stats,
    /// The newest row that the next Pod started with.
    pub restored: u64,
    /// Milliseconds of lost commits.
    pub lost_ms: i64,
}

/// Greatest accepted loss: the sync interval, an upload, and a slow machine.
const LOST_LIMIT_MS: i64 = 15_000;

/// A graceful stop loses nothing.
pub(super) fn a_deleted_pod_comes_back_with_every_row(context: &Context<'_>) -> Result<()> {
    let shop = Shop::open(context)?;
    shop.wait_until_replicating()?;
    shop.wait_for_rows_beyond(50)?;
    let disaster = delete_gracefully(&shop)?;
    // Its log shows the acknowledged rows; the last lines may be lost with the container.
    ensure!(
        disaster.restored >= disaster.committed.newest,
        "{disaster:?}"
    );
    shop.wait_for_rows_beyond(disaster.restored)?;
    Ok(())
}

/// With grace 0 the volume is gone at once; only commits that were not stored yet are lost.
pub(super) fn a_force_deleted_pod_loses_only_the_last_moment(context: &Context<'_>) -> Result<()> {
    let shop = Shop::open(context)?;
    shop.wait_until_replicating()?;
    shop.wait_for_rows_beyond(50)?;
    let disaster = delete_by_force(&shop)?;
    ensure!(disaster.lost_ms <= LOST_LIMIT_MS, "{disaster:?}");
    shop.wait_for_rows_beyond(disaster.restored)?;
    Ok(())
}

/// Every database of a pattern is backed up, restored and proven.
pub(super) fn every_database_of_a_pattern_comes_back(context: &Context<'_>) -> Result<()> {
    const SECOND: &str = "/data/second.db";
    let pattern = |object: &mut Value| match object["kind"].as_str() {
        Some("SqliteBackup") => {
            object["spec"]["databases"] = json!([{"path": "/data/*.db"}]);
            object["spec"]["container"] = "app".into();
        }
        Some("StatefulSet") => {
            let containers = &mut object["spec"]["template"]["spec"]["containers"];
            let second = containers[0].to_string().replace(DATABASE, SECOND);
            let mut second: Value = second.parse().expect("it was JSON");
            second["name"] = "second".into();
            let containers = containers.as_array_mut();
            containers
                .expect("a StatefulSet has containers")
                .push(second);
        }
        _ => {}
    };
    let shop = Shop::open_with(context, &context.s3, pattern)?;
    shop.wait_until_replicating()?;
    wait_for("both databases to be stored", DEADLINE, || {
        let status = shop.sidecar_status()?;
        let databases = status["databases"].as_array();
        let stored = |it: &&Value| !it["targets"][0]["position"].is_null();
        let stored = databases.into_iter().flatten().filter(stored).count();
        Ok((stored == 2).then_some(()))
    })?;
    let second = shop.stats_of("second", SECOND)?;
    let first = delete_gracefully(&shop)?;
    ensure!(first.restored >= first.committed.newest, "{first:?}");
    let restored = shop.rows_at_start_of("second")?;
    ensure!(restored >= second.newest, "{restored} after {second:?}");
    shop.wait_until_replicating()?;
    let test = shop.run_restore_test("both")?;
    let status = &test["status"];
    ensure!(
        status["phase"] == "Passed" && status["databases"].as_array().map(Vec::len) == Some(2),
        "{status}"
    );
    Ok(())
}

/// Deletes the Pod with its grace period.
pub fn delete_gracefully(shop: &Shop<'_>) -> Result<Disaster> {
    replace(shop, &[])
}

/// Deletes the Pod without a grace period.
pub fn delete_by_force(shop: &Shop<'_>) -> Result<Disaster> {
    replace(shop, &["--force", "--grace-period=0"])
}

fn replace(shop: &Shop<'_>, options: &[&str]) -> Result<Disaster> {
    let follower = shop.follow()?;
    shop.replace_pod(options)?;
    let committed = follower.end()?;
    let restored = shop.rows_at_start()?;
    let first_lost = shop.stats()?;
    ensure!(
        first_lost.newest >= restored,
        "{first_lost:?} after {restored}"
    );
    let lost_rows = committed.newest.saturating_sub(restored);
    // The application writes a row each 50 ms.
    let lost_ms = i64::try_from(lost_rows)? * 50;
    Ok(Disaster {
        committed,
        restored,
        lost_ms,
    })
}
