//! Duration of the application's commits, with and without a sidecar.

use std::time::Duration;

use anyhow::Result;

use super::figures::{Figure, Goal, Unit, percentile};
use super::place::{BOTH, Place, Program, STOP_LIMIT};
use super::proxy::Weather;
use super::{Bench, Outcome, Row};
use crate::commands::child::Running;

pub(super) const ROW: Row = Row {
    name: "latency",
    about: "Latency of the application's commits without a sidecar, with ours, with Litestream",
    remark: "Same load for all three, a pause of 2 ms between transactions, in rounds one after the \
             other so that a slow moment of the machine meets all; the application times COMMIT alone, \
             checkpoints that SQLite runs within it included. Percentiles are of all rounds together. \
             In one more round for both programs the store takes half a second more for each request \
             once the first sync is done (slow), in another it cannot be reached (dead).",
    run,
};

const BASE_BYTES: u64 = 5 << 20;
const PAUSE: Duration = Duration::from_millis(2);
/// Delay of each request to a slow store.
const SLOW_STORE: Duration = Duration::from_millis(500);
/// Commits above this duration count as delayed, in milliseconds.
const SLOW_MS: f64 = 1.0;

fn run(bench: &Bench) -> Result<Outcome> {
    let mut commits: [Vec<f64>; 3] = Default::default();
    let mut cpu = [0.0; 3];
    for round in 0..bench.sizes().latency_rounds {
        for (n, program) in [None, Some(BOTH[0]), Some(BOTH[1])].into_iter().enumerate() {
            let taken = measure(bench, &format!("{round}"), program, None)?;
            commits[n].extend(taken.commits_ms);
            cpu[n] += taken.cpu_seconds;
        }
    }
    let mut outcome = Outcome::default();
    for (share, what) in [(0.5, "p50"), (0.99, "p99"), (1.0, "longest")] {
        let [without, ours, peer] = commits.each_ref().map(|all| percentile(all, share));
        let goal = match what {
            "p99" => Goal::OfBaseline {
                times: 1.1,
                baseline: without,
            },
            "longest" => Goal::OfPeer(1.0),
            _ => Goal::None,
        };
        outcome.figures.push(Figure {
            row: ROW.name,
            what: format!("commit, {what}"),
            unit: Unit::Milliseconds,
            ours,
            peer: Some(peer),
            goal,
        });
        outcome.notes.push(format!(
            "{what}: {without:.2} ms without, {ours:.2} ours, {peer:.2} Litestream"
        ));
    }
    let without = percentile(&commits[0], 0.99);
    for (name, weather) in [
        ("slow store", Weather::Delayed(SLOW_STORE)),
        ("dead store", Weather::Dead),
    ] {
        let [ours, peer] = BOTH.map(|program| -> Result<f64> {
            let name = name.replace(' ', "-");
            let taken = measure(bench, &name, Some(program), Some(weather))?;
            Ok(percentile(&taken.commits_ms, 0.99))
        });
        outcome.figures.push(Figure {
            row: ROW.name,
            what: format!("commit, p99, {name}"),
            unit: Unit::Milliseconds,
            ours: ours?,
            peer: Some(peer?),
            goal: Goal::OfBaseline {
                times: 1.1,
                baseline: without,
            },
        });
    }
    let each = commits[0].len();
    let [without, ours, peer] = commits.each_ref().map(|all| slow(all));
    outcome.notes.push(format!(
        "of {each} commits each, over {SLOW_MS} ms: {without} without, {ours} ours, {peer} Litestream"
    ));
    outcome.figures.push(Figure {
        row: ROW.name,
        what: format!("{each} commits with pauses, CPU"),
        unit: Unit::Seconds,
        ours: cpu[1],
        peer: Some(cpu[2]),
        goal: Goal::OfPeer(0.5),
    });
    Ok(outcome)
}

fn slow(commits_ms: &[f64]) -> usize {
    commits_ms.iter().filter(|ms| **ms > SLOW_MS).count()
}

/// Measurements of one round.
struct Taken {
    commits_ms: Vec<f64>,
    /// CPU time of the replicating process during the load.
    cpu_seconds: f64,
}

/// Runs one round. `weather` applies only during the load.
fn measure(
    bench: &Bench,
    round: &str,
    program: Option<Program>,
    weather: Option<Weather>,
) -> Result<Taken> {
    let name = match program {
        Some(_) => format!("latency-{round}"),
        None => format!("latency-{round}-without"),
    };
    let place = Place::new(bench, &name, program.unwrap_or(Program::Ours))?;
    let database = place.database(0);
    let (application, sizes) = (bench.application(), bench.sizes());
    application.fill(&database, BASE_BYTES)?;
    let mut running = program.map(|_| place.replicate_all(1)).transpose()?;
    let before = cpu_seconds(running.as_ref())?;
    if let Some(weather) = weather {
        place.proxy().set(weather);
    }
    let (writer, load) =
        application.load(&database, sizes.latency_commits, PAUSE, sizes.work_limit)?;
    if weather.is_some() {
        place.proxy().set(bench.weather());
    }
    let cpu_seconds = cpu_seconds(running.as_ref())? - before;
    drop(writer);
    if let Some(running) = &mut running {
        running.stop(STOP_LIMIT)?;
    }
    let commits = load.commits_us.iter();
    Ok(Taken {
        commits_ms: commits.map(|us| *us as f64 / 1000.0).collect(),
        cpu_seconds,
    })
}

fn cpu_seconds(running: Option<&Running>) -> Result<f64> {
    running.map_or(Ok(0.0), Running::cpu_seconds)
}
