//! Habits of applications with their databases, one at a time.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use engine::replica::manifest::{self, RemoteFile};
use engine::replica::restore_plan::PlanError;
use engine::replication::DatabaseSettings;
use engine::restore::{IntegrityCheck, Point, RestoreError, RestoreOptions, restore};
use futures::FutureExt;
use store::{Body, PutMeta, PutMode, SharedStore};

use crate::app::{App, Habits, seed};
use crate::bench::{
    Place, Replication, assert_every_point, assert_stored, block_on, files, memory, settings,
    wait_for,
};
use crate::gated::{Gate, Gated};

const MODES: [&str; 4] = ["PASSIVE", "FULL", "RESTART", "TRUNCATE"];

/// Replicates an application with these habits while `live` works with it.
fn replicated(
    habits: impl FnOnce(Habits) -> Habits,
    live: impl FnOnce(&Replication, &mut App, &SharedStore),
) {
    let place = Place::new();
    let store: SharedStore = memory();
    let mut app = App::start(&habits(Habits::calm(&place.database(), seed())));
    let settings = settings(&place.database(), &place.state(), &[Arc::clone(&store)]);
    let replication = Replication::start(&settings);
    assert_stored(&replication, &mut app, &store);
    live(&replication, &mut app, &store);
    assert_stored(&replication, &mut app, &store);
    assert!(replication.stop());
    assert_every_point(&store);
}

#[test]
fn checkpoints_of_each_mode_while_we_run_lose_nothing() {
    let habits = |habits| Habits {
        autocheckpoint: 0,
        ..habits
    };
    replicated(habits, |replication, app, store| {
        for mode in MODES {
            app.work(40);
            // At once after the commits, and again before the next ones.
            println!(
                "{mode}: {}",
                app.sql(&format!("PRAGMA wal_checkpoint({mode})"))
            );
            app.work(40);
            assert_stored(replication, app, store);
            app.go();
            for _ in 0..5 {
                app.wait_for_commits(10);
                app.sql(&format!("PRAGMA wal_checkpoint({mode})"));
            }
            app.pause();
            assert_stored(replication, app, store);
        }
        let copies = files(store).iter().filter(|file| file.level == 9).count();
        assert_eq!(copies, 1, "no checkpoint makes a snapshot");
    });
}

#[test]
fn a_database_that_becomes_smaller_in_each_way_is_followed() {
    for (auto_vacuum, sql) in [
        (0, "VACUUM"),
        (1, "SELECT 1"),
        (2, "PRAGMA incremental_vacuum"),
        (2, "PRAGMA incremental_vacuum(50)"),
    ] {
        let habits = |habits| Habits {
            auto_vacuum,
            ..habits
        };
        replicated(habits, |replication, app, store| {
            app.work(100);
            app.sql("INSERT INTO item VALUES(9999, randomblob(900000))");
            assert_stored(replication, app, store);
            let large = app.dump().len();
            app.sql("DELETE FROM item WHERE id = 9999");
            app.sql(sql);
            let small = app.dump().len();
            assert!(small < large, "{sql}: {small} of {large} bytes");
            assert_stored(replication, app, store);
            app.work(50);
        });
    }
}

#[test]
fn each_page_size_comes_back() {
    for page_size in [512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536] {
        let habits = |habits| Habits {
            page_size,
            ..habits
        };
        replicated(habits, |_, app, _| app.work(60));
    }
}

#[test]
fn a_journal_mode_that_is_left_while_we_run_loses_nothing() {
    replicated(
        |habits| habits,
        |replication, app, store| {
            app.work(50);
            app.close();
            // Refused while we have the database open; done otherwise.
            let mode = app.sql("PRAGMA journal_mode=DELETE");
            println!("{mode}");
            app.sql("INSERT INTO item VALUES(NULL, 'in whatever mode it is')");
            let mode = app.sql("PRAGMA journal_mode=WAL");
            assert!(!mode.contains("error"), "{mode}");
            app.sql("INSERT INTO item VALUES(NULL, 'in WAL mode')");
            assert_stored(replication, app, store);
            app.work(50);
        },
    );
}

/// An action on a WAL whose application has died.
type Deed = fn(&Path);

#[test]
fn a_log_that_is_cut_or_taken_away_after_a_crash_while_we_are_down_is_followed() {
    let deeds: [(&str, Deed); 3] = [
        ("taken away", |log| fs::remove_file(log).unwrap()),
        ("emptied", |log| fs::write(log, "").unwrap()),
        ("cut in the middle of a frame", |log| {
            let file = fs::File::options().write(true).open(log).unwrap();
            let bytes = file.metadata().unwrap().len();
            file.set_len(bytes / 2 + 7).unwrap();
        }),
    ];
    for (name, deed) in deeds {
        println!("{name}");
        let place = Place::new();
        let store: SharedStore = memory();
        let habits = Habits {
            autocheckpoint: 0,
            ..Habits::calm(&place.database(), seed())
        };
        let settings = settings(&place.database(), &place.state(), &[Arc::clone(&store)]);
        let mut app = App::start(&habits);
        // The database file alone is a whole database.
        app.sql("PRAGMA wal_checkpoint(TRUNCATE)");
        let replication = Replication::start(&settings);
        app.work(80);
        assert_stored(&replication, &mut app, &store);
        assert!(replication.stop());
        app.work(40);
        app.kill();
        deed(&engine::env::files::with_suffix(&place.database(), "-wal"));
        fs::remove_file(engine::env::files::with_suffix(&place.database(), "-shm")).unwrap();
        let mut app = App::start(&habits);
        let replication = Replication::start(&settings);
        assert_stored(&replication, &mut app, &store);
        app.work(40);
        assert_stored(&replication, &mut app, &store);
        assert!(replication.stop());
        assert_every_point(&store);
    }
}

