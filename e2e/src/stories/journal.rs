//! A database that cannot be captured is reported, and its application is left alone.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::runner::Context;
use crate::shop::Shop;

pub(super) fn a_database_that_is_not_in_wal_mode_is_reported(context: &Context<'_>) -> Result<()> {
    let rollback = |object: &mut Value| {
        if object["kind"] == "StatefulSet" {
            object["spec"]["template"]["spec"]["containers"][0]["args"] = json!([
                "write",
                "/data/app.db",
                "--interval-ms",
                "50",
                "--journal",
                "delete",
                "--print-rows"
            ]);
        }
    };
    let shop = Shop::open_with(context, &context.s3, rollback)?;
    shop.wait_until_running()?;
    shop.wait_for_rows_beyond(5)?;
    let condition = shop.wait_for_condition("Replicating", "False")?;
    let message = condition["message"].as_str().unwrap_or_default();
    ensure!(
        condition["reason"] == "NotWal" && message.contains("journal_mode=WAL"),
        "a person does not know what to do: {condition}"
    );
    let rows = shop.stats()?;
    shop.wait_for_rows_beyond(rows.newest)?;
    Ok(())
}
