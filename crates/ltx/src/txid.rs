//! The number of a capture.

use std::fmt;
use std::str::FromStr;

/// Number of one capture, from 1; zero means that no capture exists yet.
///
/// The text form is 16 lowercase hex digits, so that names sort like numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Txid(u64);

/// Error: a text is not 16 lowercase hex digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a txid of 16 lowercase hex digits")]
pub struct TxidError {
    /// The given text.
    pub text: String,
}

impl Txid {
    /// No capture yet.
    pub const ZERO: Txid = Txid(0);
    /// The first capture. A file that begins here is a snapshot.
    pub const FIRST: Txid = Txid(1);

    /// Creates a TXID from a number.
    pub const fn new(number: u64) -> Txid {
        Txid(number)
    }

    /// Returns the number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns the number of the capture after this one; the largest number is its own successor.
    #[must_use]
    pub const fn next(self) -> Txid {
        Txid(self.0.saturating_add(1))
    }

    /// Parses exactly 16 lowercase hex digits.
    pub(crate) fn from_hex(text: &str) -> Option<Txid> {
        let digit = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        if text.len() != 16 || !text.bytes().all(digit) {
            return None;
        }
        u64::from_str_radix(text, 16).ok().map(Txid)
    }
}

impl fmt::Display for Txid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Txid {
    type Err = TxidError;

    fn from_str(text: &str) -> Result<Txid, TxidError> {
        Txid::from_hex(text).ok_or_else(|| TxidError {
            text: text.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_sixteen_lowercase_hex_digits_are_a_txid() {
        assert_eq!("00000000000000ff".parse(), Ok(Txid::new(255)));
        for bad in [
            "",
            "ff",
            "00000000000000FF",
            "+0000000000000ff",
            "00000000000000fg",
        ] {
            assert!(bad.parse::<Txid>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn text_round_trips_and_sorts_like_the_number(a: u64, b: u64) {
            let (a, b) = (Txid::new(a), Txid::new(b));
            prop_assert_eq!(a.to_string().parse::<Txid>(), Ok(a));
            prop_assert_eq!(a.to_string().cmp(&b.to_string()), a.cmp(&b));
        }
    }
}
