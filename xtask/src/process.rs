//! Runs other programs, with errors that show the failed program and its output.

use std::ffi::OsStr;
use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::workspace;

/// Prints one line about a step that may take some time.
pub fn announce(message: &str) {
    eprintln!("==> {message}");
}

/// Returns a cargo that does not detect that cargo started us.
///
/// Some build scripts run again when cargo's variables about the *calling* package differ, and all
/// their dependents are then built again.
pub fn cargo() -> Command {
    let mut command = Command::new("cargo");
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_"]
            .iter()
            .any(|prefix| text.starts_with(prefix))
        {
            command.env_remove(&name);
        }
    }
    command.current_dir(workspace::root());
    command
}

/// Runs a program with our own input and output, and fails unless it exits with 0.
pub fn run(command: &mut Command) -> Result<()> {
    let line = line(command);
    let status = command
        .status()
        .with_context(|| format!("start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    Ok(())
}

/// Runs a program without input and returns its standard output.
///
/// # Errors
/// When it cannot be started or exits with anything except 0; its output is in the message.
pub fn output(command: &mut Command) -> Result<String> {
    output_with_input(command, b"")
}

/// Runs a program with this input and returns its standard output.
///
/// # Errors
/// When it cannot be started or exits with anything except 0; its output is in the message.
pub fn output_with_input(command: &mut Command, input: &[u8]) -> Result<String> {
    let line = line(command);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start `{line}`"))?;
    let mut stdin = child.stdin.take().expect("standard input is a pipe");
    // Write concurrently with the read: otherwise a program that answers while it reads would
    // deadlock.
    let output = std::thread::scope(|scope| {
        // A program that does not read its input may close it.
        scope.spawn(move || stdin.write_all(input).ok());
        child.wait_with_output()
    })
    .with_context(|| format!("wait for `{line}`"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("`{line}` failed: {}\n{}{}", output.status, stderr, stdout);
    }
    Ok(stdout)
}

/// Returns the command line for people. It is not quoted for a shell.
fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}
