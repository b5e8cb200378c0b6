//! CPU time of the replicating process for the same write load.

use std::time::Duration;

use anyhow::Result;

use super::figures::{Figure, Goal, Unit};
use super::place::{Place, STOP_LIMIT};
use super::{Bench, Outcome, Row, in_turn, mib};

pub(super) const ROW: Row = Row {
    name: "cpu",
    about: "CPU seconds for the same write load, and peak memory",
    remark: "One writer, small transactions as fast as it can: a row of 200 bytes added, one of 1000 bytes \
             changed at a random place of a database of 20 MB. User and system time of the \
             replicating process from the start of the load until all of it is stored; the first \
             sync is not in it, but it is in the peak of the memory. How fast the writer got is \
             in the notes: who works longer also sees more seconds.",
    run,
};

const BASE_BYTES: u64 = 20 << 20;

struct Taken {
    cpu: f64,
    peak_kib: u64,
    seconds: f64,
    sent_bytes: u64,
    requests: String,
}

fn run(bench: &Bench) -> Result<Outcome> {
    let taken = in_turn(|program| measure(&Place::new(bench, ROW.name, program)?, bench))?;
    let [ours, peer] = &taken;
    let mut outcome = Outcome::default();
    outcome.figures.push(Figure {
        row: ROW.name,
        what: format!("{} commits, CPU", bench.sizes().cpu_commits),
        unit: Unit::Seconds,
        ours: ours.cpu,
        peer: Some(peer.cpu),
        goal: Goal::OfPeer(0.5),
    });
    outcome.figures.push(Figure {
        row: ROW.name,
        what: "peak memory".to_owned(),
        unit: Unit::Mib,
        ours: mib(ours.peak_kib),
        peer: Some(mib(peer.peak_kib)),
        goal: Goal::None,
    });
    for (name, taken) in ["ours", "Litestream"].iter().zip(&taken) {
        outcome.notes.push(format!(
            "{name}: the writer took {:.1} s; {} and {:.1} MiB to the store",
            taken.seconds,
            taken.requests,
            taken.sent_bytes as f64 / super::MIB,
        ));
    }
    Ok(outcome)
}

fn measure(place: &Place<'_>, bench: &Bench) -> Result<Taken> {
    let database = place.database(0);
    bench.application().fill(&database, BASE_BYTES)?;
    let mut running = place.replicate_all(1)?;
    let (before, counts) = (running.cpu_seconds()?, place.proxy().counts());
    let sizes = bench.sizes();
    let load = bench.application().load(
        &database,
        sizes.cpu_commits,
        Duration::ZERO,
        sizes.work_limit,
    )?;
    place.stored(&counts)?;
    let (application, load) = load;
    let stored = place.proxy().counts().since(&counts);
    let taken = Taken {
        cpu: running.cpu_seconds()? - before,
        peak_kib: running.peak_kib()?,
        seconds: load.seconds,
        sent_bytes: stored.sent_bytes,
        requests: stored.to_string(),
    };
    drop(application);
    running.stop(STOP_LIMIT)?;
    Ok(taken)
}
