//! Log lines on standard error.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::args::{LogArguments, LogFormat};
use crate::config::LogSettings;

/// Sets up logging for the life of the process. The command line wins over the configuration.
pub fn init(arguments: &LogArguments, configured: LogSettings) {
    let level = arguments.log_level.or(configured.level);
    let level = level.unwrap_or(tracing::Level::INFO);
    let builder = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::from_level(level))
        .with_span_events(FmtSpan::NONE)
        .with_target(false)
        .with_file(configured.source)
        .with_line_number(configured.source)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match arguments.log_format.or(configured.format) {
        Some(LogFormat::Json) => builder.json().flatten_event(true).init(),
        _ => builder.init(),
    }
}
