//! Databases of a pattern: found at run time, restored and proven together.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use protocol::names::VERIFY_REQUEST_ENV;
use protocol::status::{DatabaseState, DatabaseStatus};
use protocol::verify::{DatabaseExpectation, MemberExpectation, VerifyLevel, VerifyRequest};

use crate::startup::Waiting;
use crate::support::bucket::Bucket;
use crate::support::database::{Rows, assert_same, create, insert, rows};
use crate::support::place::{Place, text};
use crate::support::process::{finish, program, run};
use crate::support::sidecar::Sidecar;
use crate::support::until;

/// Returns a configuration for every database below a directory of the place.
fn config(place: &Place, target: &str) -> String {
    let databases = place.path().join("slots/**/*.db");
    place.write(
        "config.yml",
        &format!(
            "dbs:\n- path: '{}'\n  exclude: ['tmp*']\n  replicas: [{{name: all, url: '{target}'}}]\n",
            text(&databases)
        ),
    )
}

fn slot(place: &Place, name: &str) -> PathBuf {
    let path = place.path().join("slots").join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    path
}

/// Waits until exactly these databases are replicated, and all their commits are stored.
fn wait_for(sidecar: &Sidecar, paths: &[&Path]) {
    until("the databases are stored", || {
        let status = sidecar.status();
        let stored = |path: &Path| {
            let of = |database: &&protocol::status::DatabaseStatus| database.path == text(path);
            status.databases.iter().find(of).is_some_and(|database| {
                let target = &database.targets[0];
                target.position.is_some() && target.position == database.position
            })
        };
        (status.databases.len() == paths.len() && paths.iter().all(|path| stored(path)))
            .then_some(())
    });
}

#[test]
fn databases_come_and_go_while_we_run_and_all_of_them_come_back() {
    let place = Place::new();
    let bucket = Bucket::create("many");
    let config = config(&place, &bucket.url("deep"));
    let (one, two, late) = (
        slot(&place, "1.db"),
        slot(&place, "eu/2.db"),
        slot(&place, "eu/3.db"),
    );
    let first = create(&one, 3);
    let second = create(&two, 4);
    let _ignored = create(&slot(&place, "tmp.db"), 1);
    let sidecar = Sidecar::spawn(place.path(), &["--config", &config], bucket.program());
    wait_for(&sidecar, &[&one, &two]);
    let third = create(&late, 5);
    wait_for(&sidecar, &[&one, &two, &late]);
    insert(&first, 2);
    // A removed database keeps its files in the bucket, and the others continue.
    drop(second);
    let gone = rows(&two);
    std::fs::remove_file(&two).unwrap();
    wait_for(&sidecar, &[&one, &late]);
    insert(&third, 1);
    assert_eq!(sidecar.terminate().0, Some(0));
    drop((first, third));
    let expected: BTreeMap<PathBuf, Rows> = [
        (one.clone(), rows(&one)),
        (late.clone(), rows(&late)),
        (two, gone),
    ]
    .into();

    let mut verify = bucket.program();
    verify.args(["verify", "--config", &config, "--json"]);
    let report = finish(verify).succeeds();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["passed"], 3, "{report}");

    std::fs::remove_dir_all(place.path().join("slots")).unwrap();
    let mut restore = bucket.program();
    restore.args(["restore", "--config", &config]);
    finish(restore).succeeds();
    for (path, expected) in expected {
        assert_same(&rows(&path), &expected);
    }
}

