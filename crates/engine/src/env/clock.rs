//! The clock of the machine, which may be wrong and may jump.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch, by the system's clock.
pub fn unix_ms() -> i64 {
    #[cfg(test)]
    if let Some(now_ms) = super::simulated::now_ms() {
        return now_ms;
    }
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
