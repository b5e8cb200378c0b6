//! The project's own commands, the same on every machine: `cargo xtask COMMAND`.

mod commands;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use commands::{bench, cluster, codegen, demo, e2e, images, sim, soak, test, tidy, tools};

/// The project's own commands.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install the tools for the end-to-end tests and the benchmarks, in addition to Rust.
    Tools,
    /// Build the container images of operator, sidecar and demo application.
    Images,
    /// Start or stop a real Kubernetes on this machine.
    Cluster(cluster::Args),
    /// Run the main use case as a story, on a real cluster.
    Demo(demo::Args),
    /// Measure in comparison with released Litestream, on this machine.
    Bench(bench::Args),
    /// Run all required checks.
    Test(test::Args),
    /// Run the engine's writers in a virtual world, from seeds.
    Sim(sim::Args),
    /// Replicate with a very active application while processes are killed.
    Soak(soak::Args),
    /// Check the boundaries and habits that a compiler does not check.
    Tidy,
    /// Write the generated files: crds/ and the chart's copies.
    Codegen,
    /// Run the end-to-end tests; see `cargo xtask e2e --help`.
    #[command(disable_help_flag = true)]
    E2e(e2e::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Tools => tools::run(),
        Command::Images => images::run(),
        Command::Cluster(args) => cluster::run(&args),
        Command::Demo(args) => demo::tell(&args),
        Command::Bench(args) => bench::measure(&args),
        Command::Test(args) => test::run_all(&args),
        Command::Sim(args) => sim::simulate(&args),
        Command::Soak(args) => soak::soak(&args),
        Command::Tidy => tidy::run(),
        Command::Codegen => codegen::write(),
        Command::E2e(args) => e2e::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
