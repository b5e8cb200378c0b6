//! One module for each row of the table.

mod cpu;
mod latency;
mod lost;
mod many;
mod memory;
mod outage;
mod paced;
mod requests;
mod restore;
mod snapshot;

use super::{
    Bench, Outcome, Row, application, counts, figures, in_turn, lag, place, proxy, state, truth,
};

/// All rows, in the order in which they are measured.
pub(super) const ROWS: &[Row] = &[
    requests::ROW,
    cpu::ROW,
    paced::ROW,
    latency::ROW,
    lost::ROW,
    restore::ROW,
    many::ROW,
    memory::ROW,
    snapshot::ROW,
    outage::ROW,
];

const MIB: f64 = (1 << 20) as f64;

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}
