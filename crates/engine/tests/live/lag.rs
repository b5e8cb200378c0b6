//! The reported lag is correct wherever commits are not stored.

use std::sync::Arc;
use std::time::Instant;

use engine::env::clock::unix_ms;
use engine::source::probe::{Probe, probe};
use protocol::status::TargetState;
use store::{Fault, FaultPlan, Faulty, Memory, SharedStore, StoreErrorKind};

use crate::app::{App, Habits, seed};
use crate::bench::{
    Place, Replication, assert_lag_grows, assert_stored, memory, settings, wait_for,
};

/// A store that answers no request.
fn away() -> Arc<Faulty<Memory>> {
    let unreachable = Fault::Fail(StoreErrorKind::Unreachable);
    let plan = FaultPlan::none().from(0, unreachable);
    Arc::new(Faulty::new(Memory::with_clock(unix_ms), plan))
}

#[test]
fn a_database_that_no_store_has_yet_lags_from_the_start() {
    for is_open in [true, false] {
        let place = Place::new();
        let faulty = away();
        let store: SharedStore = Arc::clone(&faulty) as SharedStore;
        let mut app = App::start(&Habits::calm(&place.database(), seed()));
        if !is_open {
            app.close();
            assert!(matches!(probe(&place.database()), Probe::Cold(_)));
        }
        let started = Instant::now();
        let settings = settings(&place.database(), &place.state(), &[Arc::clone(&store)]);
        let replication = Replication::start(&settings);
        assert_lag_grows(&replication, 0, started);
        faulty.set_plan(FaultPlan::none());
        replication.settled();
        assert!(replication.stop());
    }
}

#[test]
fn a_closed_database_that_was_changed_lags_from_the_change() {
    let place = Place::new();
    let faulty = Arc::new(Faulty::new(Memory::with_clock(unix_ms), FaultPlan::none()));
    let store: SharedStore = Arc::clone(&faulty) as SharedStore;
    let mut app = App::start(&Habits::calm(&place.database(), seed()));
    let settings = settings(&place.database(), &place.state(), &[Arc::clone(&store)]);
    let replication = Replication::start(&settings);
    assert_stored(&replication, &mut app, &store);
    drop(app);
    faulty.set_plan(FaultPlan::none().from(0, Fault::Fail(StoreErrorKind::Unreachable)));
    let changed = Instant::now();
    let application = rusqlite::Connection::open(place.database()).unwrap();
    application
        .execute_batch("INSERT INTO item VALUES(NULL, 'changed')")
        .unwrap();
    drop(application);
    assert_lag_grows(&replication, 0, changed);
    faulty.set_plan(FaultPlan::none());
    replication.settled();
    assert!(replication.stop());
}

#[test]
fn commits_in_files_that_gave_way_to_newer_ones_still_lag() {
    let place = Place::new();
    let healthy: SharedStore = memory();
    let faulty = Arc::new(Faulty::new(Memory::with_clock(unix_ms), FaultPlan::none()));
    let stores = [Arc::clone(&healthy), Arc::clone(&faulty) as SharedStore];
    let mut app = App::start(&Habits::calm(&place.database(), seed()));
    let settings = settings(&place.database(), &place.state(), &stores);
    let replication = Replication::start_with_state(&settings, 2 << 20);
    assert_stored(&replication, &mut app, &healthy);
    replication.settled();
    faulty.set_plan(FaultPlan::none().from(0, Fault::Fail(StoreErrorKind::Unreachable)));
    app.go();
    replication.wait_target(1, TargetState::DestinationUnavailable);
    let failed = Instant::now();
    let backlog = |replication: &Replication| replication.status().targets[1].backlog_bytes;
    let mut most = 0;
    wait_for("files to be removed", || {
        let now = backlog(&replication);
        let is_less = now < most / 2;
        most = most.max(now);
        is_less.then_some(())
    });
    app.pause();
    assert_lag_grows(&replication, 1, failed);
    faulty.set_plan(FaultPlan::none());
    replication.settled();
    assert!(replication.stop());
}
