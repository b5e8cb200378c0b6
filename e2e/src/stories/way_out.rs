//! Point 8 of the demo: no lock-in.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, ensure};
use xtask::process::output;

use crate::runner::Context;
use crate::shop::{Shop, Stats};

pub(super) fn stock_litestream_restores_the_same_rows(context: &Context<'_>) -> Result<()> {
    let shop = Shop::open(context)?;
    shop.wait_until_replicating()?;
    shop.wait_for_rows_beyond(50)?;
    let (before, restored) = restore_with_litestream(&shop, context)?;
    ensure!(
        restored.newest >= before.newest,
        "{restored:?} is before {before:?}"
    );
    Ok(())
}

/// Restores the application's replica with released Litestream 0.5.17. Returns the newest row that
/// was stored at the start, and the newest one that it restored.
pub fn restore_with_litestream(shop: &Shop<'_>, context: &Context<'_>) -> Result<(Stats, Stats)> {
    let stored = shop.stats()?;
    shop.wait_for_sync_after(stored.written_at_ms)?;
    let path = context
        .cluster
        .scratch()
        .join(format!("{}-litestream.db", context.namespace));
    remove(&path)?;
    output(
        Command::new(context.tools.litestream("0.5.17")?)
            .args(["restore", "-integrity-check", "full", "-o"])
            .arg(&path)
            .arg(shop.replica_url())
            .env("AWS_ACCESS_KEY_ID", &context.s3.admin().access_key)
            .env("AWS_SECRET_ACCESS_KEY", &context.s3.admin().secret_key)
            .env("AWS_REGION", crate::s3::REGION)
            .env("AWS_EC2_METADATA_DISABLED", "true")
            // With this variable set, Litestream 0.5.17 does not start.
            .env_remove("AWS_CA_BUNDLE"),
    )?;
    let sql = "SELECT count(*), max(id), max(written_at_ms) FROM rows";
    let row = output(
        Command::new("sqlite3")
            .args(["-separator", " "])
            .arg(&path)
            .arg(sql),
    )?;
    remove(&path)?;
    let numbers: Vec<i64> = row
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    ensure!(
        numbers.len() == 3 && numbers[0] == numbers[1],
        "a row is missing: {row}"
    );
    let restored = Stats {
        newest: u64::try_from(numbers[1])?,
        written_at_ms: numbers[2],
    };
    Ok((stored, restored))
}

fn remove(path: &PathBuf) -> Result<()> {
    if path.exists() {
        std::fs::remove_file(path)?;
    }
    Ok(())
}
