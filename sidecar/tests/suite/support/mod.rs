//! Processes, databases and stores for the tests.

pub mod bucket;
pub mod database;
pub mod monitor;
pub mod place;
pub mod process;
pub mod sidecar;
pub mod writer;

use std::time::{Duration, Instant};

/// Longest wait for any event that a busy machine may delay.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `look` returns a value.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "timeout: {what}");
        std::thread::sleep(Duration::from_millis(20)); // bounded: polls until a deadline
    }
}