#[test]
fn every_replica_below_a_url_is_restored_below_a_directory() {
    let place = Place::new();
    let bucket = Bucket::create("all");
    let s3 = bucket.url("deep");
    for url in [&place.url("replicas"), &s3] {
        let names = ["1.db", "eu/2.db", "eu/without-ending"];
        let entries = names.map(|name| {
            let path = slot(&place, name);
            if !path.exists() {
                drop(create(&path, 3));
            }
            let (base, query) = url.split_once('?').unwrap_or((url, ""));
            format!(
                "- {{path: '{}', replica: {{url: '{base}/{name}?{query}'}}}}\n",
                path.display()
            )
        });
        let entries = entries.concat().replace("?'", "'");
        let config = place.write("one-by-one.yml", &format!("dbs:\n{entries}"));
        let mut once = bucket.program();
        once.args(["replicate", "--config", &config, "--once"]);
        finish(once).succeeds();

        let output = tempfile::tempdir().unwrap();
        let restore = |arguments: &[&str]| {
            let mut restore = bucket.program();
            restore
                .args(["restore", url, "--all", "-o"])
                .arg(output.path())
                .args(arguments);
            finish(restore)
        };
        std::fs::write(output.path().join("1.db"), "mine").unwrap();
        restore(&[]).succeeds();
        assert_eq!(std::fs::read(output.path().join("1.db")).unwrap(), b"mine");
        restore(&["--force"]).succeeds();
        for name in names {
            assert_same(&rows(&output.path().join(name)), &rows(&slot(&place, name)));
        }
        // No local state exists that would take the replicas over.
        let is_state = |entry: std::fs::DirEntry| text(&entry.path()).ends_with("-sqlite-backup");
        let mut beside = std::fs::read_dir(output.path()).unwrap();
        assert!(!beside.any(|entry| is_state(entry.unwrap())));
    }
    let elsewhere = |url: &str, more: &[&str]| {
        let mut restore = bucket.program();
        restore
            .args(["restore", url, "--all", "-o"])
            .arg(place.path().join("out"))
            .args(more);
        finish(restore)
    };
    // A directory name that would be a pattern elsewhere.
    let odd = place.path().join("out[1]?");
    let mut restore = bucket.program();
    restore.args(["restore", &place.url("replicas"), "--all", "-o", text(&odd)]);
    finish(restore).succeeds();
    assert_same(&rows(&odd.join("eu/2.db")), &rows(&slot(&place, "eu/2.db")));
    let nothing = place.url("nothing");
    elsewhere(&nothing, &[]).fails_with(30, &["no replica below", &nothing]);
    elsewhere(&nothing, &["--if-replica-exists"]).succeeds();
    elsewhere(&place.url("replicas/1.db"), &[]).fails_with(30, &["leave --all out"]);
}

#[test]
fn databases_created_at_once_in_new_directories_are_all_found() {
    let place = Place::new();
    let config = config(&place, &place.url("backup"));
    let sidecar = Sidecar::start(place.path(), &["--config", &config]);
    let paths: Vec<PathBuf> = (0..24)
        .map(|n| slot(&place, &format!("{}/{}/{n}.db", n % 2, n % 6)))
        .collect();
    let connections: Vec<_> = std::thread::scope(|scope| {
        let created = paths.chunks(6).map(|paths| {
            scope.spawn(|| paths.iter().map(|path| create(path, 2)).collect::<Vec<_>>())
        });
        let created: Vec<_> = created.collect();
        let each = created.into_iter().map(|thread| thread.join().unwrap());
        each.flatten().collect()
    });
    let all: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
    wait_for(&sidecar, &all);
    for connection in &connections {
        insert(connection, 1);
    }
    assert_eq!(sidecar.terminate().0, Some(0));
    let expected: Vec<Rows> = paths.iter().map(|path| rows(path)).collect();
    drop(connections);
    std::fs::remove_dir_all(place.path().join("slots")).unwrap();
    run(["restore", "--config", &config]).succeeds();
    for (path, expected) in paths.iter().zip(expected) {
        assert_same(&rows(path), &expected);
    }
}

#[test]
fn renamed_databases_and_directories_go_on_under_their_new_names() {
    let place = Place::new();
    let config = config(&place, &place.url("backup"));
    let (old, new) = (slot(&place, "a/1.db"), slot(&place, "a/2.db"));
    drop(create(&old, 3));
    let sidecar = Sidecar::start(place.path(), &["--config", &config]);
    wait_for(&sidecar, &[&old]);
    std::fs::rename(&old, &new).unwrap();
    wait_for(&sidecar, &[&new]);
    let moved = place.path().join("slots/b/2.db");
    std::fs::rename(place.path().join("slots/a"), place.path().join("slots/b")).unwrap();
    wait_for(&sidecar, &[&moved]);
    let connection = create(&moved, 2);
    assert_eq!(sidecar.terminate().0, Some(0));
    drop(connection);
    // Each name has the rows that it had before.
    for (name, count) in [("a/1.db", 3), ("a/2.db", 3), ("b/2.db", 5)] {
        let (url, output) = (place.url(&format!("backup/{name}")), place.fresh("out.db"));
        run(["restore", &url, "-o", text(&output)]).succeeds();
        assert_eq!(rows(&output).len(), count, "{name}");
    }
}

