//! Restores to a path with existing files: an open database, a WAL of another one, an empty file.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support::database::{Rows, assert_same, create, files, rows};
use crate::support::place::{Place, text};
use crate::support::process::run;
use crate::support::writer::Writer;

/// Executes statements one by one, reports it, and keeps its connection open.
const SCRIPT: &str = "
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in sys.argv[2:]:
    db.execute(statement).fetchone()
print('ready', flush=True)
sys.stdin.read()
";
const INSERT: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<200)
                      INSERT INTO log(body) SELECT randomblob(300) FROM n";

/// An application in the middle of its work, killed when dropped.
struct Application {
    child: Child,
}

impl Application {
    /// Starts an application, and returns when it has executed the statements.
    fn start(database: &Path, statements: &[&str]) -> Application {
        let child = Command::new("python3")
            .args(["-c", SCRIPT, text(database)])
            .args(statements)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut application = Application { child };
        let mut line = String::new();
        let output = application.child.stdout.as_mut().unwrap();
        BufReader::new(output).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "ready");
        application
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        // It may have ended already.
        let _killed = self.child.kill();
        let _waited = self.child.wait();
    }
}

/// Stores a database, and returns its rows.
fn stored(place: &Place) -> Rows {
    drop(create(&place.database(), 5));
    let url = place.url("backup");
    run(["replicate", place.database_text(), &url, "--once"]).succeeds();
    rows(&place.database())
}

/// Restores over the existing files.
fn force(place: &Place) {
    let url = place.url("backup");
    run(["restore", &url, "-o", place.database_text(), "--force"]).succeeds();
}

/// A file beside the database.
fn beside(place: &Place, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", place.database_text()))
}

/// Asserts that the path holds only the database, with these rows.
#[track_caller]
fn is_alone(place: &Place, expected: &Rows) {
    let of_database = |name: &str| name.starts_with(place.database_text());
    assert_eq!(files(place.path(), &of_database), [place.database()]);
    assert_same(&rows(&place.database()), expected);
}

#[test]
fn the_log_of_a_killed_application_is_not_replayed_into_the_restored_database() {
    let place = Place::new();
    let expected = stored(&place);
    let writer = Writer::start(&place.database());
    writer.write_more(20);
    writer.kill();
    let log = beside(&place, "-wal");
    assert!(log.metadata().unwrap().len() > 0);
    force(&place);
    is_alone(&place, &expected);
}

#[test]
fn a_log_without_its_database_is_kept_and_not_replayed_into_the_restored_one() {
    let place = Place::new();
    let expected = stored(&place);
    let writer = Writer::start(&place.database());
    writer.write_more(20);
    writer.kill();
    std::fs::remove_file(place.database()).unwrap();
    let log = std::fs::read(beside(&place, "-wal")).unwrap();
    let config = place.config(&place.database(), "backup");
    run(["restore", "--wait", "--config", &config]).succeeds();
    for suffix in ["-wal", "-shm"] {
        assert!(!beside(&place, suffix).exists(), "{suffix}");
    }
    assert_same(&rows(&place.database()), &expected);
    let kept = std::fs::read(beside(&place, ".before-restore-wal"));
    assert!(kept.unwrap() == log);
}

#[test]
fn a_journal_of_a_killed_application_is_not_rolled_back_in_the_restored_database() {
    let place = Place::new();
    let expected = stored(&place);
    // A cache of one page: the transaction is in the file before its commit.
    let application = Application::start(
        &place.database(),
        &[
            "PRAGMA journal_mode=DELETE",
            "PRAGMA cache_size=1",
            INSERT,
            "BEGIN",
            "UPDATE log SET body=randomblob(300)",
        ],
    );
    drop(application);
    let journal = std::fs::read(beside(&place, "-journal")).unwrap();
    assert!(journal.starts_with(b"\xd9\xd5\x05\xf9"), "it is hot");
    force(&place);
    is_alone(&place, &expected);
}

#[test]
fn a_database_that_is_read_without_a_log_is_in_use() {
    let place = Place::new();
    stored(&place);
    let reader = Application::start(
        &place.database(),
        &[
            "PRAGMA journal_mode=DELETE",
            INSERT,
            "BEGIN",
            "SELECT * FROM log",
        ],
    );
    let before = std::fs::read(place.database()).unwrap();
    let url = place.url("backup");
    let arguments = ["restore", &url, "-o", place.database_text(), "--force"];
    run(arguments).fails_with(2, &[place.database_text(), "in use"]);
    assert!(std::fs::read(place.database()).unwrap() == before);
    drop(reader);
    run(arguments).succeeds();
}

#[test]
fn an_empty_file_is_no_database_and_gives_way_to_the_restored_one() {
    let place = Place::new();
    let expected = stored(&place);
    std::fs::write(place.database(), "").unwrap();
    let config = place.config(&place.database(), "backup");
    run(["restore", "--wait", "--config", &config]).succeeds();
    assert_same(&rows(&place.database()), &expected);
}
