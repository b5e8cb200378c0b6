//! `replicate --exec`: runs an application as a child process, and ends when it ends.

use std::cell::Cell;
use std::rc::Rc;

use protocol::exit::ExitCode;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use crate::failure::Failure;

/// Splits a command as a shell does, including quotes. Nothing is expanded.
///
/// # Errors
///
/// The command is empty, or a quote is not closed.
pub fn parse(command: &str) -> Result<Vec<String>, Failure> {
    let words = shell_words::split(command)
        .map_err(|error| Failure::message(ExitCode::Usage, format!("exec {command:?}: {error}")))?;
    if words.is_empty() {
        return Err(Failure::message(ExitCode::Usage, "exec: give a command"));
    }
    Ok(words)
}

/// The process ID of the child, while it runs.
#[derive(Clone, Default)]
pub struct Running(Rc<Cell<Option<Pid>>>);

impl Running {
    /// Kills the child without warning: without us, its commits would not be stored.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.0.get() {
            // This fails only when the child has just ended.
            let _signalled = kill_process(pid, signal);
        }
    }
}

/// A started child, killed when dropped.
pub struct Application {
    child: Child,
    running: Running,
}

/// Starts the application and records it in `running`.
///
/// # Errors
///
/// The program does not exist, or cannot be run.
pub fn start(words: Vec<String>, running: &Running) -> Result<Application, Failure> {
    let (program, arguments) = words.split_first().expect("a parsed command has a word");
    let started = Command::new(program)
        .args(arguments)
        .kill_on_drop(true)
        .spawn();
    let child = started
        .map_err(|error| Failure::message(ExitCode::Usage, format!("exec {program}: {error}")))?;
    let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
    running.0.set(pid);
    Ok(Application {
        child,
        running: running.clone(),
    })
}

/// Returns our exit code after a child that ended with `code`. It is the child's code, unless the
/// child succeeded and some commits could not be stored.
///
/// # Errors
///
/// The child succeeded, but not everything is stored.
pub fn answer(
    code: u8,
    stored: Result<ExitCode, Failure>,
) -> Result<std::process::ExitCode, Failure> {
    match stored {
        Err(failure) if code == 0 => Err(failure),
        Err(failure) => {
            tracing::error!(code = failure.code as u8, "{failure}");
            Ok(code.into())
        }
        Ok(_) => Ok(code.into()),
    }
}

/// Waits until the child has ended by itself, forever without a child. Returns the exit code that a
/// shell would return.
pub async fn ended(application: &mut Option<Application>) -> u8 {
    match application {
        Some(application) => code(application).await,
        None => std::future::pending().await,
    }
}

/// Forwards SIGTERM and waits.
pub async fn end(application: Option<Application>) -> Option<u8> {
    let mut application = application?;
    application.running.signal(Signal::TERM);
    Some(code(&mut application).await)
}

async fn code(application: &mut Application) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let ended = application.child.wait().await;
    // From now on its process ID may belong to another process.
    application.running.0.set(None);
    let Ok(status) = ended else {
        return u8::MAX;
    };
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok())
        .unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_split_as_a_shell_does_and_nothing_is_expanded() {
        let words = parse("app --name 'two words' $HOME").unwrap();
        assert_eq!(words, ["app", "--name", "two words", "$HOME"]);
        for wrong in ["", "  ", "app 'open"] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
