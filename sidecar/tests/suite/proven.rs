//! A database that is proven to be the stored one is restored. A check of SQLite that cannot run,
//! or that fails because of a fault of the source, is only reported.

use std::process::{Child, Stdio};

use protocol::names::VERIFY_REQUEST_ENV;
use protocol::status::Position;
use protocol::verify::{
    DatabaseExpectation, MemberExpectation, Point as AskedPoint, VerifyLevel, VerifyReport,
    VerifyRequest, VerifyResult,
};
use rusqlite::Connection;
use rusqlite::functions::FunctionFlags;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::database::{create, files};
use crate::support::place::{Place, text};
use crate::support::process::{Finished, finish, program, run, signal, wait_for_end};
use crate::support::until;

/// An application with its own collation and function.
fn application(place: &Place) -> Connection {
    let connection = create(&place.database(), 3);
    let reversed = |one: &str, other: &str| other.cmp(one);
    connection.create_collation("reversed", reversed).unwrap();
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC;
    let twice = |context: &mut rusqlite::functions::Context<'_>| Ok(context.get::<i64>(0)? * 2);
    let made = connection.create_scalar_function("twice", 1, flags, twice);
    made.unwrap();
    connection
}

/// Stores a database with a specific change, and removes it locally.
fn stored(place: &Place, sql: &str) -> String {
    let connection = application(place);
    connection.execute_batch(sql).unwrap();
    drop(connection);
    let url = place.url("backup");
    run(["replicate", place.database_text(), &url, "--once"]).succeeds();
    for file in files(place.path(), &|name| name.contains("app.db")) {
        std::fs::remove_file(file).unwrap();
    }
    url
}

fn restore(place: &Place, url: &str, more: &[&str]) -> (Finished, bool) {
    let output = place.fresh("out.db");
    let mut arguments = vec!["restore", url, "-o", text(&output), "--json"];
    arguments.extend(more);
    let done = run(arguments);
    (done, output.exists())
}

#[track_caller]
fn answer(done: &Finished) -> Value {
    assert_eq!(done.code, Some(0), "{done:?}");
    serde_json::from_str(&done.out).expect("the answer is JSON")
}

fn wait(place: &Place, url: &str, startup: &str) -> Finished {
    let content = format!(
        "startup: {{{startup}}}\ndbs:\n- path: {}\n  replica: {{url: '{url}'}}\n",
        place.database_text()
    );
    let config = place.write("config.yml", &content);
    run(["restore", "--wait", "--config", &config])
}

fn verify(url: &str) -> (Finished, VerifyReport) {
    let done = run(["verify", url, "--json"]);
    let report = serde_json::from_str(&done.out).expect("the report is JSON");
    (done, report)
}

/// Changes the schema of a table, but not its content.
fn schema(table: &str, from: &str, to: &str) -> String {
    format!(
        "PRAGMA writable_schema=1;
         UPDATE sqlite_schema SET sql=replace(sql, '{from}', '{to}') WHERE name='{table}';"
    )
}

#[test]
fn what_only_the_application_can_check_is_told_and_given_back() {
    let fts5 = schema("t", "fts5(x)", "fts5(x, tokenize=''simple'')");
    let fts4 = schema("t", "fts4(x)", "fts4(x, tokenize=icu de_DE)");
    for (sql, reason) in [
        (
            "CREATE TABLE t(x TEXT UNIQUE COLLATE reversed); INSERT INTO t VALUES('a'), ('b')"
                .into(),
            "reversed",
        ),
        (
            "CREATE TABLE t(x); CREATE INDEX i ON t(twice(x)); INSERT INTO t VALUES(1), (2)".into(),
            "twice",
        ),
        (
            format!("CREATE VIRTUAL TABLE t USING fts5(x); INSERT INTO t VALUES('a'); {fts5}"),
            "table t:",
        ),
        (
            format!("CREATE VIRTUAL TABLE t USING fts4(x); INSERT INTO t VALUES('a'); {fts4}"),
            "icu",
        ),
    ] {
        let sql: String = sql;
        let place = Place::new();
        let url = stored(&place, &sql);
        let (done, _) = restore(&place, &url, &["--integrity-check", "full"]);
        let told = answer(&done)["notChecked"][0].to_string();
        assert!(told.contains(reason), "{told}");
        assert!(done.err.contains("could not check"), "{done:?}");
        let (done, _) = restore(&place, &url, &[]);
        assert_eq!(answer(&done)["complaint"], Value::Null);
        let (done, report) = verify(&url);
        assert_eq!(done.code, Some(0), "{done:?}");
        assert!(report.databases[0].not_checked[0].contains(reason));
        assert!(report.message.contains(reason), "{}", report.message);
        let done = wait(&place, &url, "on-check-failed: block");
        assert_eq!(done.code, Some(0), "{done:?}");
        assert!(place.database().exists());
    }
}

