//! The endpoints of a running process: status, metrics, health; and credentials that change
//! meanwhile.

use protocol::status::{TargetState, TargetStatus};

use crate::support::bucket::{Bucket, block_on};
use crate::support::database::{assert_same, create, insert, rows};
use crate::support::place::{Place, text};
use crate::support::process::{finish, program, run};
use crate::support::sidecar::Sidecar;
use crate::support::until;

#[test]
fn a_running_process_tells_how_it_is() {
    let place = Place::new();
    let connection = create(&place.database(), 3);
    let config = place.config(&place.database(), "backup");
    let sidecar = Sidecar::start(place.path(), &["--config", &config]);
    insert(&connection, 3);
    sidecar.wait_until_stored();
    assert_eq!(sidecar.get("/healthz").1, "ok\n");
    let status = sidecar.status();
    assert_eq!(status.version, protocol::names::STATUS_VERSION);
    assert_eq!(status.config_hash.len(), 64);
    assert_eq!(status.databases[0].targets[0].state, TargetState::Ok);
    let words = run(["status", "--addr", sidecar.address()]).succeeds();
    assert!(
        words.contains(place.database_text()) && words.contains("Replicating"),
        "{words}"
    );
    let json = run(["status", "--addr", sidecar.address(), "--json"]).succeeds();
    let again: protocol::status::SidecarStatus = serde_json::from_str(&json).unwrap();
    assert_eq!(again.config_hash, status.config_hash);
    assert_eq!(sidecar.get("/nowhere").0.split(' ').nth(1), Some("404"));
}

#[test]
fn status_of_a_database_that_is_not_replicated_is_not_good() {
    let place = Place::new();
    let config = place.config(&place.database(), "backup");
    let sidecar = Sidecar::start(place.path(), &["--config", &config]);
    let done = run(["status", "--addr", sidecar.address()]);
    assert_eq!(done.code, Some(12), "{done:?}");
    assert!(done.out.contains(place.database_text()), "{done:?}");
}

#[test]
fn status_with_a_target_that_takes_nothing_is_not_good() {
    let place = Place::new();
    let _connection = create(&place.database(), 3);
    let text = format!(
        "dbs:\n- path: {}\n  replicas:\n  - url: file://{}/backup\n  - url: s3://bucket/p?endpoint=http://127.0.0.1:1\n    access-key-id: id\n    secret-access-key: secret\n",
        place.database_text(),
        place.path().display()
    );
    let config = place.write("config.yml", &text);
    let sidecar = Sidecar::start(place.path(), &["--config", &config]);
    until(
        "one target has everything, the other cannot be reached",
        || {
            let targets = sidecar.status().databases.remove(0).targets;
            let states = targets.iter().map(|target| target.state);
            states
                .eq([TargetState::Ok, TargetState::DestinationUnavailable])
                .then_some(())
        },
    );
    let done = run(["status", "--addr", sidecar.address()]);
    assert_eq!(done.code, Some(12), "{done:?}");
}

#[test]
fn metrics_are_openmetrics() {
    let place = Place::new();
    let _connection = create(&place.database(), 3);
    let config = place.config(&place.database(), "backup");
    let sidecar = Sidecar::start(place.path(), &["--config", &config]);
    sidecar.wait_until_stored();
    let (head, body) = sidecar.get("/metrics");
    assert!(
        head.contains("application/openmetrics-text; version=1.0.0"),
        "{head}"
    );
    assert!(body.ends_with("# EOF\n"), "{body}");
    let mut families = Vec::new();
    for line in body.lines() {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            families.push(family.split(' ').next().unwrap().to_owned());
        } else if !line.starts_with('#') {
            let (series, value) = line.rsplit_once(' ').expect("a series and its value");
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(
                families.iter().any(|family| series.starts_with(family)),
                "{line}"
            );
            assert!(series.starts_with("sqlite_backup_"), "{line}");
        }
    }
    let label = format!("{{database=\"{}\"", place.database_text());
    for name in [
        "database_healthy",
        "lag_seconds",
        "backlog_bytes",
        "uploads_total",
    ] {
        let series = format!("sqlite_backup_{name}{label}");
        assert!(body.contains(&series), "{series} is not in\n{body}");
    }
    let healthy = format!("sqlite_backup_database_healthy{label}}} 1");
    assert!(body.contains(&healthy), "{body}");
}