/// An object: its key and its bytes.
type Object = (String, Bytes);

/// The objects of a replica's files that `wanted` picks.
fn objects(of: &SharedStore, wanted: impl Fn(&RemoteFile) -> bool) -> Vec<Object> {
    let picked = files(of).into_iter().filter(wanted);
    let keys = picked.map(|file| manifest::key(of.layout(), file.level, file.name()));
    keys.map(|key| {
        let bytes = of.get(&key, None).now_or_never().unwrap();
        (key, bytes.unwrap())
    })
    .collect()
}

fn put(store: &SharedStore, objects: &[Object]) {
    for (key, bytes) in objects {
        let (body, meta) = (Body::Bytes(bytes.clone()), PutMeta { timestamp_ms: None });
        let put = store.put(key, body, PutMode::Create, &meta);
        put.now_or_never().unwrap().unwrap();
    }
}

/// Restores from captured files; those that a compacted file covers expire after the first bytes.
fn restored_while_files_expire(merged_appear: bool) -> (Result<Vec<u8>, RestoreError>, Vec<u8>) {
    let place = Place::new();
    let all: SharedStore = memory();
    let mut app = App::start(&Habits::calm(&place.database(), seed()));
    let replication = Replication::start(&settings(
        &place.database(),
        &place.state(),
        &[Arc::clone(&all)],
    ));
    // The first one is stored at once, for the step to the snapshot.
    let is_wide = |file: &RemoteFile| file.level == 1 && file.min < file.max;
    wait_for("a compacted file", || {
        app.sql("INSERT INTO item VALUES(NULL, randomblob(500))");
        files(&all).iter().any(is_wide).then_some(())
    });
    assert_stored(&replication, &mut app, &all);
    assert!(replication.stop());

    let compacted = files(&all).into_iter().find(is_wide);
    let compacted = compacted.unwrap();
    let store: SharedStore = memory();
    put(&store, &objects(&all, |file| matches!(file.level, 0 | 9)));
    let expires = |file: &RemoteFile| {
        file.level == 0 && compacted.min <= file.min && file.max <= compacted.max
    };
    let expired = objects(&all, expires).into_iter().map(|(key, _)| key);
    let expired: Vec<String> = expired.collect();
    assert!(expired.len() > 1);
    let compacted = objects(&all, |file| *file == compacted);
    let first = AtomicBool::new(true);
    let output = place.directory.path().join("restored");
    let options = RestoreOptions {
        point: Point::Latest,
        output: output.clone(),
        force: false,
        integrity: IntegrityCheck::Full.into(),
        parallelism: 1,
    };
    let expire = |_, _| {
        if first.swap(false, Ordering::SeqCst) {
            if merged_appear {
                put(&store, &compacted);
            }
            store.delete(&expired).now_or_never().unwrap().unwrap();
        }
    };
    let restored = block_on(restore(&store, &options, &expire));
    assert!(!first.load(Ordering::SeqCst), "nothing was fetched");
    let bytes = restored.map(|_| fs::read(&output).unwrap());
    assert_eq!(output.exists(), bytes.is_ok());
    (bytes, app.dump())
}

#[test]
fn a_restore_whose_files_expire_meanwhile_finds_another_way() {
    let (restored, source) = restored_while_files_expire(true);
    assert!(restored.unwrap() == source);
}

#[test]
fn a_restore_whose_files_are_lost_meanwhile_is_an_error_and_no_older_state() {
    let (restored, _) = restored_while_files_expire(false);
    let error = restored.unwrap_err();
    assert!(
        matches!(error, RestoreError::Plan(PlanError::Hole { .. })),
        "{error}"
    );
}

#[test]
fn a_writer_that_waits_for_no_lock_is_never_refused_whatever_the_store_does() {
    let place = Place::new();
    let concrete = memory();
    let gated = Arc::new(Gated::new(Arc::clone(&concrete)));
    let store: SharedStore = concrete;
    let habits = Habits {
        busy_timeout_ms: 0,
        ..Habits::calm(&place.database(), seed())
    };
    let mut app = App::start(&habits);
    let settings = DatabaseSettings {
        snapshot_interval: Duration::from_millis(300),
        ..settings(
            &place.database(),
            &place.state(),
            &[Arc::clone(&gated) as SharedStore],
        )
    };
    let replication = Replication::start(&settings);
    assert_stored(&replication, &mut app, &store);
    for gate in [Gate::Open, Gate::Closed("ltx/9/"), Gate::Closed("ltx/")] {
        gated.gate.send_replace(gate);
        // Several of its own checkpoints.
        app.work(3000);
        assert_eq!(app.refused(), 0, "{gate:?}");
    }
    gated.gate.send_replace(Gate::Open);
    assert_stored(&replication, &mut app, &store);
    assert!(replication.stop());
}
