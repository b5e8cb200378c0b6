//! `cargo xtask bench`: our program beside released Litestream, on one machine, in one run.
//!
//! Both are measured in turn against the same real S3 server, each through a proxy that counts its
//! requests. No duration is asserted: a figure that misses its goal is printed as such. Only a
//! restore that differs from its source is a failure.

mod application;
mod counts;
mod figures;
mod http;
mod lag;
mod place;
mod proxy;
mod report;
mod rows;
mod state;
mod truth;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use xtask::process::{announce, cargo, run};
use xtask::tools::{LITESTREAM_VERSIONS, Tools};
use xtask::workspace;

use application::Application;
use figures::{Figure, table};
use place::{BOTH, Program};
use proxy::{Proxy, Weather};
use report::{Conditions, Page};
use rows::ROWS;

use super::scratch::Scratch;
use super::server::Server;

/// Options of the measurements.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Rows to measure; default: all of them.
    rows: Vec<String>,
    /// List the rows, and measure nothing.
    #[arg(long)]
    list: bool,
    /// Large databases, many rounds: about an hour and a half instead of half an hour.
    #[arg(long)]
    full: bool,
    /// Write docs/benchmarks.md.
    #[arg(long, conflicts_with = "rows")]
    write: bool,
    /// Rounds of the row `lost`; default 10, with --full 30.
    #[arg(long)]
    rounds: Option<u64>,
    /// Size of the database of the row `snapshot` in MiB; default 2048. Needs about eight times as
    /// much disk.
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..))]
    snapshot_size: Option<u64>,
    /// Duration of the outage in the row `outage` in seconds; default 90, with --full 300.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    away: Option<u64>,
    /// Seed of random content and times; default: a new one, which is printed.
    #[arg(long)]
    seed: Option<u64>,
    /// Delay every request to the store by this time, like a distant store.
    #[arg(long, default_value_t = 0, value_name = "MILLISECONDS")]
    delay: u64,
    /// Cargo's profile for `sqlite-backup`; `release` builds faster, but images do not use it.
    #[arg(long, default_value = PROFILE)]
    profile: String,
    /// Measure this `sqlite-backup` instead of building one.
    #[arg(long, value_name = "FILE", conflicts_with = "profile")]
    program: Option<PathBuf>,
}

/// Sizes and durations of the measurements.
pub(super) struct Sizes {
    /// Size of the database of the row `requests`.
    first_sync_bytes: u64,
    /// Duration of its idle phase, and of its load.
    minute: Duration,
    cpu_commits: u64,
    latency_commits: u64,
    latency_rounds: u64,
    lost_rounds: u64,
    restore_bytes: u64,
    restore_commits: u64,
    many: usize,
    many_bytes: u64,
    idle: usize,
    /// Size of the database of the row `snapshot`.
    snapshot_bytes: u64,
    /// Duration of the outage in the row `outage`.
    away: Duration,
    /// Duration of each load of the row `paced`.
    paced: Duration,
    /// Time limit for everything to be stored.
    store_limit: Duration,
    /// Time limit of a restore or a load.
    work_limit: Duration,
}

/// The profile of binaries in images.
const PROFILE: &str = "dist";
const MIB: u64 = 1 << 20;

const USUAL: Sizes = Sizes {
    first_sync_bytes: 64 * MIB,
    minute: Duration::from_secs(60),
    cpu_commits: 200_000,
    latency_commits: 1_500,
    latency_rounds: 3,
    lost_rounds: 10,
    restore_bytes: 200 * MIB,
    restore_commits: 20_000,
    many: 50,
    many_bytes: MIB,
    idle: 1_000,
    snapshot_bytes: 2048 * MIB,
    away: Duration::from_secs(90),
    paced: Duration::from_secs(40),
    store_limit: Duration::from_secs(180),
    work_limit: Duration::from_secs(300),
};

const FULL: Sizes = Sizes {
    first_sync_bytes: 256 * MIB,
    minute: Duration::from_secs(300),
    cpu_commits: 1_000_000,
    latency_commits: 5_000,
    latency_rounds: 5,
    lost_rounds: 30,
    restore_bytes: 1024 * MIB,
    restore_commits: 100_000,
    many: 200,
    many_bytes: 3 * MIB,
    idle: 1_000,
    snapshot_bytes: 2048 * MIB,
    away: Duration::from_secs(300),
    paced: Duration::from_secs(40),
    store_limit: Duration::from_secs(900),
    work_limit: Duration::from_secs(900),
};

