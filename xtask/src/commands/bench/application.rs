//! The application: `application.py`, a separate process that writes a database.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use xtask::process::output;

use crate::commands::child::Running;

const SCRIPT: &str = include_str!("application.py");
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Commands of the application.
pub(super) struct Application {
    script: PathBuf,
    seed: u64,
}

/// Measurements of a load.
pub(super) struct Load {
    pub seconds: f64,
    /// Duration of each COMMIT, in microseconds.
    pub commits_us: Vec<u64>,
}

impl Application {
    /// Writes the script into a folder. The seed determines all random content.
    pub(super) fn install(folder: &Path, seed: u64) -> Result<Application> {
        let script = folder.join("application.py");
        fs::write(&script, SCRIPT)?;
        Ok(Application { script, seed })
    }

    /// Creates a database of about this many bytes, which no process has open afterwards.
    pub(super) fn fill(&self, database: &Path, bytes: u64) -> Result<()> {
        let mut command = self.command("fill");
        command
            .arg(database)
            .arg(bytes.to_string())
            .arg(self.seed());
        output(&mut command)?;
        Ok(())
    }

    /// Creates a database of about this many random bytes, which no process has open afterwards.
    pub(super) fn fill_dense(&self, database: &Path, bytes: u64) -> Result<()> {
        let mut command = self.command("fill-dense");
        command
            .arg(database)
            .arg(bytes.to_string())
            .arg(self.seed());
        output(&mut command)?;
        Ok(())
    }

    /// Writes `count` transactions with a pause between them, and waits up to `limit` for the end.
    /// The application keeps the database open until the returned process is dropped.
    pub(super) fn load(
        &self,
        database: &Path,
        count: u64,
        pause: Duration,
        limit: Duration,
    ) -> Result<(Running, Load)> {
        let result = database.with_extension("load.json");
        let mut command = self.command("load");
        command
            .arg(database)
            .arg(count.to_string())
            .arg(milliseconds(pause))
            .arg(self.seed())
            .arg(&result);
        run_load(&mut command, &result, limit)
    }

    /// Writes `rate` transactions per second on a fixed schedule, for `time`; ends as
    /// [`Self::load`].
    pub(super) fn paced(
        &self,
        database: &Path,
        rate: u64,
        time: Duration,
        limit: Duration,
    ) -> Result<(Running, Load)> {
        let result = database.with_extension("load.json");
        let mut command = self.command("paced");
        command
            .arg(database)
            .arg(rate.to_string())
            .arg(time.as_secs_f64().to_string())
            .arg(self.seed())
            .arg(&result);
        run_load(&mut command, &result, limit)
    }

    /// Writes rows of this many bytes per second into all databases in turn; ends as
    /// [`Self::load`].
    pub(super) fn spread(
        &self,
        databases: &[PathBuf],
        bytes_per_second: u64,
        time: Duration,
        limit: Duration,
    ) -> Result<(Running, Load)> {
        let first = databases.first().context("no database")?;
        let result = first.with_extension("load.json");
        let mut command = self.command("spread");
        command
            .arg(bytes_per_second.to_string())
            .arg(time.as_secs_f64().to_string())
            .arg(self.seed())
            .arg(&result)
            .args(databases);
        run_load(&mut command, &result, limit)
    }

    /// Writes until it is killed, and prints the time and the marker of each commit as a line of
    /// `told`.
    pub(super) fn mark(&self, database: &Path, pause: Duration, told: &Path) -> Result<Running> {
        let mut command = self.command("mark");
        command
            .arg(database)
            .arg(milliseconds(pause))
            .arg(self.seed());
        Running::start(&mut command, told)
    }

    /// Writes until it is killed, and prints each commit as a line of `told`.
    pub(super) fn stream(&self, database: &Path, pause: Duration, told: &Path) -> Result<Running> {
        let mut command = self.command("stream");
        command
            .arg(database)
            .arg(milliseconds(pause))
            .arg(self.seed());
        Running::start(&mut command, told)
    }

    /// Keeps databases open after one write to each.
    pub(super) fn hold(&self, databases: &[PathBuf], folder: &Path) -> Result<Running> {
        let ready = folder.join("held");
        let mut command = self.command("hold");
        command.arg(&ready).args(databases);
        let mut running = Running::start(&mut command, &folder.join("hold.log"))?;
        wait_for(&mut running, &ready, Duration::from_secs(120))?;
        Ok(running)
    }

    /// Returns the time at which the newest row of a database was written, in nanoseconds of the
    /// writer's clock.
    pub(super) fn newest(&self, database: &Path) -> Result<u64> {
        let text = output(self.command("newest").arg(database))?;
        text.trim().parse().context("when the newest row is of")
    }

    /// Returns a digest of the rows of each database, which must pass SQLite's check.
    pub(super) fn digests(&self, databases: &[PathBuf]) -> Result<Vec<String>> {
        let text = output(self.command("digest").args(databases))?;
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        if let Some(bad) = lines.iter().find(|line| !line.starts_with("ok ")) {
            bail!("a database is damaged: {bad}");
        }
        Ok(lines)
    }

    /// Returns the version of SQLite that it uses.
    pub(super) fn sqlite_version() -> Result<String> {
        let code = "import sqlite3; print(sqlite3.sqlite_version)";
        let text = output(Command::new("python3").args(["-c", code]))?;
        Ok(text.trim().to_owned())
    }

    fn command(&self, what: &str) -> Command {
        let mut command = Command::new("python3");
        command.arg(&self.script).arg(what);
        command
    }

    fn seed(&self) -> String {
        self.seed.to_string()
    }
}

/// Returns the last commit that the application printed; a truncated last line does not count.
pub(super) fn last_told(text: &str) -> Option<u64> {
    let (whole, _) = text.rsplit_once('\n')?;
    whole.lines().last()?.parse().ok()
}

/// Starts the application and waits for its report; the process stays afterwards.
fn run_load(command: &mut Command, result: &Path, limit: Duration) -> Result<(Running, Load)> {
    let mut running = Running::start(command, &result.with_extension("log"))?;
    wait_for(&mut running, result, limit)?;
    let text = fs::read_to_string(result)?;
    fs::remove_file(result)?;
    Ok((running, parse(&text).context("the application's result")?))
}

fn wait_for(running: &mut Running, file: &Path, limit: Duration) -> Result<()> {
    let start = Instant::now();
    while !file.exists() {
        running.must_run()?;
        if start.elapsed() > limit {
            bail!("the application is not done after {limit:?}");
        }
        thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}

fn parse(text: &str) -> Result<Load> {
    let value: Value = serde_json::from_str(text)?;
    let commits = value["commits_us"].as_array().context("no commits")?;
    Ok(Load {
        seconds: value["seconds"].as_f64().context("no seconds")?,
        commits_us: commits.iter().filter_map(Value::as_u64).collect(),
    })
}

fn milliseconds(pause: Duration) -> String {
    (pause.as_secs_f64() * 1000.0).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_was_cut_off_was_not_told() {
        assert_eq!(last_told("10\n20\n3"), Some(20));
        assert_eq!(last_told("10\n"), Some(10));
        assert_eq!(last_told("10"), None);
        assert_eq!(last_told(""), None);
    }

    #[test]
    fn a_load_is_read() {
        let load = parse(r#"{"seconds": 1.5, "commits_us": [10, 20]}"#).unwrap();
        assert_eq!((load.seconds, load.commits_us), (1.5, vec![10, 20]));
        assert!(parse("{}").is_err());
    }
}
