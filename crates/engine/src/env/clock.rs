//! Clocks: that of the machine may be wrong and may jump.

use std::fmt::Debug;
use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The clocks of the machine that the engine runs on.
pub trait Clock: Debug + Send + Sync {
    /// As [`unix_ms`].
    fn unix_ms(&self) -> i64;

    /// As [`steady_ms`].
    fn steady_ms(&self) -> i64;
}

/// The clocks of the system.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn unix_ms(&self) -> i64 {
        unix_ms()
    }

    fn steady_ms(&self) -> i64 {
        steady_ms()
    }
}

/// Milliseconds since the Unix epoch, by the system's clock.
pub fn unix_ms() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Milliseconds since the Unix epoch by the system's clock at the start of the process, and by the time
/// that has passed since: for ages, which must not follow a clock that is set.
pub fn steady_ms() -> i64 {
    static START: LazyLock<(Instant, i64)> = LazyLock::new(|| (Instant::now(), unix_ms()));
    let (start, start_ms) = *START;
    start_ms.saturating_add(i64::try_from(start.elapsed().as_millis()).unwrap_or(i64::MAX))
}
