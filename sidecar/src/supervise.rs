//! The parent of the worker in a container. It never ends before SIGTERM.
//!
//! A native sidecar in restart back-off makes its whole Pod unready. So the container's first
//! process keeps running, and restarts the worker whenever it ends.

use std::process::{Command, ExitCode, ExitStatus};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{Signal as OsSignal, SignalKind, signal};

/// Pause after a first unexpected end; doubles up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(200);
/// Longest pause between two starts.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// A worker that ran this long starts again at once.
const STABLE: Duration = Duration::from_secs(60);

/// Runs this program again without `--supervise`, until a signal ends this process.
pub fn run() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("the system gives a process its first descriptors");
    runtime.block_on(supervise())
}

async fn supervise() -> ExitCode {
    let mut terminate = signal(SignalKind::terminate()).expect("SIGTERM can be handled");
    let mut interrupt = signal(SignalKind::interrupt()).expect("SIGINT can be handled");
    let mut hangup = signal(SignalKind::hangup()).expect("SIGHUP can be handled");
    let mut pause = MIN_PAUSE;
    loop {
        let started = tokio::time::Instant::now();
        let mut child = match tokio::process::Command::from(worker())
            .kill_on_drop(true)
            .spawn()
        {
            Ok(child) => child,
            Err(error) => {
                tracing::error!(%error, "the worker cannot be started; it is tried again");
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    _ = terminate.recv() => return ExitCode::SUCCESS,
                    _ = interrupt.recv() => return ExitCode::SUCCESS,
                }
                pause = (pause * 2).min(MAX_PAUSE);
                continue;
            }
        };
        let status = loop {
            tokio::select! {
                status = child.wait() => break status,
                _ = terminate.recv() => return end(child, [&mut terminate, &mut interrupt]).await,
                _ = interrupt.recv() => return end(child, [&mut terminate, &mut interrupt]).await,
                _ = hangup.recv() => pass(&child, Signal::HUP),
            }
        };
        if started.elapsed() >= STABLE {
            pause = MIN_PAUSE;
        }
        tracing::error!(
            "the worker ended ({}); it starts again in {pause:?}",
            show(&status)
        );
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // The next worker reads the configuration anyway.
            _ = hangup.recv() => {}
            _ = terminate.recv() => return ExitCode::SUCCESS,
            _ = interrupt.recv() => return ExitCode::SUCCESS,
        }
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

fn pass(child: &tokio::process::Child, signal: Signal) {
    if let Some(pid) = child.id().and_then(|pid| Pid::from_raw(pid as i32)) {
        // This fails only when the worker has just ended.
        let _signalled = kill_process(pid, signal);
    }
}

/// Forwards the signal and waits: the worker stores its captured commits and ends. Further signals
/// are forwarded, too: with the second one it ends at once.
async fn end(
    mut child: tokio::process::Child,
    [terminate, interrupt]: [&mut OsSignal; 2],
) -> ExitCode {
    pass(&child, Signal::TERM);
    let status = loop {
        tokio::select! {
            status = child.wait() => break status,
            _ = terminate.recv() => pass(&child, Signal::TERM),
            _ = interrupt.recv() => pass(&child, Signal::TERM),
        }
    };
    match status {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(status) => ExitCode::from(
            status
                .code()
                .and_then(|code| u8::try_from(code).ok())
                .unwrap_or(1),
        ),
        Err(_) => ExitCode::FAILURE,
    }
}

fn worker() -> Command {
    let program = std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1).map(|argument| {
        if argument == "--supervise" {
            "--worker".into()
        } else {
            argument
        }
    }));
    command
}

fn show(status: &std::io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    }
}
