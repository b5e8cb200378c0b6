//! Lag in coarse steps, so that not every poll rewrites a status.

use std::time::Duration;

/// Steps in seconds. Beyond the last one the steps are whole hours.
const STEPS: [u64; 18] = [
    0, 1, 2, 3, 5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600, 1800, 3600,
];

/// Rounds a lag up to a step, so that it never looks better than it is. A lag below one second is
/// 0.
pub fn step_seconds(lag_ms: u64) -> u64 {
    if lag_ms < 1000 {
        return 0;
    }
    let seconds = lag_ms.div_ceil(1000);
    match STEPS.iter().find(|step| **step >= seconds) {
        Some(step) => *step,
        None => seconds.div_ceil(3600) * 3600,
    }
}

/// Formats a duration for a column in the largest exact unit, such as `45s`, `3m` or `2h`.
pub fn text(seconds: u64) -> String {
    match seconds {
        s if s >= 3600 && s % 3600 == 0 => format!("{}h", s / 3600),
        s if s >= 120 && s % 60 == 0 => format!("{}m", s / 60),
        s => format!("{s}s"),
    }
}

/// Formats a measured duration for a column; below 10 s with tenths of a second.
pub fn measured(ms: u64) -> String {
    match Duration::from_millis(ms) {
        d if d.as_secs() >= 600 => format!("{}m", d.as_secs() / 60),
        d if d.as_secs() >= 10 => format!("{}s", d.as_secs()),
        d => format!("{:.1}s", d.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lag_rounds_up_to_a_step() {
        let steps = [0, 999, 1000, 1001, 3500, 59_000, 61_000, 3_601_000].map(step_seconds);
        assert_eq!(steps, [0, 0, 1, 2, 5, 60, 90, 7200]);
    }

    #[test]
    fn spans_read_well() {
        assert_eq!(
            [0, 5, 90, 120, 3600, 7200].map(text),
            ["0s", "5s", "90s", "2m", "1h", "2h"]
        );
        assert_eq!(
            [0, 1234, 12_345, 660_000].map(measured),
            ["0.0s", "1.2s", "12s", "11m"]
        );
    }
}
