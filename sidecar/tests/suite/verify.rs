//! A restore test passes when the backup is good, and each kind of fault has its own verdict.

use std::path::PathBuf;

use protocol::names::VERIFY_REQUEST_ENV;
use protocol::verify::{
    Check, DatabaseExpectation, MemberExpectation, Point, VerifyLevel, VerifyReport, VerifyRequest,
    VerifyResult,
};

use crate::support::bucket::Bucket;
use crate::support::database::{create, files, insert};
use crate::support::place::{Place, text};
use crate::support::process::{Finished, finish, program, run};
use crate::support::sidecar::Sidecar;

/// A replica of several captures, and the last position that its sidecar acknowledged.
fn replica(place: &Place) -> DatabaseExpectation {
    let connection = create(&place.database(), 3);
    let config = place.config(&place.database(), "backup");
    let sidecar = Sidecar::start(place.path(), &["--config", &config]);
    let mut txid = String::new();
    for _ in 0..4 {
        let status = sidecar.wait_until("the commit is stored", |status| {
            status.targets[0].position == status.position
                && status.position.as_ref().is_some_and(|at| at.txid > txid)
        });
        txid = status.position.expect("it was there a moment ago").txid;
        insert(&connection, 1);
    }
    let status = sidecar.wait_until("the last commit is stored", |status| {
        status.targets[0].position == status.position
            && status.position.as_ref().is_some_and(|at| at.txid > txid)
    });
    drop(connection);
    let acknowledged = status.targets[0].position.clone();
    DatabaseExpectation {
        path: place.database_text().to_owned(),
        target: status.targets[0].name.clone(),
        acknowledged: acknowledged.expect("something is acknowledged"),
        lag_ms: 0,
    }
}

/// The captured files, oldest first.
fn captured(place: &Place) -> Vec<PathBuf> {
    files(&place.path().join("backup"), &|name| {
        name.contains("/ltx/0/")
    })
}

