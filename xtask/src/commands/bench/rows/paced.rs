//! CPU time, requests and commit latency under loads with a fixed pace.

use anyhow::Result;

use super::counts::Kind;
use super::figures::{Figure, Goal, Unit, percentile};
use super::place::{BOTH, Place, Program, STOP_LIMIT};
use super::{Bench, Outcome, Row};

pub(super) const ROW: Row = Row {
    name: "paced",
    about: "CPU, PUTs and commit latency at 20, 200 and 2,000 transactions a second",
    remark: "The transactions of the row `cpu`, each at its time, without a program, with ours, with \
             Litestream, one after the other. CPU is user and system time of the replicating process \
             from the start of the load to its end. PUTs include those of multipart uploads, and \
             those that follow until all is stored.",
    run,
};

const BASE_BYTES: u64 = 20 << 20;
/// Transactions per second.
const RATES: [u64; 3] = [20, 200, 2_000];

struct Taken {
    commits_ms: Vec<f64>,
    seconds: f64,
    /// CPU time of the replicating process; 0 without one.
    cpu_seconds: f64,
    puts: u64,
}

fn run(bench: &Bench) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    for rate in RATES {
        let without = measure(bench, rate, None)?;
        let [ours, peer] = BOTH.map(|program| measure(bench, rate, Some(program)));
        add(&mut outcome, rate, &[without, ours?, peer?]);
    }
    Ok(outcome)
}

fn add(outcome: &mut Outcome, rate: u64, taken: &[Taken; 3]) {
    let [_, ours, peer] = taken;
    let mut figure = |what: &str, unit, ours: f64, peer: f64, goal| {
        outcome.figures.push(Figure {
            row: ROW.name,
            what: format!("{rate} a second, {what}"),
            unit,
            ours,
            peer: Some(peer),
            goal,
        });
    };
    figure(
        "CPU",
        Unit::Seconds,
        ours.cpu_seconds,
        peer.cpu_seconds,
        Goal::OfPeer(0.5),
    );
    figure(
        "PUT",
        Unit::Count,
        ours.puts as f64,
        peer.puts as f64,
        Goal::None,
    );
    let [without_p99, ours_p99, peer_p99] = taken
        .each_ref()
        .map(|one| percentile(&one.commits_ms, 0.99));
    let goal = Goal::OfBaseline {
        times: 1.1,
        baseline: without_p99,
    };
    figure("commit, p99", Unit::Milliseconds, ours_p99, peer_p99, goal);
    for (name, one) in ["without", "ours", "Litestream"].iter().zip(taken) {
        outcome.notes.push(format!(
            "{rate} a second, {name}: {} commits in {:.1} s, p50 {:.3} ms, p99 {:.3} ms, longest {:.2} ms",
            one.commits_ms.len(),
            one.seconds,
            percentile(&one.commits_ms, 0.5),
            percentile(&one.commits_ms, 0.99),
            percentile(&one.commits_ms, 1.0),
        ));
    }
}

fn measure(bench: &Bench, rate: u64, program: Option<Program>) -> Result<Taken> {
    let name = match program {
        Some(_) => format!("paced-{rate}"),
        None => format!("paced-{rate}-without"),
    };
    let place = Place::new(bench, &name, program.unwrap_or(Program::Ours))?;
    let (database, application, sizes) = (place.database(0), bench.application(), bench.sizes());
    application.fill(&database, BASE_BYTES)?;
    let mut running = program.map(|_| place.replicate_all(1)).transpose()?;
    let counts = place.proxy().counts();
    let before = running.as_ref().map_or(Ok(0.0), |one| one.cpu_seconds())?;
    let (writer, load) = application.paced(&database, rate, sizes.paced, sizes.work_limit)?;
    let after = running.as_ref().map_or(Ok(0.0), |one| one.cpu_seconds())?;
    if let Some(running) = &mut running {
        place.stored(&counts)?;
        running.must_run()?;
        drop(writer);
        running.stop(STOP_LIMIT)?;
    }
    let counts = place.proxy().counts().since(&counts);
    Ok(Taken {
        commits_ms: load
            .commits_us
            .iter()
            .map(|us| *us as f64 / 1000.0)
            .collect(),
        seconds: load.seconds,
        cpu_seconds: after - before,
        puts: counts.of(Kind::Put) + counts.of(Kind::Multipart),
    })
}
