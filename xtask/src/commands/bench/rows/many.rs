//! Restore of many small databases, as after the loss of a machine.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::figures::{Figure, Goal, Unit};
use super::place::{Place, Program, STOP_LIMIT};
use super::{Bench, Outcome, Row, in_turn};

pub(super) const ROW: Row = Row {
    name: "many",
    about: "Restore of many small databases, all that one configuration file names",
    remark: "Ours is one process, `restore --config`; Litestream restores one database in a process, so 8 of \
             these run at a time. Databases and local state are gone before.",
    run,
};

/// Number of concurrent processes of the peer, equal to the number of databases that ours restores
/// at once.
const AT_ONCE: usize = 8;

fn run(bench: &Bench) -> Result<Outcome> {
    let taken = in_turn(|program| measure(bench, program))?;
    let [ours, peer] = taken.each_ref().map(|(time, _)| time.as_secs_f64());
    let sizes = bench.sizes();
    let size = sizes.many_bytes >> 20;
    let figure = Figure {
        row: ROW.name,
        what: format!("{} databases of {size} MiB, time", sizes.many),
        unit: Unit::Seconds,
        ours,
        peer: Some(peer),
        goal: Goal::OfPeer(0.2),
    };
    let notes = ["ours", "Litestream"].iter().zip(&taken);
    Ok(Outcome {
        figures: vec![figure],
        notes: notes
            .map(|(name, (_, requests))| format!("{name}: {requests}"))
            .collect(),
    })
}

fn measure(bench: &Bench, program: Program) -> Result<(Duration, String)> {
    let place = Place::new(bench, ROW.name, program)?;
    let sizes = bench.sizes();
    let databases: Vec<PathBuf> = (0..sizes.many).map(|n| place.database(n)).collect();
    bench.application().fill(&databases[0], sizes.many_bytes)?;
    for database in &databases[1..] {
        fs::copy(&databases[0], database)?;
    }
    place.replicate_all(sizes.many)?.stop(STOP_LIMIT)?;

    let sources = lose_machine(&place, &databases)?;
    let before = place.proxy().counts();
    let start = Instant::now();
    restore_missing(bench, &place, &databases)?;
    let time = start.elapsed();
    let counts = place.proxy().counts().since(&before);
    place.compare(&sources, &databases)?;
    Ok((time, counts.to_string()))
}

/// Removes databases and local state, and returns the paths of the databases that are kept for
/// comparison.
pub(super) fn lose_machine(place: &Place<'_>, databases: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let (data, kept) = (place.data(), place.folder().join("kept"));
    fs::rename(&data, &kept)?;
    fs::create_dir(&data)?;
    let sources = databases
        .iter()
        .filter_map(|database| Some(kept.join(database.file_name()?)));
    Ok(sources.collect())
}

/// Restores all databases of a place to their original paths, all of which are missing.
pub(super) fn restore_missing(
    bench: &Bench,
    place: &Place<'_>,
    databases: &[PathBuf],
) -> Result<()> {
    match place.program() {
        Program::Ours => {
            let mut command = place.restore_all();
            place
                .start(&mut command)?
                .finish(bench.sizes().work_limit)?;
            Ok(())
        }
        Program::Peer => one_by_one(bench, place, databases),
    }
}

/// Restores each database with a separate process.
fn one_by_one(bench: &Bench, place: &Place<'_>, databases: &[PathBuf]) -> Result<()> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        while let Some(database) = databases.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut command = place.restore(database, None);
            place
                .start(&mut command)?
                .finish(bench.sizes().work_limit)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            worker.join().expect("the thread does not panic")?;
        }
        Ok(())
    })
}
