//! The generations that Litestream 0.3 stored, alone or beside our files.

use engine::replica::restore_plan::PlanError;
use engine::restore::litestream03::{self, Generation};
use engine::restore::{Point, RestoreError, Way, find};
use jiff::Timestamp;
use protocol::exit::ExitCode;
use serde_json::{Value, json};
use store::{SharedStore, Store};

use crate::args::InspectArguments;
use crate::failure::Failure;

/// Describes a replica without files of ours.
///
/// # Errors
///
/// The store's, or that no backup exists.
pub(super) async fn alone(
    arguments: &InspectArguments,
    store: &SharedStore,
) -> Result<ExitCode, Failure> {
    let mut summary = json!({"source": store.describe(), "restorable": true, "problem": null});
    add(&mut summary, store).await?;
    if summary["generations"] == json!([]) {
        let error = RestoreError::Plan(PlanError::Empty);
        return Err(Failure::from(error).context(store.describe()));
    }
    if arguments.json {
        println!("{summary}");
    } else {
        println!("{}", store.describe());
        print(&summary);
        if let Some(problem) = summary["problem"].as_str() {
            println!("  NOT RESTORABLE: {problem}");
        }
    }
    Ok(match summary["restorable"] == true {
        true => ExitCode::Done,
        false => ExitCode::Hole,
    })
}

/// Adds the generations to a summary, and the size of a restore when it would use a generation.
///
/// # Errors
///
/// The store's.
pub(super) async fn add(summary: &mut Value, store: &SharedStore) -> Result<(), Failure> {
    let generations = litestream03::list(store).await?;
    summary["generations"] = generations.iter().map(describe).collect();
    summary["restoreGeneration"] = Value::Null;
    if generations.is_empty() {
        return Ok(());
    }
    match find(store, Point::Latest).await {
        Ok(Way::Files(_)) => {}
        Ok(Way::Generation(plan)) => {
            summary["restorable"] = json!(true);
            summary["problem"] = Value::Null;
            summary["restoreGeneration"] = json!(plan.id.to_string());
            summary["restoreFiles"] = json!(plan.objects().count());
            summary["restoreBytes"] = json!(plan.bytes());
        }
        Err(RestoreError::Store(error)) => return Err(error.into()),
        Err(error) => {
            summary["restorable"] = json!(false);
            summary["problem"] = json!(error.to_string());
            summary["restoreFiles"] = Value::Null;
            summary["restoreBytes"] = Value::Null;
        }
    }
    Ok(())
}

fn describe(generation: &Generation) -> Value {
    let time = |ms: Option<i64>| Some(Timestamp::from_millisecond(ms?).ok()?.to_string());
    let alone = litestream03::plan(std::slice::from_ref(generation), None);
    json!({
        "id": generation.id.to_string(),
        "snapshots": generation.snapshots.len(),
        "segments": generation.segments.len(),
        "bytes": generation.objects().map(|object| object.size).sum::<u64>(),
        "earliest": time(generation.oldest_ms()),
        "latest": time(generation.newest_ms(None)),
        "problem": alone.err().map(|error| error.to_string()),
    })
}

/// Prints the part that [`add`] added.
pub(super) fn print(summary: &Value) {
    for generation in summary["generations"].as_array().into_iter().flatten() {
        let text = |name: &str| generation[name].as_str().unwrap_or("unknown");
        println!(
            "  generation {} of Litestream 0.3: {} snapshots, {} segments, {} bytes, {} to {}",
            text("id"),
            generation["snapshots"],
            generation["segments"],
            generation["bytes"],
            text("earliest"),
            text("latest")
        );
        if let Some(problem) = generation["problem"].as_str() {
            println!("    NOT RESTORABLE to its latest state: {problem}");
        }
    }
    if let Some(id) = summary["restoreGeneration"].as_str() {
        println!("  a restore takes generation {id}");
    }
}
