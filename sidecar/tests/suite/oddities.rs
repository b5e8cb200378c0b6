//! Unusual environments: names, WALs, directories.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;

use protocol::status::DatabaseState;
use tempfile::TempDir;

use crate::support::database::{assert_same, create, insert, rows};
use crate::support::place::{Place, text};
use crate::support::process::{finish, program, run};
use crate::support::sidecar::Sidecar;
use crate::support::until;

fn place() -> TempDir {
    tempfile::tempdir().expect("make a directory")
}

#[test]
fn a_log_that_nobody_takes_keeps_no_backup_from_being_made() {
    let place = place();
    let path = place.path().join("app.db");
    drop(create(&path, 3));
    let url = format!("file://{}/backup", place.path().display());
    let full = std::fs::File::options().write(true).open("/dev/full");
    let mut command = program();
    command.args(["replicate", text(&path), &url, "--once"]);
    command.stderr(full.unwrap());
    assert_eq!(command.status().unwrap().code(), Some(0));
    let output = place.path().join("out.db");
    run(["restore", &url, "-o", text(&output)]).succeeds();
    assert_eq!(rows(&output), rows(&path));
}

#[test]
fn a_database_on_the_command_line_is_that_file_whatever_its_name_looks_like() {
    let place = place();
    for (index, name) in ["app[1].db", "?q=1#x.db", "*.db", "**"].iter().enumerate() {
        let path = place.path().join(name);
        let url = format!("file://{}/backup-{index}", place.path().display());
        run(["replicate", text(&path), &url, "--once"]).fails_with(17, &["does not exist"]);
        drop(create(&path, 3));
        run(["replicate", text(&path), &url, "--once"]).succeeds();
        let output = place.path().join("out.db");
        run(["restore", &url, "-o", text(&output)]).succeeds();
        assert_eq!(rows(&output), rows(&path), "{name}");
        std::fs::remove_file(output).unwrap();
    }
    let odd = std::ffi::OsStr::from_bytes(b"/tmp/\xff.db");
    let mut command = program();
    command.args(["replicate".as_ref(), odd, "file:///b".as_ref()]);
    finish(command).fails_with(2, &["not UTF-8"]);
}

#[test]
fn a_backup_is_not_kept_among_what_is_only_ours() {
    let place = place();
    let path = place.path().join("app.db");
    drop(create(&path, 1));
    let state = place.path().join("state");
    let file = place.path().join("config.yml");
    for below in ["", "/backup"] {
        let content = format!(
            "dbs:\n- path: {}\n  meta-path: {state}\n  replica: {{path: {state}{below}}}\n",
            path.display(),
            state = state.display()
        );
        std::fs::write(&file, content).unwrap();
        let done = run(["replicate", "--config", text(&file), "--once"]);
        done.fails_with(2, &["dbs[0].replicas[0]", text(&state)]);
    }
}

#[test]
fn a_pattern_without_a_backup_is_nothing_to_restore() {
    let place = place();
    let file = place.path().join("config.yml");
    let content = format!(
        "dbs: [{{dir: {0}, replica: {{path: {0}/backup}}}}]",
        place.path().display()
    );
    std::fs::write(&file, content).unwrap();
    run(["restore", "--config", text(&file)]).fails_with(30, &["match no backup"]);
    let flags = ["--if-db-not-exists", "--if-replica-exists"];
    run(["restore", "--config", text(&file)].iter().chain(&flags)).succeeds();
}

#[test]
fn a_backup_without_a_full_copy_is_not_taken_for_none() {
    let place = place();
    let path = place.path().join("app.db");
    drop(create(&path, 3));
    let backup = place.path().join("backup");
    let url = format!("file://{}", backup.display());
    run(["replicate", text(&path), &url, "--once"]).succeeds();
    std::fs::remove_dir_all(backup.join("ltx/9")).unwrap();
    let done = run(["inspect", &url]);
    assert_eq!(done.code, Some(11), "{done:?}");
    assert!(done.out.contains("NOT RESTORABLE"), "{done:?}");
}