/// Verifies as the operator's Jobs do.
fn ask(place: &Place, request: &VerifyRequest) -> (Finished, VerifyReport) {
    let config = place.path().join("config.yml");
    let message = place.fresh("termination-log");
    let scratch = place.fresh("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let mut command = program();
    command
        .args(["verify", "--config", text(&config), "--json"])
        .args(["--scratch", text(&scratch)])
        .args(["--termination-message", text(&message)])
        .env(VERIFY_REQUEST_ENV, serde_json::to_string(request).unwrap());
    let done = finish(command);
    let report: VerifyReport = serde_json::from_str(&done.out).expect("the report is JSON");
    let left = std::fs::read(&message).unwrap();
    assert!(left.len() <= 4096, "{}", left.len());
    let told: VerifyReport = serde_json::from_slice(&left).expect("the message is JSON");
    assert_eq!(told.result, report.result);
    assert_eq!(done.code, Some(report.result.exit_code() as i32));
    assert!(
        std::fs::read_dir(&scratch).unwrap().next().is_none(),
        "production data was left in the scratch space"
    );
    (done, report)
}

fn request(expected: &DatabaseExpectation) -> VerifyRequest {
    request_of(vec![expected.clone()])
}

fn request_of(expected: Vec<DatabaseExpectation>) -> VerifyRequest {
    VerifyRequest {
        level: VerifyLevel::Checksum,
        point: Point::Latest,
        members: vec![MemberExpectation {
            member: "orders-0".to_owned(),
            databases: expected,
        }],
        max_lag: None,
        checks: Vec::new(),
    }
}

#[track_caller]
fn verdict(place: &Place, request: &VerifyRequest, expected: VerifyResult, words: &[&str]) {
    let (_, report) = ask(place, request);
    assert_eq!(report.result, expected, "{report:?}");
    for word in words {
        assert!(
            report.message.contains(word),
            "{word:?}: {}",
            report.message
        );
    }
}

#[test]
fn a_good_backup_passes_at_every_level() {
    let place = Place::new();
    let expected = replica(&place);
    for level in [VerifyLevel::Quick, VerifyLevel::Full, VerifyLevel::Checksum] {
        let (_, report) = ask(
            &place,
            &VerifyRequest {
                level,
                ..request(&expected)
            },
        );
        assert_eq!((report.result, report.passed), (VerifyResult::Passed, 1));
        assert!(report.freshness_evaluated && report.bytes > 0);
        let resolved = report.databases[0].resolved.as_ref().unwrap();
        assert_eq!(*resolved, expected.acknowledged);
    }
    let url = place.url("backup");
    let words = run(["verify", &url]).succeeds();
    assert!(
        words.contains("passed") && words.contains(&expected.acknowledged.txid),
        "{words}"
    );
}

#[test]
fn every_target_is_proven_and_the_bad_one_named() {
    let place = Place::new();
    let connection = create(&place.database(), 3);
    let config = place.write(
        "config.yml",
        &format!(
            "dbs:\n- path: {}\n  replicas:\n  - {{name: near, url: '{}'}}\n  - {{name: far, url: '{}'}}\n",
            place.database_text(),
            place.url("near"),
            place.url("far")
        ),
    );
    let sidecar = Sidecar::start(place.path(), &["--config", &config]);
    insert(&connection, 1);
    let status = sidecar.wait_until_stored();
    let expected: Vec<_> = status
        .targets
        .iter()
        .map(|target| DatabaseExpectation {
            path: place.database_text().to_owned(),
            target: target.name.clone(),
            acknowledged: target.position.clone().expect("it is stored"),
            lag_ms: 0,
        })
        .collect();
    assert_eq!(sidecar.terminate().0, Some(0));
    let (_, report) = ask(&place, &request_of(expected.clone()));
    assert_eq!((report.passed, report.failed), (2, 0));
    assert!(report.freshness_evaluated);
    let (_, report) = ask(&place, &request_of(expected[..1].to_vec()));
    assert!(!report.freshness_evaluated, "nobody spoke for the second");

    std::fs::remove_dir_all(place.path().join("far/ltx")).unwrap();
    let (finished, report) = ask(&place, &request_of(expected));
    assert_eq!(finished.code, Some(30));
    assert_eq!((report.passed, report.failed), (1, 1));
    assert_eq!(report.databases[0].target, "far");
    assert!(report.message.contains("from far"), "{}", report.message);
}

#[test]
fn a_damaged_object_is_corrupt() {
    let place = Place::new();
    let expected = replica(&place);
    let object = captured(&place).pop().unwrap();
    let mut bytes = std::fs::read(&object).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(&object, bytes).unwrap();
    let name = object.file_name().unwrap().to_str().unwrap().to_owned();
    verdict(&place, &request(&expected), VerifyResult::Corrupt, &[&name]);
    let url = place.url("backup");
    assert_eq!(run(["verify", &url]).code, Some(10));
}

#[test]
fn a_missing_object_is_a_hole_and_inspect_shows_it() {
    let place = Place::new();
    let expected = replica(&place);
    let objects = captured(&place);
    std::fs::remove_file(&objects[objects.len() - 2]).unwrap();
    verdict(
        &place,
        &request(&expected),
        VerifyResult::Hole,
        &["is followed by nothing"],
    );
    let url = place.url("backup");
    let done = run(["inspect", &url]);
    assert_eq!(done.code, Some(11));
    assert!(done.out.contains("NOT RESTORABLE"), "{done:?}");
    let done = run(["inspect", &url, "--json"]);
    assert_eq!(done.code, Some(11));
    let json: serde_json::Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(json["restorable"], false);
    // The last file exists, but no restore can use it.
    let spans = json["spans"].as_array().unwrap();
    let last = &spans[spans.len() - 1]["to"]["txid"];
    let [hole] = json["holes"].as_array().unwrap().as_slice() else {
        panic!("one hole is expected: {json}");
    };
    assert_eq!(&hole["after"], last);
    assert!(text(objects.last().unwrap()).contains(hole["next"].as_str().unwrap()));
    assert!(json["bill"].is_null(), "a directory has no prices: {json}");
}

#[test]
fn inspect_tells_what_can_be_restored_and_what_a_bucket_costs() {
    let place = Place::new();
    let bucket = Bucket::create("verify-inspect");
    drop(create(&place.database(), 3));
    let url = bucket.url("app");
    let inspect = |arguments: &[&str]| {
        let mut command = bucket.program();
        command.args(arguments);
        finish(command).succeeds()
    };
    inspect(&["replicate", place.database_text(), &url, "--once"]);
    let words = inspect(&["inspect", &url]);
    for word in ["restorable TXID", "too young", "$0.005 for 1000 PUT"] {
        assert!(words.contains(word), "{word}: {words}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&inspect(&["inspect", &url, "--json"])).unwrap();
    let [span] = json["spans"].as_array().unwrap().as_slice() else {
        panic!("one span is expected: {json}");
    };
    assert_eq!(span["from"]["txid"], json["earliest"]["txid"]);
    assert_eq!(span["to"]["txid"], json["latest"]["txid"]);
    assert!(json["holes"].as_array().unwrap().is_empty());
    assert!(json["bill"]["month"].is_null());
    assert!(json["bill"]["restoreDollars"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_store_that_lacks_acknowledged_commits_is_stale() {
    let place = Place::new();
    let expected = replica(&place);
    // The newest object is missing: the rest restores without an error from SQLite.
    std::fs::remove_file(captured(&place).pop().unwrap()).unwrap();
    let txid = expected.acknowledged.txid.clone();
    let words = [txid.as_str(), "acknowledged"];
    verdict(&place, &request(&expected), VerifyResult::Stale, &words);
    assert_eq!(run(["verify", &place.url("backup")]).code, Some(0));
}

#[test]
fn another_database_than_the_acknowledged_one_fails() {
    let place = Place::new();
    let mut expected = replica(&place);
    expected.acknowledged.checksum = "8000000000000001".to_owned();
    let words = ["8000000000000001", "was acknowledged"];
    for level in [VerifyLevel::Quick, VerifyLevel::Full, VerifyLevel::Checksum] {
        let request = VerifyRequest {
            level,
            ..request(&expected)
        };
        verdict(&place, &request, VerifyResult::ChecksumMismatch, &words);
    }
}

#[test]
fn an_acknowledged_position_is_compared_though_a_newer_one_is_stored() {
    let place = Place::new();
    let mut expected = replica(&place);
    let objects = captured(&place);
    let name = objects[objects.len() - 2].file_stem().unwrap();
    let (_, earlier) = name.to_str().unwrap().split_once('-').unwrap();
    let (_, report) = ask(
        &place,
        &VerifyRequest {
            point: Point::Txid(earlier.to_owned()),
            ..request(&expected)
        },
    );
    expected.acknowledged = report.databases[0].resolved.clone().unwrap();
    assert_eq!(expected.acknowledged.txid, earlier);
    verdict(&place, &request(&expected), VerifyResult::Passed, &[]);
    expected.acknowledged.checksum = "8000000000000001".to_owned();
    let mismatch = VerifyResult::ChecksumMismatch;
    verdict(&place, &request(&expected), mismatch, &[earlier]);
}

/// Stores a database with a specific change.
fn stored_after(place: &Place, change: &str) {
    let connection = create(&place.database(), 3);
    connection.execute_batch(change).unwrap();
    drop(connection);
    let config = place.config(&place.database(), "backup");
    run(["replicate", "--config", &config, "--once"]).succeeds();
}

#[test]
fn an_index_of_other_values_than_its_table_passes_a_quick_look_only() {
    let place = Place::new();
    stored_after(
        &place,
        "CREATE INDEX bodies ON log(-id);
         PRAGMA writable_schema=1;
         UPDATE sqlite_schema SET sql='CREATE INDEX bodies ON log(body)' WHERE name='bodies';",
    );
    for (level, result, words) in [
        (VerifyLevel::Quick, VerifyResult::Passed, &[][..]),
        (
            VerifyLevel::Full,
            VerifyResult::IntegrityFailed,
            &["bodies"],
        ),
        (
            VerifyLevel::Checksum,
            VerifyResult::IntegrityFailed,
            &["bodies"],
        ),
    ] {
        let request = VerifyRequest {
            level,
            ..request_of(Vec::new())
        };
        verdict(&place, &request, result, words);
    }
    assert_eq!(run(["verify", &place.url("backup")]).code, Some(13));
}

#[test]
fn commits_that_wait_longer_than_they_may_are_stale() {
    let place = Place::new();
    let mut expected = replica(&place);
    for (lag_ms, result) in [(1000, VerifyResult::Passed), (1001, VerifyResult::Stale)] {
        expected.lag_ms = lag_ms;
        let request = VerifyRequest {
            max_lag: Some("1s".parse().unwrap()),
            ..request(&expected)
        };
        verdict(&place, &request, result, &[]);
    }
    // Without a report of a sidecar, the age of the newest commit counts.
    let verify = |limit| run(["verify", &place.url("backup"), "--max-lag", limit]);
    assert_eq!(verify("1h").code, Some(0));
    assert_eq!(verify("1ms").code, Some(12));
}

#[test]
fn a_check_that_does_not_hold_is_named_and_its_value_told() {
    let place = Place::new();
    let expected = replica(&place);
    let check = |min| Check {
        name: "rows".to_owned(),
        query: "SELECT count(*) FROM log".to_owned(),
        min: Some(min),
        ..Check::default()
    };
    let with = |check| VerifyRequest {
        checks: vec![check],
        ..request(&expected)
    };
    verdict(&place, &with(check(7)), VerifyResult::Passed, &[]);
    verdict(
        &place,
        &with(check(8)),
        VerifyResult::CheckFailed,
        &["rows", "7", "8"],
    );
    let mut broken = check(1);
    broken.query = "SELECT count(*) FROM nowhere".to_owned();
    verdict(
        &place,
        &with(broken),
        VerifyResult::CheckFailed,
        &["rows", "nowhere"],
    );
    let mut hostile = check(1);
    hostile.query = "DELETE FROM log".to_owned();
    verdict(&place, &with(hostile), VerifyResult::CheckFailed, &["rows"]);
    // The same from a file, for people.
    let file = place.write(
        "checks.yml",
        "- {name: rows, query: select count(*) from log, min: 8}\n",
    );
    let done = run(["verify", &place.url("backup"), "--checks", &file]);
    assert_eq!(done.code, Some(15));
    assert!(done.out.contains("rows"), "{done:?}");
    let file = place.write("checks.yml", "- {name: rows, qery: select 1}\n");
    let done = run(["verify", &place.url("backup"), "--checks", &file]);
    done.fails_with(2, &[&file, "qery"]);
}

#[test]
fn nothing_stored_is_no_backup_yet() {
    let place = Place::new();
    let expected = replica(&place);
    std::fs::remove_dir_all(place.path().join("backup")).unwrap();
    verdict(
        &place,
        &request(&expected),
        VerifyResult::NoBackupYet,
        &["there is no backup"],
    );
}

#[test]
fn a_report_of_many_databases_fits_its_file() {
    let place = Place::new();
    let mut content = "dbs:\n".to_owned();
    for n in 0..64 {
        let path = place
            .path()
            .join(format!("a-database-with-a-longer-name-{n}.db"));
        drop(create(&path, 1));
        let url = place.url(&format!("backup/{n}"));
        content.push_str(&format!(
            "- path: {}\n  replica: {{url: '{url}'}}\n",
            path.display()
        ));
    }
    let config = place.write("config.yml", &content);
    run(["replicate", "--config", &config, "--once"]).succeeds();
    let member = MemberExpectation::default();
    let request = VerifyRequest {
        level: VerifyLevel::Full,
        point: Point::Latest,
        members: vec![member],
        max_lag: None,
        checks: Vec::new(),
    };
    let (_, report) = ask(&place, &request);
    assert_eq!((report.passed, report.failed, report.omitted), (64, 0, 0));
    assert_eq!(report.databases.len(), 64);
}

#[test]
fn the_surroundings_are_not_the_backup() {
    let bucket = Bucket::create("verify-around");
    let mut command = bucket.program();
    command
        .args(["verify", &bucket.url("app")])
        .env("AWS_SECRET_ACCESS_KEY", "wrong");
    assert_eq!(finish(command).code, Some(20));
    let mut command = bucket.program();
    command.args(["verify", "s3://bucket/app?endpoint=http://127.0.0.1:1"]);
    assert_eq!(finish(command).code, Some(21));
    let mut command = bucket.program();
    command.args(["verify", &bucket.url("app")]);
    assert_eq!(finish(command).code, Some(30));
}
