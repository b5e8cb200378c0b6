//! The page `docs/benchmarks.md`: the table, and all information needed to read it.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use anyhow::{Result, bail};
use xtask::process::output;
use xtask::tools::LITESTREAM_VERSIONS;
use xtask::workspace;

use super::application::Application;
use super::figures::{Figure, table};
use super::{Args, Bench, Outcome, PROFILE, Program, Row};

/// Machine, versions and settings of a run.
pub(super) struct Conditions {
    date: String,
    machine: String,
    load: String,
    versions: String,
    command: String,
    delay: u64,
    seed: u64,
}

impl Conditions {
    /// Determines the conditions before the first row.
    pub(super) fn look(bench: &Bench, args: &Args) -> Result<Conditions> {
        let cores = std::thread::available_parallelism()?;
        let memory = memory_gib(&fs::read_to_string("/proc/meminfo")?);
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let model = model(&fs::read_to_string("/proc/cpuinfo")?);
        let disk = line(
            Command::new("stat")
                .args(["-f", "-c", "%T"])
                .arg(bench.folder()),
        )?;
        let ours = line(Command::new(bench.program(Program::Ours)).arg("--version"))?;
        let commit = line(
            Command::new("git")
                .args(["rev-parse", "--short", "HEAD"])
                .current_dir(workspace::root()),
        )?;
        let mut command = "cargo xtask bench".to_owned();
        if args.full {
            command.push_str(" --full");
        }
        if args.profile != PROFILE {
            write!(command, " --profile {}", args.profile)?;
        }
        if args.delay > 0 {
            write!(command, " --delay {}", args.delay)?;
        }
        Ok(Conditions {
            date: line(Command::new("date").args(["--utc", "+%Y-%m-%d"]))?,
            machine: format!(
                "{cores} cores ({model}), {memory:.0} GiB of memory, Linux {}, files on {disk}",
                kernel.trim()
            ),
            load: load(),
            versions: format!(
                "{ours} ({build}, commit {commit}); Litestream {}; SeaweedFS as S3 server; \
                 the application: Python's sqlite3 with SQLite {}",
                LITESTREAM_VERSIONS[0],
                Application::sqlite_version()?,
                build = match args.program {
                    Some(_) => "a given binary".to_owned(),
                    None => format!("profile {}", args.profile),
                },
            ),
            command,
            delay: args.delay,
            seed: bench.seed(),
        })
    }
}

/// The results of the rows so far.
#[derive(Default)]
pub(super) struct Page {
    figures: Vec<Figure>,
    notes: Vec<String>,
    rows: String,
    failed: usize,
    load_after: String,
}

impl Page {
    pub(super) fn add(&mut self, row: &Row, outcome: Outcome) {
        println!("{}", table(&outcome.figures));
        self.describe(row, &outcome.notes);
        self.figures.extend(outcome.figures);
    }

    /// Adds a row that could not be measured, because this is also a result.
    pub(super) fn fail(&mut self, row: &Row, error: &anyhow::Error) {
        eprintln!("==> {} failed: {error:#}", row.name);
        self.failed += 1;
        // The other lines are from a log.
        let text = format!("{error:#}");
        let first = text.lines().next().unwrap_or_default();
        self.describe(row, &[format!("**Not measured**: {first}")]);
    }

    pub(super) fn figures(&self) -> &[Figure] {
        &self.figures
    }

    pub(super) fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Fails when a row could not be measured.
    pub(super) fn verdict(&self) -> Result<()> {
        if self.failed > 0 {
            bail!("{} rows could not be measured", self.failed);
        }
        Ok(())
    }

