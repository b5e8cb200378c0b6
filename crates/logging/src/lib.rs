//! The log of both programs. One set-up for the operator and the sidecar gives both one shape.
//!
//! A JSON line is one object with these keys:
//!
//! | key | value |
//! | --- | --- |
//! | `timestamp` | RFC 3339 time in UTC, with microseconds |
//! | `level` | `ERROR`, `WARN`, `INFO`, `DEBUG` or `TRACE` |
//! | `message` | constant text of the event |
//! | `target` | module of the event |
//! | `spans` | the object in work, outermost span first, each with `name` and its own fields; absent without spans |
//! | `filename`, `line_number` | source of the event; only with [`Settings::source`] |
//! | any other | a field of the event |
//!
//! An error is the field `error`, recorded as `error = %logging::chain(&error)`: the error and its
//! causes in one string. No event has a field `target`, and no span a field `name`: a line would
//! have the key twice.

use std::error::Error;
use std::fmt;
use std::io::IsTerminal;

use tracing::Dispatch;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;

/// Prefix of the crates that trace each request with all its headers, so with session tokens and
/// customer keys.
const TELLS_SECRETS: &str = "aws_";

/// Form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// Text for people.
    Text,
}

/// Set-up of the log.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Least severe level that is logged.
    pub level: LevelFilter,
    /// Form of log lines.
    pub format: Format,
    /// Whether each line names the source file and line.
    pub source: bool,
}

/// Logs to standard error for the life of the process. Text is coloured on a terminal.
///
/// # Panics
/// When the process has a log already: call it once, first of all.
pub fn init(settings: Settings) {
    let ansi = std::io::stderr().is_terminal();
    let dispatch = dispatch(settings, ansi, std::io::stderr);
    tracing::dispatcher::set_global_default(dispatch).expect("the log is set up once");
}

/// Logs to `writer`, which tests read.
pub fn dispatch<W>(settings: Settings, ansi: bool, writer: W) -> Dispatch
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let level = settings.level;
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_file(settings.source)
        .with_line_number(settings.source)
        // Otherwise a log that cannot be written would panic.
        .log_internal_errors(false)
        .with_ansi(ansi)
        .with_writer(writer);
    let filter = Targets::new()
        .with_default(level)
        .with_target(TELLS_SECRETS, level.min(LevelFilter::DEBUG));
    match settings.format {
        Format::Json => {
            let json = builder.json().flatten_event(true).with_current_span(false);
            Dispatch::new(json.finish().with(filter))
        }
        Format::Text => Dispatch::new(builder.with_target(false).finish().with(filter)),
    }
}

/// Shows an error and its causes, outermost first and joined by `: `. A cause whose text the errors
/// before it contain is left out.
pub fn chain<'a>(error: &'a (dyn Error + 'static)) -> Chain<'a> {
    Chain(error)
}

/// An error with its causes; see [`chain`].
#[derive(Debug, Clone, Copy)]
pub struct Chain<'a>(&'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = self.0.to_string();
        let mut error = self.0;
        while let Some(cause) = error.source() {
            let text = cause.to_string();
            if !shown.contains(&text) {
                shown.push_str(": ");
                shown.push_str(&text);
            }
            error = cause;
        }
        f.write_str(&shown)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use serde_json::Value;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Fault {
        #[error("read the lease")]
        Lease(#[source] Box<Fault>),
        #[error("request failed: connection refused")]
        Request(#[source] std::io::Error),
    }

    fn fault() -> Fault {
        let refused = std::io::Error::other("connection refused");
        Fault::Lease(Box::new(Fault::Request(refused)))
    }

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("no panic holds it").write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: Format, work: impl FnOnce()) -> String {
        let lines = Lines::default();
        let settings = Settings {
            level: LevelFilter::TRACE,
            format,
            source: false,
        };
        let writer = lines.clone();
        let dispatch = dispatch(settings, false, move || writer.clone());
        tracing::dispatcher::with_default(&dispatch, work);
        let bytes = lines.0.lock().expect("no panic holds it").clone();
        String::from_utf8(bytes).expect("lines are text")
    }

    #[test]
    fn a_json_line_has_its_fields_beside_the_message_and_its_spans_in_order() {
        let line = logged(Format::Json, || {
            let object = tracing::info_span!("backup", namespace = "shop", object = "orders");
            let _object = object.entered();
            let _target = tracing::info_span!("target", replica = "primary").entered();
            tracing::warn!(attempt = 2, error = %chain(&fault()), "not stored");
        });
        let line: Value = serde_json::from_str(&line).expect("a line is JSON");
        let keys: Vec<&str> = (line.as_object().into_iter())
            .flat_map(|line| line.keys().map(String::as_str))
            .collect();
        let expected = [
            "attempt",
            "error",
            "level",
            "message",
            "spans",
            "target",
            "timestamp",
        ];
        assert_eq!(keys, expected);
        assert_eq!(
            (&line["level"], &line["message"]),
            (&"WARN".into(), &"not stored".into())
        );
        assert_eq!(line["attempt"], 2);
        let chain = "read the lease: request failed: connection refused";
        assert_eq!(line["error"], chain);
        let spans = serde_json::json!([
            {"name": "backup", "namespace": "shop", "object": "orders"},
            {"name": "target", "replica": "primary"},
        ]);
        assert_eq!(line["spans"], spans);
    }

    #[test]
    fn text_shows_the_message_the_fields_and_the_spans() {
        let line = logged(Format::Text, || {
            let _span = tracing::info_span!("backup", namespace = "shop").entered();
            tracing::info!(error = %chain(&fault()), "not stored");
        });
        for part in [
            "INFO",
            "backup{namespace=\"shop\"}",
            "not stored",
            "error=read the lease: ",
        ] {
            assert!(line.contains(part), "{part} in {line}");
        }
    }

    #[test]
    fn requests_of_the_cloud_sdk_are_not_traced() {
        let lines = logged(Format::Json, || {
            tracing::trace!(target: "aws_smithy_runtime", "a request with all its headers");
            tracing::debug!(target: "aws_smithy_runtime", "a request");
        });
        assert_eq!(lines.lines().count(), 1, "{lines}");
    }
}
