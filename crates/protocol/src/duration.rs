//! Durations as people write them: `1s`, `1h30m`, `1.5h`, `7d`, `2w`, `1 day`, `0`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest span. A time plus a span of this length can still be represented.
const MAX_SPAN: Duration = Duration::from_secs(100 * 366 * 86_400);

/// A length of time in configuration, read from and written as text such as `1h30m`.
///
/// Units: `ns`, `us`, `ms`, `s`, `m`, `h`, `d`, `w` and the words `day`, `days`, `week`, `weeks`.
/// Decimal fractions are allowed, signs are not. A bare `0` is zero; any other bare number is an
/// error, because its unit would be a guess. The longest span is 100 years. The grammar covers Go's
/// `time.ParseDuration` and the texts that the Kubernetes API server accepts for `format:
/// duration`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Span(pub Duration);

/// Error: a text is not a duration.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{text:?} is not a duration of at most 100 years; write a number with a unit, such as 30s, 1h30m or 7d"
)]
pub struct SpanError {
    /// The text as given.
    pub text: String,
}

impl Span {
    /// A span of whole seconds.
    pub const fn from_secs(seconds: u64) -> Span {
        Span(Duration::from_secs(seconds))
    }

    /// The span in whole milliseconds, saturating.
    pub fn as_millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }
}

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Span, SpanError> {
        let error = || SpanError {
            text: text.to_owned(),
        };
        let mut rest = text.trim();
        if rest == "0" {
            return Ok(Span::default());
        }
        if rest.is_empty() {
            return Err(error());
        }
        let mut total = Duration::ZERO;
        while !rest.is_empty() {
            let digits = rest
                .find(|c: char| !c.is_ascii_digit() && c != '.')
                .ok_or_else(error)?;
            let number: f64 = rest[..digits].parse().map_err(|_| error())?;
            rest = rest[digits..].trim_start();
            let letters = rest
                .find(|c: char| !c.is_alphabetic())
                .unwrap_or(rest.len());
            let unit = unit_seconds(&rest[..letters]).ok_or_else(error)?;
            rest = rest[letters..].trim_start();
            let part = Duration::try_from_secs_f64(number * unit).map_err(|_| error())?;
            total = total.checked_add(part).ok_or_else(error)?;
        }
        if total > MAX_SPAN {
            return Err(error());
        }
        Ok(Span(total))
    }
}

fn unit_seconds(unit: &str) -> Option<f64> {
    Some(match unit {
        "ns" => 1e-9,
        "us" | "µs" | "μs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" | "day" | "days" => 86_400.0,
        "w" | "week" | "weeks" => 604_800.0,
        _ => return None,
    })
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut seconds, nanos) = (self.0.as_secs(), self.0.subsec_nanos());
        if seconds == 0 && nanos == 0 {
            return f.write_str("0s");
        }
        for (unit, size) in [("h", 3600), ("m", 60), ("s", 1)] {
            if seconds >= size {
                write!(f, "{}{unit}", seconds / size)?;
                seconds %= size;
            }
        }
        match nanos {
            0 => Ok(()),
            n if n % 1_000_000 == 0 => write!(f, "{}ms", n / 1_000_000),
            n => write!(f, "{n}ns"),
        }
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Span;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as 30s")
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Span, E> {
                // Zero has no unit. Any other number is refused like its text.
                number.to_string().parse().map_err(E::custom)
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Span, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(text: &str) -> Option<u64> {
        text.parse::<Span>().ok().map(Span::as_millis)
    }

    #[test]
    fn spans_read_as_go_and_kubernetes_read_them() {
        for (text, expected) in [
            ("0", 0),
            ("1s", 1000),
            ("1h30m", 5_400_000),
            ("1.5h", 5_400_000),
            ("250ms", 250),
            ("7d", 604_800_000),
            ("1 day", 86_400_000),
            ("2w", 1_209_600_000),
            ("1m0.5s", 60_500),
        ] {
            assert_eq!(millis(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_duration_is_refused() {
        for text in [
            "",
            "1",
            "s",
            "-1s",
            "1x",
            "1s2",
            "1..2s",
            "9999999999999999999999w",
        ] {
            assert_eq!(millis(text), None, "{text}");
        }
    }

    #[test]
    fn a_zero_in_a_file_needs_no_unit_and_no_quotes() {
        let read = |json: &str| serde_json::from_str::<Span>(json).ok();
        assert_eq!(read("0"), Some(Span::default()));
        assert_eq!(read("\"30s\""), Some(Span::from_secs(30)));
        assert_eq!((read("30"), read("-1"), read("null")), (None, None, None));
    }

    #[test]
    fn a_written_span_reads_back_as_itself() {
        for nanos in [
            0,
            1,
            999_000_000,
            1_000_000_000,
            5_400_250_000_000,
            604_800_000_000_000,
        ] {
            let span = Span(Duration::from_nanos(nanos));
            assert_eq!(span.to_string().parse(), Ok(span), "{span}");
        }
    }
}
