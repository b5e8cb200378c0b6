//! `inspect`: the files of a replica, its restorable positions, and its cost.

mod bill;
mod generations;
mod spans;

use std::collections::{BTreeMap, BTreeSet};

use engine::replica::holes::Hole;
use engine::replica::manifest::{self, RemoteFile, read_header};
use engine::replica::restore_plan::{Plan, plan_restore};
use jiff::Timestamp;
use ltx::Txid;
use protocol::exit::ExitCode;
use serde_json::{Value, json};
use store::{Layout, Store, Target};

use crate::args::InspectArguments;
use crate::failure::Failure;

/// Lists a replica and reports its restorable positions.
///
/// # Errors
///
/// The store's. A hole in the replica is reported, and gives its own exit code.
pub async fn run(arguments: InspectArguments) -> Result<ExitCode, Failure> {
    let target = Target::from_url(&arguments.url).map_err(Failure::usage)?;
    let store = store::open(&target)?;
    let files = manifest::list(&store).await?;
    let newest = files.iter().max_by_key(|file| file.max).copied();
    let oldest = files
        .iter()
        .filter(|file| file.is_snapshot())
        .min_by_key(|file| file.max)
        .copied();
    let Some(newest) = newest else {
        return generations::alone(&arguments, &store).await;
    };
    // Without a snapshot a backup exists, but it cannot be restored.
    let oldest = oldest.unwrap_or(newest);
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
        "spans": spans(&files),
        "holes": holes(&files),
        "bill": (store.layout() == Layout::S3).then(|| bill(&files, plan.as_ref().ok())),
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

/// Returns the restorable ranges, each end with the time at which it was stored.
fn spans(files: &BTreeSet<RemoteFile>) -> Value {
    let mut stored: BTreeMap<Txid, i64> = BTreeMap::new();
    for file in files {
        let at = stored.entry(file.max).or_insert(file.modified_ms);
        *at = file.modified_ms.min(*at);
    }
    let end = |txid: Txid| {
        let ms = stored.get(&txid).copied().unwrap_or_default();
        position(txid, Timestamp::from_millisecond(ms).ok())
    };
    let spans = spans::spans(files).into_iter();
    spans
        .map(|(from, to)| json!({"from": end(from), "to": end(to)}))
        .collect()
}

fn holes(files: &BTreeSet<RemoteFile>) -> Value {
    let hole = |hole: Hole| {
        json!({
            "after": hole.after.to_string(),
            "next": hole.next.to_string(),
            "first": hole.first().to_string(),
            "last": hole.last().to_string(),
            "covered": hole.is_covered,
        })
    };
    engine::replica::holes::holes(files, None)
        .into_iter()
        .map(hole)
        .collect()
}

fn bill(files: &BTreeSet<RemoteFile>, plan: Option<&Plan>) -> Value {
    let month = bill::month(files, Timestamp::now().as_millisecond());
    let month = month.map(|month| {
        json!({
            "observedSeconds": month.observed_seconds,
            "puts": month.puts,
            "uploadedBytes": month.uploaded_bytes,
            "storedBytes": month.stored_bytes,
            "dollars": month.dollars,
        })
    });
    json!({
        "month": month,
        "restoreDollars": plan.map(|plan| bill::restore_dollars(plan, files.len())),
        "prices": {
            "thousandPuts": bill::PUTS_DOLLARS,
            "thousandGets": bill::GETS_DOLLARS,
            "gibMonth": bill::GIB_MONTH_DOLLARS,
        },
    })
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
    for span in summary["spans"].as_array().into_iter().flatten() {
        let end = |name: &str| {
            let (txid, time) = (&span[name]["txid"], &span[name]["time"]);
            let words = [txid, time].map(|it| it.as_str().unwrap_or("unknown"));
            format!("{} (stored {})", words[0], words[1])
        };
        println!("  restorable TXID {} to {}", end("from"), end("to"));
    }
    for hole in summary["holes"].as_array().into_iter().flatten() {
        let ends = ["after", "next"].map(|name| hole[name].as_str().unwrap_or_default());
        let covered = match hole["covered"] == true {
            true => ": lost captures, over which a compacted file leads",
            false => "",
        };
        println!(
            "  HOLE       after TXID {}, before {}{covered}",
            ends[0], ends[1]
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
    if summary["bill"].is_object() {
        print_bill(&summary["bill"]);
    }
}

fn print_bill(bill: &Value) {
    let month = &bill["month"];
    match month["dollars"].as_f64() {
        Some(dollars) => println!(
            "  a month    {} requests, {} bytes uploaded, {} bytes kept: about ${dollars:.2}, if it \
             goes on as in the last {} s",
            month["puts"], month["uploadedBytes"], month["storedBytes"], month["observedSeconds"],
        ),
        None => println!("  a month    too young for an estimate: look again in 10 minutes"),
    }
    if let Some(dollars) = bill["restoreDollars"].as_f64() {
        println!("  a restore  about ${dollars:.6} for requests");
    }
    println!(
        "  prices     ${} for 1000 PUT or LIST, ${} for 1000 GET, ${} for 1 GiB and month; traffic \
         is not in it",
        bill["prices"]["thousandPuts"], bill["prices"]["thousandGets"], bill["prices"]["gibMonth"]
    );
}
