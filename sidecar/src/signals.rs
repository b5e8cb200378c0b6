//! SIGTERM and SIGINT, which the kernel ignores for a container's first process unless it asks; and
//! SIGHUP, which asks for a look at the configuration.

use protocol::exit::ExitCode;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::failure::Failure;

/// The signals that end us.
pub struct EndSignals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Option<Signal>,
}

/// SIGHUP of a process that has a file to read again.
pub struct Hangups(Option<Signal>);

impl Hangups {
    /// Handles the signal from now on, if there is a file.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub fn new(has_file: bool) -> Result<Hangups, Failure> {
        let failed = |error: std::io::Error| Failure::new(ExitCode::LocalIo, error);
        let handled = has_file.then(|| signal(SignalKind::hangup()));
        Ok(Hangups(handled.transpose().map_err(failed)?))
    }

    /// Waits for the next one.
    pub async fn recv(&mut self) {
        match &mut self.0 {
            Some(signal) => drop(signal.recv().await),
            None => std::future::pending().await,
        }
    }
}

impl EndSignals {
    /// Handles the signals from now on.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub fn new() -> Result<EndSignals, Failure> {
        let failed = |error: std::io::Error| Failure::new(ExitCode::LocalIo, error);
        Ok(EndSignals {
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
            hangup: None,
        })
    }

    /// SIGHUP, too: the terminal is closed, and there is no file to read again.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub fn and_hangup(self) -> Result<EndSignals, Failure> {
        let hangup = signal(SignalKind::hangup());
        let hangup = hangup.map_err(|error| Failure::new(ExitCode::LocalIo, error))?;
        Ok(EndSignals {
            hangup: Some(hangup),
            ..self
        })
    }

    /// Waits for the next one.
    pub async fn recv(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(signal) => drop(signal.recv().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            () = hangup => {}
        }
    }

    /// A value that turns true with the first signal. The second one ends the process at once,
    /// after `last`.
    pub fn watch(mut self, last: impl FnOnce() + 'static) -> watch::Receiver<bool> {
        let (sender, receiver) = watch::channel(false);
        tokio::task::spawn_local(async move {
            self.recv().await;
            tracing::info!("stopping: the last commits are stored first");
            sender.send_replace(true);
            self.recv().await;
            last();
            std::process::exit(ExitCode::Timeout as i32);
        });
        receiver
    }
}
