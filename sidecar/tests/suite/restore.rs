//! Restores reach the requested point, report which one it was, and change nothing otherwise.

use std::process::Command;

use jiff::{Timestamp, ToSpan};
use protocol::status::Position;
use serde_json::Value;
use store::testing::{Cut, Proxy};

use crate::support::bucket::{Bucket, block_on};
use crate::support::database::{create, files, insert, rows};
use crate::support::place::{Place, text};
use crate::support::process::{Finished, clean, finish, run};
use crate::support::sidecar::Sidecar;

/// A position of a replica, and the number of rows at that position.
struct Point {
    txid: String,
    time: Timestamp,
    rows: usize,
}

/// Stores three states at different times, and returns their points.
fn history(place: &Place) -> Vec<Point> {
    let connection = create(&place.database(), 0);
    let url = place.url("backup");
    let sidecar = Sidecar::start(place.path(), &[place.database_text(), &url]);
    let mut before = stored(&sidecar, "");
    let mut points = Vec::new();
    for step in 1..=3 {
        // One transaction is one capture.
        connection.execute_batch("BEGIN").unwrap();
        insert(&connection, step);
        connection.execute_batch("COMMIT").unwrap();
        let position = stored(&sidecar, &before.txid);
        points.push(Point {
            txid: position.txid.clone(),
            time: position.time,
            rows: rows(&place.database()).len(),
        });
        before = position;
    }
    assert_eq!(sidecar.terminate().0, Some(0));
    points
}

/// Returns the stored position, once it is later than `after`.
fn stored(sidecar: &Sidecar, after: &str) -> Position {
    let status = sidecar.wait_until("a later position is stored", |status| {
        let stored = &status.targets[0].position;
        status.state.is_healthy()
            && *stored == status.position
            && stored.as_ref().is_some_and(|at| at.txid.as_str() > after)
    });
    status.position.expect("it was there a moment ago")
}

fn restore(place: &Place, arguments: &[&str]) -> (Value, usize) {
    let output = place.fresh("out.db");
    let url = place.url("backup");
    let mut all = vec!["restore", url.as_str(), "-o", text(&output), "--json"];
    all.extend(arguments);
    let answer = run(all).succeeds();
    let answer = serde_json::from_str(&answer).expect("the answer is JSON");
    (answer, rows(&output).len())
}

#[test]
fn every_point_comes_back_and_is_named() {
    let place = Place::new();
    let points = history(&place);
    let newest = points.last().unwrap();
    let (answer, count) = restore(&place, &[]);
    assert_eq!(
        (answer["txid"].as_str(), count),
        (Some(newest.txid.as_str()), newest.rows)
    );
    for point in &points {
        let (answer, count) = restore(&place, &["--txid", &point.txid]);
        assert_eq!(answer["txid"], point.txid.as_str());
        assert_eq!(count, point.rows);
        // The exact time of a capture selects that capture, and so does any time before the next
        // one.
        let (answer, count) = restore(&place, &["--timestamp", &point.time.to_string()]);
        assert_eq!(answer["txid"], point.txid.as_str());
        assert_eq!(answer["time"], point.time.to_string().as_str());
        assert_eq!(count, point.rows);
    }
    let between = (points[1].time + 1.millisecond()).to_string();
    let (answer, _) = restore(&place, &["--timestamp", &between]);
    assert_eq!(answer["txid"], points[1].txid.as_str());
    let later = (newest.time + 24.hours()).to_string();
    let (answer, _) = restore(&place, &["--timestamp", &later]);
    assert_eq!(answer["txid"], newest.txid.as_str());
}

fn refused(place: &Place, arguments: &[&str]) -> Finished {
    let output = place.fresh("out.db");
    let url = place.url("backup");
    let mut all = vec!["restore", url.as_str(), "-o", text(&output)];
    all.extend(arguments);
    let done = run(all);
    assert!(!output.exists());
    done
}

