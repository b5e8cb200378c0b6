//! kill -9 of the program and of the application, at random times, again and again.
//!
//! `ENGINE_TEST_SEED=N` repeats a run.

#![expect(
    clippy::unwrap_used,
    reason = "a fixture that cannot be built fails its test"
)]

// The application of the engine's tests.
#[path = "../../crates/engine/tests/live/app.rs"]
#[expect(dead_code, reason = "these tests ask less of it")]
mod app;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use app::{App, Habits, Numbers, seed};

/// Not a test: runs the application process when the environment asks for it.
#[test]
fn application() {
    app::serve_if_asked();
}

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sqlite-backup"));
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// The running program, killed when dropped.
struct Running(Child);

impl Running {
    fn start(database: &Path, url: &str) -> Running {
        let child = program().arg("replicate").arg(database).arg(url).spawn();
        Running(child.unwrap())
    }

    /// Sends SIGTERM once the program handles it, and waits for its end.
    fn end(mut self) {
        let id = self.0.id().to_string();
        let deadline = Instant::now() + Duration::from_secs(30);
        while !catches_sigterm(&id) {
            assert!(Instant::now() < deadline, "the program does not start");
            std::thread::sleep(Duration::from_millis(5)); // bounded: polls until a deadline
        }
        assert!(
            Command::new("kill")
                .args(["-TERM", &id])
                .status()
                .unwrap()
                .success()
        );
        let status = self.0.wait().unwrap();
        assert_eq!(status.code(), Some(0), "not everything was stored");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _killed = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// True when the process has a handler for signal 15.
fn catches_sigterm(id: &str) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let caught = status
        .lines()
        .find_map(|line| line.strip_prefix("SigCgt:"))
        .unwrap();
    u64::from_str_radix(caught.trim(), 16).unwrap() >> 14 & 1 == 1
}

fn restore(url: &str, output: &Path, txid: Option<&str>) {
    let mut command = program();
    command
        .args(["restore", url, "--force", "--integrity-check", "full", "-o"])
        .arg(output);
    command.args(txid.into_iter().flat_map(|txid| ["--txid", txid]));
    command.stderr(Stdio::inherit());
    assert_eq!(
        command.status().unwrap().code(),
        Some(0),
        "restore of {txid:?}"
    );
}

/// Returns the captured files and snapshots: name, and a hash of the bytes.
fn stored(store: &Path) -> BTreeMap<String, (u64, u64)> {
    let mut found = BTreeMap::new();
    for level in ["0", "9"] {
        let Ok(entries) = std::fs::read_dir(store.join("ltx").join(level)) else {
            continue;
        };
        for entry in entries {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let Ok(bytes) = std::fs::read(entry.path()) else {
                continue;
            };
            if name.ends_with(".ltx") {
                let sum = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
                    (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
                });
                found.insert(format!("{level}/{name}"), (bytes.len() as u64, sum));
            }
        }
    }
    found
}

