//! Snapshots beside all other work: stored commits, reported lag, and cost.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::env::budget::{Budgets, Limits};
use engine::env::clock::unix_ms;
use engine::env::host::Host;
use engine::replication::{DatabaseSettings, Env};
use engine::restore::Point;
use engine::source::capture::Capture;
use protocol::status::TargetState;
use store::{Fault, FaultPlan, Faulty, Memory, SharedStore, StoreErrorKind};

use crate::app::{App, Habits, seed};
use crate::bench::{
    PATIENCE, Place, Replication, assert_every_point, assert_lag_grows, assert_stored, files,
    memory, restored, settings, wait_for,
};
use crate::gated::{Gate, Gated};

/// Inserts rows of random bytes: this many kilobytes, which LZ4 does not shorten.
fn fill(app: &mut App, kilobytes: u32) {
    let sql = format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {kilobytes})
         INSERT INTO item SELECT NULL, randomblob(1000) FROM n"
    );
    app.sql(&sql.replace('\n', " "));
    app.sql("PRAGMA wal_checkpoint(TRUNCATE)");
}

fn snapshots(store: &SharedStore) -> usize {
    files(store).iter().filter(|file| file.level == 9).count()
}

/// Bytes of all files below a directory.
fn disk_bytes(directory: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return 0;
    };
    entries
        .filter_map(Result::ok)
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => disk_bytes(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}

#[test]
fn commits_are_stored_and_lag_is_true_while_a_large_snapshot_hangs() {
    let place = Place::new();
    let concrete = memory();
    let gated = Arc::new(Gated::new(Arc::clone(&concrete)));
    let store: SharedStore = Arc::clone(&concrete) as SharedStore;
    let through: SharedStore = Arc::clone(&gated) as SharedStore;
    let mut app = App::start(&Habits::calm(&place.database(), seed()));
    // More than the queue between reader and upload holds in memory.
    fill(&mut app, 6000);
    let settings = DatabaseSettings {
        snapshot_interval: Duration::from_millis(200),
        ..settings(&place.database(), &place.state(), &[through])
    };
    let replication = Replication::start(&settings);
    assert_stored(&replication, &mut app, &store);
    gated.gate.send_replace(Gate::Closed("ltx/9/"));
    wait_for("a snapshot that hangs", || {
        app.sql("INSERT INTO item VALUES(NULL, 'before')");
        (!gated.waiting.lock().unwrap().is_empty()).then_some(())
    });
    for _ in 0..5 {
        app.sql("INSERT INTO item VALUES(NULL, 'meanwhile')");
        assert_stored(&replication, &mut app, &store);
    }
    // Commits that cannot be stored show as lag, whatever else is in progress.
    gated.gate.send_replace(Gate::Closed("ltx/"));
    let committed = Instant::now();
    app.sql("INSERT INTO item VALUES(NULL, 'not stored')");
    assert_lag_grows(&replication, 0, committed);
    gated.gate.send_replace(Gate::Open);
    assert_stored(&replication, &mut app, &store);
    assert!(replication.stop());
    assert_every_point(&store);
}

#[test]
fn a_database_larger_than_its_budget_gets_snapshots_while_it_is_written() {
    let place = Place::new();
    let store: SharedStore = memory();
    let mut app = App::start(&Habits::calm(&place.database(), seed()));
    fill(&mut app, 12_000);
    let settings = DatabaseSettings {
        snapshot_interval: Duration::from_millis(500),
        ..settings(&place.database(), &place.state(), &[Arc::clone(&store)])
    };
    let limit = 4 << 20;
    let replication = Replication::start_with_state(&settings, limit);
    app.go();
    let mut most = 0;
    wait_for("several snapshots", || {
        most = most.max(disk_bytes(&place.state()));
        (snapshots(&store) > 2).then_some(())
    });
    app.pause();
    assert!(most <= limit, "{most} bytes of local state");
    assert_stored(&replication, &mut app, &store);
    assert!(replication.stop());
    assert_every_point(&store);
}

