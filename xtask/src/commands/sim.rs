//! `cargo xtask sim`

use anyhow::Result;
use xtask::process::{cargo, run};

/// The seeds to run.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Number of seeds.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed. With one seed, a failure prints all events.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

const TEST: &str = "what_is_stored_is_what_its_writers_had_whatever_happens_to_them";

/// Runs the simulation of the engine's writers.
pub(crate) fn simulate(args: &Args) -> Result<()> {
    run(cargo()
        .args([
            "test",
            "--package",
            "engine",
            "--test",
            "sim",
            "--locked",
            "--",
        ])
        .args(["--exact", TEST, "--nocapture"])
        .env("SIM_SEEDS", args.seeds.to_string())
        .env("SIM_SEED", args.seed.to_string()))
}
