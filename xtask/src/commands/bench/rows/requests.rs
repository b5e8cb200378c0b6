//! Requests to the store, and bytes of the first sync.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::counts::{Counts, Kind};
use super::figures::{Figure, Goal, Unit};
use super::place::{Place, Program, STOP_LIMIT};
use super::{Bench, MIB, Outcome, Row};
use crate::commands::child::Running;

pub(super) const ROW: Row = Row {
    name: "requests",
    about: "Requests and bytes: first sync, a minute idle, a minute with a commit a second",
    remark: "Bytes of the first sync are those that went to the store until it had been quiet and the \
             first merges were due (45 s), over the size of one snapshot as LTX file with LZ4 pages. \
             Here, and only here, both programs run at the same time, each with its own proxy and \
             its own database: what is counted does not depend on time. Idle means that the \
             application has the database open and writes nothing.",
    run,
};

/// Time until the first compactions are done: the first level of both programs covers 30 s.
const SETTLE: Duration = Duration::from_secs(45);
/// Pause between two transactions of the load.
const PAUSE: Duration = Duration::from_secs(1);

fn run(bench: &Bench) -> Result<Outcome> {
    let places = [
        Place::new(bench, "requests", Program::Ours)?,
        Place::new(bench, "requests", Program::Peer)?,
    ];
    let sizes = bench.sizes();
    let zero = look(&places);
    let (mut running, mut applications) = (Vec::new(), Vec::new());
    for place in &places {
        let (database, application) = (place.database(0), bench.application());
        application.fill(&database, sizes.first_sync_bytes)?;
        applications.push(application.hold(&[database], place.folder())?);
        running.push(place.replicate(1)?);
    }
    let start = Instant::now();
    for (place, zero) in places.iter().zip(&zero) {
        place.stored(zero)?;
    }
    let full_copy = full_copy_bytes(places[1].folder())?;
    thread::sleep(SETTLE.saturating_sub(start.elapsed()));
    let synced = look(&places);
    let cpu = cpu_seconds(&running)?;
    thread::sleep(sizes.minute);
    let rested = look(&places);
    let idle_cpu = cpu_seconds(&running)?;
    write(bench, &places)?;
    let written = look(&places);
    drop(applications);
    for program in &mut running {
        program.must_run()?;
        program.stop(STOP_LIMIT)?;
    }

    let first = differences(&synced, &zero);
    let idle = differences(&rested, &synced);
    let busy = differences(&written, &rested);
    let minutes = sizes.minute.as_secs_f64() / 60.0;
    let mut outcome = Outcome::default();
    outcome.figures.push(Figure {
        row: ROW.name,
        what: "first sync, bytes over one snapshot".to_owned(),
        unit: Unit::Times,
        ours: first[0].sent_bytes as f64 / full_copy as f64,
        peer: Some(first[1].sent_bytes as f64 / full_copy as f64),
        goal: Goal::AtMost(1.02),
    });
    let mut count = |what: &str, [ours, peer]: [u64; 2], goal| {
        outcome.figures.push(Figure {
            row: ROW.name,
            what: what.to_owned(),
            unit: Unit::Count,
            ours: ours as f64 / minutes,
            peer: Some(peer as f64 / minutes),
            goal,
        });
    };
    let writes = |counts: &Counts| counts.of(Kind::Put) + counts.of(Kind::Multipart);
    // Sixty captured files, and at most three compactions of them.
    let most = Goal::AtMost(63.0);
    count(
        "idle minute, requests",
        [0, 1].map(|n| idle[n].requests()),
        Goal::AtMost(0.0),
    );
    count(
        "written minute, PUT",
        [0, 1].map(|n| writes(&busy[n])),
        most,
    );
    count(
        "written minute, LIST",
        [0, 1].map(|n| busy[n].of(Kind::List)),
        Goal::AtMost(0.0),
    );
    outcome.figures.push(Figure {
        row: ROW.name,
        what: "idle minute, CPU".to_owned(),
        unit: Unit::Milliseconds,
        ours: (idle_cpu[0] - cpu[0]) * 1000.0 / minutes,
        peer: Some((idle_cpu[1] - cpu[1]) * 1000.0 / minutes),
        goal: Goal::None,
    });
    let full_mib = full_copy as f64 / MIB;
    outcome
        .notes
        .push(format!("one snapshot is {full_mib:.1} MiB"));
    for (n, name) in ["ours", "Litestream"].iter().enumerate() {
        let sent = first[n].sent_bytes as f64 / MIB;
        let hour = (60.0 / minutes) * busy[n].requests() as f64;
        outcome.notes.push(format!(
            "{name}: first sync {} and {sent:.1} MiB; idle {}; written {}, {hour:.0} requests an hour",
            first[n], idle[n], busy[n]
        ));
    }
    Ok(outcome)
}

/// Writes one commit per second into both databases.
fn write(bench: &Bench, places: &[Place<'_>; 2]) -> Result<()> {
    let minute = bench.sizes().minute;
    let (count, limit) = (minute.as_secs(), 2 * minute + Duration::from_secs(30));
    thread::scope(|scope| {
        let writers = places.each_ref().map(|place| {
            let database = place.database(0);
            let application = bench.application();
            scope.spawn(move || application.load(&database, count, PAUSE, limit))
        });
        for writer in writers {
            writer.join().expect("the thread does not panic")?;
        }
        Ok(())
    })
}

fn look(places: &[Place<'_>; 2]) -> [Counts; 2] {
    places.each_ref().map(|place| place.proxy().counts())
}

fn cpu_seconds(running: &[Running]) -> Result<[f64; 2]> {
    ensure!(running.len() == 2, "two programs run");
    Ok([running[0].cpu_seconds()?, running[1].cpu_seconds()?])
}

fn differences(now: &[Counts; 2], before: &[Counts; 2]) -> [Counts; 2] {
    [now[0].since(&before[0]), now[1].since(&before[1])]
}

/// Returns the size of one snapshot, taken from the peer's first local file, which holds every
/// page.
fn full_copy_bytes(folder: &Path) -> Result<u64> {
    let local: PathBuf = folder.join("data/.00000.db-litestream/ltx/0");
    let files = fs::read_dir(&local).with_context(|| format!("list {}", local.display()))?;
    let mut largest = 0;
    for file in files {
        largest = largest.max(file?.metadata()?.len());
    }
    ensure!(largest > 0, "the peer has no local file");
    Ok(largest)
}
