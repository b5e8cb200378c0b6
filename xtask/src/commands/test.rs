//! `cargo xtask test`: all required checks.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use xtask::apiserver::ApiServer;
use xtask::process::{announce, cargo, run};
use xtask::tools::{LITESTREAM_VERSIONS, Tools};
use xtask::workspace;

use super::{e2e, tidy};

/// Parts to run.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run only parts whose names contain this.
    #[arg(default_value = "")]
    filter: String,
}

/// One part of the checks.
struct Part {
    name: &'static str,
    run: fn() -> Result<()>,
}

const PARTS: &[Part] = &[
    Part {
        name: "tools",
        run: tools,
    },
    Part {
        name: "format",
        run: format,
    },
    Part {
        name: "tidy",
        run: tidy::run,
    },
    Part {
        name: "clippy",
        run: clippy,
    },
    Part {
        name: "unit, property, store, engine, compatibility",
        run: tests,
    },
    Part {
        name: "helm lint",
        run: helm_lint,
    },
    Part {
        name: "e2e",
        run: end_to_end,
    },
];

/// Runs the parts in order, continues after a failure, and prints a summary.
pub(crate) fn run_all(args: &Args) -> Result<()> {
    let mut results = Vec::new();
    for part in PARTS.iter().filter(|part| part.name.contains(&args.filter)) {
        announce(&format!("test: {}", part.name));
        let start = Instant::now();
        let result = (part.run)();
        if let Err(error) = &result {
            eprintln!("==> {} failed: {error:#}", part.name);
        }
        results.push((part.name, result.is_ok(), start.elapsed()));
    }
    summary(&results)
}

fn summary(results: &[(&str, bool, Duration)]) -> Result<()> {
    println!("\n{:<48} {:<8} {:>8}", "part", "result", "seconds");
    for (name, passed, time) in results {
        let verdict = if *passed { "ok" } else { "FAILED" };
        println!("{name:<48} {verdict:<8} {:>8.1}", time.as_secs_f64());
    }
    let passed = results.iter().filter(|(_, passed, _)| *passed).count();
    let failed = results.len() - passed;
    println!("\n{passed} passed, {failed} failed");
    if failed > 0 || results.is_empty() {
        bail!("{failed} of {} parts failed", results.len());
    }
    Ok(())
}

fn tools() -> Result<()> {
    Tools::new().ensure()
}

fn format() -> Result<()> {
    run(cargo().args(["fmt", "--all", "--check"]))
}

fn clippy() -> Result<()> {
    let arguments = [
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "-D",
        "warnings",
    ];
    run(cargo().args(arguments))
}

/// All of cargo's tests, with the real servers and peers that they need.
fn tests() -> Result<()> {
    let server = ApiServer::start(&Tools::new())?;
    let mut command = cargo();
    command
        .args(["test", "--workspace", "--locked", "--no-fail-fast"])
        .env("API_SERVER_KUBECONFIG", server.kubeconfig());
    run(with_tools(&mut command)?)
}

fn with_tools(command: &mut Command) -> Result<&mut Command> {
    let tools = Tools::new();
    command
        .env("WEED_BIN", tools.weed()?)
        .env("HELM_BIN", format!("{} helm", tools.cluster()?.display()))
        .env("AWS_EC2_METADATA_DISABLED", "true");
    for version in LITESTREAM_VERSIONS {
        let name = format!("LITESTREAM_{}_BIN", version.replace('.', "_"));
        command.env(name, tools.litestream(version)?);
    }
    Ok(command)
}

fn helm_lint() -> Result<()> {
    let chart = workspace::root().join("charts/sqlite-backup-operator");
    run(Command::new(Tools::new().cluster()?)
        .args(["helm", "lint", "--strict"])
        .arg(chart))
}

fn end_to_end() -> Result<()> {
    run(&mut e2e::program("run"))
}
