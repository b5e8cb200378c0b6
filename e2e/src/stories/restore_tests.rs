//! Point 5 of the demo: a restore test that passes, fails on damage, and passes again.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::runner::Context;
use crate::shop::Shop;

pub(super) fn a_restore_test_fails_on_damage_and_passes_again(context: &Context<'_>) -> Result<()> {
    // A schedule once a year, so that no scheduled run interferes.
    let yearly = |object: &mut Value| {
        if object["kind"] == "SqliteBackup" {
            object["spec"]["restoreTest"]["schedule"] = "0 0 1 1 *".into();
        }
    };
    let shop = Shop::open_with(context, &context.s3, yearly)?;
    shop.wait_until_replicating()?;
    shop.wait_for_rows_beyond(20)?;

    let passed = shop.run_restore_test("by-hand")?;
    ensure!(
        passed["status"]["result"] == "Passed",
        "{}",
        passed["status"]
    );
    ensure!(
        passed["status"]["rpoSummary"].is_string(),
        "no RPO: {}",
        passed["status"]
    );
    ensure!(
        passed["status"]["rtoSummary"].is_string(),
        "no RTO: {}",
        passed["status"]
    );
    shop.wait_for_condition("RestoreTestPassed", "True")?;

    let key = newest_base(&shop)?;
    shop.s3().damage(context.bucket(), &key)?;
    let failed = shop.run_restore_test("damaged")?;
    ensure!(
        failed["status"]["result"] == "Corrupt",
        "{}",
        failed["status"]
    );
    let condition = shop.wait_for_condition("RestoreTestPassed", "False")?;
    let message = condition["message"].as_str().unwrap_or_default();
    ensure!(
        condition["reason"] == "Corrupt" && message.contains("/data/app.db"),
        "a person does not understand {condition}"
    );
    let event = shop.wait_for_event("Corrupt")?;
    ensure!(
        event.contains("/data/app.db"),
        "the Event does not say what is damaged: {event}"
    );

    // Flipping the same bit again repairs the object.
    shop.s3().damage(context.bucket(), &key)?;
    let repaired = shop.run_restore_test("repaired")?;
    ensure!(
        repaired["status"]["result"] == "Passed",
        "{}",
        repaired["status"]
    );
    shop.wait_for_condition("RestoreTestPassed", "True")?;
    Ok(())
}

/// Returns the newest snapshot: every restore of the newest state reads it.
pub fn newest_base(shop: &Shop<'_>) -> Result<String> {
    let bases = shop
        .objects()?
        .into_iter()
        .filter(|key| key.contains("/0009/"));
    bases.max().context("there is no snapshot")
}
