//! Resident memory with one database, and with many idle ones.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::Result;

use super::figures::{Figure, Goal, Unit};
use super::place::{Place, Program, STOP_LIMIT};
use super::{Bench, Outcome, Row, in_turn, mib};

pub(super) const ROW: Row = Row {
    name: "memory",
    about: "Resident memory with one database and with many idle ones, in one process",
    remark: "Tiny databases, 45 s after all are stored, when the first merges are done; VmRSS, so the \
             program's own file counts. An application may keep its databases open (one process that \
             holds them all, each written once), or have none open: then ours holds no descriptor of \
             them, while Litestream opens all.",
    run,
};

const BYTES: u64 = 16 << 10;
const REST: Duration = Duration::from_secs(45);

/// Whether an application has the databases open.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Open,
    Closed,
}

struct Taken {
    kib: u64,
    cpu_seconds: f64,
}

fn run(bench: &Bench) -> Result<Outcome> {
    let many = bench.sizes().idle;
    let cases = [
        (1, Use::Open, "one database".to_owned(), 0.4),
        (
            many,
            Use::Closed,
            format!("{many} databases, none open"),
            0.1,
        ),
        (many, Use::Open, format!("{many} databases, all open"), 0.1),
    ];
    let mut outcome = Outcome::default();
    for (count, using, what, times) in cases {
        let [ours, peer] = in_turn(|program| measure(bench, program, count, using))?;
        outcome.notes.push(format!(
            "{what}: CPU over {} s at rest {:.2} s ours, {:.2} s Litestream",
            REST.as_secs(),
            ours.cpu_seconds,
            peer.cpu_seconds
        ));
        outcome.figures.push(Figure {
            row: ROW.name,
            what,
            unit: Unit::Mib,
            ours: mib(ours.kib),
            peer: Some(mib(peer.kib)),
            goal: Goal::OfPeer(times),
        });
    }
    Ok(outcome)
}

fn measure(bench: &Bench, program: Program, count: usize, using: Use) -> Result<Taken> {
    let state = match using {
        Use::Open => "open",
        Use::Closed => "closed",
    };
    let place = Place::new(bench, &format!("memory-{count}-{state}"), program)?;
    let databases: Vec<PathBuf> = (0..count).map(|n| place.database(n)).collect();
    bench.application().fill(&databases[0], BYTES)?;
    for database in &databases[1..] {
        fs::copy(&databases[0], database)?;
    }
    let application = match using {
        Use::Open => Some(bench.application().hold(&databases, place.folder())?),
        Use::Closed => None,
    };
    let mut running = place.replicate_all(count)?;
    let before = running.cpu_seconds()?;
    thread::sleep(REST);
    running.must_run()?;
    let taken = Taken {
        kib: running.resident_kib()?,
        cpu_seconds: running.cpu_seconds()? - before,
    };
    running.stop(STOP_LIMIT)?;
    drop(application);
    Ok(taken)
}
