//! The processes of a soak test, the actions on them, and their limits.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use xtask::process::announce;
use xtask::tools::{LITESTREAM_VERSIONS, Tools};

use crate::commands::child::Running;
use crate::commands::scratch::Scratch;
use crate::commands::server::{BUCKET, Server, sign};

pub(super) const SCRIPT: &str = include_str!("application.py");
/// Number of databases. One of them is flooded; they differ in page size and auto-vacuum.
pub(super) const DATABASES: usize = 3;
/// Time limit of a graceful end.
const END_LIMIT: Duration = Duration::from_secs(120);
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// Limit on a WAL: a window of 900 pages, one large transaction, and a busy machine.
const LONGEST_LOG: u64 = 96 << 20;
/// Limit on the sidecar's memory.
const MOST_MEMORY_KIB: u64 = 192 << 10;
/// Limit on waiting data: 256 MiB of captured files, plus snapshots beside them.
const MOST_WAITING: u64 = 448 << 20;
/// A backlog of this many bytes is full.
const FULL_BACKLOG: u64 = 240 << 20;

/// Everything that runs. Fields are dropped in this order: processes before their files.
pub(super) struct World {
    application: Option<Running>,
    sidecar: Option<Running>,
    server: Server,
    programs: [PathBuf; 2],
    longest_log: u64,
    most_memory_kib: u64,
    most_waiting: u64,
    scratch: Scratch,
}

impl World {
    /// Starts the store, the application and the sidecar.
    pub(super) fn start(program: PathBuf, seed: u64) -> Result<World> {
        let tools = Tools::new();
        let peer = tools.litestream(LITESTREAM_VERSIONS[0])?;
        let scratch = Scratch::make("soak")?;
        announce("starting the S3 server");
        let server = Server::start(&tools, scratch.path())?;
        let mut world = World {
            application: None,
            sidecar: None,
            server,
            programs: [program, peer],
            longest_log: 0,
            most_memory_kib: 0,
            most_waiting: 0,
            scratch,
        };
        fs::write(world.script(), SCRIPT)?;
        fs::write(world.config(), world.config_text())?;
        world.start_application(seed)?;
        world.start_sidecar()?;
        Ok(world)
    }

    /// Keeps the files for an analysis of the failure.
    pub(super) fn keep(&mut self) {
        self.scratch.keep();
        eprintln!("kept: {}", self.scratch.path().display());
    }

    pub(super) fn database(&self, number: usize) -> PathBuf {
        self.scratch.path().join(format!("{number}.db"))
    }

    pub(super) fn journal(&self, number: usize) -> PathBuf {
        self.scratch.path().join(format!("{number}.journal"))
    }

    /// Returns a path for restored databases.
    pub(super) fn restored(&self, name: &str) -> PathBuf {
        self.scratch.path().join(format!("restored-{name}.db"))
    }

    /// Returns a command of the application.
    pub(super) fn script_command(&self, what: &str) -> Command {
        let mut command = Command::new("python3");
        command.arg(self.script()).arg(what);
        command
    }

    /// Returns the command that restores a database with our program, or with released Litestream.
    pub(super) fn restore(&self, ours: bool, number: usize, output: &Path) -> Command {
        let mut command = Command::new(&self.programs[usize::from(!ours)]);
        sign(&mut command);
        command.arg("restore");
        command.arg(if ours { "--config" } else { "-config" });
        command.arg(self.config()).arg("-o").arg(output);
        command.arg(self.database(number));
        command
    }

    /// Starts a command whose output is written to its own log.
    pub(super) fn run(&self, command: &mut Command, log: &str) -> Result<Running> {
        Running::start(command, &self.scratch.path().join(log))
    }

    pub(super) fn start_application(&mut self, seed: u64) -> Result<()> {
        let mut command = self.script_command("run");
        command.arg(self.scratch.path());
        command.arg(DATABASES.to_string()).arg(seed.to_string());
        self.application = Some(self.run(&mut command, "application.log")?);
        Ok(())
    }

    pub(super) fn start_sidecar(&mut self) -> Result<()> {
        let mut command = Command::new(&self.programs[0]);
        sign(&mut command);
        command.args(["replicate", "--config"]).arg(self.config());
        self.sidecar = Some(self.run(&mut command, "sidecar.log")?);
        Ok(())
    }

    pub(super) fn kill_application(&mut self) -> Result<()> {
        self.application.take().context("no application")?.kill()
    }

    pub(super) fn kill_sidecar(&mut self) -> Result<()> {
        self.look()?;
        self.sidecar.take().context("no sidecar")?.kill()
    }

    /// Makes the application close its databases and end.
    pub(super) fn end_application(&mut self) -> Result<()> {
        let running = self.application.take().context("no application")?;
        running.end(END_LIMIT)
    }

