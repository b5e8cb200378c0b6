//! The command line, and the only place that reads the environment.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use clap::{Args, Parser, Subcommand, ValueEnum};
use jiff::Timestamp;
use ltx::Txid;
use protocol::names::{STATE_BESIDE_ENV, STATE_LIMIT_ENV};
use protocol::{Size, Span};

/// Continuous backup and proven restores for SQLite databases.
#[derive(Debug, Parser)]
#[command(name = "sqlite-backup", version, about, arg_required_else_help = true)]
pub struct Arguments {
    #[command(flatten)]
    pub log: LogArguments,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Clone, Args)]
pub struct LogArguments {
    /// Format of the log lines, on standard error
    #[arg(long, global = true, value_enum, env = "SQLITE_BACKUP_LOG_FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Least severe level to log: error, warn, info, debug, trace
    #[arg(long, global = true, env = "SQLITE_BACKUP_LOG_LEVEL")]
    pub log_level: Option<tracing::Level>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON object per line
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Stream every commit of the configured databases to their targets
    Replicate(ReplicateArguments),
    /// Build databases from their newest backup, or from an earlier point
    Restore(RestoreArguments),
    /// Restore to scratch space and prove the result
    Verify(VerifyArguments),
    /// Show what a replica holds: snapshots, levels, restorable window, holes, bytes
    Inspect(InspectArguments),
    /// Show the state of the running replicate process
    Status(StatusArguments),
    /// Turn an encrypted replica into plain LTX files
    Decrypt(DecryptArguments),
}

#[derive(Debug, Args)]
pub struct ReplicateArguments {
    /// Configuration file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["database", "url"])]
    pub config: Option<PathBuf>,
    /// Database, with URL and without a configuration file
    #[arg(requires = "url")]
    pub database: Option<PathBuf>,
    /// Target of its backups, such as file:///dir or s3://bucket/prefix
    pub url: Option<String>,
    /// Store all current commits, then end
    #[arg(long, conflicts_with = "exec")]
    pub once: bool,
    /// Examine the databases and their targets, report the planned actions, and change nothing
    #[arg(long, conflicts_with_all = ["once", "exec", "supervise"])]
    pub dry_run: bool,
    /// Run this command meanwhile, forward signals to it, and end with its exit code
    #[arg(long, value_name = "CMD", conflicts_with = "supervise")]
    pub exec: Option<String>,
    /// Action when the backup at the URL belongs to another database: report it and replicate
    /// nothing, or back this one up in its place; with a configuration file: startup.on-divergence
    #[arg(long, value_enum, default_value_t = Divergence::Block, conflicts_with = "config")]
    pub on_divergence: Divergence,
    /// Address for /status, /metrics and /healthz
    #[arg(long, value_name = "IP:PORT")]
    pub addr: Option<String>,
    /// Restart the worker whenever it ends, until SIGTERM: for containers
    #[arg(long)]
    pub supervise: bool,
    /// The child of --supervise: it keeps trying, because no caller reads its exit code
    #[arg(long, hide = true)]
    pub worker: bool,
}

