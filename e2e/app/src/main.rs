//! An ordinary application with a SQLite database, which knows nothing about backups.
//!
//! It writes numbered, timestamped rows at a steady pace. So a test can determine which rows a
//! restored database holds, whether one is missing in the middle, and how old the newest is.

mod database;

use std::ffi::OsStr;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use database::{Database, Journal};

/// Writes numbered rows to a SQLite database, and reports its content.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write rows until the end, or until the limit is reached.
    Write(Write),
    /// Print count, newest row and health of each database as one line of JSON.
    Stats {
        /// The databases.
        #[arg(default_value = "/data/app.db")]
        databases: Vec<PathBuf>,
    },
}

#[derive(Args)]
struct Write {
    /// The database, which is created if it does not exist.
    #[arg(default_value = "/data/app.db")]
    database: PathBuf,
    /// Number of databases, which get the rows in turn. With several, the name of each ends in its
    /// number, as in app-1.db.
    #[arg(long, default_value_t = 1)]
    databases: usize,
    /// Milliseconds from one row to the next.
    #[arg(long, default_value_t = 100)]
    interval_ms: u64,
    /// Stop writing at this many rows, but keep the database open.
    #[arg(long)]
    rows: Option<u64>,
    /// Bytes of payload in each row.
    #[arg(long, default_value_t = 100)]
    payload_bytes: usize,
    /// SQLite's journal mode.
    #[arg(long, value_enum, default_value_t = Journal::Wal)]
    journal: Journal,
    /// Print each row's number and time after its commit.
    #[arg(long)]
    print_rows: bool,
    /// Continue after SIGTERM, as a hung program would.
    #[arg(long)]
    ignore_sigterm: bool,
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Write(write) => write.run(),
        Command::Stats { databases } => databases.iter().try_for_each(|path| {
            println!("{}", Database::open(path)?.stats()?);
            Ok(())
        }),
    }
}

impl Write {
    fn run(&self) -> Result<()> {
        // Process 1 of a container receives no signal without a handler, so this makes both cases
        // explicit. Leaving in the middle of a transaction is safe: SQLite rolls it back.
        let mut signals = Signals::new([SIGTERM, SIGINT]).context("handle signals")?;
        let ignore = self.ignore_sigterm;
        thread::spawn(move || {
            for signal in signals.forever() {
                if !(ignore && signal == SIGTERM) {
                    std::process::exit(0);
                }
            }
        });
        let mut databases = Vec::new();
        for path in self.paths() {
            let database = Database::create(&path, self.journal)?;
            println!(
                "writing to {} after row {}",
                path.display(),
                database.rows()?
            );
            databases.push(database);
        }
        for database in databases.iter().cycle() {
            if self
                .rows
                .is_none_or(|limit| database.rows().is_ok_and(|rows| rows < limit))
            {
                let (row, written_at_ms) = database.insert(self.payload_bytes)?;
                if self.print_rows {
                    println!("row {row} {written_at_ms}");
                }
            }
            thread::sleep(Duration::from_millis(self.interval_ms));
        }
        Ok(())
    }

    fn paths(&self) -> Vec<PathBuf> {
        if self.databases == 1 {
            return vec![self.database.clone()];
        }
        let part = |part: Option<&OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
        let (name, ending) = (
            part(self.database.file_stem()),
            part(self.database.extension()),
        );
        let numbers = 1..=self.databases;
        numbers
            .map(|number| {
                self.database
                    .with_file_name(format!("{name}-{number}.{ending}"))
            })
            .collect()
    }
}
