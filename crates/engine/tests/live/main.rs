//! The engine against real SQLite, real files and an application in a process of its own.
//!
//! `ENGINE_TEST_SEED=N` repeats a run; each test prints the seed that it used.

#![expect(
    clippy::unwrap_used,
    reason = "all of it is tests; clippy knows only functions that are"
)]

mod app;
mod away;
mod bench;
mod bounds;
mod chaos;
mod closing;
mod faults;
mod gated;
mod habits;
mod lag;
mod large;
mod snapshots;
mod writers;

/// Not a test: the application process, if this process was started as one.
#[test]
fn application() {
    app::serve_if_asked();
}

/// True in a process in which the named test runs alone; elsewhere starts one and waits for it.
fn alone(test: &str) -> bool {
    const VARIABLE: &str = "ENGINE_TEST_ALONE";
    if std::env::var_os(VARIABLE).is_some() {
        return true;
    }
    let ended = std::process::Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(VARIABLE, "1")
        .status();
    assert!(ended.unwrap().success());
    false
}