#[test]
fn files_that_are_no_databases_hold_nothing_back_and_those_that_match_are_named() {
    let place = Place::new();
    let config = config(&place, &place.url("backup"));
    let database = slot(&place, "1.db");
    let connection = create(&database, 3);
    std::fs::write(slot(&place, "noise.db"), [7; 9000]).unwrap();
    std::fs::write(slot(&place, "words.db"), "not a database").unwrap();
    std::os::unix::fs::symlink(&database, slot(&place, "link.db")).unwrap();
    // Files that are not databases to replicate.
    std::fs::write(slot(&place, "empty.db"), "").unwrap();
    std::fs::write(slot(&place, "README"), "words").unwrap();
    std::fs::create_dir(slot(&place, "directory.db")).unwrap();
    let sidecar = Sidecar::start(place.path(), &["--config", &config]);
    insert(&connection, 1);
    let expected = rows(&database);
    let states: BTreeMap<String, bool> = until("what each file is", || {
        let databases = sidecar.status().databases;
        let stored = |database: &DatabaseStatus| {
            let target = &database.targets[0];
            target.position.is_some() && target.position == database.position
        };
        let known = |it: &DatabaseStatus| it.state == DatabaseState::NotSqlite || stored(it);
        let states = databases
            .iter()
            .map(|it| (it.path.clone(), it.state == DatabaseState::NotSqlite));
        let all = databases.len() == 4 && databases.iter().all(known);
        all.then(|| states.collect())
    });
    let named = [
        ("1.db", false),
        ("link.db", true),
        ("noise.db", true),
        ("words.db", true),
    ]
    .map(|(name, is_none)| (text(&slot(&place, name)).to_owned(), is_none))
    .into();
    assert_eq!(states, named);
    // The exit code reports it as well.
    assert_eq!(sidecar.terminate().0, Some(23));
    let output = place.fresh("out.db");
    let url = place.url("backup/1.db");
    run(["restore", &url, "-o", text(&output)]).succeeds();
    assert_same(&rows(&output), &expected);
}

#[test]
fn a_store_that_cannot_be_asked_is_not_one_without_databases() {
    let place = Place::new();
    let config = config(&place, "s3://bucket/app?endpoint=http://127.0.0.1:1");
    for command in ["restore", "verify"] {
        let mut ask = program();
        ask.args([command, "--config", &config])
            .env("AWS_ACCESS_KEY_ID", "a")
            .env("AWS_SECRET_ACCESS_KEY", "b");
        finish(ask).fails_with(21, &["unreachable"]);
    }
    // An application with local databases does not wait for it.
    let database = slot(&place, "1.db");
    drop(create(&database, 1));
    let mut wait = program();
    wait.args(["restore", "--config", &config, "--wait"])
        .env("AWS_ACCESS_KEY_ID", "a")
        .env("AWS_SECRET_ACCESS_KEY", "b");
    finish(wait).succeeds();
    // Unless their restore was never finished: then the local databases are not complete.
    std::fs::write(slot(&place, ".sqlite-backup-restoring"), "").unwrap();
    let mut wait = Command::new("timeout");
    wait.arg("5").arg(program().get_program());
    wait.args(["restore", "--config", &config, "--wait"])
        .env("AWS_ACCESS_KEY_ID", "a")
        .env("AWS_SECRET_ACCESS_KEY", "b");
    assert_eq!(finish(wait).code, Some(124));
}

#[test]
fn databases_whose_restore_was_cut_short_are_not_taken_for_all() {
    let place = Place::new();
    let config = config(&place, &place.url("backup"));
    // One more than are restored at the same time: it starts when another one is done.
    let paths: Vec<_> = (1..=9).map(|n| slot(&place, &format!("{n}.db"))).collect();
    for path in &paths {
        drop(create(path, 1));
    }
    run(["replicate", "--config", &config, "--once"]).succeeds();
    std::fs::remove_dir_all(place.path().join("slots")).unwrap();
    let lock = place.path().join("backup/9.db/lock.json");
    let good = std::fs::read(&lock).unwrap();
    std::fs::write(&lock, "not ours").unwrap();
    let wait = ["restore", "--wait", "--config", &config];
    run(wait).fails_with(10, &["9.db"]);
    assert!(paths.iter().any(|path| path.exists()) && !paths[8].exists());

    let dead = "s3://bucket/app?endpoint=http://127.0.0.1:1";
    let content = std::fs::read_to_string(&config).unwrap();
    let away = place.write("away.yml", &content.replace(&place.url("backup"), dead));
    let signed = || {
        let mut command = program();
        command
            .env("AWS_ACCESS_KEY_ID", "a")
            .env("AWS_SECRET_ACCESS_KEY", "b");
        command
    };
    let waiting = Waiting::start(&place, &away, signed(), &[]);
    waiting.says("the application waits");
    waiting.terminates();
    // Once all databases exist, the application no longer waits.
    std::fs::write(&lock, good).unwrap();
    run(wait).succeeds();
    assert!(paths.iter().all(|path| path.exists()));
    Waiting::start(&place, &away, signed(), &[]).ends_with(0);
}

