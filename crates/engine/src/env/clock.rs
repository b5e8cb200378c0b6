//! The clock of the machine, which may be wrong and may jump.

use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

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

/// Milliseconds since the Unix epoch by the system's clock at the start of the process, and by the time
/// that has passed since: for ages, which must not follow a clock that is set.
pub fn steady_ms() -> i64 {
    static START: LazyLock<(Instant, i64)> = LazyLock::new(|| (Instant::now(), unix_ms()));
    #[cfg(test)]
    if let Some(now_ms) = super::simulated::now_ms() {
        return now_ms;
    }
    let (start, start_ms) = *START;
    start_ms.saturating_add(i64::try_from(start.elapsed().as_millis()).unwrap_or(i64::MAX))
}
