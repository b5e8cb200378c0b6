//! `cargo xtask e2e`

use std::process::Command;

use anyhow::Result;
use xtask::process;

/// Everything goes to the program `e2e`, which knows its own arguments.
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

/// The program `e2e` with this subcommand, built first if need be.
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
