//! Commits reach the store, whichever process is killed at whichever time.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

use protocol::status::DatabaseState;

use crate::support::bucket::Bucket;
use crate::support::database::{Rows, assert_same, create, files, insert, rows};
use crate::support::place::{Place, text};
use crate::support::process::{finish, program, run, signal};
use crate::support::sidecar::Sidecar;
use crate::support::until;
use crate::support::writer::Writer;

/// Restores the newest state of a replica and reads it.
pub fn restored(place: &Place, url: &str, program: Command) -> Rows {
    let output = place.fresh("restored.db");
    let mut command = program;
    command
        .args(["restore", url, "-o"])
        .arg(&output)
        .args(["--integrity-check", "full"]);
    finish(command).succeeds();
    rows(&output)
}

/// Writes, kills the sidecar and then the writer, starts the sidecar again, ends it with SIGTERM,
/// and compares.
fn survives_kills(url: &str, program: &dyn Fn() -> Command) {
    let place = Place::new();
    let arguments = [place.database_text(), url];
    let writer = Writer::start(&place.database());
    let sidecar = Sidecar::spawn(place.path(), &arguments, program());
    sidecar.wait_until_stored();
    writer.write_more(100);
    sidecar.kill();
    writer.write_more(50);
    let sidecar = Sidecar::spawn(place.path(), &arguments, program());
    writer.write_more(100);
    let told = writer.kill();
    let (code, took) = sidecar.terminate();
    assert_eq!(code, Some(0));
    println!("SIGTERM to end: {took:?}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    let before = restored(&place, url, program());
    assert!(
        told >= 250 && before.len() as i64 >= told,
        "{}",
        before.len()
    );
    // The application returns, and SQLite recovers its WAL: every acknowledged row, and possibly
    // the commit during which the application died. That commit was in the WAL, but not visible to
    // readers yet.
    let mut recovered = rows(&place.database());
    if recovered.len() == before.len() + 1 {
        recovered.pop();
    }
    assert_same(&before, &recovered);
    let sidecar = Sidecar::spawn(place.path(), &arguments, program());
    let writer = Writer::start(&place.database());
    writer.write_more(20);
    writer.stop();
    assert_eq!(sidecar.terminate().0, Some(0));
    assert_same(&restored(&place, url, program()), &rows(&place.database()));
    let mut command = program();
    finish({
        command.args(["inspect", url]);
        command
    })
    .succeeds();
}

#[test]
fn a_directory_gets_every_commit_though_both_sides_are_killed() {
    let place = Place::new();
    survives_kills(&place.url("backup"), &program);
}

#[test]
fn a_bucket_gets_every_commit_though_both_sides_are_killed() {
    let bucket = Bucket::create("replicate-kills");
    survives_kills(&bucket.url("deep/prefix"), &|| bucket.program());
}

#[test]
fn the_last_commit_before_sigterm_is_stored_at_once() {
    let place = Place::new();
    let url = place.url("backup");
    let connection = create(&place.database(), 5);
    let sidecar = Sidecar::start(place.path(), &[place.database_text(), &url]);
    sidecar.wait_until_stored();
    insert(&connection, 1);
    let (code, took) = sidecar.terminate();
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(restored(&place, &url, program()).len(), 6);
}

#[test]
fn once_stores_everything_and_ends() {
    let place = Place::new();
    let url = place.url("backup");
    let connection = create(&place.database(), 5);
    // The same holds without any change in between.
    for more in [0, 3, 0] {
        insert(&connection, more);
        run(["replicate", place.database_text(), &url, "--once"]).succeeds();
        assert_same(&restored(&place, &url, program()), &rows(&place.database()));
    }
}

#[test]
fn once_ends_while_an_application_goes_on_writing() {
    let place = Place::new();
    let url = place.url("backup");
    let writer = Writer::start(&place.database());
    for _ in 0..2 {
        writer.write_more(20);
        let before = writer.last();
        run(["replicate", place.database_text(), &url, "--once"]).succeeds();
        let stored = restored(&place, &url, program()).len() as i64;
        assert!(stored >= before, "{stored} of {before}");
    }
    writer.stop();
}

#[test]
fn of_two_clones_of_a_volume_the_one_that_started_last_goes_on() {
    // The state is copied, and the database is the same file under another name, as after a clone
    // of a volume.
    let (place, clone) = (Place::new(), Place::new());
    let url = place.url("backup");
    let connection = create(&place.database(), 5);
    let first = Sidecar::start(place.path(), &[place.database_text(), &url]);
    connection
        .execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")
        .unwrap();
    first.wait_until_stored();
    let mut copy = Command::new("cp");
    copy.arg("-a")
        .arg(place.path().join(".app.db-sqlite-backup"))
        .arg(clone.path());
    assert!(copy.status().unwrap().success());
    std::fs::hard_link(place.database(), clone.database()).unwrap();
    // An application reads there in its own process: without one, a second name is refused.
    let script = "import sqlite3, sys\ndb = sqlite3.connect(sys.argv[1])\n\
                  db.execute('SELECT count(*) FROM sqlite_schema').fetchall()\n\
                  print('open', flush=True)\nsys.stdin.read()";
    let mut reader = Command::new("python3")
        .args(["-c", script, clone.database_text()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The pipe stays open to the end: the reader may still be writing the rest of its line.
    let mut output = reader.stdout.take().unwrap();
    output.read_exact(&mut [0; 4]).unwrap();
    let second = Sidecar::start(clone.path(), &[clone.database_text(), &url]);
    second.wait_until("the second to write", |status| {
        status.targets[0].epoch > 1 && status.targets[0].position.is_some()
    });
    for _ in 0..3 {
        insert(&connection, 1);
        restored(&place, &url, program());
    }
    first.wait_until("the first to be told", |status| {
        status.state == DatabaseState::Superseded
    });
    assert_eq!(first.terminate().0, Some(16));
    assert_eq!(second.terminate().0, Some(0));
    restored(&place, &url, program());
    drop(reader.stdin.take());
    assert!(reader.wait().unwrap().success());
}

#[test]
fn nothing_that_only_leads_to_a_database_is_taken_for_it() {
    let place = Place::new();
    let connection = create(&place.database(), 5);
    let link = place.fresh("link.db");
    std::os::unix::fs::symlink(place.database(), &link).unwrap();
    let (link, url) = (text(&link), place.url("backup"));
    run(["replicate", link, &url, "--once"]).fails_with(17, &["symbolic link"]);
    run(["replicate", place.database_text(), &url, "--once"]).succeeds();
    run(["restore", &url, "-o", link, "--force"]).fails_with(2, &["symbolic link"]);
    assert_eq!(rows(&place.database()).len(), 5);
    drop(connection);
}

#[test]
fn several_targets_get_the_same() {
    let place = Place::new();
    let connection = create(&place.database(), 5);
    let bucket = Bucket::create("replicate-two");
    let config = place.write(
        "config.yml",
        &format!(
            "dbs:\n- path: {}\n  replicas:\n  - {{name: near, url: '{}'}}\n  - {{name: far, url: '{}'}}\n",
            place.database_text(),
            place.url("near"),
            bucket.url("far")
        ),
    );
    let sidecar = Sidecar::spawn(place.path(), &["--config", &config], bucket.program());
    insert(&connection, 5);
    let names: Vec<_> = sidecar
        .wait_until_stored()
        .targets
        .into_iter()
        .map(|target| target.name)
        .collect();
    assert_eq!(names, ["near", "far"]);
    assert_eq!(sidecar.terminate().0, Some(0));
    let expected = rows(&place.database());
    assert_same(&restored(&place, &place.url("near"), program()), &expected);
    assert_eq!(
        restored(&place, &bucket.url("far"), bucket.program()),
        expected
    );
}

#[test]
fn a_dead_target_holds_nothing_back_and_sigterm_says_what_is_not_stored() {
    let place = Place::new();
    let connection = create(&place.database(), 5);
    let dead = "s3://bucket/far?endpoint=http://127.0.0.1:1";
    let config = place.write(
        "config.yml",
        &format!(
            "shutdown-sync-timeout: 1s\ndbs:\n- path: {}\n  replicas:\n  - {{name: near, url: '{}'}}\n  \
             - {{name: far, url: '{dead}', access-key-id: a, secret-access-key: b}}\n",
            place.database_text(),
            place.url("near"),
        ),
    );
    let sidecar = Sidecar::start(place.path(), &["--config", &config]);
    insert(&connection, 5);
    sidecar.wait_until("the near target has everything", |status| {
        status.position.is_some()
            && status.targets[0].position == status.position
            && !status.targets[1].message.is_empty()
    });
    insert(&connection, 1);
    let (code, took) = sidecar.terminate();
    assert_eq!(code, Some(23));
    assert!(took < Duration::from_secs(8), "{took:?}");
    let expected = rows(&place.database());
    assert_same(&restored(&place, &place.url("near"), program()), &expected);
}

#[test]
fn a_supervisor_restarts_its_worker_and_ends_with_it() {
    let place = Place::new();
    let url = place.url("backup");
    let writer = Writer::start(&place.database());
    let arguments = ["--supervise", place.database_text(), &url];
    let mut sidecar = Sidecar::start(place.path(), &arguments);
    sidecar.wait_until_stored();
    let (parent, worker) = (sidecar.id(), sidecar.worker());
    signal(worker, "KILL");
    writer.write_more(20);
    sidecar.follow();
    assert_eq!(sidecar.id(), parent);
    assert_ne!(sidecar.worker(), worker);
    writer.write_more(20);
    writer.stop();
    let (code, took) = sidecar.terminate();
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_same(&restored(&place, &url, program()), &rows(&place.database()));
}

#[test]
fn a_supervisor_ends_with_the_code_of_its_worker() {
    let place = Place::new();
    let _connection = create(&place.database(), 5);
    let config = place.write(
        "config.yml",
        &format!(
            "shutdown-sync-timeout: 1s\naccess-key-id: a\nsecret-access-key: b\ndbs:\n- path: {}\n  \
             replica: {{url: 's3://bucket/app?endpoint=http://127.0.0.1:1'}}\n",
            place.database_text(),
        ),
    );
    let sidecar = Sidecar::start(place.path(), &["--supervise", "--config", &config]);
    sidecar.wait_until("the store is missed", |status| {
        !status.targets[0].message.is_empty()
    });
    assert_eq!(sidecar.terminate().0, Some(23));
}

#[test]
fn a_second_signal_to_a_supervisor_ends_its_worker_at_once() {
    let place = Place::new();
    let _connection = create(&place.database(), 5);
    let config = place.write(
        "config.yml",
        &format!(
            "shutdown-sync-timeout: 1h\naccess-key-id: a\nsecret-access-key: b\ndbs:\n- path: {}\n  \
             replica: {{url: 's3://bucket/app?endpoint=http://127.0.0.1:1'}}\n",
            place.database_text(),
        ),
    );
    let sidecar = Sidecar::start(place.path(), &["--supervise", "--config", &config]);
    sidecar.wait_until("the store is missed", |status| {
        !status.targets[0].message.is_empty()
    });
    let (parent, worker) = (sidecar.id(), sidecar.worker());
    signal(parent, "TERM");
    until("the worker was told to end", || {
        sidecar.log().contains("told to stop").then_some(())
    });
    assert_eq!(sidecar.end_by("INT").0, Some(23));
    assert!(!std::path::Path::new(&format!("/proc/{worker}")).exists());
}

#[test]
fn a_worker_does_not_outlive_its_supervisor() {
    let place = Place::new();
    let url = place.url("backup");
    drop(create(&place.database(), 5));
    let arguments = ["--supervise", place.database_text(), &url];
    let sidecar = Sidecar::start(place.path(), &arguments);
    sidecar.wait_until_stored();
    let worker = sidecar.worker();
    sidecar.kill();
    until("the worker is gone", || {
        let state = std::fs::read_to_string(format!("/proc/{worker}/stat"));
        // The process may stay a zombie, because no parent reaps it.
        state
            .map_or(true, |state| state.contains(") Z "))
            .then_some(())
    });
}

#[test]
fn a_supervised_worker_waits_for_its_configuration_and_for_its_bucket() {
    let place = Place::new();
    drop(create(&place.database(), 5));
    let config = place.path().join("config.yml");
    let log = place.path().join("log");
    let mut child = program()
        .args(["replicate", "--supervise", "--config"])
        .arg(&config)
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let logged = |word: &str| {
        until(word, || {
            std::fs::read_to_string(&log)
                .unwrap()
                .contains(word)
                .then_some(())
        });
    };
    logged("config.yml: No such file");
    std::fs::write(&config, "dbs: [{pth: x}]").unwrap();
    logged("did you mean");
    // A directory below a file: a target that does not work yet.
    let blocker = place.write("blocker", "");
    let content = format!(
        "dbs: [{{path: {}, replica: {{url: 'file://{blocker}/backup'}}}}]",
        place.database_text()
    );
    std::fs::write(&config, content).unwrap();
    logged("a part of the path is a file");
    std::fs::remove_file(&blocker).unwrap();
    until("the backup is there", || {
        std::path::Path::new(&blocker)
            .is_dir()
            .then(|| {
                files(std::path::Path::new(&blocker), &|name| {
                    name.ends_with(".ltx")
                })
            })
            .filter(|files| files.len() >= 2)
    });
    signal(child.id(), "TERM");
    let (code, took) = crate::support::process::wait_for_end(&mut child);
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn a_database_that_appears_later_is_replicated() {
    let place = Place::new();
    let config = place.config(&place.database(), "backup");
    let sidecar = Sidecar::start(place.path(), &["--config", &config]);
    sidecar.wait_until("the database is missed", |status| {
        status.state == protocol::status::DatabaseState::Missing
    });
    let _connection = create(&place.database(), 5);
    sidecar.wait_until_stored();
    assert_eq!(sidecar.terminate().0, Some(0));
    assert_eq!(restored(&place, &place.url("backup"), program()).len(), 5);
}

#[test]
fn a_store_that_encrypts_with_a_key_of_ours_gives_all_back_and_the_log_never_shows_the_key() {
    let place = Place::new();
    let bucket = Bucket::create("replicate-sse");
    drop(create(&place.database(), 5));
    let key = "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0IDEyMzQ=";
    place.write("sse.key", key);
    let url = bucket.url("app");
    let config = place.write(
        "config.yml",
        &format!(
            "storage-class: STANDARD_IA\nsse-customer-key-path: {}/sse.key\n\
             dbs: [{{path: {}, replica: {{url: '{url}'}}}}]\n",
            place.path().display(),
            place.database_text()
        ),
    );
    let mut command = bucket.program();
    command.args(["--log-level", "trace", "replicate", "--config", &config]);
    let done = finish({
        command.arg("--once");
        command
    });
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.err.contains("TRACE"));
    assert!(!done.err.contains(key), "the key is in the log");
    let expected = rows(&place.database());
    std::fs::remove_file(place.database()).unwrap();
    let mut command = bucket.program();
    command.args(["restore", "--config", &config]);
    finish(command).succeeds();
    assert_same(&rows(&place.database()), &expected);
    // The URL alone has no key. The error says so, and does not report an empty store.
    let mut command = bucket.program();
    command.args(["restore", &url, "-o", text(&place.fresh("out.db"))]);
    finish(command).fails_with(21, &["s3://replicate-sse/app", "key"]);
}

#[test]
fn without_a_file_a_hangup_is_a_stop_as_any_other() {
    let place = Place::new();
    let connection = create(&place.database(), 5);
    let url = place.url("backup");
    // The process that runs this test may have it ignored.
    let mut command = std::process::Command::new("env");
    command
        .arg("--default-signal=HUP")
        .arg(program().get_program());
    let sidecar = Sidecar::spawn(place.path(), &[place.database_text(), &url], command);
    sidecar.wait_until_stored();
    insert(&connection, 3);
    assert_eq!(sidecar.end_by("HUP").0, Some(0));
    let expected = rows(&place.database());
    assert_same(&restored(&place, &url, program()), &expected);
}

#[test]
fn a_hangup_that_is_ignored_when_we_start_stays_so() {
    let place = Place::new();
    let connection = create(&place.database(), 5);
    let url = place.url("backup");
    let mut command = std::process::Command::new("nohup");
    command.arg(program().get_program());
    let sidecar = Sidecar::spawn(place.path(), &[place.database_text(), &url], command);
    sidecar.wait_until_stored();
    signal(sidecar.id(), "HUP");
    insert(&connection, 3);
    sidecar.wait_until_stored();
    assert_eq!(sidecar.terminate().0, Some(0));
    assert_same(&restored(&place, &url, program()), &rows(&place.database()));
}
