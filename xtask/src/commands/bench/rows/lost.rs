//! Commits that are lost when a machine dies.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::application::last_told;
use super::figures::{Figure, Goal, Unit, percentile};
use super::place::Place;
use super::{Bench, Outcome, Row, in_turn};

pub(super) const ROW: Row = Row {
    name: "lost",
    about: "Span of commits lost after kill -9 of writer and sidecar at a random time",
    remark: "A commit each 5 ms or so; both processes are killed 2 to 5 s after the first one, then the replica \
             is restored elsewhere. Lost is the time between the newest restored row and the last \
             commit that the application told. Both programs meet the same times. A load that goes on without a \
             pause for more than 40 intervals is sent once each interval by both, and loses as much.",
    run,
};

const BASE_BYTES: u64 = 1 << 20;
const PAUSE: Duration = Duration::from_millis(5);
/// The writer is killed this long after its start, and up to [`SPREAD`] later.
const EARLIEST: Duration = Duration::from_secs(2);
const SPREAD: Duration = Duration::from_secs(3);

fn run(bench: &Bench) -> Result<Outcome> {
    let mut lost = [Vec::new(), Vec::new()];
    for round in 0..bench.sizes().lost_rounds {
        let name = format!("lost-{round}");
        let after = EARLIEST + SPREAD.mul_f64(fraction(bench.seed(), round));
        let [ours, peer] = in_turn(|program| {
            measure(bench, &Place::new(bench, &name, program)?, after)
                .with_context(|| format!("round {round}, {}", program.name()))
        })?;
        lost[0].push(ours);
        lost[1].push(peer);
    }
    let mut outcome = Outcome::default();
    for (share, what, goal) in [
        (0.5, "p50", Goal::None),
        (1.0, "longest", Goal::OfPeer(0.5)),
    ] {
        let [ours, peer] = lost.each_ref().map(|all| percentile(all, share));
        outcome.figures.push(Figure {
            row: ROW.name,
            what: format!("lost span, {what}"),
            unit: Unit::Milliseconds,
            ours,
            peer: Some(peer),
            goal,
        });
    }
    for (name, all) in ["ours", "Litestream"].iter().zip(&lost) {
        let all: Vec<String> = all.iter().map(|one| format!("{one:.0}")).collect();
        outcome
            .notes
            .push(format!("{name}, each round, in ms: {}", all.join(" ")));
    }
    Ok(outcome)
}

/// Returns the span of lost commits in one round, in milliseconds.
fn measure(bench: &Bench, place: &Place<'_>, after: Duration) -> Result<f64> {
    let (database, application) = (place.database(0), bench.application());
    application.fill(&database, BASE_BYTES)?;
    let mut sidecar = place.replicate_all(1)?;
    let told = place.folder().join("told");
    let mut writer = application.stream(&database, PAUSE, &told)?;
    thread::sleep(after);
    writer.must_run()?;
    sidecar.must_run()?;
    writer.kill()?;
    sidecar.kill()?;
    let told = last_told(&fs::read_to_string(&told)?).context("the application told nothing")?;

    let output = place.folder().join("restored.db");
    let mut command = place.restore(&database, Some(&output));
    place
        .start(&mut command)?
        .finish(bench.sizes().work_limit)?;
    let newest = application.newest(&output)?;
    // The newest commit may be stored although it was not printed. Without any row, the whole load
    // is lost.
    let newest = match newest {
        0 => told - u64::try_from(after.as_nanos())?.min(told),
        newest => newest,
    };
    Ok(told.saturating_sub(newest) as f64 / 1e6)
}

/// Returns a number from 0 to 1, derived from the seed and the round (splitmix64).
fn fraction(seed: u64, round: u64) -> f64 {
    let mut z = seed.wrapping_add((round + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_kills_follow_from_the_seed_and_are_spread() {
        let all: Vec<f64> = (0..1000).map(|round| fraction(7, round)).collect();
        assert!(all.iter().all(|one| (0.0..1.0).contains(one)));
        let mean = all.iter().sum::<f64>() / 1000.0;
        assert!((0.45..0.55).contains(&mean), "{mean}");
        assert_eq!(fraction(7, 3), all[3]);
        assert_ne!(fraction(8, 3), all[3]);
    }
}
