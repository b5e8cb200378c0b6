//! Table tests of the planner: observed state, and the plan for it.

#![expect(
    clippy::unwrap_used,
    reason = "a fixture that cannot be built fails its test"
)]

mod config;
mod conflicts;
mod fixture;
mod idle;
mod requests;
mod runs;
#[path = "../selectors/mod.rs"]
mod selectors;
mod status;
mod webhooks;