#[derive(Debug, Args)]
pub struct RestoreArguments {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// URL of a replica, or a database of the configuration file; none: every missing one
    #[arg(value_name = "URL|DB")]
    pub source: Option<String>,
    /// Path of the restored database; default with a configuration file: its own place
    #[arg(short, long, value_name = "PATH")]
    pub output: Option<PathBuf>,
    /// Restore every replica below the URL, each to its place below the directory PATH
    #[arg(long, requires = "output", conflicts_with_all = ["config", "wait", "txid"])]
    pub all: bool,
    /// Restore the newest state at or before this time
    #[arg(long, value_name = "RFC3339", conflicts_with = "txid")]
    pub timestamp: Option<Timestamp>,
    /// Restore exactly this position, 16 hex digits
    #[arg(long, value_name = "HEX")]
    pub txid: Option<Txid>,
    /// Leave a database that exists alone, and succeed
    #[arg(long)]
    pub if_db_not_exists: bool,
    /// Succeed when there is no backup
    #[arg(long)]
    pub if_replica_exists: bool,
    /// Replace a database that exists; no process may have it open
    #[arg(long, conflicts_with = "if_db_not_exists")]
    pub force: bool,
    /// Show what would be restored, and restore nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Depth of SQLite's check of the result; a failed check is then an error. Default: quick,
    /// where a failed check is only a warning, because checksums prove that the stored database has
    /// the same fault
    #[arg(long, value_enum)]
    pub integrity_check: Option<Integrity>,
    /// Objects fetched at the same time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub parallelism: u8,
    /// Before an application starts: wait while no target can be reached, obey `startup` of the
    /// configuration, and take the replica over from its previous writer
    #[arg(long, requires = "config", conflicts_with_all = [
        "source", "output", "timestamp", "txid", "if_replica_exists", "force", "dry_run",
        "parallelism", "json",
    ])]
    pub wait: bool,
    /// Report as JSON on standard output
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Divergence {
    /// Replicate nothing, and report the reason
    Block,
    /// Back this database up in its place; earlier points stay restorable
    NewLineage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Integrity {
    /// Only checksums and page coverage
    None,
    /// PRAGMA quick_check
    Quick,
    /// PRAGMA integrity_check
    Full,
}

#[derive(Debug, Args)]
pub struct VerifyArguments {
    /// Configuration file
    #[arg(long, value_name = "FILE", conflicts_with = "url")]
    pub config: Option<PathBuf>,
    /// URL of a replica
    #[arg(required_unless_present = "config")]
    pub url: Option<String>,
    /// Fail when the newest stored commit is older than this
    #[arg(long, value_name = "DURATION")]
    pub max_lag: Option<Span>,
    /// YAML list of checks, as in spec.restoreTest.checks
    #[arg(long, value_name = "FILE")]
    pub checks: Option<PathBuf>,
    /// Directory for the restored databases; default: a temporary one
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<PathBuf>,
    /// Also write the report here, at most 4096 bytes: the termination message of a container
    #[arg(long, value_name = "FILE")]
    pub termination_message: Option<PathBuf>,
    /// Request of the operator, as JSON
    #[arg(long, value_name = "JSON", env = protocol::names::VERIFY_REQUEST_ENV, hide = true)]
    pub request: Option<String>,
    /// Report as JSON on standard output
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct InspectArguments {
    /// URL of a replica
    pub url: String,
    /// Report as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct StatusArguments {
    /// Address of the replicate process
    #[arg(long, value_name = "IP:PORT", default_value_t = format!("127.0.0.1:{}", protocol::names::STATUS_PORT))]
    pub addr: String,
    /// Report as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct DecryptArguments {
    /// URL of an encrypted replica
    pub url: String,
    /// Directory for the plain files
    pub directory: PathBuf,
}

/// Returns a variable of the environment, for `${NAME}` in configuration files. `PID` is the ID of
/// this process, as in Litestream.
pub fn variable(name: &str) -> Option<String> {
    if name == "PID" {
        return Some(std::process::id().to_string());
    }
    std::env::var(name).ok()
}

/// The part of its volume that local state may use. Unfinished files do not count towards the
/// budget, and a Pod that exceeds the limit of a volume is evicted.
const STATE_PART: (u64, u64) = (4, 5);

/// Returns the limit of local state from the volume of an injected sidecar, in bytes.
pub fn state_limit() -> Option<u64> {
    let volume: Size = variable(STATE_LIMIT_ENV)?.parse().ok()?;
    Some(volume.0 / STATE_PART.1 * STATE_PART.0)
}

/// Whether the webhook has placed local state beside each database.
pub fn is_state_beside() -> bool {
    variable(STATE_BESIDE_ENV).is_some_and(|value| value == "true")
}

/// Returns the name of this writer for leases: the Pod if the webhook has set it, else the host. A
/// suffix distinguishes this process from an earlier one with the same name.
pub fn holder() -> &'static str {
    static HOLDER: LazyLock<String> = LazyLock::new(|| {
        let kernel = |name: &str| {
            let path = format!("/proc/sys/kernel/{name}");
            std::fs::read_to_string(path).unwrap_or_default()
        };
        let name = variable(protocol::names::HOLDER_ENV)
            .unwrap_or_else(|| kernel("hostname").trim().to_owned());
        // A container's process has the same process ID after each restart.
        let unique: String = kernel("random/uuid").chars().take(8).collect();
        format!("{name}:{}:{unique}", std::process::id())
    });
    &HOLDER
}

impl Command {
    /// Returns the configuration file that the command reads, if any.
    pub fn config(&self) -> Option<&Path> {
        match self {
            Command::Replicate(arguments) => arguments.config.as_deref(),
            Command::Restore(arguments) => arguments.config.as_deref(),
            Command::Verify(arguments) => arguments.config.as_deref(),
            Command::Inspect(_) | Command::Status(_) | Command::Decrypt(_) => None,
        }
    }
}
