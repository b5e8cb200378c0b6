//! Points 1 to 3 of the demo: installed, applied, shown.

use anyhow::{Result, ensure};

use crate::runner::Context;
use crate::shop::{NAME, Shop};

/// The quickstart as documented: sidecar injected, commits stored, health shown in one line.
pub(super) fn the_quickstart_replicates_and_shows_its_health(context: &Context<'_>) -> Result<()> {
    let shop = Shop::open(context)?;
    shop.wait_until_replicating()?;
    shop.wait_for_rows_beyond(10)?;

    let pod = shop.pod()?;
    let names: Vec<&str> = pod["spec"]["initContainers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|container| container["name"].as_str())
        .collect();
    ensure!(
        names == ["sqlite-backup-restore", "sqlite-backup"],
        "init containers: {names:?}"
    );
    ensure!(
        pod["spec"]["initContainers"][1]["restartPolicy"] == "Always",
        "the sidecar is not a native one"
    );
    for container in pod["spec"]["initContainers"]
        .as_array()
        .into_iter()
        .flatten()
    {
        let context = &container["securityContext"];
        ensure!(
            context["runAsUser"] == 1000 && context["allowPrivilegeEscalation"] == false,
            "not the application's user, or not restricted: {context}"
        );
    }

    shop.wait_for_condition("RestoreTestPassed", "True")?;
    let row = shop.row()?;
    let mut lines = row.lines();
    let header: Vec<&str> = lines
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    ensure!(
        header
            == [
                "NAME",
                "READY",
                "PODS",
                "LAG",
                "LAST-SYNC",
                "TEST",
                "TESTED",
                "AGE"
            ],
        "columns: {header:?}"
    );
    let values: Vec<&str> = lines
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    ensure!(
        values.len() == 8 && values[..3] == [NAME, "True", "1/1"] && values[5] == "Passed",
        "{row}"
    );
    Ok(())
}