    /// Makes the sidecar store its backlog and end, which must succeed.
    pub(super) fn end_sidecar(&mut self) -> Result<()> {
        self.look()?;
        let running = self.sidecar.take().context("no sidecar")?;
        running.end(END_LIMIT)
    }

    pub(super) fn stop_store(&mut self) -> Result<()> {
        self.server.signal("STOP")
    }

    pub(super) fn resume_store(&mut self) -> Result<()> {
        self.server.signal("CONT")
    }

    /// Makes the application write until the backlog of the first database is full, and a little
    /// more.
    pub(super) fn flood(&mut self, limit: Duration) -> Result<()> {
        let (flood, start) = (self.scratch.path().join("flood"), Instant::now());
        fs::write(&flood, "")?;
        while start.elapsed() < limit && self.waiting(0)? < FULL_BACKLOG {
            self.watch(LOOK_PAUSE)?;
        }
        self.watch(Duration::from_secs(5))?;
        fs::remove_file(&flood)?;
        Ok(())
    }

    /// Monitors everything for some time: no process may end unexpectedly, and nothing may grow
    /// without limit.
    pub(super) fn watch(&mut self, time: Duration) -> Result<()> {
        let start = Instant::now();
        loop {
            self.look()?;
            if start.elapsed() >= time {
                return Ok(());
            }
            thread::sleep(LOOK_PAUSE);
        }
    }

    fn look(&mut self) -> Result<()> {
        for running in [&mut self.application, &mut self.sidecar] {
            running.as_mut().map_or(Ok(()), Running::must_run)?;
        }
        for number in 0..DATABASES {
            let log = self.scratch.path().join(format!("{number}.db-wal"));
            let bytes = fs::metadata(log).map_or(0, |meta| meta.len());
            self.longest_log = self.longest_log.max(bytes);
            self.most_waiting = self.most_waiting.max(self.waiting(number)?);
        }
        if let Some(sidecar) = &self.sidecar {
            // It may have ended between the two reads. The next call then detects it.
            let peak = sidecar.peak_kib().unwrap_or_default();
            self.most_memory_kib = self.most_memory_kib.max(peak);
        }
        Ok(())
    }

    /// Returns the bytes that the sidecar keeps for a database.
    fn waiting(&self, number: usize) -> Result<u64> {
        let state = format!(".{number}.db-sqlite-backup");
        directory_bytes(&self.scratch.path().join(state))
    }

    /// Describes the peak usage since the last call.
    ///
    /// # Errors
    /// A limit was exceeded.
    pub(super) fn bounds(&mut self) -> Result<String> {
        let (log, memory_kib, waiting) = (
            std::mem::take(&mut self.longest_log),
            std::mem::take(&mut self.most_memory_kib),
            std::mem::take(&mut self.most_waiting),
        );
        let words = format!(
            "log {} MiB, kept {} MiB, memory {} MiB",
            log >> 20,
            waiting >> 20,
            memory_kib >> 10
        );
        if log > LONGEST_LOG || memory_kib > MOST_MEMORY_KIB || waiting > MOST_WAITING {
            bail!("more than is allowed: {words}");
        }
        Ok(words)
    }

    fn script(&self) -> PathBuf {
        self.scratch.path().join("application.py")
    }

    fn config(&self) -> PathBuf {
        self.scratch.path().join("config.yml")
    }

    /// Returns the configuration for both programs. Levels and snapshots are so frequent that a
    /// round includes some.
    fn config_text(&self) -> String {
        let endpoint = self.server.address();
        let entry = |number: usize| {
            format!(
                "- path: {path}\n  replica:\n    type: s3\n    bucket: {BUCKET}\n    \
                 path: soak/{number}\n    endpoint: http://{endpoint}\n    region: us-east-1\n    \
                 force-path-style: true\n    sync-interval: 200ms\n",
                path = self.database(number).display(),
            )
        };
        let entries: String = (0..DATABASES).map(entry).collect();
        format!(
            "snapshot: {{interval: 40s, retention: 24h}}\n\
             levels: [{{interval: 2s}}, {{interval: 7s}}, {{interval: 25s}}]\ndbs:\n{entries}"
        )
    }
}

/// Returns the size of all files below a directory. Some of them may disappear meanwhile.
fn directory_bytes(directory: &Path) -> Result<u64> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Ok(0);
    };
    let mut bytes = 0;
    for entry in entries {
        let entry = entry?;
        let Ok(meta) = entry.metadata() else { continue };
        bytes += match meta.is_dir() {
            true => directory_bytes(&entry.path())?,
            false => meta.len(),
        };
    }
    Ok(bytes)
}
