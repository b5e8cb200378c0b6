//! Changes to a database while we replicate it, and while we do not run.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use engine::restore::Point;
use store::SharedStore;

use crate::app::{App, Habits, seed};
use crate::bench::{
    Place, Replication, assert_every_point, assert_stored, files, memory, restored,
    restored_as_it_is, settings, wait_for,
};

/// An action on a database that the application has closed.
type Deed = fn(&Path, &mut Habits, older: &[u8]);

fn with_suffix(path: &Path, suffix: &str) -> std::path::PathBuf {
    engine::env::files::with_suffix(path, suffix)
}

fn remove(path: &Path, suffixes: &[&str]) {
    for suffix in suffixes {
        let _gone = fs::remove_file(with_suffix(path, suffix));
    }
}

fn delete(path: &Path, _: &mut Habits, _: &[u8]) {
    remove(path, &["", "-wal", "-shm"]);
}

fn delete_and_choose_another_page_size(path: &Path, habits: &mut Habits, _: &[u8]) {
    remove(path, &["", "-wal", "-shm"]);
    habits.page_size = 1024;
}

fn replace_by_an_older_copy(path: &Path, _: &mut Habits, older: &[u8]) {
    let copy = with_suffix(path, "-copy");
    fs::write(&copy, older).unwrap();
    remove(path, &["-wal", "-shm"]);
    fs::rename(copy, path).unwrap();
}

fn copy_an_older_one_in_place(path: &Path, _: &mut Habits, older: &[u8]) {
    remove(path, &["-wal", "-shm"]);
    fs::write(path, older).unwrap();
}

fn empty(path: &Path, _: &mut Habits, _: &[u8]) {
    remove(path, &["-wal", "-shm"]);
    fs::write(path, "").unwrap();
}

fn delete_the_log(path: &Path, _: &mut Habits, _: &[u8]) {
    remove(path, &["-wal", "-shm"]);
}

const DEEDS: [(&str, Deed); 6] = [
    ("delete", delete),
    ("another page size", delete_and_choose_another_page_size),
    ("replace by an older copy", replace_by_an_older_copy),
    ("copy an older one in place", copy_an_older_one_in_place),
    ("empty", empty),
    ("delete the log", delete_the_log),
];

fn after(deeds: &[(&str, Deed)], while_we_run: bool) {
    let seed = seed();
    for (name, deed) in deeds {
        println!("{name}, running: {while_we_run}");
        let place = Place::new();
        let store: SharedStore = memory();
        let mut habits = Habits {
            autocheckpoint: 10,
            ..Habits::calm(&place.database(), seed)
        };
        let settings = settings(&place.database(), &place.state(), &[Arc::clone(&store)]);
        let mut app = App::start(&habits);
        let older = app.dump();
        let mut replication = Some(Replication::start(&settings));
        app.work(200);
        assert_stored(replication.as_ref().unwrap(), &mut app, &store);
        if !while_we_run {
            assert!(replication.take().unwrap().stop());
        }
        app.close();
        drop(app);
        deed(&place.database(), &mut habits, &older);
        let mut app = App::start(&habits);
        app.work(100);
        let replication = replication.unwrap_or_else(|| Replication::start(&settings));
        assert_stored(&replication, &mut app, &store);
        app.work(100);
        assert_stored(&replication, &mut app, &store);
        assert!(replication.stop());
        assert_every_point(&store);
    }
}

#[test]
fn a_database_that_is_exchanged_while_we_run_is_followed() {
    // Without its WAL the file itself is damaged: see the next test.
    let whole = DEEDS
        .into_iter()
        .filter(|(name, _)| *name != "delete the log");
    after(&whole.collect::<Vec<_>>(), true);
}

#[test]
fn a_database_whose_log_is_taken_away_while_we_run_is_backed_up_as_it_is() {
    // While we have the database open, the application's last close does not copy the WAL into the
    // file. Removing the WAL then removes commits, and leaves pages of different ages. The files
    // stored before must stay, and the present database is stored as it is.
    let place = Place::new();
    let store: SharedStore = memory();
    let settings = settings(&place.database(), &place.state(), &[Arc::clone(&store)]);
    let mut app = App::start(&Habits {
        autocheckpoint: 10,
        ..Habits::calm(&place.database(), seed())
    });
    let replication = Replication::start(&settings);
    app.work(200);
    assert_stored(&replication, &mut app, &store);
    let whole = replication
        .settled()
        .position
        .unwrap()
        .txid
        .parse()
        .unwrap();
    app.close();
    drop(app);
    remove(&place.database(), &["-wal", "-shm"]);
    let left = fs::read(place.database()).unwrap();
    wait_for("what is left", || {
        let (_, bytes) = restored_as_it_is(&store, Point::Latest).ok()?;
        (bytes == left).then_some(())
    });
    assert!(replication.stop());
    restored(&store, Point::Txid(whole)).unwrap();
}

#[test]
fn a_database_that_is_exchanged_while_we_are_down_is_followed() {
    after(&DEEDS, false);
}

#[test]
fn a_database_that_was_opened_and_not_written_is_copied() {
    let place = Place::new();
    let store: SharedStore = memory();
    let mut settings = settings(&place.database(), &place.state(), &[Arc::clone(&store)]);
    settings.snapshot_interval = Duration::from_millis(100);
    let mut app = App::start(&Habits::calm(&place.database(), seed()));
    let replication = Replication::start(&settings);
    assert_stored(&replication, &mut app, &store);
    assert!(replication.stop());
    app.sql("INSERT INTO item VALUES(NULL, 'while we are down')");
    app.close();
    // A first reader: the WAL is empty, and its header states no size of the database.
    app.sql("SELECT count(*) FROM account");
    let replication = Replication::start(&settings);
    let copies = || files(&store).iter().filter(|file| file.level == 9).count();
    wait_for("a copy", || (copies() > 1).then_some(()));
    assert_stored(&replication, &mut app, &store);
    assert!(replication.stop());
}

#[test]
fn checkpoints_and_modes_while_we_are_down_lose_nothing() {
    let place = Place::new();
    let store: SharedStore = memory();
    let habits = Habits::calm(&place.database(), seed());
    let settings = settings(&place.database(), &place.state(), &[Arc::clone(&store)]);
    let mut app = App::start(&habits);
    for sql in [
        "PRAGMA wal_checkpoint(PASSIVE)",
        "PRAGMA wal_checkpoint(FULL)",
        "PRAGMA wal_checkpoint(RESTART)",
        "PRAGMA wal_checkpoint(TRUNCATE)",
        "VACUUM",
        "PRAGMA journal_mode=DELETE",
    ] {
        let replication = Replication::start(&settings);
        app.work(120);
        assert_stored(&replication, &mut app, &store);
        assert!(replication.stop());
        app.work(60);
        if sql.contains("journal_mode") {
            app.close();
        }
        println!("{sql}: {}", app.sql(sql));
        if sql.contains("journal_mode") {
            app.sql("INSERT INTO item VALUES(NULL, 'in rollback mode')");
            app.sql("PRAGMA journal_mode=WAL");
        }
        app.work(60);
        let replication = Replication::start(&settings);
        assert_stored(&replication, &mut app, &store);
        assert!(replication.stop());
    }
    assert_every_point(&store);
}