/// Returns names under which a backup would not be found again.
fn unusable_names() -> Vec<Vec<u8>> {
    let long = "x".repeat(201) + ".db";
    let names = [
        "back\\slash.db",
        &long,
        "copy.tmp",
        "two\nlines.db",
        "dir.tmp/a.db",
    ];
    let mut names: Vec<_> = names.iter().map(|it| it.as_bytes().to_vec()).collect();
    names.push(b"latin-\xe4.db".to_vec());
    names
}

#[test]
fn a_database_whose_name_no_store_can_keep_is_refused_loudly_and_alone() {
    let place = Place::new();
    let data = place.path().join("data");
    for name in unusable_names() {
        let path = data.join(OsStr::from_bytes(&name));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "never looked at").unwrap();
    }
    let good = data.join("good.db");
    let connection = create(&good, 3);
    let content = format!(
        "dbs: [{{path: '{}/**/*', replica: {{url: '{}'}}}}]\n",
        data.display(),
        place.url("backup")
    );
    let config = place.write("config.yml", &content);
    for mode in ["--once", "--dry-run"] {
        let done = run(["replicate", "--config", &config, mode]);
        done.fails_with(
            17,
            &["rename the file", "not UTF-8", "backslash", "copy.tmp"],
        );
    }
    let sidecar = Sidecar::start(place.path(), &["--config", &config]);
    insert(&connection, 1);
    let states: BTreeMap<String, DatabaseState> = until("the good one is stored", || {
        let databases = sidecar.status().databases;
        let stored = databases.iter().find(|it| it.path == text(&good))?;
        let target = &stored.targets[0];
        let is_stored = target.position.is_some() && target.position == stored.position;
        let states = databases.iter().map(|it| (it.path.clone(), it.state));
        is_stored.then(|| states.collect())
    });
    let refused = states
        .values()
        .filter(|it| **it == DatabaseState::UnusableName);
    assert_eq!(refused.count(), unusable_names().len(), "{states:?}");
    let metrics = sidecar.get("/metrics").1;
    let unhealthy = metrics.lines().filter(|line| {
        line.starts_with("sqlite_backup_database_healthy{") && line.ends_with(" 0.0")
    });
    assert_eq!(unhealthy.count(), unusable_names().len(), "{metrics}");
    let status = run(["status", "--addr", sidecar.address()]);
    assert_eq!(status.code, Some(12), "{status:?}");
    assert_eq!(sidecar.terminate().0, Some(23));
    // Every list finds all the stored backups.
    let stored: Vec<_> = std::fs::read_dir(place.path().join("backup"))
        .unwrap()
        .collect();
    assert_eq!(stored.len(), 1);
    let expected = rows(&good);
    drop(connection);
    std::fs::remove_dir_all(&data).unwrap();
    run(["restore", "--config", &config]).succeeds();
    assert_same(&rows(&good), &expected);
}

#[test]
fn a_database_is_not_stored_among_the_objects_of_another_one() {
    let place = Place::new();
    drop(create(&place.database(), 1));
    let slots = place.path().join("slots");
    std::fs::create_dir(&slots).unwrap();
    for name in ["ltx", "lock.json", "generations", "0009", "fine"] {
        drop(create(&slots.join(name), 2));
    }
    let backup = place.url("backup");
    let one = format!(
        "{{path: {}, replica: {{url: '{backup}'}}}}",
        place.database_text()
    );
    let many = format!(
        "{{path: '{}/*', replica: {{url: '{backup}'}}}}",
        slots.display()
    );
    let config = place.write("config.yml", &format!("dbs: [{one}, {many}]\n"));
    let done = run(["replicate", "--config", &config, "--once"]);
    done.fails_with(
        17,
        &[
            "among the objects of",
            "ltx",
            "lock.json",
            "generations",
            "0009",
        ],
    );
    for (url, source) in [
        (backup.clone(), place.database()),
        (format!("{backup}/fine"), slots.join("fine")),
    ] {
        let output = place.fresh("out.db");
        run(["restore", &url, "-o", text(&output)]).succeeds();
        assert_same(&rows(&output), &rows(&source));
    }
    let inside = format!(
        "{{path: {}/fine, replica: {{url: '{backup}/ltx/x'}}}}",
        slots.display()
    );
    let config = place.write("config.yml", &format!("dbs: [{one}, {inside}]\n"));
    run(["replicate", "--config", &config, "--once"])
        .fails_with(2, &["dbs[1]", "among the objects"]);
}

