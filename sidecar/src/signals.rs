//! SIGTERM and SIGINT, which the kernel ignores for a container's first process unless it asks.

use protocol::exit::ExitCode;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::failure::Failure;

/// The two signals that end us.
pub struct EndSignals {
    terminate: Signal,
    interrupt: Signal,
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
        })
    }

    /// Waits for the next one.
    pub async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// A value that turns true with the first signal. The second one ends the process at once.
    pub fn watch(mut self) -> watch::Receiver<bool> {
        let (sender, receiver) = watch::channel(false);
        tokio::spawn(async move {
            self.recv().await;
            tracing::info!("stopping: the last commits are stored first");
            sender.send_replace(true);
            self.recv().await;
            std::process::exit(ExitCode::Timeout as i32);
        });
        receiver
    }
}