#[test]
fn mathematical_functions_are_checked() {
    let place = Place::new();
    let url = stored(
        &place,
        "CREATE TABLE t(x, y AS (pow(x, 2)) STORED);
         INSERT INTO t VALUES(1.5), (2.5);
         CREATE INDEX i ON t(sqrt(x), floor(x));
         CREATE INDEX j ON t(x) WHERE ln(x) > 0;",
    );
    let (done, _) = restore(&place, &url, &["--integrity-check", "full"]);
    assert_eq!(answer(&done)["notChecked"], Value::Array(Vec::new()));
}

#[test]
fn what_sqlite_complains_about_is_given_back_unless_a_check_is_asked_for() {
    for (sql, complaint) in [
        (
            "CREATE VIRTUAL TABLE t USING fts4(x);
             INSERT INTO t VALUES('one'); UPDATE t_content SET c0x='other'"
                .to_owned(),
            "FTS4 table",
        ),
        (
            format!(
                "CREATE TABLE t(x); INSERT INTO t VALUES(NULL); {}",
                schema("t", "t(x)", "t(x NOT NULL)")
            ),
            "NULL value in t.x",
        ),
        (
            format!(
                "CREATE TABLE t(x TEXT); INSERT INTO t VALUES('12'); {}",
                schema("t", "TEXT", "INTEGER")
            ),
            "TEXT value in t.x",
        ),
    ] {
        let place = Place::new();
        let url = stored(&place, &sql);
        let (done, _) = restore(&place, &url, &[]);
        let told = answer(&done)["complaint"].to_string();
        assert!(told.contains(complaint), "{told}");
        assert!(done.err.contains("--integrity-check none"), "{done:?}");
        let (done, is_there) = restore(&place, &url, &["--integrity-check", "quick"]);
        let itself = "the database itself is so";
        done.fails_with(13, &[complaint, itself, "--integrity-check none"]);
        assert!(!is_there);
        let (done, _) = restore(&place, &url, &["--integrity-check", "none"]);
        assert_eq!(answer(&done)["complaint"], Value::Null);
        let done = wait(&place, &url, "on-check-failed: block");
        done.fails_with(13, &[complaint, "onCheckFailed"]);
        assert!(!place.database().exists());
        let done = wait(&place, &url, "");
        assert_eq!(done.code, Some(0), "{done:?}");
        assert!(done.err.contains(complaint), "{done:?}");
        assert!(place.database().exists());
        let (done, report) = verify(&url);
        assert_eq!(done.code, Some(13), "{done:?}");
        assert_eq!(report.result, VerifyResult::IntegrityFailed);
        assert!(report.message.contains("the database was stored so"));
    }
}

#[test]
fn a_restore_test_says_whether_the_backup_or_the_database_is_at_fault() {
    let place = Place::new();
    let changed = schema("t", "t(x)", "t(x NOT NULL)");
    let sql = format!("CREATE TABLE t(x); INSERT INTO t VALUES(NULL); {changed}");
    let url = stored(&place, &sql);
    let (done, _) = restore(&place, &url, &["--integrity-check", "none"]);
    let restored = answer(&done);
    let field = |name: &str| restored[name].as_str().unwrap().to_owned();
    let config = place.config(&place.database(), "backup");
    let other = "8000000000000001".to_owned();
    for (checksum, result, words) in [
        (
            field("checksum"),
            VerifyResult::IntegrityFailed,
            "the live database has the same checksum",
        ),
        (other, VerifyResult::ChecksumMismatch, "was acknowledged"),
    ] {
        let expected = DatabaseExpectation {
            path: place.database_text().to_owned(),
            target: "file".to_owned(),
            acknowledged: Position {
                txid: field("txid"),
                checksum,
                time: field("time").parse().unwrap(),
            },
            lag_ms: 0,
        };
        let request = VerifyRequest {
            level: VerifyLevel::Full,
            point: AskedPoint::Latest,
            members: vec![MemberExpectation {
                member: "orders-0".to_owned(),
                databases: vec![expected],
            }],
            max_lag: None,
            checks: Vec::new(),
        };
        let mut command = program();
        command
            .args(["verify", "--config", &config, "--json"])
            .env(VERIFY_REQUEST_ENV, serde_json::to_string(&request).unwrap());
        let done = finish(command);
        let report: VerifyReport = serde_json::from_str(&done.out).unwrap();
        assert_eq!(report.result, result, "{report:?}");
        assert!(report.message.contains(words), "{report:?}");
    }
}

