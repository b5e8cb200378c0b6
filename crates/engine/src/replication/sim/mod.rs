//! Writers in a virtual world: a seed decides time, network, stores, clocks, disks and power.
//!
//! Every part that decides is real: state directory, committer, LTX writer, progress, targets,
//! lease, fence, compaction, retention, restore. A model that knows every state the database ever
//! had replaces SQLite and the capture thread.
//!
//! The faults are: requests that are refused, lost, unanswered, late or repeated; stores that are
//! unreachable; processes that are killed, also between two calls of their disk; a power failure
//! that takes back changes that were not durable ([`machine`]); disks that are full or fail;
//! volumes that are copied or rolled back; state without a database, databases without state;
//! clocks of machines or of stores that jump by minutes and days; a take-over while a snapshot is
//! being stored.
//!
//! The same seed gives the same run, line by line. Times in `lock.json` and in reports, which are
//! for people, and directory names are not determined, and have no influence.
//!
//! The checks, with the faults that were planted in the engine to see each check fail. Each fault
//! was found within 24 seeds:
//! - [`oracle::p1`]: every point that can be restored is the state that its writer had and that
//!   was acknowledged to it. Faults: a page left out by `write_delta`; no fence; no announcement
//!   of a first snapshot; a fence after a snapshot that may still arrive; every process a
//!   successor in `decide_ownership`; every epoch binding there;
//! - [`oracle::p2`]: acknowledged commits are stored (`is_kept`). Fault: captured files
//!   acknowledged before they are stored. A process that ended and reported everything stored was
//!   right (`is_this`). Fault: one target asked instead of all;
//! - [`oracle::p3`]: no name is used twice, and no earlier epoch continues after a later one
//!   (`overwrites`). Fault: captured files stored over existing objects. The newest point is the
//!   holder's (`is_the_holders`). Fault: a lease that is not confirmed. A process that lost the
//!   lease does nothing more that put-if-absent does not protect (`is_unsure`). Fault: no
//!   confirmation before snapshots, or before compactions;
//! - [`oracle::retention`]: promised points stay. Faults: a fourth of the exact span, or of the
//!   window.
//!
//! Two faults are hardly ever found, so `uploader/tests.rs` has a test for each. One is a start
//! without `Uploader::has_stored`: of 120 seeds, only seed 69 finds it. The other is a start that
//! may continue from deltas although an announced snapshot is missing. Most starts cannot, because
//! their captured files begin with that snapshot.
//!
//! Faults of disks have an effect: without fsync of captured files, and without a check of an
//! earlier run's files before their upload, P1 fails. One of the two is enough. The same holds for
//! other fsyncs: checksums find the loss, and a snapshot follows.
//!
//! Left out: SQLite, capture, and the waiting of the driver (`AttachedDriver`), which `tests/live`
//! runs. Threads that compact take no virtual time.

mod chance;
mod faults;
mod machine;
mod model;
mod oracle;
mod wire;
mod world;
mod writer;

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::env::simulated::Hooks;
pub(crate) use machine::{on_this_machine, simulated_thread, simulated_wait};
use machine::{simulated_call, simulated_ms};
use oracle::Broken;

/// The result of one seed.
struct Run {
    verdict: Result<u64, Broken>,
    lines: Vec<String>,
}

impl Run {
    fn of(seed: u64) -> Run {
        crate::env::simulated::install(Hooks {
            now_ms: simulated_ms,
            disk_call: simulated_call,
        });
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
    let count = number("SIM_SEEDS").unwrap_or(16);
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
