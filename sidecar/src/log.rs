//! Sets up the log lines on standard error: their level and format.

use logging::{Format, Settings};
use tracing::level_filters::LevelFilter;

use crate::args::{LogArguments, LogFormat};
use crate::config::LogSettings;

/// Sets up the log for the lifetime of the process and returns its format. The command line
/// overrides the configuration; the default is `info` as text.
pub fn init(arguments: &LogArguments, configured: LogSettings) -> LogFormat {
    let level = arguments.log_level.or(configured.level);
    let level = level.unwrap_or(tracing::Level::INFO);
    let format = arguments.log_format.or(configured.format);
    let format = format.unwrap_or(LogFormat::Text);
    logging::init(Settings {
        level: LevelFilter::from_level(level),
        format: match format {
            LogFormat::Json => Format::Json,
            LogFormat::Text => Format::Text,
        },
        source: configured.source,
    });
    format
}