#[test]
fn a_point_that_is_not_there_is_an_error_and_never_another_one() {
    let place = Place::new();
    history(&place);
    let done = refused(&place, &["--timestamp", "2001-01-01T00:00:00Z"]);
    done.fails_with(30, &["2001-01-01T00:00:00Z", "the oldest backup is of"]);
    let done = refused(&place, &["--txid", "0000000000001000"]);
    done.fails_with(30, &["0000000000001000", "the newest is"]);
}

#[test]
fn a_dry_run_shows_the_way_and_restores_nothing() {
    let place = Place::new();
    let points = history(&place);
    let output = place.fresh("out.db");
    let url = place.url("backup");
    let arguments = ["restore", &url, "-o", text(&output), "--dry-run"];
    let plan = run(arguments).succeeds();
    assert!(
        plan.contains(&points[2].txid) && plan.contains(".ltx"),
        "{plan}"
    );
    let plan = run(arguments.iter().chain(&["--json"])).succeeds();
    let plan: Value = serde_json::from_str(&plan).unwrap();
    assert_eq!(plan["txid"], points[2].txid.as_str());
    assert!(!plan["files"].as_array().unwrap().is_empty());
    assert!(files(place.path(), &|name| name.contains("out.db")).is_empty());
}

#[test]
fn a_database_that_exists_is_safe() {
    let place = Place::new();
    let points = history(&place);
    let before = std::fs::read(place.database()).unwrap();
    let url = place.url("backup");
    let arguments = ["restore", &url, "-o", place.database_text()];
    run(arguments).fails_with(2, &[place.database_text(), "exists", "force"]);
    run(arguments.iter().chain(&["--if-db-not-exists"])).succeeds();
    assert_eq!(std::fs::read(place.database()).unwrap(), before);
    // With `--force`, an older state replaces the database; the old journal files are removed.
    std::fs::write(place.path().join("app.db-journal"), "old").unwrap();
    let force = ["--force", "--txid", points[0].txid.as_str()];
    run(arguments.iter().chain(&force)).succeeds();
    assert_eq!(rows(&place.database()).len(), points[0].rows);
    assert!(!place.path().join("app.db-journal").exists());
}

