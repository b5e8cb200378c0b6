//! Tests of the public API of the LTX crate. One program, because they share the small test files.

mod common;
mod faults;
mod golden;
mod merge;
mod probe;
mod round_trip;
mod sealed;
