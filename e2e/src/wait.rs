//! Waits for external events by polling, up to a deadline.

use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Time between two polls.
const INTERVAL: Duration = Duration::from_millis(200);

/// Polls with `probe` until it returns a value, and returns that.
///
/// `Ok(None)` and errors both mean "not yet": an API server that is starting or has lost a
/// connection is part of the tests. After the deadline, the last error is in the message.
///
/// # Errors
/// When `deadline` has passed; the message starts with `description`.
pub fn wait_for<T>(
    description: impl Display,
    deadline: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        let last = match probe() {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => "it has not happened".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        if start.elapsed() >= deadline {
            bail!("waited {deadline:?} for {description}: {last}");
        }
        thread::sleep(INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn what_is_found_at_a_later_look_is_returned() {
        let mut answers = vec![Ok(Some(7)), Err(anyhow!("not ready")), Ok(None)];
        let found = wait_for("seven", Duration::from_secs(60), || answers.pop().unwrap());
        assert_eq!(found.unwrap(), 7);
    }

    #[test]
    fn the_last_error_is_told_when_time_is_up() {
        let error = wait_for::<()>("a Pod", Duration::ZERO, || Err(anyhow!("refused")));
        assert_eq!(
            error.unwrap_err().to_string(),
            "waited 0ns for a Pod: refused"
        );
    }
}
