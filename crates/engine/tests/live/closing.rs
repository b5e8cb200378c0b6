//! Files after the application's last close: the same that SQLite would have left without us.

use std::path::Path;

use engine::env::files::with_suffix;
use engine::restore::Point;
use store::SharedStore;

use crate::app::{App, Habits, seed};
use crate::bench::{
    Place, Replication, assert_every_point, assert_stored, memory, restored, settings, wait_for,
};

fn has_wal(path: &Path) -> bool {
    with_suffix(path, "-wal").exists() || with_suffix(path, "-shm").exists()
}

/// An application that has written, with everything stored.
fn running() -> (Place, SharedStore, App, Replication) {
    let place = Place::new();
    let store: SharedStore = memory();
    let mut app = App::start(&Habits::calm(&place.database(), seed()));
    let settings = settings(
        &place.database(),
        &place.state(),
        std::slice::from_ref(&store),
    );
    let replication = Replication::start(&settings);
    app.sql("INSERT INTO item VALUES(NULL, 'in the WAL')");
    assert_stored(&replication, &mut app, &store);
    (place, store, app, replication)
}

/// Replaces this database by another one, as a person does who restores by hand.
fn copy_over(path: &Path) {
    let other = path.with_file_name("other.db");
    let connection = rusqlite::Connection::open(&other).unwrap();
    let sql = "PRAGMA page_size=1024; PRAGMA journal_mode=WAL; CREATE TABLE other(x); INSERT INTO other VALUES(1)";
    connection.execute_batch(sql).unwrap();
    drop(connection);
    std::fs::copy(&other, path).unwrap();
    let connection = rusqlite::Connection::open(path).unwrap();
    let check: String = connection
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(check, "ok");
    let rows: i64 = connection
        .query_row("SELECT count(*) FROM other", [], |row| row.get(0))
        .unwrap();
    assert_eq!(rows, 1);
}

#[test]
fn the_wal_is_gone_after_the_application_has_closed_and_we_go_on() {
    let (place, store, mut app, replication) = running();
    let path = place.database();
    let expected = app.dump();
    app.close();
    wait_for("the WAL to be removed", || (!has_wal(&path)).then_some(()));
    assert!(std::fs::read(&path).unwrap() == expected);
    assert!(replication.stop());
    let (_, bytes) = restored(&store, Point::Latest).unwrap();
    assert!(bytes == expected);
    copy_over(&path);
}

#[test]
fn the_wal_is_gone_after_we_stop_right_behind_the_application() {
    let (place, store, mut app, replication) = running();
    app.sql("INSERT INTO item VALUES(NULL, 'the last one')");
    let expected = app.dump();
    app.close();
    assert!(replication.stop());
    assert!(!has_wal(&place.database()));
    let (_, bytes) = restored(&store, Point::Latest).unwrap();
    assert!(bytes == expected);
    copy_over(&place.database());
}

#[test]
fn the_wal_is_gone_after_the_application_when_we_stop_first() {
    let (place, _, mut app, replication) = running();
    assert!(replication.stop());
    assert!(has_wal(&place.database()), "the application has it open");
    app.close();
    assert!(!has_wal(&place.database()));
    copy_over(&place.database());
}

#[test]
fn an_application_that_comes_and_goes_loses_no_commit() {
    let (place, store, mut app, replication) = running();
    let path = place.database();
    let seed = seed();
    for round in 0..12 {
        app.sql(&format!("INSERT INTO item VALUES(NULL, 'round {round}')"));
        if round % 3 == 0 {
            app.close();
            wait_for("the WAL to be removed", || (!has_wal(&path)).then_some(()));
        } else if round % 3 == 1 {
            app.close();
        } else {
            // The application is killed: its WAL stays, and so do our files.
            drop(app);
        }
        app = App::start(&Habits::calm(&path, seed + round));
        if round % 2 == 0 {
            assert_stored(&replication, &mut app, &store);
        }
    }
    assert_stored(&replication, &mut app, &store);
    assert!(replication.stop());
    assert_every_point(&store);
}

#[test]
fn another_database_in_the_place_of_a_closed_one_is_captured() {
    let (place, store, mut app, replication) = running();
    let path = place.database();
    app.close();
    wait_for("the WAL to be removed", || (!has_wal(&path)).then_some(()));
    copy_over(&path);
    wait_for("the other one to be stored", || {
        let (_, bytes) = restored(&store, Point::Latest).ok()?;
        (bytes == std::fs::read(&path).unwrap()).then_some(())
    });
    assert!(replication.stop());
}

#[test]
fn a_database_that_is_copied_over_at_once_is_not_destroyed_by_the_old_wal() {
    let (place, _, mut app, replication) = running();
    let path = place.database();
    let other = path.with_file_name("other.db");
    let connection = rusqlite::Connection::open(&other).unwrap();
    let sql = "PRAGMA page_size=1024; CREATE TABLE other(x); INSERT INTO other VALUES(1)";
    connection.execute_batch(sql).unwrap();
    drop(connection);
    // The WAL is still there: the application's close was not the last one.
    app.close();
    std::fs::copy(&other, &path).unwrap();
    let copied = std::fs::read(&other).unwrap();
    // A stop closes what can be closed. What it returns depends on the old WAL, which stays.
    replication.stop();
    assert!(std::fs::read(&path).unwrap() == copied);
}

#[test]
fn an_application_that_comes_back_while_its_database_is_being_closed_waits_for_nothing() {
    let (place, store, mut app, replication) = running();
    let seed = seed();
    app.close();
    for round in 0..20 {
        // Each commit is checkpointed, so the file changes all the time.
        app = App::start(&Habits {
            autocheckpoint: 1,
            ..Habits::calm(&place.database(), seed + round)
        });
        app.work(20);
        if round % 2 == 0 {
            app.close();
        }
    }
    app.go();
    wait_for("the lag to stay small", || {
        let status = replication.status();
        assert!(status.targets[0].lag_ms < 10_000, "{status:?}");
        (app.commits() > 2000).then_some(())
    });
    app.pause();
    assert_stored(&replication, &mut app, &store);
    assert!(replication.stop());
}

#[test]
fn writers_that_come_and_go_faster_than_the_database_is_read_are_captured() {
    let (place, store, mut app, replication) = running();
    let path = place.database();
    let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60000)
         INSERT INTO item SELECT NULL, randomblob(1000) FROM n";
    app.sql(&sql.replace('\n', " "));
    app.sql("PRAGMA wal_checkpoint(TRUNCATE)");
    assert_stored(&replication, &mut app, &store);
    app.close();
    wait_for("the WAL to be removed", || (!has_wal(&path)).then_some(()));
    let txid = || replication.status().position.map(|position| position.txid);
    let first = txid();
    let seed = seed();
    let mut round = 0;
    wait_for("a commit to be captured between two writers", || {
        round += 1;
        let mut app = App::start(&Habits::calm(&path, seed + round));
        app.sql("INSERT INTO item VALUES(NULL, 'short')");
        app.close();
        (txid() != first).then_some(())
    });
    let mut app = App::start(&Habits::calm(&path, seed));
    assert_stored(&replication, &mut app, &store);
    assert!(replication.stop());
}
