//! The command line, and the only place that reads the environment.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use clap::{Args, Parser, Subcommand, ValueEnum};
use jiff::Timestamp;
use ltx::Txid;
use protocol::names::STATE_LIMIT_ENV;
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
    /// Form of the log lines, on standard error
    #[arg(long, global = true, value_enum, env = "SQLITE_BACKUP_LOG_FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Least important lines to show: error, warn, info, debug, trace
    #[arg(long, global = true, env = "SQLITE_BACKUP_LOG_LEVEL")]
    pub log_level: Option<tracing::Level>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON object a line
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
    /// Ask the running replicate process how it is
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
    /// Where its backups go, such as file:///dir or s3://bucket/prefix
    pub url: Option<String>,
    /// Store everything there is now, then end
    #[arg(long, conflicts_with = "exec")]
    pub once: bool,
    /// Look at the databases and their targets, say what would be done, and change nothing
    #[arg(long, conflicts_with_all = ["once", "exec", "supervise"])]
    pub dry_run: bool,
    /// Run this command meanwhile, pass signals on to it, and end after it with its exit code
    #[arg(long, value_name = "CMD", conflicts_with = "supervise")]
    pub exec: Option<String>,
    /// When the backup at the URL is of another database: report and do nothing, or back this
    /// one up in its place; with a configuration file: startup.on-divergence
    #[arg(long, value_enum, default_value_t = Divergence::Block, conflicts_with = "config")]
    pub on_divergence: Divergence,
    /// Address for /status, /metrics and /healthz
    #[arg(long, value_name = "IP:PORT")]
    pub addr: Option<String>,
    /// Restart the worker whenever it ends, until SIGTERM: for containers
    #[arg(long)]
    pub supervise: bool,
    /// The child of --supervise: nobody reads its exit code, so it keeps trying
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
    /// Where the database goes; default with a configuration file: its own place
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
    /// Replace a database that exists; nobody may have it open
    #[arg(long, conflicts_with = "if_db_not_exists")]
    pub force: bool,
    /// Show what would be restored, and restore nothing
    #[arg(long)]
    pub dry_run: bool,
    /// How deep SQLite looks at the result, and fail when it complains; without it: quick, and a complaint
    /// is only told, because checksums prove that the database was stored so
    #[arg(long, value_enum)]
    pub integrity_check: Option<Integrity>,
    /// Objects fetched at the same time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub parallelism: u8,
    /// Before an application starts: wait while the store cannot be asked, obey `startup` of the
    /// configuration, and take the replica over from whoever wrote it
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
    /// Replicate nothing, and say why
    Block,
    /// What was stored stays restorable; this database continues it
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
    /// What the operator asks, as JSON
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
    /// Where the replicate process listens
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
    /// Where the plain files go
    pub directory: PathBuf,
}

/// A variable of the environment, for `${NAME}` in configuration files. `PID` is this process, as
/// Litestream has it.
pub fn variable(name: &str) -> Option<String> {
    if name == "PID" {
        return Some(std::process::id().to_string());
    }
    std::env::var(name).ok()
}

/// The part of its volume that local state may take: a file in work is not in the budget, and a Pod
/// that exceeds the limit of a volume is evicted.
const STATE_PART: (u64, u64) = (4, 5);

/// The limit of local state that the volume of an injected sidecar allows, in bytes.
pub fn state_limit() -> Option<u64> {
    let volume: Size = variable(STATE_LIMIT_ENV)?.parse().ok()?;
    Some(volume.0 / STATE_PART.1 * STATE_PART.0)
}

/// Who writes, for leases: the Pod where the webhook says so, else the host; then what tells this
/// process from an earlier one of the same name.
pub fn holder() -> &'static str {
    static HOLDER: LazyLock<String> = LazyLock::new(|| {
        let kernel = |name: &str| {
            let path = format!("/proc/sys/kernel/{name}");
            std::fs::read_to_string(path).unwrap_or_default()
        };
        let name = variable(protocol::names::HOLDER_ENV)
            .unwrap_or_else(|| kernel("hostname").trim().to_owned());
        // A container's process has the same number after each restart.
        let unique: String = kernel("random/uuid").chars().take(8).collect();
        format!("{name}:{}:{unique}", std::process::id())
    });
    &HOLDER
}

impl Command {
    /// The configuration file that the command reads, if any.
    pub fn config(&self) -> Option<&Path> {
        match self {
            Command::Replicate(arguments) => arguments.config.as_deref(),
            Command::Restore(arguments) => arguments.config.as_deref(),
            Command::Verify(arguments) => arguments.config.as_deref(),
            Command::Inspect(_) | Command::Status(_) | Command::Decrypt(_) => None,
        }
    }
}
