//! Replicas of Litestream 0.3: restored, inspected, proven, left unchanged, and continued.

use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use serde_json::Value;
use store::{Body, Credentials, PutMeta, PutMode, Store as _, Target};

use crate::support::bucket::{Bucket, block_on};
use crate::support::database::files;
use crate::support::place::{Place, text};
use crate::support::process::{Finished, finish, run};

/// Returns the content of `states.json` of a golden replica.
fn noted(page_size: u32) -> Value {
    let text = std::fs::read_to_string(golden(page_size).join("states.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn golden(page_size: u32) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/engine/tests/golden-0.3");
    root.join(page_size.to_string())
}

/// Copies a golden replica to `backup`, with the times of its objects.
fn replica(place: &Place, page_size: u32) -> Vec<PathBuf> {
    let objects = noted(page_size)["objects"].as_object().unwrap().clone();
    let copied = objects.iter().map(|(key, ms)| {
        let path = place.path().join("backup").join(key);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::copy(golden(page_size).join(key), &path).unwrap();
        let time = UNIX_EPOCH + Duration::from_millis(ms.as_u64().unwrap());
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(time).unwrap();
        path
    });
    copied.collect()
}

/// The rows of the application's table.
fn rows(path: &Path) -> i64 {
    let connection = rusqlite::Connection::open(path).unwrap();
    let count = "SELECT count(*) FROM item";
    connection.query_row(count, [], |row| row.get(0)).unwrap()
}

fn restored(place: &Place, arguments: &[&str]) -> (Value, i64) {
    let output = place.fresh("out.db");
    let url = place.url("backup");
    let mut all = vec!["restore", url.as_str(), "-o", text(&output), "--json"];
    all.extend(arguments);
    let answer = serde_json::from_str(&run(all).succeeds()).unwrap();
    (answer, rows(&output))
}

fn refused(place: &Place, arguments: &[&str]) -> Finished {
    let output = place.fresh("out.db");
    let url = place.url("backup");
    let mut all = vec!["restore", url.as_str(), "-o", text(&output)];
    all.extend(arguments);
    let done = run(all);
    let left = files(place.path(), &|name| name.contains("out.db"));
    assert_eq!(left, Vec::<PathBuf>::new());
    done
}

fn time(ms: &Value) -> String {
    let time = jiff::Timestamp::from_millisecond(ms.as_i64().unwrap());
    time.unwrap().to_string()
}

#[test]
fn a_generation_comes_back_at_its_end_and_at_any_time() {
    for page_size in [1024, 4096] {
        let place = Place::new();
        replica(&place, page_size);
        let noted = noted(page_size);
        let states = noted["states"].as_array().unwrap();
        let last = states.last().unwrap();
        let (answer, count) = restored(&place, &["--integrity-check", "full"]);
        assert_eq!(answer["checksum"], last["checksum"]);
        assert_eq!(count, last["rows"].as_i64().unwrap());
        assert_eq!(answer["time"], time(&last["time_ms"]).as_str());
        assert_eq!(answer["txid"], Value::Null);
        assert_eq!(answer["generation"].as_str().unwrap().len(), 16);
        for state in states.iter().step_by(3) {
            let (answer, _) = restored(&place, &["--timestamp", &time(&state["time_ms"])]);
            assert_eq!(answer["checksum"], state["checksum"]);
        }
    }
}

#[test]
fn points_that_are_not_there_are_named() {
    let place = Place::new();
    replica(&place, 4096);
    let done = refused(&place, &["--timestamp", "2001-01-01T00:00:00Z"]);
    done.fails_with(30, &["2001-01-01T00:00:00Z", "the oldest backup is of"]);
    let done = refused(&place, &["--txid", "0000000000000001"]);
    done.fails_with(30, &["Litestream 0.3", "no TXIDs"]);
    // Fails even with a flag that accepts a missing backup, because a backup exists.
    let done = refused(
        &place,
        &["--txid", "0000000000000001", "--if-replica-exists"],
    );
    done.fails_with(30, &["no TXIDs"]);
}

/// Returns the directory of the first generation, alone and with only its first snapshot, so that
/// every WAL segment is needed.
fn first_generation(place: &Place) -> PathBuf {
    let paths = replica(place, 1024);
    let modified = |path: &PathBuf| std::fs::metadata(path).unwrap().modified().unwrap();
    let first = paths.iter().min_by_key(|path| modified(path)).unwrap();
    let generation = first.parent().unwrap().parent().unwrap();
    for path in paths.iter().filter(|path| *path != first) {
        if !path.starts_with(generation) || text(path).contains("snapshot") {
            remove(path);
        }
    }
    generation.to_owned()
}

/// A change of one object.
type Change = fn(&Path);

fn remove(path: &Path) {
    std::fs::remove_file(path).unwrap();
}

fn empty(path: &Path) {
    std::fs::write(path, "").unwrap();
}

fn truncate(path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn what_is_missing_or_damaged_is_named_with_a_code_of_its_own() {
    let place = Place::new();
    let generation = first_generation(&place);
    let whole = files(&generation, &|_| true).into_iter();
    let whole: Vec<(PathBuf, Vec<u8>)> = whole
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect();
    let snapshot = "snapshots/00000000.snapshot.lz4";
    let cases: [(&str, Change, i32, &str); 12] = [
        (snapshot, remove, 11, "has no snapshot"),
        (snapshot, truncate, 10, "ends early"),
        (snapshot, empty, 10, "ends early"),
        (snapshot, flip, 10, "is damaged"),
        // The first segment of a WAL, then one in the middle.
        (
            "wal/00000000_00000000.wal.lz4",
            remove,
            11,
            "begins at byte 10512",
        ),
        (
            "wal/00000000_00002d28.wal.lz4",
            remove,
            11,
            "ends at byte 11560",
        ),
        (
            "wal/00000001_00000000.wal.lz4",
            remove,
            11,
            "begins at byte 1080",
        ),
        ("wal/00000000_00002d28.wal.lz4", truncate, 10, "ends early"),
        ("wal/00000000_00002d28.wal.lz4", flip, 10, "is damaged"),
        // The last segment of all.
        ("wal/00000002_00001498.wal.lz4", truncate, 10, "ends early"),
        ("wal/00000002_00001498.wal.lz4", empty, 10, "ends early"),
        ("wal/00000002_00001498.wal.lz4", flip, 10, "is damaged"),
    ];
    for (object, damage, code, words) in cases {
        for (path, bytes) in &whole {
            std::fs::write(path, bytes).unwrap();
        }
        damage(&generation.join(object));
        let id = generation.file_name().unwrap().to_str().unwrap();
        refused(&place, &[]).fails_with(code, &[id, words]);
    }
    // A whole WAL.
    for (path, bytes) in &whole {
        std::fs::write(path, bytes).unwrap();
        if text(path).contains("/00000001_") {
            remove(path);
        }
    }
    refused(&place, &[]).fails_with(11, &["has no log 00000001"]);
}

#[test]
fn a_dry_run_and_inspect_show_generations() {
    let place = Place::new();
    let objects = replica(&place, 4096);
    let url = place.url("backup");
    let output = place.fresh("out.db");
    let dry = ["restore", &url, "-o", text(&output), "--dry-run"];
    let plan = run(dry).succeeds();
    assert!(
        plan.contains("generation") && plan.contains(".snapshot.lz4"),
        "{plan}"
    );
    let plan: Value = serde_json::from_str(&run(dry.iter().chain(&["--json"])).succeeds()).unwrap();
    assert!(!plan["files"].as_array().unwrap().is_empty());
    assert!(files(place.path(), &|name| name.contains("out.db")).is_empty());

    let shown = run(["inspect", &url]).succeeds();
    assert_eq!(shown.matches("of Litestream 0.3: ").count(), 2, "{shown}");
    let shown: Value = serde_json::from_str(&run(["inspect", &url, "--json"]).succeeds()).unwrap();
    let generations = shown["generations"].as_array().unwrap();
    assert_eq!(generations.len(), 2);
    assert_eq!(shown["restorable"], true);
    assert_eq!(shown["restoreGeneration"], plan["generation"]);
    assert_eq!(shown["restoreBytes"], plan["bytes"]);

    let id = plan["generation"].as_str().unwrap();
    for path in objects.iter().filter(|path| text(path).contains(id)) {
        if text(path).ends_with(".snapshot.lz4") {
            std::fs::remove_file(path).unwrap();
        }
    }
    let done = run(["inspect", &url]);
    assert_eq!(done.code, Some(11));
    let problem = format!("NOT RESTORABLE to its latest state: generation {id} has no snapshot");
    assert!(done.out.contains(&problem), "{}", done.out);
}

#[test]
fn a_generation_is_proven_as_any_backup() {
    let place = Place::new();
    replica(&place, 1024);
    let url = place.url("backup");
    let checks = place.write(
        "checks.yml",
        "- {name: items, query: select count(*) from item, min: 21, max: 21}\n",
    );
    run(["verify", &url, "--checks", &checks]).succeeds();
    let checks = place.write(
        "checks.yml",
        "- {name: items, query: select count(*) from item, min: 22}\n",
    );
    run(["verify", &url, "--checks", &checks]).fails_with(15, &[]);
}

#[test]
fn replication_goes_on_beside_a_generation_and_leaves_it_alone() {
    let place = Place::new();
    let objects = replica(&place, 4096);
    let before: Vec<Vec<u8>> = objects
        .iter()
        .map(|path| std::fs::read(path).unwrap())
        .collect();
    let config = place.write(
        "config.yml",
        &format!(
            "dbs:\n- path: {}\n  restore-if-db-not-exists: true\n  replica: {{url: '{}'}}\n",
            place.database_text(),
            place.url("backup")
        ),
    );
    // As before an application starts: the database is missing, and a backup exists.
    run(["restore", "--wait", "--config", &config]).succeeds();
    let count = rows(&place.database());
    assert_eq!(count, 21);
    let connection = rusqlite::Connection::open(place.database()).unwrap();
    let insert = "INSERT INTO item(text) VALUES('of the new history')";
    connection.execute(insert, []).unwrap();
    run(["replicate", "--config", &config, "--once"]).succeeds();
    drop(connection);
    let (answer, newest) = restored(&place, &[]);
    assert_eq!(
        (answer["generation"].clone(), newest),
        (Value::Null, count + 1)
    );
    // Times before it still belong to Litestream 0.3.
    let states = noted(4096)["states"].clone();
    let (answer, _) = restored(&place, &["--timestamp", &time(&states[2]["time_ms"])]);
    assert_eq!(answer["checksum"], states[2]["checksum"]);
    let shown = run(["inspect", &place.url("backup")]).succeeds();
    assert!(
        shown.contains("level 9") && shown.contains("of Litestream 0.3"),
        "{shown}"
    );
    for (path, bytes) in objects.iter().zip(before) {
        assert_eq!(std::fs::read(path).unwrap(), bytes, "{}", path.display());
    }
    // `replicate` also restores a missing database, now from our files.
    std::fs::remove_file(place.database()).unwrap();
    run(["replicate", "--config", &config, "--once"]).succeeds();
    assert_eq!(rows(&place.database()), count + 1);
}

#[test]
fn a_pattern_finds_what_litestream_0_3_stored() {
    let place = Place::new();
    replica(&place, 1024);
    let data = place.path().join("data");
    let stored = place.path().join("backups/one.db");
    std::fs::create_dir_all(stored.parent().unwrap()).unwrap();
    std::fs::rename(place.path().join("backup"), &stored).unwrap();
    let config = place.write(
        "config.yml",
        &format!(
            "dbs:\n- path: {}/*.db\n  replica: {{url: '{}'}}\n",
            data.display(),
            place.url("backups")
        ),
    );
    run(["restore", "--config", &config]).succeeds();
    assert_eq!(rows(&data.join("one.db")), 21);
}

#[test]
fn a_generation_in_a_bucket_comes_back() {
    let place = Place::new();
    let bucket = Bucket::create("generations");
    let objects = noted(4096)["objects"].as_object().unwrap().clone();
    let newest = objects.iter().max_by_key(|(_, ms)| ms.as_i64()).unwrap().0;
    for prefix in ["app", ""] {
        let url = bucket.url(prefix);
        let mut target = Target::from_url(&url).unwrap();
        if let Target::S3(target) = &mut target {
            target.credentials = Credentials::Static(bucket.weed.admin());
        }
        block_on(async {
            let store = store::open(&target).unwrap();
            // One generation: the times are those of the bucket.
            for key in objects.keys().filter(|key| key[..28] == newest[..28]) {
                let body = Body::from(std::fs::read(golden(4096).join(key)).unwrap());
                let stored = store.put(key, body, PutMode::Create, &PutMeta::default());
                stored.await.unwrap();
            }
        });
        let output = place.fresh("out.db");
        let mut command = bucket.program();
        command.args(["restore", &url, "-o", text(&output)]);
        finish(command).succeeds();
        assert_eq!(rows(&output), 21);
    }
}