#[test]
fn force_keeps_the_old_database_until_the_new_one_is_proven() {
    let place = Place::new();
    history(&place);
    let expected = rows(&place.database());
    let objects = files(&place.path().join("backup"), &|name| name.ends_with(".ltx"));
    let copies = objects.iter().filter(|path| text(path).contains("/9/"));
    let newest = copies.max().unwrap();
    let mut bytes = std::fs::read(newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(newest, bytes).unwrap();
    let url = place.url("backup");
    let arguments = ["restore", &url, "-o", place.database_text(), "--force"];
    run(arguments).fails_with(10, &[newest.file_name().unwrap().to_str().unwrap()]);
    assert_eq!(rows(&place.database()), expected);
    let leftovers = files(place.path(), &|name| {
        name.contains(".restore.tmp") || name.contains("before-restore")
    });
    assert_eq!(leftovers, Vec::<std::path::PathBuf>::new());
}

#[test]
fn a_configuration_restores_every_database_that_is_missing() {
    let place = Place::new();
    let mut content = "dbs:\n".to_owned();
    let paths: Vec<_> = (0..12)
        .map(|n| place.path().join(format!("data/{n}.db")))
        .collect();
    std::fs::create_dir(place.path().join("data")).unwrap();
    for (n, path) in paths.iter().enumerate() {
        drop(create(path, n as i64 + 1));
        let url = place.url(&format!("backup/{n}"));
        content.push_str(&format!(
            "- path: {}\n  replica: {{url: '{url}'}}\n",
            path.display()
        ));
    }
    let config = place.write("config.yml", &content);
    run(["replicate", "--config", &config, "--once"]).succeeds();
    std::fs::remove_dir_all(place.path().join("data")).unwrap();
    // One database by name, to another path; then all that are missing.
    let elsewhere = place.fresh("out.db");
    run([
        "restore",
        "--config",
        &config,
        text(&paths[3]),
        "-o",
        text(&elsewhere),
    ])
    .succeeds();
    assert_eq!(rows(&elsewhere).len(), 4);
    std::fs::create_dir(place.path().join("data")).unwrap();
    drop(create(&paths[5], 100));
    run(["restore", "--config", &config]).succeeds();
    for (n, path) in paths.iter().enumerate() {
        let expected = if n == 5 { 100 } else { n + 1 };
        assert_eq!(rows(path).len(), expected, "{}", path.display());
    }
    // A database that cannot be restored is named, and does not keep the others back.
    for path in &paths {
        std::fs::remove_file(path).unwrap();
    }
    std::fs::remove_dir_all(place.path().join("backup/7")).unwrap();
    let done = run(["restore", "--config", &config]);
    done.fails_with(30, &[text(&paths[7]), "there is no backup"]);
    assert_eq!(paths.iter().filter(|path| path.exists()).count(), 11);
    run(["restore", "--config", &config, "--if-replica-exists"]).succeeds();
}

#[test]
fn what_is_restored_by_a_configuration_goes_on_and_by_a_url_only_when_told_to() {
    let (place, other) = (Place::new(), Place::new());
    let url = place.url("backup");
    let connection = create(&place.database(), 5);
    run(["replicate", place.database_text(), &url, "--once"]).succeeds();
    drop(connection);

    // Another machine, without our local state.
    let config = other.write(
        "config.yml",
        &format!(
            "dbs: [{{path: {}, replicas: [{{url: '{url}'}}]}}]\n",
            other.database_text()
        ),
    );
    run(["restore", "--config", &config]).succeeds();
    let connection = rusqlite::Connection::open(other.database()).unwrap();
    insert(&connection, 1);
    run(["replicate", "--config", &config, "--once"]).succeeds();
    // The first machine gets an error, and changes nothing.
    run(["replicate", place.database_text(), &url, "--once"]).fails_with(16, &["writes here"]);
    drop(connection);

    let third = Place::new();
    run(["restore", &url, "-o", third.database_text()]).succeeds();
    assert_eq!(rows(&third.database()).len(), 6);
    let replicate = ["replicate", third.database_text(), &url, "--once"];
    run(replicate).fails_with(16, &["--on-divergence new-lineage"]);
    let connection = rusqlite::Connection::open(third.database()).unwrap();
    insert(&connection, 1);
    run(replicate
        .into_iter()
        .chain(["--on-divergence", "new-lineage"]))
    .succeeds();
    let output = third.fresh("restored.db");
    run(["restore", &url, "-o", text(&output)]).succeeds();
    assert_eq!(rows(&output).len(), 7);
}

#[test]
fn a_restore_that_fails_leaves_what_was_known_as_it_was() {
    let place = Place::new();
    let connection = create(&place.database(), 5);
    let config = place.config(&place.database(), "backup");
    run(["replicate", "--config", &config, "--once"]).succeeds();
    let records = || {
        let state = place.path().join(".app.db-sqlite-backup");
        std::fs::read_to_string(state.join("replicas.json")).unwrap()
    };
    let before = records();
    let force = [
        "restore",
        "--config",
        &config,
        place.database_text(),
        "--force",
    ];
    run(force).fails_with(2, &["in use"]);
    assert_eq!(records(), before);
    drop(connection);
    run(force).succeeds();
    assert!(records() != before, "the restored database is known");
}

#[test]
fn a_restore_goes_on_after_connections_that_break_off() {
    let place = Place::new();
    let bucket = Bucket::create("restore-breaks");
    let connection = create(&place.database(), 5);
    let large = "INSERT INTO log(body) VALUES(randomblob(6000000))";
    connection.execute(large, []).unwrap();
    let url = bucket.url("app");
    let mut once = bucket.program();
    once.args(["replicate", place.database_text(), &url, "--once"]);
    finish(once).succeeds();
    // The first answers break off, early and then later.
    for (bytes, times) in [(2_000, 3), (700_000, 4)] {
        let output = place.fresh("out.db");
        block_on(async {
            let proxy = Proxy::start(bucket.weed.address(), Cut::After(bytes), times).await;
            let through = url.replace(&bucket.weed.endpoint(), &proxy.endpoint());
            let mut restore = bucket.program();
            restore.args(["restore", &through, "-o", text(&output)]);
            let done = tokio::task::spawn_blocking(|| finish(restore)).await;
            done.unwrap().succeeds();
            assert!(proxy.connections() > times, "nothing broke off");
        });
        assert_eq!(rows(&output), rows(&place.database()));
    }
}

#[test]
fn no_backup_in_one_target_says_nothing_while_another_cannot_be_asked() {
    let place = Place::new();
    let dead = "s3://bucket/far?endpoint=http://127.0.0.1:1";
    let near = format!("{{name: near, url: '{}'}}", place.url("nothing"));
    let far = format!("{{name: far, url: '{dead}', access-key-id: a, secret-access-key: b}}");
    for (first, last) in [(&near, &far), (&far, &near)] {
        let database = place.database_text();
        let content = format!("dbs: [{{path: {database}, replicas: [{first}, {last}]}}]\n");
        let config = place.write("config.yml", &content);
        let done = run(["restore", "--config", &config, "--if-replica-exists"]);
        done.fails_with(21, &["s3://bucket/far", "unreachable"]);
        assert!(!place.database().exists());
    }
}

#[test]
fn another_target_gives_what_the_first_one_cannot() {
    let place = Place::new();
    history(&place);
    let expected = rows(&place.database());
    std::fs::remove_file(place.database()).unwrap();
    let config = place.write(
        "config.yml",
        &format!(
            "dbs:\n- path: {}\n  replicas:\n  - {{name: one, url: '{}'}}\n  - {{name: two, url: '{}'}}\n",
            place.database_text(),
            place.url("nothing"),
            place.url("backup"),
        ),
    );
    run(["restore", "--config", &config]).succeeds();
    assert_eq!(rows(&place.database()), expected);
}

/// Runs a command with a terminal for its output, and prints the output.
const TERMINAL: &str = "
import os, pty, sys
said = b''
def read(descriptor):
    global said
    data = os.read(descriptor, 4096)
    said += data
    return data
status = pty.spawn(sys.argv[1:], read)
sys.exit(os.waitstatus_to_exitcode(status))
";

#[test]
fn people_who_watch_a_restore_see_a_bar_and_programs_see_lines() {
    let place = Place::new();
    history(&place);
    let (url, config) = (
        place.url("backup"),
        place.config(&place.fresh("a.db"), "backup"),
    );
    let on_terminal = |arguments: &[&str]| {
        let output = place.fresh("out.db");
        let mut command = clean(Command::new("python3"));
        command
            .args(["-c", TERMINAL, env!("CARGO_BIN_EXE_sqlite-backup")])
            .args(["restore", &url, "-o", text(&output)])
            .args(arguments)
            .env("TERM", "xterm");
        let said = finish(command).succeeds();
        assert!(
            said.contains("\"database\"") || said.contains("restored "),
            "{said}"
        );
        said
    };
    let has_bar = |said: &str| said.contains('\u{2588}');
    let said = on_terminal(&[]);
    assert!(has_bar(&said) && said.contains("out.db"), "{said:?}");
    for quiet in [&["--json"][..], &["--log-format", "json"]] {
        let said = on_terminal(quiet);
        assert!(!has_bar(&said), "{said:?}");
    }
    // A pipe shows no progress bars.
    let done = run(["restore", "--config", &config]);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(!has_bar(&done.err) && !has_bar(&done.out), "{done:?}");
}