fn survive(rounds: u32, wild: bool) {
    let mut numbers = Numbers(seed());
    let place = tempfile::tempdir().unwrap();
    let (database, store) = (place.path().join("app.db"), place.path().join("store"));
    std::fs::create_dir(&store).unwrap();
    let url = format!("file://{}", store.display());
    let habits = Habits {
        autocheckpoint: numbers.pick(&[10, 100, 1000]),
        threads: 2,
        wild,
        ..Habits::calm(&database, numbers.below(u64::MAX))
    };
    println!("{habits:?}");
    let mut app = App::start(&habits);
    // Large data that never changes must not be uploaded twice.
    app.sql("CREATE TABLE fixed(bytes)");
    app.sql("INSERT INTO fixed VALUES(randomblob(3000000))");
    let mut running = Running::start(&database, &url);
    let mut seen = BTreeMap::new();
    for round in 0..rounds {
        app.go();
        app.wait_for_commits(50 + numbers.below(500));
        match numbers.below(4) {
            0 => {
                app.kill();
                app = App::start(&habits);
            }
            1 => {
                drop(running);
                app.kill();
                app = App::start(&habits);
                running = Running::start(&database, &url);
            }
            _ => {
                drop(running);
                app.wait_for_commits(numbers.below(200));
                running = Running::start(&database, &url);
            }
        }
        app.pause();
        if round % 3 == 2 {
            running.end();
            let output = place.path().join("restored.db");
            restore(&url, &output, None);
            assert!(
                std::fs::read(&output).unwrap() == app.dump(),
                "round {round}"
            );
            running = Running::start(&database, &url);
        }
        let now = stored(&store);
        for (name, content) in &seen {
            assert!(
                now.get(name).is_none_or(|now| now == content),
                "{name} has other bytes"
            );
        }
        seen = now;
    }
    running.end();
    let files = stored(&store);
    // A snapshot may be repeated only if its writer was killed before any file followed it.
    let ends = |level: &str| -> Vec<&str> {
        let names = files.keys().filter(|name| name.starts_with(level));
        names.map(|name| &name[19..35]).collect()
    };
    for pair in ends("9/").windows(2) {
        let followed = ends("0/")
            .iter()
            .any(|end| pair[0] < *end && *end < pair[1]);
        assert!(!followed, "{:?}", files.keys());
    }
    let largest = files
        .iter()
        .filter(|(name, _)| name.starts_with("0/"))
        .map(|(_, (bytes, _))| *bytes)
        .max();
    println!(
        "{} files, the largest delta has {largest:?} bytes",
        files.len()
    );
    assert!(
        wild || largest.unwrap() < 2_000_000,
        "a delta of {largest:?} bytes is a snapshot"
    );
    prove_each(&url, place.path(), &files);
}

/// Every position restores, passes SQLite's check, and has the expected sum.
fn prove_each(url: &str, place: &Path, files: &BTreeMap<String, (u64, u64)>) {
    let began = Instant::now();
    let output = place.join("point.db");
    let captured: Vec<&String> = files.keys().filter(|name| name.starts_with("0/")).collect();
    let step = captured.len().div_ceil(40);
    for name in captured.iter().step_by(step) {
        restore(url, &output, Some(&name[2..18]));
        let connection = rusqlite::Connection::open(&output).unwrap();
        let sum: i64 = connection
            .query_row("SELECT coalesce(sum(balance), 0) FROM account", [], |row| {
                row.get(0)
            })
            .unwrap();
        assert_eq!(sum, app::TOTAL, "{name}");
        drop(connection);
        for suffix in ["-wal", "-shm"] {
            let _gone = std::fs::remove_file(format!("{}{suffix}", output.display()));
        }
    }
    println!(
        "{} of {} positions proven in {:?}",
        captured.len().div_ceil(step),
        captured.len(),
        began.elapsed()
    );
}

/// Kills the program, lets the application write and checkpoint in each mode, and starts it again.
fn survive_checkpoints(application_dies: bool) {
    let place = tempfile::tempdir().unwrap();
    let (database, store) = (place.path().join("app.db"), place.path().join("store"));
    let output = place.path().join("restored.db");
    let url = format!("file://{}", store.display());
    let habits = Habits {
        autocheckpoint: 0,
        ..Habits::calm(&database, seed())
    };
    let mut app = App::start(&habits);
    for mode in ["PASSIVE", "FULL", "RESTART", "TRUNCATE"] {
        println!("{mode}");
        let running = Running::start(&database, &url);
        app.work(60);
        drop(running);
        app.work(30);
        app.sql(&format!("PRAGMA wal_checkpoint({mode})"));
        app.work(30);
        if application_dies {
            app.kill();
            app = App::start(&habits);
        }
        let running = Running::start(&database, &url);
        app.work(10);
        running.end();
        restore(&url, &output, None);
        assert!(std::fs::read(&output).unwrap() == app.dump(), "{mode}");
    }
    prove_each(&url, place.path(), &stored(&store));
}

#[test]
fn checkpoints_of_each_mode_after_we_are_killed_lose_nothing() {
    survive_checkpoints(false);
}

#[test]
fn checkpoints_of_each_mode_after_both_are_killed_lose_nothing() {
    survive_checkpoints(true);
}

#[test]
fn nothing_is_lost_whoever_is_killed() {
    survive(9, false);
}

#[test]
fn nothing_is_lost_when_a_wild_application_and_the_program_are_killed() {
    survive(9, true);
}
