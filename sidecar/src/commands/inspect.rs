//! `inspect`: what a replica holds.

mod generations;

use std::collections::BTreeMap;

use engine::plan::plan_restore;
use engine::remote::{self, RemoteFile, read_header};
use jiff::Timestamp;
use ltx::Txid;
use protocol::exit::ExitCode;
use serde_json::{Value, json};
use store::{Store, Target};

use crate::args::InspectArguments;
use crate::failure::Failure;

/// Lists a replica and says what can be restored from it.
///
/// # Errors
///
/// The store's; a replica with a hole is told, and ends with the code for it.
pub async fn run(arguments: InspectArguments) -> Result<ExitCode, Failure> {
    let target = Target::from_url(&arguments.url).map_err(Failure::usage)?;
    let store = store::open(&target)?;
    let files = remote::list(&store).await?;
    let newest = files.iter().max_by_key(|file| file.max).copied();
    let oldest = files
        .iter()
        .filter(|file| file.is_snapshot())
        .min_by_key(|file| file.max)
        .copied();
    let (Some(newest), Some(oldest)) = (newest, oldest) else {
        return generations::alone(&arguments, &store).await;
    };
    let plan = plan_restore(&files, None);
    let mut summary = json!({
        "source": store.describe(),
        "restorable": plan.is_ok(),
        "problem": plan.as_ref().err().map(ToString::to_string),
        "earliest": position(oldest.max, time(&store, &oldest).await),
        "latest": position(newest.max, time(&store, &newest).await),
        "levels": levels(files.iter()),
        "files": files.len(),
        "bytes": files.iter().map(|file| file.size).sum::<u64>(),
        "restoreFiles": plan.as_ref().map(|plan| plan.files.len()).ok(),
        "restoreBytes": plan.as_ref().map(|plan| plan.bytes()).ok(),
    });
    generations::add(&mut summary, &store).await?;
    if arguments.json {
        println!("{summary}");
    } else {
        print_text(&summary);
    }
    Ok(if summary["restorable"] == true {
        ExitCode::Done
    } else {
        ExitCode::Hole
    })
}

async fn time(store: &store::SharedStore, file: &RemoteFile) -> Option<Timestamp> {
    let header = read_header(store, file).await.ok()?;
    Timestamp::from_millisecond(header.timestamp_ms).ok()
}

fn position(txid: Txid, time: Option<Timestamp>) -> Value {
    json!({"txid": txid.to_string(), "time": time.map(|time| time.to_string())})
}

fn levels<'a>(files: impl Iterator<Item = &'a RemoteFile>) -> Value {
    let mut levels: BTreeMap<u8, (u64, u64)> = BTreeMap::new();
    for file in files {
        let level = levels.entry(file.level).or_default();
        level.0 += 1;
        level.1 += file.size;
    }
    let entry = |(level, (files, bytes)): (&u8, &(u64, u64))| json!({"level": level, "files": files, "bytes": bytes});
    levels.iter().map(entry).collect()
}

fn print_text(summary: &Value) {
    let text = |pointer: &str| match summary.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => "unknown".to_owned(),
        Some(other) => other.to_string(),
    };
    println!("{}", text("/source"));
    generations::print(summary);
    println!(
        "  earliest   TXID {} of {}",
        text("/earliest/txid"),
        text("/earliest/time")
    );
    println!(
        "  latest     TXID {} of {}",
        text("/latest/txid"),
        text("/latest/time")
    );
    println!("  files      {}, {} bytes", text("/files"), text("/bytes"));
    for level in summary["levels"].as_array().into_iter().flatten() {
        println!(
            "  level {}    {} files, {} bytes",
            level["level"], level["files"], level["bytes"]
        );
    }
    match summary["problem"].as_str() {
        None => println!(
            "  a restore reads {} files, {} bytes",
            text("/restoreFiles"),
            text("/restoreBytes")
        ),
        Some(problem) => println!("  NOT RESTORABLE to the latest position: {problem}"),
    }
}
