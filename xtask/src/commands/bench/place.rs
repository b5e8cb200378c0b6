//! The two programs, and a folder for the measurement of one of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::Bench;
use super::counts::Counts;
use super::proxy::Proxy;
use crate::commands::child::Running;
use crate::commands::server::{BUCKET, sign};

/// The measured program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Program {
    Ours,
    Peer,
}

/// In the order of measurement, which is also the order in all pairs.
pub(super) const BOTH: [Program; 2] = [Program::Ours, Program::Peer];

/// Time limit of a graceful end.
pub(super) const STOP_LIMIT: Duration = Duration::from_secs(120);

/// Configuration lines in addition to the databases, and the kind of the replicas.
#[derive(Default)]
pub(super) struct Settings {
    /// Top-level lines for both programs.
    pub both: String,
    /// Top-level lines that only our program knows, and lines that only the peer knows.
    pub own: [String; 2],
    /// Whether replicas are stored in a directory of the place instead of the S3 server.
    pub in_directory: bool,
}

/// A folder with databases, the configuration for one program, and its own prefix in the store.
///
/// Drop removes it.
pub(super) struct Place<'a> {
    bench: &'a Bench,
    program: Program,
    folder: PathBuf,
    prefix: String,
    settings: Settings,
}

impl Program {
    /// Returns its name in folders, prefixes and tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Program::Ours => "ours",
            Program::Peer => "litestream",
        }
    }
}

impl<'a> Place<'a> {
    /// Creates an empty place; the name must be unique in this run.
    pub(super) fn new(bench: &'a Bench, name: &str, program: Program) -> Result<Place<'a>> {
        Place::with(bench, name, program, Settings::default())
    }

    /// The same with another configuration.
    pub(super) fn with(
        bench: &'a Bench,
        name: &str,
        program: Program,
        settings: Settings,
    ) -> Result<Place<'a>> {
        let prefix = format!("{name}-{}", program.name());
        let folder = bench.folder().join(&prefix);
        fs::create_dir_all(folder.join("data"))
            .with_context(|| format!("create {}", folder.display()))?;
        Ok(Place {
            bench,
            program,
            folder,
            prefix,
            settings,
        })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the path of the database with this number, which may not exist yet.
    pub(super) fn database(&self, number: usize) -> PathBuf {
        self.folder.join(format!("data/{number:05}.db"))
    }

    /// Returns the directory of the databases and of the local state beside them.
    pub(super) fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Returns the directory of all replicas that are not in the S3 server.
    pub(super) fn replicas(&self) -> PathBuf {
        self.folder.join("replicas")
    }

    pub(super) fn program(&self) -> Program {
        self.program
    }

    pub(super) fn proxy(&self) -> &'a Proxy {
        self.bench.proxy(self.program)
    }

    /// Starts to replicate this number of databases.
    ///
    /// Both programs read the same file. All other settings have their defaults.
    pub(super) fn replicate(&self, databases: usize) -> Result<Running> {
        let config = self.folder.join("config.yml");
        fs::write(&config, self.config(databases))?;
        let mut command = self.command("replicate");
        match self.program {
            Program::Ours => command.arg("--config"),
            Program::Peer => command.arg("-config"),
        };
        Running::start(command.arg(config), &self.log())
    }

    /// Starts to replicate, and waits until everything is stored.
    pub(super) fn replicate_all(&self, databases: usize) -> Result<Running> {
        let before = self.proxy().counts();
        let running = self.replicate(databases)?;
        self.stored(&before)?;
        Ok(running)
    }

    /// Waits until at least one write since `before` is stored and no further ones follow. Returns
    /// the time of the last answer.
    pub(super) fn stored(&self, before: &Counts) -> Result<Instant> {
        let limit = self.bench.sizes().store_limit;
        self.proxy()
            .wait_stored(before, Duration::from_secs(3), limit)
            .with_context(|| format!("{}: wait for the store", self.prefix))
    }

    /// Returns the command that restores one database of the configuration; without `output`, to
    /// its own path.
    pub(super) fn restore(&self, database: &Path, output: Option<&Path>) -> Command {
        let mut command = self.command("restore");
        match self.program {
            Program::Ours => command.arg("--config"),
            Program::Peer => command.arg("-config"),
        };
        command.arg(self.folder.join("config.yml"));
        if let Some(output) = output {
            command.arg("-o").arg(output);
        }
        command.arg(database);
        command
    }

    /// Returns the command of our program that restores every missing database of the
    /// configuration.
    pub(super) fn restore_all(&self) -> Command {
        let mut command = self.command("restore");
        command.arg("--config").arg(self.folder.join("config.yml"));
        command
    }

    /// Starts a command of the program, with its output in the place's log.
    pub(super) fn start(&self, command: &mut Command) -> Result<Running> {
        Running::start(command, &self.log())
    }

    /// Fails unless these databases hold the same rows.
    pub(super) fn compare(&self, sources: &[PathBuf], restored: &[PathBuf]) -> Result<()> {
        let application = self.bench.application();
        let expected = application.digests(sources)?;
        let found = application.digests(restored)?;
        if let Some(n) = (0..sources.len()).find(|n| expected.get(*n) != found.get(*n)) {
            bail!("{}: restored database {n} differs", self.prefix);
        }
        Ok(())
    }

    fn log(&self) -> PathBuf {
        self.folder.join("program.log")
    }

    fn command(&self, what: &str) -> Command {
        let mut command = Command::new(self.bench.program(self.program));
        sign(&mut command);
        command.arg(what);
        command
    }

    fn config(&self, databases: usize) -> String {
        let entry = |number: usize| {
            format!(
                "- path: {path}\n  replica:\n{replica}    sync-interval: 1s\n",
                path = self.database(number).display(),
                replica = self.replica(number),
            )
        };
        let entries: String = (0..databases).map(entry).collect();
        let Settings { both, own, .. } = &self.settings;
        let own = &own[self.program as usize];
        format!("{both}{own}dbs:\n{entries}")
    }

    /// Returns the configuration lines for the replica of one database.
    fn replica(&self, number: usize) -> String {
        if self.settings.in_directory {
            let path = self.replicas().join(format!("{number:05}"));
            return format!("    type: file\n    path: {}\n", path.display());
        }
        format!(
            "    type: s3\n    bucket: {BUCKET}\n    path: {prefix}/{number:05}\n    \
             endpoint: http://{endpoint}\n    region: us-east-1\n    force-path-style: true\n",
            prefix = self.prefix,
            endpoint = self.proxy().address(),
        )
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        // The whole scratch folder is removed at the end; this only keeps it small.
        let _ = fs::remove_dir_all(&self.folder);
    }
}
