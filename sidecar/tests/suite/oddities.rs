//! Surroundings that nobody thinks of: names, logs, directories.

use std::os::unix::ffi::OsStrExt;

use tempfile::TempDir;

use crate::support::database::{create, rows};
use crate::support::place::text;
use crate::support::process::{finish, program, run};

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
