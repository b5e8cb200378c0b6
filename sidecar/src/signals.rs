//! Handles SIGTERM and SIGINT, which the kernel does not deliver to a container's first process
//! unless it has a handler. SIGHUP requests a new read of the configuration.

use protocol::exit::ExitCode;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::failure::Failure;

/// The signals that end this process.
pub struct EndSignals {
    terminate: Signal,
    interrupt: Signal,
    /// SIGHUP for a process without a configuration file: its terminal was closed.
    hangup: Hangups,
}

/// SIGHUP, if it is handled.
pub struct Hangups(Option<Signal>);

impl Hangups {
    /// Handles the signal from now on, if `wanted`.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub fn new(wanted: bool) -> Result<Hangups, Failure> {
        let failed = |error: std::io::Error| Failure::new(ExitCode::LocalIo, error);
        let handled = wanted.then(|| signal(SignalKind::hangup()));
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
            hangup: Hangups(None),
        })
    }

    /// Also handles SIGHUP, unless the parent has ignored it, as nohup does.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub fn and_hangup(self) -> Result<EndSignals, Failure> {
        Ok(EndSignals {
            hangup: Hangups::new(!is_hangup_ignored())?,
            ..self
        })
    }

    /// Waits for the next one.
    pub async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            () = self.hangup.recv() => {}
        }
    }

    /// Returns a value that turns true with the first signal. The second signal ends the process at
    /// once, after a call of `last`.
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

fn is_hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask & 1 << (libc::SIGHUP - 1) != 0)
}
