//! An application that runs as our child process.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::replicate::restored;
use crate::support::database::create;
use crate::support::place::Place;
use crate::support::process::{finish, program, run, signal, wait_for_end};
use crate::support::until;

/// A child that commits, ends without announcing it, and has its own exit code.
const CHILD: &str = r#"
import os, signal, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode=WAL")
db.execute("CREATE TABLE log(id INTEGER PRIMARY KEY, body BLOB)")
def end(*_):
    db.execute("INSERT INTO log VALUES(NULL, x'01')")
    sys.exit(5)
signal.signal(signal.SIGTERM, end)
for _ in range(int(sys.argv[2])):
    db.execute("INSERT INTO log VALUES(NULL, x'00')")
print("ready", flush=True)
mode = sys.argv[3]
if mode == "wait":
    signal.pause()
if mode == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if mode == "content":
    sys.exit(0)
end()
"#;

fn exec(place: &Place, mode: &str) -> Command {
    let script = place.write("child.py", CHILD);
    let database = place.database_text();
    let mut command = program();
    command
        .args(["replicate", database, &place.url("backup"), "--exec"])
        .arg(format!("python3 '{script}' {database} 5 {mode}"));
    command
}

#[test]
fn a_child_runs_and_its_last_commits_are_stored_before_we_end_with_its_code() {
    let place = Place::new();
    let done = finish(exec(&place, "end"));
    assert_eq!(done.code, Some(5), "{done:?}");
    assert_eq!(restored(&place, &place.url("backup"), program()).len(), 6);
    let mut command = program();
    command.args(["replicate", place.database_text(), &place.url("backup")]);
    command.args(["--exec", "/no/such/program"]);
    finish(command).fails_with(2, &["/no/such/program"]);
}

#[test]
fn a_child_gets_our_signal_and_its_answer_to_it_is_stored() {
    // The signals of a terminal and of a service manager have the same effect.
    for name in ["TERM", "INT"] {
        let place = Place::new();
        let mut command = exec(&place, "wait");
        let mut parent = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let output = parent.stdout.as_mut().unwrap();
        BufReader::new(output).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "ready");
        signal(parent.id(), name);
        assert_eq!(wait_for_end(&mut parent).0, Some(5));
        assert_eq!(restored(&place, &place.url("backup"), program()).len(), 6);
    }
}

#[test]
fn a_child_that_a_signal_ended_is_told_as_a_shell_tells_it() {
    let place = Place::new();
    let done = finish(exec(&place, "killed"));
    assert_eq!(done.code, Some(128 + 9), "{done:?}");
    assert_eq!(restored(&place, &place.url("backup"), program()).len(), 5);
}

#[test]
fn a_content_child_does_not_hide_that_its_commits_are_not_stored() {
    let dead = "s3://bucket/app?endpoint=http://127.0.0.1:1";
    for (mode, code) in [("content", 23), ("end", 5)] {
        let place = Place::new();
        let script = place.write("child.py", CHILD);
        let database = place.database_text();
        let config = place.write(
            "config.yml",
            &format!(
                "exec: python3 {script} {database} 5 {mode}\nshutdown-sync-timeout: 1s\n\
                 access-key-id: a\nsecret-access-key: b\n\
                 dbs: [{{path: {database}, replica: {{url: '{dead}'}}}}]\n"
            ),
        );
        let done = run(["replicate", "--config", &config]);
        done.fails_with(code, &["stopped before every commit was stored"]);
    }
}

#[test]
fn a_second_signal_ends_us_at_once_and_our_child_with_us() {
    let place = Place::new();
    // It ignores the first signal.
    let script = "trap '' TERM; echo $$; while :; do sleep 1; done";
    let mut command = program();
    command
        .args(["replicate", place.database_text(), &place.url("backup")])
        .args(["--exec", &format!("sh -c \"{script}\"")]);
    let mut parent = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let output = parent.stdout.as_mut().unwrap();
    BufReader::new(output).read_line(&mut line).unwrap();
    let mut log = BufReader::new(parent.stderr.take().unwrap()).lines();
    signal(parent.id(), "TERM");
    let mut said = log.by_ref().map_while(Result::ok);
    assert!(said.any(|line| line.contains("stopping")));
    signal(parent.id(), "TERM");
    assert_eq!(wait_for_end(&mut parent).0, Some(23));
    let child = line.trim();
    until("the child is gone", || {
        let state = std::fs::read_to_string(format!("/proc/{child}/stat"));
        // The process may stay a zombie, because no parent reaps it.
        state
            .map_or(true, |state| state.contains(") Z "))
            .then_some(())
    });
}

#[test]
fn a_child_starts_when_its_missing_database_has_been_restored() {
    let (place, other) = (Place::new(), Place::new());
    let url = place.url("backup");
    drop(create(&place.database(), 5));
    run(["replicate", place.database_text(), &url, "--once"]).succeeds();
    let count = "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute('SELECT count(*) FROM log').fetchone()[0])";
    let script = other.write("count.py", count);
    let config = other.write(
        "config.yml",
        &format!(
            "exec: python3 {script} {database}\ndbs:\n- path: {database}\n  \
             restore-if-db-not-exists: true\n  replica: {{url: '{url}'}}\n",
            database = other.database_text()
        ),
    );
    let printed = run(["replicate", "--config", &config]).succeeds();
    assert_eq!(printed.trim(), "5");
}

#[test]
fn we_take_all_descriptors_that_we_may_have_and_our_child_keeps_its_limit() {
    let place = Place::new();
    let ours = program();
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -Sn 300; exec \"$@\"", "sh"])
        .arg(ours.get_program())
        .args(["replicate", place.database_text(), &place.url("backup")])
        .args(["--exec", "sh -c 'echo $(ulimit -Sn); read line'"])
        .envs(
            ours.get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
    let mut parent = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let output = parent.stdout.as_mut().unwrap();
    BufReader::new(output).read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "300");
    let limits = format!("/proc/{}/limits", parent.id());
    until("we have our own", || {
        let limits = std::fs::read_to_string(&limits).unwrap();
        let mut lines = limits.lines();
        let line = lines.find(|line| line.starts_with("Max open files"))?;
        let mut values = line.split_whitespace().skip(3);
        (values.next() == values.next()).then_some(())
    });
    drop(parent.stdin.take());
    wait_for_end(&mut parent);
}
