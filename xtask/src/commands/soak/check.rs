//! Compares restored databases with the application's commits.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use xtask::process::output;

use super::world::{DATABASES, World};

/// Time limit of a restore.
const RESTORE_LIMIT: Duration = Duration::from_secs(180);
/// Time limit until all commits are stored, once the store answers again.
const STORED_LIMIT: Duration = Duration::from_secs(120);

/// Results of the restores so far.
#[derive(Default)]
pub(super) struct Checks {
    /// The newest commit to which each database was restored.
    newest: [u64; DATABASES],
    /// Time since which every database has a backup.
    backed_up: Option<SystemTime>,
}

impl Checks {
    /// Restores every database, in odd rounds with our program and in even ones with Litestream.
    /// Also restores one of them to a time in the past.
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

    /// Restores until all commits from before the call are present.
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

    /// Restores every database with both programs. Each result must equal the source, byte for
    /// byte.
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

fn restore(world: &World, ours: bool, number: usize, point: &[&str]) -> Result<PathBuf> {
    let restored = world.restored(&number.to_string());
    for suffix in ["", "-wal", "-shm"] {
        // None of these files may be present.
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
    verdict(&text).with_context(|| format!("restored database {number}"))
}

fn verdict(text: &str) -> Result<u64> {
    let verdict: Value = serde_json::from_str(text)?;
    if let Some(problem) = verdict["problem"].as_str() {
        bail!("{problem}");
    }
    verdict["n"].as_u64().context("no commit")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::child::Running;
    use crate::commands::scratch::Scratch;

    #[test]
    fn a_state_that_was_never_committed_is_found_out() {
        let scratch = Scratch::make("soak-test").unwrap();
        let (script, log) = (scratch.path().join("a.py"), scratch.path().join("log"));
        let (database, journal) = (
            scratch.path().join("0.db"),
            scratch.path().join("0.journal"),
        );
        fs::write(&script, super::super::world::SCRIPT).unwrap();
        let command = |what: &str| {
            let mut command = Command::new("python3");
            command.arg(&script).arg(what);
            command
        };
        let mut run = command("run");
        let mut running = Running::start(run.arg(scratch.path()).args(["1", "7"]), &log).unwrap();
        let start = Instant::now();
        while fs::read_to_string(&journal)
            .unwrap_or_default()
            .lines()
            .count()
            < 20
        {
            running.must_run().unwrap();
            assert!(start.elapsed() < STORED_LIMIT);
            std::thread::sleep(Duration::from_millis(20)); // bounded: polls until a deadline
        }
        running.end(STORED_LIMIT).unwrap();
        let judged = || {
            let mut check = command("check");
            verdict(&output(check.arg(&database).arg(&journal)).unwrap())
        };
        let told = fs::read_to_string(&journal).unwrap();
        assert_eq!(judged().unwrap(), told.lines().count() as u64);
        // A state that was never committed, and rows of another commit.
        fs::write(&journal, told.replace(' ', "  ")).unwrap();
        let never = judged().unwrap_err().to_string();
        assert!(never.contains("was never made"), "{never}");
        fs::write(&journal, &told).unwrap();
        let change = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); \
                      c.execute('DELETE FROM item WHERE id = (SELECT max(id) FROM item)'); c.commit()";
        output(Command::new("python3").args(["-c", change]).arg(&database)).unwrap();
        let other = judged().unwrap_err().to_string();
        assert!(other.contains("items that add up"), "{other}");
    }
}