    /// The whole page.
    pub(super) fn write(&mut self, conditions: &Conditions) -> Result<String> {
        self.load_after = load();
        let mut text = String::new();
        writeln!(text, "# Benchmarks\n")?;
        writeln!(text, "{INTRODUCTION}")?;
        writeln!(text, "{}", table(&self.figures))?;
        self.write_behind(&mut text)?;
        writeln!(text, "## Conditions\n")?;
        let Conditions {
            date,
            machine,
            load,
            versions,
            command,
            delay,
            seed,
        } = conditions;
        writeln!(text, "- {date}, `{command} --write`, seed {seed}")?;
        writeln!(text, "- {machine}")?;
        let after = &self.load_after;
        writeln!(
            text,
            "- load averages over 1, 5 and 15 minutes: {load} before, {after} after"
        )?;
        writeln!(text, "- {versions}")?;
        match delay {
            0 => writeln!(
                text,
                "- the store is on the same machine: requests take no time on the way"
            )?,
            _ => writeln!(text, "- every request to the store is held back {delay} ms")?,
        }
        writeln!(text, "{SETTINGS}")?;
        writeln!(text, "## Rows\n")?;
        text.push_str(self.rows.trim_end());
        text.push('\n');
        Ok(text)
    }

    fn write_behind(&self, text: &mut String) -> Result<()> {
        let missed = self
            .figures
            .iter()
            .filter(|one| one.reached() == Some(false));
        let missed: Vec<&Figure> = missed.collect();
        let behind = |one: &&Figure| one.reached() != Some(false) && !one.ahead();
        let behind: Vec<&Figure> = self.figures.iter().filter(behind).collect();
        writeln!(text, "## Where we are not ahead\n")?;
        if missed.is_empty() && behind.is_empty() && self.failed == 0 {
            writeln!(text, "In this run, nowhere.\n")?;
            return Ok(());
        }
        for one in missed {
            let (row, what, ratio, goal) = (one.row, &one.what, one.ratio(), one.goal());
            writeln!(
                text,
                "- `{row}`, {what}: misses its goal ({goal}); ours is {ratio} of the peer's."
            )?;
        }
        for one in behind {
            let (row, what, ratio) = (one.row, &one.what, one.ratio());
            writeln!(
                text,
                "- `{row}`, {what}: behind the peer, {ratio} of its figure."
            )?;
        }
        if self.failed > 0 {
            writeln!(
                text,
                "- {} rows could not be measured; see below.",
                self.failed
            )?;
        }
        writeln!(text)?;
        Ok(())
    }

    fn describe(&mut self, row: &Row, notes: &[String]) {
        let Row {
            name,
            about,
            remark,
            ..
        } = row;
        let text = format!("### {name}\n\n{about} (`cargo xtask bench {name}`). {remark}\n\n");
        self.rows.push_str(&text);
        for note in notes {
            self.rows.push_str(&format!("- {note}\n"));
            self.notes.push(format!("{name}: {note}"));
        }
        self.rows.push('\n');
    }
}

const INTRODUCTION: &str = "\
What `cargo xtask bench` printed: `sqlite-backup` and stock Litestream, measured in turn on one machine
in one run, against one S3 server. `cargo xtask bench --write` makes this page again. Ratios are ours
over the peer's, smaller is better in all rows; times of one machine mean little on another one.
";

const SETTINGS: &str = "\
- both read the same configuration file: one S3 replica for each database, `sync-interval: 1s`, and the
  defaults of each program for everything else, unless a row says otherwise
- each program has a proxy of its own before the server, which counts requests and forwards bytes
  unchanged; proxies and server share the cores with what is measured
- the application is another process: WAL mode, `synchronous=NORMAL`, automatic checkpoints; rows
  are random to one half, so that they compress to a little over half of their size
- after each restore the rows are compared with the source, and `integrity_check` runs, untimed
";

fn line(command: &mut Command) -> Result<String> {
    let text = output(command)?;
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(", ")
}

fn memory_gib(meminfo: &str) -> f64 {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.trim().split(' ').next()?.parse::<f64>().ok());
    kib.unwrap_or_default() / f64::from(1 << 20)
}

fn model(cpuinfo: &str) -> String {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"));
    let value = line.and_then(|line| line.split_once(':'));
    value.map_or("unknown", |(_, name)| name.trim()).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_described_from_what_the_kernel_says() {
        assert_eq!(
            memory_gib("MemTotal:       8388608 kB\nMemFree: 1 kB\n"),
            8.0
        );
        assert_eq!(memory_gib(""), 0.0);
        assert_eq!(model("processor: 0\nmodel name\t: A B\n"), "A B");
        assert_eq!(model("nothing"), "unknown");
    }
}
