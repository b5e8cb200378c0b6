//! Times in user metadata, as Go's `time.RFC3339Nano` writes them in UTC.

use jiff::Timestamp;

/// Formats the time with no more fraction digits than needed. `None` outside the years that the
/// format can express.
pub(super) fn format(timestamp_ms: i64) -> Option<String> {
    Some(Timestamp::from_millisecond(timestamp_ms).ok()?.to_string())
}

/// Parses the time into milliseconds since 1970. Invalid metadata counts as absent, as in
/// Litestream.
pub(super) fn parse(text: &str) -> Option<i64> {
    Some(text.parse::<Timestamp>().ok()?.as_millisecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_go_writes_them() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (1_700_000_000_000, "2023-11-14T22:13:20Z"),
            (1_700_000_000_500, "2023-11-14T22:13:20.5Z"),
            (1_700_000_000_120, "2023-11-14T22:13:20.12Z"),
            (1_700_000_000_007, "2023-11-14T22:13:20.007Z"),
        ] {
            assert_eq!(format(ms).as_deref(), Some(text));
            assert_eq!(parse(text), Some(ms));
        }
    }

    #[test]
    fn times_of_other_writers_are_read_and_nonsense_is_not() {
        assert_eq!(
            parse("2023-11-14T23:13:20.123456789+01:00"),
            Some(1_700_000_000_123)
        );
        assert_eq!(parse("yesterday"), None);
        assert_eq!(format(i64::MAX), None);
    }
}
