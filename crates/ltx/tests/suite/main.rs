//! Tests of the LTX crate from outside, as one program because they share how small files are made.

mod common;
mod faults;
mod golden;
mod merge;
mod probe;
mod round_trip;
mod sealed;
