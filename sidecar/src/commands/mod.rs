//! One module for each command.

mod inspect;
mod replicate;
mod restore;
mod status;
mod verify;

use protocol::exit::ExitCode;

pub use replicate::{Shown, ShownDatabase};

use crate::args::{Arguments, Command, DecryptArguments, LogFormat};
use crate::failure::Failure;
use crate::signals::EndSignals;

/// Runs the requested command; `log` is the format of the log.
///
/// # Errors
///
/// The command's, or a signal that ended it.
pub async fn run(arguments: Arguments, log: LogFormat) -> Result<std::process::ExitCode, Failure> {
    let mut signals = EndSignals::new()?;
    let command = match arguments.command {
        Command::Replicate(arguments) => return replicate::run(arguments, signals).await,
        command => command,
    };
    // A dropped command removes its temporary files and leaves everything else unchanged.
    tokio::select! {
        result = one_shot(command, log) => result.map(Into::into),
        () = signals.recv() => {
            let message = "ended by a signal before it was done; what was not restored yet is as it was";
            Err(Failure::message(ExitCode::Timeout, message))
        }
    }
}

async fn one_shot(command: Command, log: LogFormat) -> Result<ExitCode, Failure> {
    match command {
        Command::Replicate(_) => unreachable!("it handles signals in its own way"),
        Command::Restore(arguments) => restore::run(arguments, log).await,
        Command::Verify(arguments) => verify::run(arguments).await,
        Command::Inspect(arguments) => inspect::run(arguments).await,
        Command::Status(arguments) => status::run(arguments).await,
        Command::Decrypt(arguments) => Err(decrypt(&arguments)),
    }
}

fn decrypt(arguments: &DecryptArguments) -> Failure {
    let message = format!(
        "{}: encryption is not served yet, so no replica needs decrypt; restore reads it as it \
         is (nothing was written to {})",
        arguments.url,
        arguments.directory.display()
    );
    Failure::message(ExitCode::Usage, message)
}