/// State that all rows share. Fields are dropped in this order: the server before its data.
pub(super) struct Bench {
    sizes: Sizes,
    seed: u64,
    programs: [PathBuf; 2],
    weather: Weather,
    proxies: [Proxy; 2],
    application: Application,
    _server: Server,
    scratch: Scratch,
}

impl Bench {
    fn start(args: &Args, sizes: Sizes, seed: u64) -> Result<Bench> {
        let tools = Tools::new();
        let ours = match &args.program {
            Some(program) => fs::canonicalize(program)?,
            None => build(&args.profile)?,
        };
        let peer = tools.litestream(LITESTREAM_VERSIONS[0])?;
        let scratch = Scratch::make("bench")?;
        announce("starting the S3 server");
        let server = Server::start(&tools, scratch.path())?;
        let weather = Weather::Delayed(Duration::from_millis(args.delay));
        let proxy = || Proxy::start(server.address(), weather);
        Ok(Bench {
            sizes,
            seed,
            programs: [ours, peer],
            weather,
            proxies: [proxy()?, proxy()?],
            application: Application::install(scratch.path(), seed)?,
            _server: server,
            scratch,
        })
    }

    /// Returns the default state of the network.
    fn weather(&self) -> Weather {
        self.weather
    }

    fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    fn seed(&self) -> u64 {
        self.seed
    }

    fn folder(&self) -> &Path {
        self.scratch.path()
    }

    fn application(&self) -> &Application {
        &self.application
    }

    fn program(&self, program: Program) -> &Path {
        &self.programs[program as usize]
    }

    fn proxy(&self, program: Program) -> &Proxy {
        &self.proxies[program as usize]
    }
}

/// Measures, prints the table, and writes the page if requested.
pub(crate) fn measure(args: &Args) -> Result<()> {
    if args.list {
        for row in ROWS {
            println!("{:<10} {}", row.name, row.about);
        }
        return Ok(());
    }
    let known = |name: &String| ROWS.iter().any(|row| row.name == name);
    if let Some(name) = args.rows.iter().find(|name| !known(name)) {
        bail!("there is no row {name}; see `cargo xtask bench --list`");
    }
    let mut sizes = if args.full { FULL } else { USUAL };
    sizes.lost_rounds = args.rounds.unwrap_or(sizes.lost_rounds);
    sizes.snapshot_bytes = args
        .snapshot_size
        .map_or(sizes.snapshot_bytes, |mib| mib * MIB);
    sizes.away = args.away.map_or(sizes.away, Duration::from_secs);
    let seed = args.seed.unwrap_or_else(new_seed);
    let bench = Bench::start(args, sizes, seed)?;
    announce(&format!("seed {seed}"));
    let conditions = Conditions::look(&bench, args)?;
    let chosen = |name: &str| args.rows.is_empty() || args.rows.iter().any(|row| row == name);
    let mut page = Page::default();
    for row in ROWS.iter().filter(|row| chosen(row.name)) {
        announce(&format!("bench: {}: {}", row.name, row.about));
        match (row.run)(&bench) {
            Ok(outcome) => page.add(row, outcome),
            Err(error) => page.fail(row, &error),
        }
    }
    let text = page.write(&conditions)?;
    println!("{}", table(page.figures()));
    for note in page.notes() {
        println!("{note}");
    }
    if args.write {
        let path = workspace::root().join("docs/benchmarks.md");
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    page.verdict()
}

pub(super) fn build(profile: &str) -> Result<PathBuf> {
    announce("building sqlite-backup");
    let arguments = ["build", "--locked", "--package", "sidecar", "--profile"];
    run(cargo().args(arguments).arg(profile))?;
    Ok(workspace::target().join(profile).join("sqlite-backup"))
}

pub(super) fn new_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(1, |time| u64::from(time.subsec_nanos()))
}

/// One row of the table: its name, and its measurement.
struct Row {
    name: &'static str,
    about: &'static str,
    /// How to read its figures, and their limits.
    remark: &'static str,
    run: fn(&Bench) -> Result<Outcome>,
}

/// Result of one row.
#[derive(Default)]
struct Outcome {
    figures: Vec<Figure>,
    /// Details for people, one line each.
    notes: Vec<String>,
}

/// Measures our program, then the peer.
fn in_turn<T>(mut measure: impl FnMut(Program) -> Result<T>) -> Result<[T; 2]> {
    let [ours, peer] = BOTH;
    Ok([measure(ours)?, measure(peer)?])
}