#[test]
fn metrics_count_what_each_store_is_asked() {
    let place = Place::new();
    let connection = create(&place.database(), 3);
    let bucket = Bucket::create("endpoints-requests");
    let config = place.write(
        "config.yml",
        &format!(
            "levels: [{{interval: 1h}}]\ndbs:\n- path: {}\n  replicas:\n  - {{name: near, url: '{}'}}\n  - {{name: far, url: '{}'}}\n",
            place.database_text(),
            place.url("near"),
            bucket.url("far")
        ),
    );
    let sidecar = Sidecar::spawn(place.path(), &["--config", &config], bucket.program());
    let first = sidecar.wait_until_stored().position;
    let sent = |kind: &str| -> u64 {
        let body = sidecar.get("/metrics").1;
        let name = "sqlite_backup_store_requests_total";
        // A directory receives no requests, so it has no series.
        let mut series = body.lines().filter(|line| line.starts_with(name));
        assert!(series.all(|line| line.contains("target=\"far\"")), "{body}");
        let wanted = format!("target=\"far\",kind=\"{kind}\"}} ");
        let line = body.lines().find(|line| line.contains(&wanted));
        let count = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
        count.unwrap_or_else(|| panic!("{wanted} is not in\n{body}"))
    };
    // A snapshot, a captured file, and the compacted one that ends after the snapshot.
    until("the first files are merged", || {
        let body = sidecar.get("/metrics").1;
        let mut lines = body.lines();
        let is_far = |line: &&str| {
            line.starts_with("sqlite_backup_uploads_total") && line.contains("target=\"far\"")
        };
        let count: f64 = lines.find(is_far)?.rsplit(' ').next()?.parse().ok()?;
        (count >= 3.0).then_some(())
    });
    let before = ["put", "get", "head", "list", "delete"].map(sent);
    // The lease, a snapshot and at least one captured file; the first list.
    assert!(before[0] >= 3 && before[3] >= 1, "{before:?}");
    insert(&connection, 1);
    sidecar.wait_until("the commit is stored", |status| {
        let is_stored = |target: &TargetStatus| target.position == status.position;
        status.position != first && status.targets.iter().all(is_stored)
    });
    let after = ["put", "get", "head", "list", "delete"].map(sent);
    // Storing a commit takes exactly one request.
    let more = [before[0] + 1, before[1], before[2], before[3], before[4]];
    assert_eq!(after, more);
}

#[test]
fn credentials_rotate_without_a_restart() {
    let place = Place::new();
    let bucket = Bucket::create("endpoints-rotate");
    let rights = [
        "Read:endpoints-rotate",
        "Write:endpoints-rotate",
        "List:endpoints-rotate",
    ];
    let keys = place.path().join("keys");
    block_on(
        bucket
            .weed
            .add_identity("rotate-old", "rotate-old-id", "old-secret", &rights),
    );
    crate::startup::write_keys(&keys, "rotate-old-id", "old-secret");
    let connection = create(&place.database(), 3);
    let url = bucket.url("app");
    let config = place.write(
        "config.yml",
        &format!(
            "dbs:\n- path: {}\n  replica: {{url: '{url}', credentials-dir: '{}'}}\n",
            place.database_text(),
            text(&keys)
        ),
    );
    let sidecar = Sidecar::spawn(place.path(), &["--config", &config], program());
    let status = sidecar.wait_until_stored();
    let fingerprint = |status: &protocol::status::DatabaseStatus| {
        let report = status.targets[0].credentials.clone();
        report.expect("keys are in use").fingerprint
    };
    let old = fingerprint(&status);
    // First replace the Secret, then revoke the old key in the store.
    block_on(
        bucket
            .weed
            .add_identity("rotate-new", "rotate-new-id", "new-secret", &rights),
    );
    crate::startup::write_keys(&keys, "rotate-new-id", "new-secret");
    until("the new keys are in use", || {
        insert(&connection, 1);
        let status = sidecar.wait_until_stored();
        (fingerprint(&status) != old).then_some(())
    });
    block_on(bucket.weed.remove_identity("rotate-old", "rotate-old-id"));
    insert(&connection, 5);
    let (pid, log) = (sidecar.id(), sidecar.log());
    sidecar.wait_until_stored();
    assert_eq!(sidecar.id(), pid);
    assert!(!log.contains("secret"), "{log}");
    assert_eq!(sidecar.terminate().0, Some(0));
    let output = place.fresh("out.db");
    let mut command = bucket.program();
    command.args(["restore", &url, "-o", text(&output)]);
    finish(command).succeeds();
    assert_same(&rows(&output), &rows(&place.database()));
}
