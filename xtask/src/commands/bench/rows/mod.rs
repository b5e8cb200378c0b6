//! One module for each row of the table.

mod cpu;
mod latency;
mod lost;
mod many;
mod memory;
mod requests;
mod restore;

use super::{Bench, Outcome, Row, application, counts, figures, in_turn, place, proxy};

/// All rows, in the order in which they are measured.
pub(super) const ROWS: &[Row] = &[
    requests::ROW,
    cpu::ROW,
    latency::ROW,
    lost::ROW,
    restore::ROW,
    many::ROW,
    memory::ROW,
];

const MIB: f64 = (1 << 20) as f64;

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}
