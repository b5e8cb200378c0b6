//! `cargo xtask demo`

use std::fs;

use anyhow::{Context as _, Result};
use xtask::process::{output, run};
use xtask::workspace;

use super::e2e;

/// Arguments of the demo.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write the output to docs/demo.md.
    #[arg(long)]
    write: bool,
    /// Arguments of `e2e demo`, such as --kubeconfig.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

const INTRODUCTION: &str = "# The main job, as a story\n\nWhat `cargo xtask demo` printed; \
                            `cargo xtask demo --write` makes this page again.\n";

/// Runs the main use case on a real cluster.
pub(crate) fn tell(args: &Args) -> Result<()> {
    let mut program = e2e::program("demo");
    program.args(&args.arguments);
    if !args.write {
        return run(&mut program);
    }
    let story = output(&mut program)?;
    print!("{story}");
    let page = workspace::root().join("docs/demo.md");
    fs::write(&page, format!("{INTRODUCTION}{story}"))
        .with_context(|| format!("write {}", page.display()))
}
