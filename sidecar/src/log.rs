//! Log lines on standard error.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::args::{LogArguments, LogFormat};
use crate::config::LogSettings;

/// Begins the names of crates that trace each request with all its headers, so with session tokens
/// and customer keys.
const TELLS_SECRETS: &str = "aws_";

/// Sets up logging for the life of the process, and says which form it has. The command line wins
/// over the configuration.
pub fn init(arguments: &LogArguments, configured: LogSettings) -> LogFormat {
    let level = arguments.log_level.or(configured.level);
    let level = LevelFilter::from_level(level.unwrap_or(tracing::Level::INFO));
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_span_events(FmtSpan::NONE)
        .with_target(false)
        .with_file(configured.source)
        .with_line_number(configured.source)
        // It would panic: where the log cannot go, nothing can be said about it either.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let filter = Targets::new()
        .with_default(level)
        .with_target(TELLS_SECRETS, level.min(LevelFilter::DEBUG));
    let format = arguments.log_format.or(configured.format);
    let format = format.unwrap_or(LogFormat::Text);
    match format {
        LogFormat::Json => {
            let json = builder.json().flatten_event(true).finish();
            json.with(filter).init();
        }
        LogFormat::Text => builder.finish().with(filter).init(),
    }
    format
}