#[test]
fn databases_share_one_budget_while_the_store_is_away_and_all_come_back() {
    const DATABASES: usize = 6;
    let limit: u64 = 12 << 20;
    let env = Env {
        host: Host::default(),
        source: Arc::new(Capture::start().unwrap()),
        budgets: Budgets::new(Limits {
            state_bytes: limit,
            memory_bytes: 0,
        }),
    };
    let seed = seed();
    let mut all: Vec<_> = (0..DATABASES as u64)
        .map(|number| {
            let place = Place::new();
            let faulty = Arc::new(Faulty::new(Memory::with_clock(unix_ms), FaultPlan::none()));
            let store: SharedStore = Arc::clone(&faulty) as SharedStore;
            let mut app = App::start(&Habits::calm(&place.database(), seed + number));
            fill(&mut app, 400);
            let settings = settings(&place.database(), &place.state(), &[Arc::clone(&store)]);
            let replication = Replication::start_within(&env, &settings, PATIENCE);
            assert_stored(&replication, &mut app, &store);
            (place, faulty, store, app, replication)
        })
        .collect();
    for (_, faulty, _, app, _) in &mut all {
        faulty.set_plan(FaultPlan::none().from(0, Fault::Fail(StoreErrorKind::Unreachable)));
        app.go();
    }
    wait_for("the budget to be used up", || {
        (env.budgets.state_bytes() > limit / 2 - (1 << 20)).then_some(())
    });
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        let used: u64 = all
            .iter()
            .map(|(place, ..)| disk_bytes(&place.state()))
            .sum();
        // Page tables and the space of a file that is being written are not in the budget.
        assert!(used <= limit + (1 << 20), "{used} bytes of local state");
        std::thread::sleep(Duration::from_millis(20)); // bounded: one read of the disk
    }
    for (_, _, _, app, replication) in &mut all {
        app.pause();
        let target = &replication.status().targets[0];
        assert_eq!(target.state, TargetState::DestinationUnavailable);
        assert!(target.lag_ms >= 3000, "{} ms", target.lag_ms);
    }
    for (_, faulty, ..) in &all {
        faulty.set_plan(FaultPlan::none());
    }
    for (_, _, store, app, replication) in &mut all {
        assert_stored(replication, app, store);
    }
    for (_, _, store, mut app, replication) in all {
        let expected = app.dump();
        assert!(replication.stop());
        let (_, bytes) = restored(&store, Point::Latest).unwrap();
        assert!(bytes == expected);
        assert_eq!(snapshots(&store), 1, "healed by deltas");
    }
}

#[test]
fn a_page_that_differs_from_what_is_known_is_found_and_the_database_read_again() {
    let place = Place::new();
    let store: SharedStore = memory();
    let mut app = App::start(&Habits::calm(&place.database(), seed()));
    app.sql("CREATE TABLE fixed(x)");
    app.sql("INSERT INTO fixed VALUES('before')");
    app.sql("PRAGMA wal_checkpoint(TRUNCATE)");
    let settings = DatabaseSettings {
        snapshot_interval: Duration::from_millis(300),
        ..settings(&place.database(), &place.state(), &[Arc::clone(&store)])
    };
    let replication = Replication::start(&settings);
    assert_stored(&replication, &mut app, &store);
    // A program that does not use SQLite changes the file in place.
    let mut bytes = std::fs::read(place.database()).unwrap();
    let at = bytes
        .windows(6)
        .position(|window| window == b"before")
        .unwrap();
    bytes[at..at + 6].copy_from_slice(b"AFTER!");
    {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::options().write(true).open(place.database());
        // Closing it would drop this process's locks on the file.
        let file = std::mem::ManuallyDrop::new(file.unwrap());
        file.write_all_at(&bytes[at..at + 6], at as u64).unwrap();
    }
    let mut number = 0;
    wait_for("the change to be stored", || {
        number += 1;
        app.sql(&format!("INSERT INTO item VALUES(NULL, 'commit {number}')"));
        let (_, bytes) = restored(&store, Point::Latest).ok()?;
        bytes.windows(6).any(|it| it == b"AFTER!").then_some(())
    });
    assert!(replication.stop());
}