#[test]
fn a_target_that_cannot_be_asked_may_know_more_than_the_others() {
    let place = Place::new();
    let text = std::fs::read_to_string(config(&place, &place.url("near"))).unwrap();
    let near = place.write("near.yml", &text);
    drop(create(&slot(&place, "1.db"), 3));
    finish({
        let mut once = program();
        once.args(["replicate", "--config", &near, "--once"]);
        once
    })
    .succeeds();
    std::fs::remove_dir_all(place.path().join("slots")).unwrap();
    let dead = "{name: far, url: 's3://bucket/app?endpoint=http://127.0.0.1:1'}]";
    let both = place.write("both.yml", &text.replace("}]", &format!("}}, {dead}")));
    let mut restore = program();
    restore
        .args(["restore", "--config", &both])
        .env("AWS_ACCESS_KEY_ID", "a")
        .env("AWS_SECRET_ACCESS_KEY", "b");
    finish(restore).fails_with(21, &["unreachable"]);
}

#[test]
fn a_database_may_have_the_name_of_a_level() {
    let place = Place::new();
    let config = place.write(
        "config.yml",
        &format!(
            "dbs: [{{path: '{}/slots/*', replica: {{url: '{}'}}}}]\n",
            place.path().display(),
            place.url("backup")
        ),
    );
    let databases = ["0001", "ltx"].map(|name| slot(&place, name));
    std::fs::create_dir(slot(&place, "lost+found")).unwrap();
    for database in &databases {
        drop(create(database, 3));
    }
    for command in [
        ["replicate", "--once"],
        ["verify", "--json"],
        ["restore", "--json"],
    ] {
        if command[0] == "restore" {
            std::fs::remove_dir_all(place.path().join("slots")).unwrap();
        }
        let mut run = program();
        run.args([command[0], "--config", &config, command[1]]);
        finish(run).succeeds();
    }
    for database in &databases {
        assert_eq!(rows(database).len(), 3);
    }
}

#[test]
fn a_database_of_which_nothing_is_left_is_not_overlooked() {
    let place = Place::new();
    let config = config(&place, &place.url("backup"));
    let (one, two) = (slot(&place, "1.db"), slot(&place, "2.db"));
    let _applications = [create(&one, 3), create(&two, 4)];
    let sidecar = Sidecar::start(place.path(), &["--config", &config]);
    wait_for(&sidecar, &[&one, &two]);
    let databases = sidecar
        .status()
        .databases
        .into_iter()
        .map(|database| DatabaseExpectation {
            path: database.path,
            target: "all".to_owned(),
            acknowledged: database.targets[0].position.clone().unwrap(),
            lag_ms: 0,
        });
    let request = VerifyRequest {
        level: VerifyLevel::Full,
        point: protocol::verify::Point::Latest,
        members: vec![MemberExpectation {
            member: "orders-0".to_owned(),
            databases: databases.collect(),
        }],
        max_lag: None,
        checks: Vec::new(),
    };
    assert_eq!(sidecar.terminate().0, Some(0));
    std::fs::remove_dir_all(place.path().join("backup/2.db")).unwrap();
    let mut verify = program();
    verify
        .args(["verify", "--config", &config])
        .env(VERIFY_REQUEST_ENV, serde_json::to_string(&request).unwrap());
    finish(verify).fails_with(30, &[]);
    // Without a report of a live sidecar, the stored databases are proven; an empty store does not
    // pass.
    let mut verify = program();
    verify.args(["verify", "--config", &config]);
    finish(verify).succeeds();
    std::fs::remove_dir_all(place.path().join("backup/1.db")).unwrap();
    let mut verify = program();
    verify.args(["verify", "--config", &config]);
    finish(verify).fails_with(30, &[]);
}