#[test]
fn a_database_that_is_written_by_another_name_is_not_taken_for_idle() {
    let place = Place::new();
    let other = place.path().join("other");
    std::fs::create_dir(&other).unwrap();
    drop(create(&place.database(), 3));
    let link = other.join("app.db");
    std::fs::hard_link(place.database(), &link).unwrap();
    // The WAL with these rows is beside the other name.
    let connection = create(&link, 20);
    let url = place.url("backup");
    let once = ["replicate", place.database_text(), &url, "--once"];
    run(once).fails_with(
        17,
        &["hard links", "give the path that the application opens"],
    );
    let sidecar = Sidecar::start(place.path(), &[place.database_text(), &url]);
    let status = sidecar.wait_until("the second name is told", |status| {
        status.state == DatabaseState::SecondName
    });
    assert!(status.message.contains("hard links"), "{status:?}");
    assert_eq!(sidecar.terminate().0, Some(23));
    drop(connection);
    // If we use the application's name, the other name is harmless.
    let connection = create(&place.database(), 5);
    run(once).succeeds();
    let output = place.fresh("out.db");
    run(["restore", &url, "-o", text(&output)]).succeeds();
    assert_same(&rows(&output), &rows(&place.database()));
    drop(connection);
}

/// Sets the header of a database to rollback mode, in another process: closing the file in this one
/// would release the locks of its connections.
fn say_rollback(database: &Path) {
    let script =
        "import os, sys\nfile = os.open(sys.argv[1], os.O_WRONLY)\nos.pwrite(file, b'\\1\\1', 18)";
    let status = Command::new("python3")
        .args(["-c", script])
        .arg(database)
        .status();
    assert!(status.unwrap().success());
}

#[test]
fn a_header_that_is_older_than_the_log_does_not_hide_the_log() {
    let place = Place::new();
    let connection = create(&place.database(), 3);
    say_rollback(&place.database());
    let url = place.url("backup");
    run(["replicate", place.database_text(), &url, "--once"]).succeeds();
    let sidecar = Sidecar::start(place.path(), &[place.database_text(), &url]);
    insert(&connection, 4);
    sidecar.wait_until_stored();
    assert_eq!(sidecar.terminate().0, Some(0));
    let output = place.fresh("out.db");
    run(["restore", &url, "-o", text(&output)]).succeeds();
    assert_same(&rows(&output), &rows(&place.database()));
}

#[test]
fn a_database_that_is_not_there_yet_is_waited_for() {
    let place = Place::new();
    let url = place.url("backup");
    let sidecar = Sidecar::start(place.path(), &[place.database_text(), &url]);
    until("we are told that it waits", || {
        sidecar
            .log()
            .contains("does not exist yet: replication waits")
            .then_some(())
    });
    let connection = create(&place.database(), 3);
    sidecar.wait_until_stored();
    assert_eq!(sidecar.terminate().0, Some(0));
    drop(connection);
    for mode in ["--once", "--dry-run"] {
        let missing = place.path().join("missing.db");
        let done = run(["replicate", text(&missing), &url, mode]);
        done.fails_with(17, &["does not exist"]);
    }
}

#[test]
fn the_program_tells_its_name_and_version() {
    let told = run(["--version"]).succeeds();
    assert_eq!(
        told,
        format!("sqlite-backup {}\n", env!("CARGO_PKG_VERSION"))
    );
}
