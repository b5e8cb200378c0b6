//! `cargo xtask soak`: replication with a very active application while processes are killed.
//!
//! Real processes, a real S3 server. Every round has one fault and ends with restores, by our
//! program and by released Litestream in turn. A restored database must be a state that the
//! application committed. It must be no older than the commits printed before the restore began,
//! and never older than the one before. At the end, after a quiet period, it must equal the source,
//! byte for byte.

mod check;
mod world;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use xtask::process::announce;

use super::bench;
use check::Checks;
use world::World;

/// Duration and seed.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Duration in minutes; the last round may take a little longer.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Seed of the faults and of the application's choices; default: a new one, which is printed.
    #[arg(long)]
    seed: Option<u64>,
    /// Cargo's profile for `sqlite-backup`.
    #[arg(long, default_value = "release")]
    profile: String,
    /// Use this `sqlite-backup` instead of building one.
    #[arg(long, value_name = "FILE", conflicts_with = "profile")]
    program: Option<PathBuf>,
}

/// The fault in the middle of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Nothing,
    KillSidecar,
    KillApplication,
    KillBoth,
    EndSidecar,
    StopStore,
    StopStoreAndKillSidecar,
    FillBacklog,
}

const FAULTS: [Fault; 8] = [
    Fault::Nothing,
    Fault::KillSidecar,
    Fault::KillApplication,
    Fault::KillBoth,
    Fault::EndSidecar,
    Fault::StopStore,
    Fault::StopStoreAndKillSidecar,
    Fault::FillBacklog,
];

/// Upper limit of the pauses before and after a fault, and while a part is missing.
const LONGEST_PAUSE_MS: u64 = 8_000;
/// Minimum outage of a stopped store; the random part is at most as long again.
const OUTAGE: Duration = Duration::from_secs(8);
/// A backlog that is not full after this time is left as it is.
const FLOOD_LIMIT: Duration = Duration::from_secs(60);

/// Runs rounds until the time has passed.
pub(crate) fn soak(args: &Args) -> Result<()> {
    let seed = args.seed.unwrap_or_else(bench::new_seed);
    announce(&format!("soak: seed {seed}"));
    let program = match &args.program {
        Some(program) => std::fs::canonicalize(program)?,
        None => bench::build(&args.profile)?,
    };
    let mut world = World::start(program, seed)?;
    let done = rounds(&mut world, seed, Duration::from_secs(60 * args.minutes));
    if done.is_err() {
        world.keep();
    }
    done.with_context(|| format!("seed {seed}"))
}

fn rounds(world: &mut World, seed: u64, time: Duration) -> Result<()> {
    let (start, mut numbers) = (Instant::now(), Numbers(seed));
    let (mut checks, mut bag) = (Checks::default(), Vec::new());
    let mut round = 0;
    while start.elapsed() < time {
        round += 1;
        if bag.is_empty() {
            bag = FAULTS.to_vec();
        }
        let fault = bag.swap_remove(numbers.below(bag.len() as u64) as usize);
        let (began, what) = (Instant::now(), format!("round {round}, {fault:?}"));
        world.watch(numbers.pause())?;
        suffer(world, fault, &mut numbers).with_context(|| what.clone())?;
        world.watch(numbers.pause())?;
        let found = checks
            .round(world, round, numbers.fraction())
            .with_context(|| what.clone())?;
        println!(
            "{what}: {:.0} s, {found}, {}",
            began.elapsed().as_secs_f64(),
            world.bounds()?
        );
    }
    world.end_application()?;
    world.end_sidecar()?;
    checks.end(world).context("the end")?;
    println!(
        "{round} rounds in {:.0} s, seed {seed}: every restore was a committed state, and the last one the source",
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

fn suffer(world: &mut World, fault: Fault, numbers: &mut Numbers) -> Result<()> {
    match fault {
        Fault::Nothing => {}
        Fault::KillSidecar => {
            world.kill_sidecar()?;
            world.watch(numbers.pause())?;
            world.start_sidecar()?;
        }
        Fault::KillApplication => {
            world.kill_application()?;
            world.watch(numbers.pause())?;
            world.start_application(numbers.below(u64::MAX))?;
        }
        Fault::KillBoth => {
            world.kill_sidecar()?;
            world.kill_application()?;
            world.watch(numbers.pause())?;
            // The program that starts first meets the state that the other one left.
            if numbers.below(2) == 0 {
                world.start_sidecar()?;
                world.watch(numbers.pause() / 4)?;
                world.start_application(numbers.below(u64::MAX))?;
            } else {
                world.start_application(numbers.below(u64::MAX))?;
                world.watch(numbers.pause() / 4)?;
                world.start_sidecar()?;
            }
        }
        Fault::EndSidecar => {
            world.end_sidecar()?;
            world.watch(numbers.pause())?;
            world.start_sidecar()?;
        }
        Fault::StopStore | Fault::StopStoreAndKillSidecar => {
            world.stop_store()?;
            world.watch(OUTAGE.mul_f64(1.0 + numbers.fraction()))?;
            if fault == Fault::StopStoreAndKillSidecar {
                world.kill_sidecar()?;
                world.start_sidecar()?;
                world.watch(numbers.pause())?;
            }
            world.resume_store()?;
        }
        Fault::FillBacklog => {
            world.stop_store()?;
            world.flood(FLOOD_LIMIT)?;
            world.resume_store()?;
        }
    }
    Ok(())
}

/// A sequence of numbers from a seed: SplitMix64.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }

    fn pause(&mut self) -> Duration {
        Duration::from_millis(self.below(LONGEST_PAUSE_MS))
    }

    /// Returns a number from 0 to 1.
    fn fraction(&mut self) -> f64 {
        self.below(1_000_000) as f64 / 1e6
    }
}
