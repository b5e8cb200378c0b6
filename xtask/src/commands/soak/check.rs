//! What is restored, held against what the application committed.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use xtask::process::output;

use super::world::{DATABASES, World};

/// How long a restore may take.
const RESTORE_LIMIT: Duration = Duration::from_secs(180);
/// How long it may take until what was committed is stored, once the store answers again.
const STORED_LIMIT: Duration = Duration::from_secs(120);

/// What has been restored so far.
pub(super) struct Checks {
    /// The newest commit that each database was restored to.
    newest: [u64; DATABASES],
    /// Since when every database has a backup.
    backed_up: Option<SystemTime>,
}

impl Checks {
    pub(super) fn new(_world: &World) -> Checks {
        Checks {
            newest: [0; DATABASES],
            backed_up: None,
        }
    }

    /// Restores every database, odd rounds with our program and even ones with Litestream, and one
    /// of them at a time that has passed.
    pub(super) fn round(&mut self, world: &mut World, round: u64, past: f64) -> Result<String> {
        let ours = round % 2 == 1;
        for number in 0..DATABASES {
            self.newest_state(world, ours, number)?;
        }
        let mut words = format!(
            "restored by {} at commits {:?}",
            if ours { "us" } else { "litestream" },
            self.newest
        );
        if let Some(since) = self.backed_up {
            let number = round as usize % DATABASES;
            let time = since + since.elapsed()?.mul_f64(past);
            let commit = past_state(world, number, time)?;
            if commit > self.newest[number] {
                bail!("database {number} at {time:?} is newer than now");
            }
            words += &format!(", {number} at a past time at {commit}");
        }
        self.backed_up.get_or_insert_with(SystemTime::now);
        Ok(words)
    }

    /// Restores until what had been committed before is there.
    fn newest_state(&mut self, world: &mut World, ours: bool, number: usize) -> Result<()> {
        let mut command = world.script_command("newest");
        let committed: u64 = output(command.arg(world.journal(number)))?.trim().parse()?;
        let start = Instant::now();
        loop {
            let restored = restore(world, ours, number, &[])?;
            let commit = judge(world, number, &restored)?;
            if commit < self.newest[number] {
                bail!(
                    "database {number} was restored at commit {}, and now at {commit}",
                    self.newest[number]
                );
            }
            self.newest[number] = commit;
            if commit >= committed {
                return Ok(());
            }
            if start.elapsed() > STORED_LIMIT {
                bail!("database {number} is stored up to commit {commit}, {committed} is missing");
            }
            world.watch(Duration::from_secs(1))?;
        }
    }

    /// Restores every database with both programs: it is the source, byte for byte.
    pub(super) fn end(&mut self, world: &mut World) -> Result<()> {
        for number in 0..DATABASES {
            for ours in [true, false] {
                let restored = restore(world, ours, number, &[])?;
                let mut same = world.script_command("same");
                output(same.arg(world.database(number)).arg(&restored))?;
                judge(world, number, &restored)?;
            }
        }
        Ok(())
    }
}

fn past_state(world: &World, number: usize, time: SystemTime) -> Result<u64> {
    let seconds = time.duration_since(UNIX_EPOCH)?.as_secs_f64();
    let mut date = Command::new("date");
    date.args(["-u", "+%Y-%m-%dT%H:%M:%S.%3NZ", "-d"]);
    let time = output(date.arg(format!("@{seconds:.3}")))?;
    let restored = restore(world, true, number, &["--timestamp", time.trim()])?;
    judge(world, number, &restored)
}

fn restore(world: &World, ours: bool, number: usize, point: &[&str]) -> Result<std::path::PathBuf> {
    let restored = world.restored(&number.to_string());
    for suffix in ["", "-wal", "-shm"] {
        // None of them may be there.
        let _gone = fs::remove_file(format!("{}{suffix}", restored.display()));
    }
    let mut command = world.restore(ours, number, &restored);
    let who = if ours { "us" } else { "litestream" };
    world
        .run(command.args(point), "restore.log")?
        .finish(RESTORE_LIMIT)
        .with_context(|| format!("restore of database {number} by {who}"))?;
    Ok(restored)
}

/// Returns the commit that a restored database holds.
fn judge(world: &World, number: usize, restored: &Path) -> Result<u64> {
    let mut command = world.script_command("check");
    let text = output(command.arg(restored).arg(world.journal(number)))?;
    let verdict: Value = serde_json::from_str(&text)?;
    if let Some(problem) = verdict["problem"].as_str() {
        bail!("restored database {number}: {problem}");
    }
    verdict["n"].as_u64().context("no commit")
}
