//! The main use case as a story with short headings: `cargo xtask demo`.

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::operator;
use crate::runner::{self, Environment};
use crate::shop::{NAME, POD, Shop, identity};
use crate::stories::{disasters, operator_down, restore_tests, rotation, way_out};

/// Runs the story. The operator must be installed.
///
/// # Errors
/// At the first step that does not behave as promised.
pub fn tell(environment: &Environment) -> Result<()> {
    let context = runner::context(environment, "shop")?;
    let kubectl = context.kubectl();

    heading(1, "A cluster, an S3 server, the chart");
    show(&kubectl.run(&["get", "nodes"])?);
    show(&kubectl.run(&["get", "pods", "--namespace", operator::NAMESPACE])?);
    say(&format!(
        "The S3 server answers at {}.",
        environment.s3.endpoint()
    ));

    heading(2, "kubectl apply -f examples/quickstart.yaml");
    say("A Secret, a SqliteBackup, and a StatefulSet that knows nothing of backups.");
    // No scheduled tests, so that the story can wait for its own.
    let shop = Shop::open_with(&context, &environment.s3, |object| {
        if object["kind"] == "SqliteBackup" {
            object["spec"]["restoreTest"]["schedule"] = "0 0 1 1 *".into();
        }
    })?;
    shop.wait_until_replicating()?;
    show(&kubectl.run(&[
        "get",
        "secrets,sqlitebackups,statefulsets",
        "-n",
        &context.namespace,
    ])?);

    heading(
        3,
        "The Pod runs with a restore container and a replicate sidecar",
    );
    show(&kubectl.run(&["get", "pod", POD, "--namespace", &context.namespace])?);
    let rows = shop.wait_for_rows_beyond(100)?;
    say(&format!(
        "The application has written {} rows, one every 50 ms.",
        rows.newest
    ));
    show(&shop.row()?);

    heading(4, "Disaster: the Pod and its volume are gone");
    let graceful = disasters::delete_gracefully(&shop)?;
    say(&format!(
        "kubectl delete pod {POD}: row {} was the last, the new Pod began after row {}.",
        graceful.committed.newest, graceful.restored
    ));
    ensure!(
        graceful.restored >= graceful.committed.newest,
        "{graceful:?}"
    );
    shop.wait_for_rows_beyond(graceful.restored + 50)?;
    let forced = disasters::delete_by_force(&shop)?;
    say(&format!(
        "kubectl delete pod {POD} --force --grace-period=0: row {} was the last, the new Pod began \
         after row {}: {} ms of commits were lost.",
        forced.committed.newest, forced.restored, forced.lost_ms
    ));

    heading(5, "A restore test that can fail");
    shop.wait_for_rows_beyond(forced.restored + 50)?;
    show_test(&shop, "by-hand")?;
    let key = restore_tests::newest_base(&shop)?;
    say(&format!("One bit of {key} is turned."));
    shop.s3().damage(context.bucket(), &key)?;
    show_test(&shop, "after-damage")?;
    let condition = shop.wait_for_condition("RestoreTestPassed", "False")?;
    say(&format!(
        "RestoreTestPassed is False, {}: {}",
        text(&condition["reason"]),
        text(&condition["message"])
    ));
    say(&format!("Event: {}", shop.wait_for_event("Corrupt")?));
    shop.s3().damage(context.bucket(), &key)?;
    say("The bit is turned back.");
    show_test(&shop, "after-repair")?;
    show(&shop.row()?);

    heading(6, "Other credentials, nothing restarted");
    let restarts = shop.restarts()?;
    rotation::rotate(&shop, &identity(&context, "second"))?;
    let rows = shop.stats()?;
    shop.wait_for_sync_after(rows.written_at_ms)?;
    ensure!(shop.restarts()? == restarts, "a container was restarted");
    say(&format!(
        "The Secret has a second pair of keys, the first is revoked at the server, row {} is \
         stored, no container was restarted.",
        rows.newest
    ));

    heading(7, "The operator is stopped");
    operator::stop(kubectl)?;
    let refusal = operator_down::while_it_is_down(&shop, &context);
    operator::start(kubectl)?;
    say("The application continues to replicate, and an unrelated Pod starts.");
    say(&format!("A selected Pod is refused: {}", refusal?.trim()));
    shop.wait_for_condition("Replicating", "True")?;
    say("The operator is back, and everything heals.");

    heading(8, "A person's way out: stock litestream restore");
    let (stored, restored) = way_out::restore_with_litestream(&shop, &context)?;
    say(&format!(
        "Row {} was stored; litestream 0.5.17 restored every row up to {}, integrity ok.",
        stored.newest, restored.newest
    ));
    ensure!(
        restored.newest >= stored.newest,
        "{restored:?} is before {stored:?}"
    );
    println!("\nThat was the main job: {NAME} is backed up, and it was proven.");
    Ok(())
}

fn show_test(shop: &Shop<'_>, name: &str) -> Result<()> {
    let test = shop.run_restore_test(name)?;
    let status = &test["status"];
    let figures = match (status["rpoSummary"].as_str(), status["rtoSummary"].as_str()) {
        (Some(rpo), Some(rto)) => format!(", RPO {rpo}, RTO {rto}"),
        _ => String::new(),
    };
    say(&format!(
        "RestoreTest {name}: {}{figures} {}",
        text(&status["result"]),
        text(&status["message"])
    ));
    Ok(())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn heading(number: u32, title: &str) {
    println!("\n## {number}. {title}\n");
}

fn say(sentence: &str) {
    println!("{}", sentence.trim_end());
}

fn show(output: &str) {
    println!("```\n{}\n```", output.trim_end());
}
