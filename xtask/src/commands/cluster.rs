//! `cargo xtask cluster up` and `cargo xtask cluster down`

use anyhow::Result;
use clap::Subcommand;
use xtask::process;

use super::e2e;

/// Direction.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Start a cluster that stays, with the images and an S3 server, and print how to reach it.
    Up,
    /// Remove every cluster of this checkout, and the remains of killed test runs.
    Down,
}

/// Starts a cluster, or removes all.
pub(crate) fn run(args: &Args) -> Result<()> {
    match args.action {
        Action::Up => process::run(&mut e2e::program("up")),
        Action::Down => process::run(&mut e2e::program("down")),
    }
}