#[test]
fn a_row_whose_parent_is_missing_is_a_note_and_fails_only_a_check_for_it() {
    let place = Place::new();
    let url = stored(
        &place,
        "PRAGMA foreign_keys=0;
         CREATE TABLE child(parent INTEGER REFERENCES log(id));
         INSERT INTO child VALUES(1), (99);
         CREATE TABLE a(x);
         CREATE TABLE b(y REFERENCES a(x));",
    );
    let (done, report) = verify(&url);
    assert_eq!(done.code, Some(0), "{done:?}");
    let database = &report.databases[0];
    assert_eq!(
        database.notes,
        ["foreign keys: row 2 of child refers to nothing in log"]
    );
    // A parent table without an index does not stop the check of the other tables.
    assert!(
        database.not_checked[0].contains("table b: foreign key mismatch"),
        "{report:?}"
    );
    assert!(report.message.contains("foreign key"), "{report:?}");
    let checks = place.write(
        "checks.yml",
        "- {name: orphans, query: 'select * from pragma_foreign_key_check(''child'')', rows: 0}\n",
    );
    let done = run(["verify", &url, "--checks", &checks]);
    assert_eq!(done.code, Some(15), "{done:?}");
    assert!(done.out.contains("orphans"), "{done:?}");
}

/// Starts a verify process with its own scratch space.
fn begun(url: &str, checks: &str, scratch: &TempDir) -> Child {
    program()
        .args(["verify", url, "--checks", checks])
        .args(["--scratch", text(scratch.path())])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn a_signal_ends_a_long_check_and_leaves_no_copy() {
    let place = Place::new();
    let url = stored(&place, "CREATE TABLE t(x)");
    let endless =
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n) SELECT max(i) FROM n";
    let checks = format!("- {{name: long, query: '{endless}', min: 1}}\n");
    let checks = place.write("checks.yml", &checks);
    let scratch = tempfile::tempdir().unwrap();
    let mut child = begun(&url, &checks, &scratch);
    let process = child.id();
    // A busy processor shows that the check runs: no other part of the process takes that long.
    until("the check runs", || {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
        let ticks: u64 = stat.split(' ').nth(13).unwrap().parse().unwrap();
        let copies = files(scratch.path(), &|name| name.contains("restore.tmp"));
        (ticks > 100 && !copies.is_empty()).then_some(())
    });
    signal(process, "TERM");
    let (code, took) = wait_for_end(&mut child);
    assert_eq!(code, Some(23));
    assert!(took.as_secs() < 10, "{took:?}");
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
}

#[test]
fn a_lost_capture_is_told_by_inspect_and_verify_and_its_time_is_refused() {
    let place = Place::new();
    let connection = create(&place.database(), 1);
    let url = place.url("backup");
    for _ in 0..5 {
        run(["replicate", place.database_text(), &url, "--once"]).succeeds();
        crate::support::database::insert(&connection, 1);
    }
    drop(connection);
    run(["replicate", place.database_text(), &url, "--once"]).succeeds();
    let captured = files(&place.path().join("backup"), &|name| {
        name.contains("/ltx/0/")
    });
    assert!(captured.len() > 4, "{captured:?}");
    let lost = &captured[captured.len() - 3];
    // The time of storage is close to the time of capture.
    let time = std::fs::metadata(lost).unwrap().modified().unwrap();
    let time = jiff::Timestamp::try_from(time).unwrap().to_string();
    let name = lost.file_name().unwrap().to_str().unwrap()[..16].to_owned();
    std::fs::remove_file(lost).unwrap();
    let (done, is_there) = restore(&place, &url, &["--timestamp", &time]);
    done.fails_with(11, &[&name, "cannot be known"]);
    assert!(!is_there);
    let told = run(["inspect", &url]);
    assert!(told.out.contains("HOLE"), "{told:?}");
    let (done, _) = verify(&url);
    assert_eq!(done.code, Some(11), "{done:?}");
}
