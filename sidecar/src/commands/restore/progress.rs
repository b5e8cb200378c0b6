//! Progress of restores: bars on a terminal, log lines everywhere else.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::args::LogFormat;

/// Time before the first log line about one restore, and between two lines.
const LINE_PAUSE: Duration = Duration::from_secs(5);

/// Output for the progress of restores.
pub struct Progress {
    /// `None`: log lines.
    bars: Option<MultiProgress>,
}

/// Progress of one database.
pub struct Step {
    database: String,
    form: Form,
}

enum Form {
    Bar(ProgressBar),
    /// Time at which the next line is due.
    Lines(Mutex<Instant>),
}

impl Progress {
    /// Selects bars for a terminal, and lines for programs and files.
    pub fn new(json: bool, log: LogFormat) -> Progress {
        let is_watched = std::io::stderr().is_terminal() && !json && log == LogFormat::Text;
        Progress {
            bars: is_watched.then(MultiProgress::new),
        }
    }

    /// Begins the progress of one database.
    pub fn of(&self, database: &Path) -> Step {
        let form = match &self.bars {
            Some(bars) => Form::Bar(bars.add(bar(database))),
            None => Form::Lines(Mutex::new(Instant::now() + LINE_PAUSE)),
        };
        Step {
            database: database.display().to_string(),
            form,
        }
    }
}

impl Step {
    /// Shows the number of bytes read and the total number.
    pub fn show(&self, done: u64, total: u64) {
        match &self.form {
            Form::Bar(bar) => {
                bar.set_length(total);
                bar.set_position(done);
            }
            Form::Lines(next) => {
                let mut next = next.lock().unwrap_or_else(PoisonError::into_inner);
                if is_due(&mut next, Instant::now()) {
                    let database = self.database.as_str();
                    tracing::info!(database, bytes = done, of = total, "restoring");
                }
            }
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Form::Bar(bar) = &self.form {
            bar.finish_and_clear();
        }
    }
}

/// Returns whether a line is due; if so, schedules the next one.
fn is_due(next: &mut Instant, now: Instant) -> bool {
    let due = now >= *next;
    if due {
        *next = now + LINE_PAUSE;
    }
    due
}

fn bar(database: &Path) -> ProgressBar {
    let template = "{prefix} {bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    let style = ProgressStyle::with_template(template);
    let style = style.expect("the template is a constant that works");
    let name = database.file_name().unwrap_or_default().to_string_lossy();
    ProgressBar::no_length()
        .with_style(style)
        .with_prefix(name.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_now_and_then_and_not_for_a_short_restore() {
        let start = Instant::now();
        let mut next = start + LINE_PAUSE;
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let told: Vec<u64> = (0..20).filter(|n| is_due(&mut next, at(*n))).collect();
        assert_eq!(told, [5, 10, 15]);
    }
}
