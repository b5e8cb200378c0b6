//! How far restores are: bars on a terminal, lines of the log everywhere else.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::args::LogFormat;

/// Time before the first line of the log about one restore, and between two.
const LINE_PAUSE: Duration = Duration::from_secs(5);

/// Where progress is shown.
pub struct Progress {
    /// None: in the log.
    bars: Option<MultiProgress>,
}

/// How far one database is.
pub struct Step {
    database: String,
    form: Form,
}

enum Form {
    Bar(ProgressBar),
    /// When the next line is due.
    Lines(Mutex<Instant>),
}

impl Progress {
    /// Bars for people who watch, lines for programs and files.
    pub fn new(json: bool, log: LogFormat) -> Progress {
        let is_watched = std::io::stderr().is_terminal() && !json && log == LogFormat::Text;
        Progress {
            bars: is_watched.then(MultiProgress::new),
        }
    }

    /// Begins with a database.
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
    /// Tells bytes read and bytes to read.
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

/// Whether a line is due, and if so, when the next one is.
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
