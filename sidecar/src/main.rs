//! `sqlite-backup`: sidecar, init container, restore test Job, and a command line for people.

mod args;
mod commands;
mod config;
mod descriptors;
mod failure;
mod heartbeat;
mod log;
mod memory;
mod metrics;
mod near;
mod server;
mod signals;
mod supervise;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Arguments, Command};
use crate::config::LogSettings;
use crate::failure::Failure;

fn main() -> ExitCode {
    memory::configure();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // This fails only when the terminal is gone.
            let _printed = error.print();
            let wrong = error.use_stderr();
            return if wrong {
                protocol::exit::ExitCode::Usage
            } else {
                protocol::exit::ExitCode::Done
            }
            .into();
        }
    };
    let log = log::init(&arguments.log, configured_log(&arguments.command));
    if let Command::Replicate(replicate) = &arguments.command
        && replicate.supervise
    {
        return supervise::run();
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("the system gives a process its first descriptors");
    // Everything runs on this thread, so spawned tasks need not be `Send`.
    let local = tokio::task::LocalSet::new();
    let result = local.block_on(&runtime, commands::run(arguments, log));
    // Blocking reads of a dead disk must not keep a finished process alive.
    runtime.shutdown_background();
    match result {
        Ok(code) => code,
        Err(failure) => {
            report(&failure);
            failure.code.into()
        }
    }
}

/// Returns the log settings of the configuration. The command itself reports errors in it.
fn configured_log(command: &Command) -> LogSettings {
    let config = command
        .config()
        .and_then(|file| config::read(file, &args::variable).ok());
    config
        .and_then(|config| config::log_settings(&config).ok())
        .unwrap_or_default()
}

fn report(failure: &Failure) {
    tracing::error!(code = failure.code as u8, "{failure:#}");
}
