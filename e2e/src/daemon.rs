//! A server program that runs beside the tests and writes its output to a file.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait::wait_for;

/// Time limit for a program to be ready after its start.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// Time limit for a program to end after a signal that it can't ignore.
const KILL_DEADLINE: Duration = Duration::from_secs(30);

/// Number of log lines that an error message shows.
const LOG_LINES: usize = 20;

/// Whether the process that starts a program stays as its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Launch {
    /// The started process is the program itself.
    Direct,
    /// The started process runs the program as its only child and waits for it, as `nsenter` does.
    ThroughParent,
}

/// A running program. Dropping it does not end it: see [`Daemon::kill`].
#[derive(Debug)]
pub struct Daemon {
    name: String,
    log: PathBuf,
    child: Child,
    pid: Pid,
}

impl Daemon {
    /// Starts a program. Its output is appended to the file `log`.
    pub(crate) fn spawn(
        name: &str,
        command: &mut Command,
        launch: Launch,
        log: &Path,
    ) -> Result<Daemon> {
        let output = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("open {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        let parent = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let parent = parent.expect("a process number is positive");
        let mut daemon = Daemon {
            name: name.to_owned(),
            log: log.to_owned(),
            child,
            pid: parent,
        };
        if launch == Launch::ThroughParent {
            daemon.pid = wait_for(format!("{name} to start"), START_DEADLINE, || {
                daemon.check()?;
                only_child(parent)
            })?;
        }
        Ok(daemon)
    }

    /// Fails with the end of its log if the program has ended.
    pub fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} has ended: {status}\n{}", self.name, self.log_tail());
        }
        Ok(())
    }

    /// Stops the program without ending it: its peers observe a server that hangs.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Resumes a frozen program.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Kills the program at once, like a power cut, and waits until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        self.signal(Signal::KILL)?;
        wait_for(format!("{} to be gone", self.name), KILL_DEADLINE, || {
            Ok(self.child.try_wait()?)
        })?;
        Ok(())
    }

    /// Returns the last lines that the program wrote.
    pub fn log_tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.pid, signal).with_context(|| format!("signal {}", self.name))
    }
}

/// Waits like [`wait_for`], but fails at once when one of these programs has ended.
pub(crate) fn wait_for_programs<T>(
    programs: &mut [Daemon],
    description: &str,
    deadline: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    // An error of the probe means "not yet"; the end of a program is final.
    wait_for(description, deadline, || {
        match programs.iter_mut().try_for_each(Daemon::check) {
            Ok(()) => Ok(probe()?.map(Ok)),
            Err(error) => Ok(Some(Err(error))),
        }
    })?
}

/// Returns the only child of a process, once it exists.
fn only_child(parent: Pid) -> Result<Option<Pid>> {
    let pid = parent.as_raw_nonzero();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
        .context("read a process's children")?;
    let first = children.split_whitespace().next();
    Ok(first.map(str::parse).transpose()?.and_then(Pid::from_raw))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_program_is_reported_with_its_last_words() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo no such disk; exit 3"]);
        let log = folder.path().join("log");
        let mut daemon = Daemon::spawn("server", &mut command, Launch::Direct, &log).unwrap();
        daemon.child.wait().unwrap();
        let error = daemon.check().unwrap_err().to_string();
        assert!(
            error.contains("exit status: 3") && error.contains("no such disk"),
            "{error}"
        );
    }

    #[test]
    fn the_program_behind_a_launcher_is_the_one_that_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 600; echo launcher saw it"]);
        let log = folder.path().join("log");
        let mut daemon = Daemon::spawn("sleep", &mut command, Launch::ThroughParent, &log).unwrap();
        daemon.kill().unwrap();
        assert_eq!(daemon.log_tail().lines().last(), Some("launcher saw it"));
    }
}
