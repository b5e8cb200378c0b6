//! Sizes as people write them: `8388608`, `8MiB`, `8M`, `1.5 GB`.

use std::fmt;
use std::str::FromStr;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes in configuration, read from a number or from text such as `8MiB`.
///
/// Units in any case: `B`, decimal `K`, `M`, `G`, `T` (also `KB` and so on), binary `Ki`, `Mi`,
/// `Gi`, `Ti` (also `KiB`). Decimal fractions are allowed. Litestream reads sizes in the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Size(pub u64);

/// Error: a text is not a size.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not a size; write bytes, or a number with a unit, such as 8MiB")]
pub struct SizeError {
    /// The text as given.
    pub text: String,
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Size, SizeError> {
        let error = || SizeError {
            text: text.to_owned(),
        };
        let trimmed = text.trim();
        let digits = trimmed
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        let number: f64 = number.parse().map_err(|_| error())?;
        let unit = unit.trim().to_ascii_lowercase();
        let (letter, step) = match unit.strip_suffix('b').unwrap_or(&unit) {
            "" => return Ok(Size(number as u64)),
            unit => match unit.strip_suffix('i') {
                Some(letter) => (letter, 1024_u64),
                None => (unit, 1000),
            },
        };
        let power = ["k", "m", "g", "t"].iter().position(|it| *it == letter);
        let power = power.ok_or_else(error)? as u32 + 1;
        Ok(Size((number * step.pow(power) as f64) as u64))
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Size, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as 8MiB")
            }

            fn visit_u64<E: serde::de::Error>(self, bytes: u64) -> Result<Size, E> {
                Ok(Size(bytes))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_litestream_reads_them() {
        for (text, bytes) in [
            ("0", 0),
            ("5242880", 5_242_880),
            ("5B", 5),
            ("5MB", 5_000_000),
            ("5m", 5_000_000),
            ("5 MiB", 5_242_880),
            ("5Mi", 5_242_880),
            ("1.5GiB", 1_610_612_736),
            ("1k", 1000),
            ("1T", 1_000_000_000_000),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for wrong in ["", "MB", "5XB", "-5MB", "5MBB", "1..5M", "5 M i"] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn numbers_and_text_are_sizes_in_a_file() {
        for (json, bytes) in [("7", 7), ("\"7KiB\"", 7168)] {
            assert_eq!(serde_json::from_str::<Size>(json).unwrap(), Size(bytes));
        }
        assert!(serde_json::from_str::<Size>("-7").is_err());
        assert_eq!(serde_json::to_string(&Size(7)).unwrap(), "7");
    }
}
