//! Writers in a virtual world: time, network, stores and clocks come from a seed.
//!
//! Everything that decides is the real thing: state directory, ledger, sealing, chain, targets,
//! lease, fence, merging, retention, restore. SQLite and the capture thread are replaced by a model
//! that knows every state the database ever had.
//!
//! The same seed gives the same run, line by line. Not determined, and of no influence: times in
//! `lock.json` and in reports, which are for people, and directory names.
//!
//! What is checked, and what was broken in the engine to see each check fail:
//! - every restorable point is what its writer had (`oracle::expected`): seeds 2 and 3 fail when
//!   `seal_delta` leaves out a page, seed 47 when `Target::has_stored` is not asked after a restart;
//! - what was acknowledged stays as it was, and at the end the last writer's commits are there: seeds
//!   2 and 3 fail when a taken name counts as stored, or when every target may go on from deltas;
//! - what a superseded writer stores changes nothing: seeds 2 and 3 fail without a fence.
//!
//! Not found, by 24 seeds: a base that is not announced in the lease. It takes a late full copy at
//! the right moment; `tests/live/writers.rs` makes that moment.
//!
//! Left out: SQLite, capture, and the driver's own waiting (`Follow`), which `tests/live` runs; a
//! disk that fails; a volume that is rolled back to before its writer had a right.

mod chance;
mod model;
mod oracle;
mod wire;
mod world;
mod writer;

use std::hash::{DefaultHasher, Hash, Hasher};

use writer::Clock;

tokio::task_local! {
    /// The clock of the machine that a task runs on.
    static CLOCK: Clock;
}

/// The wall clock of a simulated machine, in Unix milliseconds; none outside of simulations.
pub(crate) fn simulated_ms() -> Option<i64> {
    CLOCK.try_with(Clock::now_ms).ok()
}

/// What one seed led to.
struct Run {
    verdict: Result<u64, String>,
    lines: Vec<String>,
}

impl Run {
    fn of(seed: u64) -> Run {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let (verdict, lines) = runtime.block_on(async { world::World::new(seed).run().await });
        Run { verdict, lines }
    }

    fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.lines.hash(&mut hasher);
        hasher.finish()
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn what_is_stored_is_what_its_writers_had_whatever_happens_to_them() {
    let first = number("SIM_SEED").unwrap_or(1);
    let count = number("SIM_SEEDS").unwrap_or(8);
    let (mut compared, mut failed) = (0, Vec::new());
    for seed in first..first + count {
        let run = Run::of(seed);
        match &run.verdict {
            Ok(points) => compared += points,
            Err(broken) => {
                failed.push(seed);
                println!("seed {seed}: {broken}");
                println!("  repeat with: cargo xtask sim --seed {seed} --seeds 1");
                if count == 1 {
                    println!("{}", run.lines.join("\n"));
                }
            }
        }
    }
    println!("{count} seeds from {first}, {compared} restored points compared");
    assert!(failed.is_empty(), "seeds {failed:?} failed");
}

#[test]
fn one_seed_is_one_run() {
    for seed in 1..=2 {
        let runs = [Run::of(seed), Run::of(seed)];
        let different = runs[0].lines.iter().zip(&runs[1].lines);
        let different = different.into_iter().find(|(one, other)| one != other);
        assert_eq!(different, None, "seed {seed}");
        assert_eq!(runs[0].hash(), runs[1].hash(), "seed {seed}");
    }
}
