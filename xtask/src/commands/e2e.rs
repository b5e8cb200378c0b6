//! `cargo xtask e2e`

use std::process::Command;

use anyhow::Result;
use xtask::process;

/// Passed unchanged to the program `e2e`, which parses them.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Arguments of `e2e run`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Runs the end-to-end tests.
pub(crate) fn run(args: &Args) -> Result<()> {
    process::run(program("run").args(&args.arguments))
}

/// Returns the program `e2e` with this subcommand, which is built first if necessary.
pub(super) fn program(subcommand: &str) -> Command {
    let mut command = process::cargo();
    command.args([
        "run",
        "--quiet",
        "--locked",
        "--package",
        "e2e",
        "--",
        subcommand,
    ]);
    command
}
