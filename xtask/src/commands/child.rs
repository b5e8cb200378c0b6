//! Programs that run beside the measurement, and their usage according to the kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// Ticks of `/proc/PID/stat` in a second, the same on every Linux that Rust runs on.
const TICKS_PER_SECOND: f64 = 100.0;
/// Pause between two polls of a process.
const LOOK_PAUSE: Duration = Duration::from_millis(5);

/// A running program; drop kills it and waits for it.
pub(super) struct Running {
    child: Child,
    name: String,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

/// Resource usage of a finished program.
pub(super) struct Finished {
    pub time: Duration,
    pub peak_kib: u64,
    pub cpu_seconds: f64,
}

impl Running {
    /// Starts a program whose output is appended to a file.
    pub(super) fn start(command: &mut Command, log: &Path) -> Result<Running> {
        let name = command.get_program().to_string_lossy().into_owned();
        let file = fs::File::options().create(true).append(true).open(log);
        let file = file.with_context(|| format!("open {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        Ok(Running {
            child,
            name,
            log: log.to_owned(),
            ended: None,
        })
    }

    /// Returns its process ID.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// User and system time so far, in seconds.
    pub(super) fn cpu_seconds(&self) -> Result<f64> {
        let text = fs::read_to_string(self.proc("stat")).context("read its CPU time")?;
        cpu_seconds(&text).context("its CPU time is missing")
    }

    /// Current resident memory, in KiB.
    pub(super) fn resident_kib(&self) -> Result<u64> {
        self.memory("VmRSS")
    }

    /// Peak resident memory so far, in KiB.
    pub(super) fn peak_kib(&self) -> Result<u64> {
        self.memory("VmHWM")
    }

    /// Fails if the program has ended.
    pub(super) fn must_run(&mut self) -> Result<()> {
        match self.ended()? {
            Some(status) => bail!("{} ended: {status}\n{}", self.name, self.tail()),
            None => Ok(()),
        }
    }

    /// Kills it with SIGKILL.
    pub(super) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.ended = Some(self.child.wait()?);
        Ok(())
    }

    /// Sends SIGTERM, as Kubernetes does, and waits up to `limit`; returns how long it took.
    pub(super) fn stop(&mut self, limit: Duration) -> Result<Duration> {
        let start = Instant::now();
        self.signal("TERM")?;
        while self.ended()?.is_none() {
            if start.elapsed() > limit {
                bail!(
                    "{} did not end within {limit:?}\n{}",
                    self.name,
                    self.tail()
                );
            }
            thread::sleep(LOOK_PAUSE);
        }
        Ok(start.elapsed())
    }

    /// Sends SIGTERM and waits up to `limit` for its end, which must be a success.
    pub(super) fn end(self, limit: Duration) -> Result<()> {
        self.signal("TERM")?;
        self.finish(limit).map(drop)
    }

    /// Sends it a signal.
    pub(super) fn signal(&self, name: &str) -> Result<()> {
        let pid = self.child.id().to_string();
        let status = Command::new("kill")
            .arg(format!("-{name}"))
            .arg(&pid)
            .status()?;
        if !status.success() {
            bail!("{} can't be sent {name}", self.name);
        }
        Ok(())
    }

    /// Waits up to `limit` for its end, which must be a success.
    pub(super) fn finish(mut self, limit: Duration) -> Result<Finished> {
        let start = Instant::now();
        let (mut peak_kib, mut cpu_seconds) = (0, 0.0);
        let status = loop {
            // Neither can be read after its end; both only grow.
            peak_kib = self.peak_kib().unwrap_or_default().max(peak_kib);
            cpu_seconds = self.cpu_seconds().unwrap_or_default().max(cpu_seconds);
            if let Some(status) = self.ended()? {
                break status;
            }
            if start.elapsed() > limit {
                bail!("{} took longer than {limit:?}\n{}", self.name, self.tail());
            }
            thread::sleep(LOOK_PAUSE);
        };
        if !status.success() {
            bail!("{} failed: {status}\n{}", self.name, self.tail());
        }
        Ok(Finished {
            time: start.elapsed(),
            peak_kib,
            cpu_seconds,
        })
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait()?;
        }
        Ok(self.ended)
    }

    fn memory(&self, key: &str) -> Result<u64> {
        let text = fs::read_to_string(self.proc("status")).context("read its memory")?;
        kib(&text, key).with_context(|| format!("{} has no {key}: it has ended", self.name))
    }

    fn proc(&self, file: &str) -> PathBuf {
        Path::new("/proc")
            .join(self.child.id().to_string())
            .join(file)
    }

    /// Returns the last lines that it wrote.
    fn tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended.is_none() {
            // An error means that it has already ended.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Parses user and system time from `/proc/PID/stat`, where the program's name may contain any
/// characters.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) as f64 / TICKS_PER_SECOND)
}

/// Reads one value of `/proc/PID/status`.
fn kib(status: &str, key: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_words_are_understood() {
        let stat = "42 (a) b) S 1 42 42 0 -1 4194560 90 0 0 0 123 77 0 0 20 0 5 0 1 2 3";
        assert_eq!(cpu_seconds(stat), Some(2.0));
        assert_eq!(cpu_seconds("42 (a) S 1"), None);
        let status = "Name:\ta\nVmHWM:\t   20480 kB\nVmRSS:\t 10 kB\n";
        assert_eq!(kib(status, "VmHWM"), Some(20480));
        assert_eq!(kib(status, "VmSwap"), None);
    }

    #[test]
    fn a_program_that_fails_says_what_it_wrote() {
        let log = std::env::temp_dir().join(format!("bench-child-{}", std::process::id()));
        let mut command = Command::new("sh");
        command.args(["-c", "echo no room; exit 3"]);
        let running = Running::start(&mut command, &log).unwrap();
        let failed = running.finish(Duration::from_secs(10)).err().unwrap();
        fs::remove_file(&log).unwrap();
        assert!(failed.to_string().contains("no room"), "{failed}");
    }
}
