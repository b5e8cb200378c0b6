//! Every rule of the schemas, with an object that keeps it and one that breaks it.
//!
//! The rules are evaluated as the API server does it, but without a server. Limits on type, pattern
//! and length belong to the API server and are covered by the end-to-end tests.

use api::{RestoreTest, SqliteBackup, SqliteRestore};
use kube::CustomResourceExt;
use kube::core::cel::Validator;
use serde_json::{Value, json};

/// Returns the rules of a kind that an object violates.
fn broken<K: CustomResourceExt>(object: &Value, old: Option<&Value>) -> Vec<String> {
    let name = K::crd_name();
    let crd = api::crds()
        .into_iter()
        .find(|c| c.metadata.name.as_deref() == Some(name));
    let crd = serde_json::to_value(crd.expect("one of ours")).expect("plain data");
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    match Validator::new().validate(schema, object, old) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.iter().map(|e| e.to_string()).collect(),
    }
}

/// Returns a valid SqliteBackup as the API server stores it, with the defaults filled in.
fn backup() -> Value {
    let given = json!({
        "apiVersion": "sqlite-backup.dev/v1alpha1",
        "kind": "SqliteBackup",
        "metadata": {"name": "orders", "namespace": "shop"},
        "spec": {
            "selector": {"matchLabels": {"app": "orders"}},
            "databases": [{"path": "/data/orders.db"}],
            "targets": [{
                "name": "primary",
                "s3": {"bucket": "shop", "endpoint": "https://s3.example.com"},
                "credentials": {"secretRef": {"name": "orders-s3"}},
            }],
        },
    });
    let typed: SqliteBackup = serde_json::from_value(given).expect("it fits the types");
    serde_json::to_value(typed).expect("plain data")
}

fn restore() -> Value {
    json!({
        "apiVersion": "sqlite-backup.dev/v1alpha1",
        "kind": "SqliteRestore",
        "metadata": {"name": "r", "namespace": "shop"},
        "spec": {
            "backupRef": {"name": "orders"},
            "point": {"latest": true},
            "mode": "InPlace",
            "confirm": "orders",
        },
    })
}

fn test() -> Value {
    json!({
        "apiVersion": "sqlite-backup.dev/v1alpha1",
        "kind": "RestoreTest",
        "metadata": {"name": "t", "namespace": "shop"},
        "spec": {"backupRef": {"name": "orders"}, "at": {"latest": true}},
    })
}

/// Sets `value` at a JSON pointer. A null value removes the field.
fn with(mut object: Value, pointer: &str, value: Value) -> Value {
    let (parent, field) = pointer.rsplit_once('/').expect("a pointer");
    let parent = object.pointer_mut(parent).expect("the parent exists");
    match (parent, value) {
        (Value::Object(map), Value::Null) => drop(map.remove(field)),
        (Value::Object(map), value) => drop(map.insert(field.to_owned(), value)),
        (Value::Array(list), value) => {
            let index: usize = field.parse().expect("an index");
            if index == list.len() {
                list.push(value)
            } else {
                list[index] = value
            }
        }
        (other, _) => panic!("{other} has no fields"),
    }
    object
}

#[track_caller]
fn accepts<K: CustomResourceExt>(object: &Value) {
    let said = broken::<K>(object, None);
    assert!(said.is_empty(), "refused: {said:?}\n{object}");
}

#[track_caller]
fn refuses<K: CustomResourceExt>(object: &Value, because: &str) {
    let said = broken::<K>(object, None);
    assert!(
        said.iter().any(|m| m.contains(because)),
        "expected {because:?}, got {said:?}\n{object}"
    );
}

#[track_caller]
fn refuses_change<K: CustomResourceExt>(old: &Value, new: &Value, because: &str) {
    assert_eq!(broken::<K>(old, Some(old)), [""; 0], "no change");
    let said = broken::<K>(new, Some(old));
    assert!(
        said.iter().any(|m| m.contains(because)),
        "expected {because:?}, got {said:?}"
    );
}

#[test]
fn the_plainest_backup_is_accepted_with_all_its_defaults() {
    accepts::<SqliteBackup>(&backup());
}

#[test]
fn a_selector_says_something_that_labels_can_match() {
    let set = |value: Value| with(backup(), "/spec/selector", value);
    refuses::<SqliteBackup>(&set(json!({})), "must not be empty");
    refuses::<SqliteBackup>(&set(json!({"matchLabels": {}})), "must not be empty");
    refuses::<SqliteBackup>(
        &set(json!({"matchLabels": {"a b": "c"}})),
        "not a label key",
    );
    accepts::<SqliteBackup>(&set(json!({"matchLabels": {"example.com/app": "x"}})));
    for (expression, good) in [
        (json!({"key": "a", "operator": "In", "values": ["x"]}), true),
        (json!({"key": "a", "operator": "Exists"}), true),
        (json!({"key": "a", "operator": "NotIn"}), false),
        (json!({"key": "a", "operator": "In", "values": []}), false),
        (
            json!({"key": "a", "operator": "DoesNotExist", "values": ["x"]}),
            false,
        ),
    ] {
        let object = set(json!({"matchExpressions": [expression]}));
        match good {
            true => accepts::<SqliteBackup>(&object),
            false => refuses::<SqliteBackup>(&object, "In and NotIn need values"),
        }
    }
}

#[test]
fn a_database_path_is_absolute_and_plain() {
    let path = |path: &str| with(backup(), "/spec/databases/0/path", json!(path));
    for good in [
        "/a",
        "/data/my file.db",
        "/data/*.db",
        "/data/**/x.db",
        "/data/a..b",
    ] {
        accepts::<SqliteBackup>(&path(good));
    }
    for (bad, because) in [
        ("data/x.db", "must be absolute"),
        ("/data/", "must be absolute"),
        ("/data//x.db", "must be absolute"),
        ("/data/../etc/x", "must not contain . or .."),
        ("/data/./x", "must not contain . or .."),
        ("/data/x**/y", "whole path segment"),
        ("/data/**y", "whole path segment"),
        ("/data/${HOME}.db", "must not contain $"),
        ("/data/x\n.db", "must not contain $"),
        ("/data/x.db-wal", "must name the database"),
    ] {
        refuses::<SqliteBackup>(&path(bad), because);
    }
}

#[test]
fn exclusions_need_a_pattern() {
    let exclude = |path: &str| {
        with(
            backup(),
            "/spec/databases/0",
            json!({"path": path, "exclude": ["*.tmp"]}),
        )
    };
    accepts::<SqliteBackup>(&exclude("/data/*.db"));
    refuses::<SqliteBackup>(&exclude("/data/x.db"), "exclude needs a path with *");
}

#[test]
fn a_target_is_exactly_one_place() {
    let target = |value: Value| with(backup(), "/spec/targets/0", value);
    refuses::<SqliteBackup>(&target(json!({"name": "a"})), "exactly one of s3");
    let prefix = "{backup}/{database}";
    let s3 = json!({"bucket": "shop", "prefix": prefix});
    let file = json!({"claimName": "backups", "prefix": prefix});
    refuses::<SqliteBackup>(
        &target(json!({"name": "a", "s3": s3, "file": file})),
        "exactly one",
    );
    accepts::<SqliteBackup>(&target(json!({"name": "a", "file": file})));
    accepts::<SqliteBackup>(&target(json!({"name": "a", "gcs": s3})));
}

#[test]
fn a_prefix_is_a_relative_path_with_known_placeholders() {
    let prefix = |text: &str| with(backup(), "/spec/targets/0/s3/prefix", json!(text));
    for good in ["x", "a/b-c/{member}/{database}", "{namespace}.{backup}"] {
        accepts::<SqliteBackup>(&prefix(good));
    }
    for bad in [
        "/x",
        "x/",
        "a//b",
        "a/../b",
        "./a",
        "a b",
        "${AWS_SECRET_ACCESS_KEY}",
        "a?b",
    ] {
        refuses::<SqliteBackup>(&prefix(bad), "must be a relative path");
    }
    for bad in ["{pod}", "{Member}", "x/{", "{database"] {
        refuses::<SqliteBackup>(&prefix(bad), "may only contain the placeholders");
    }
}

#[test]
fn an_endpoint_is_a_web_address() {
    let endpoint = |text: &str| with(backup(), "/spec/targets/0/s3/endpoint", json!(text));
    accepts::<SqliteBackup>(&endpoint("http://10.0.0.1:9000"));
    for bad in ["minio:9000", "ftp://x", "not a url", "//x"] {
        refuses::<SqliteBackup>(&endpoint(bad), "must be an http or https URL");
    }
}

#[test]
fn several_databases_are_kept_apart() {
    let two = with(backup(), "/spec/databases/1", json!({"path": "/data/b.db"}));
    accepts::<SqliteBackup>(&two);
    let shared = with(two, "/spec/targets/0/s3/prefix", json!("{backup}/{member}"));
    refuses::<SqliteBackup>(&shared, "must contain {database}");
    let one = with(
        backup(),
        "/spec/targets/0/s3/prefix",
        json!("{backup}/{member}"),
    );
    accepts::<SqliteBackup>(&one);
    let glob = with(one, "/spec/databases/0/path", json!("/data/*.db"));
    refuses::<SqliteBackup>(&glob, "must contain {database}");
}

#[test]
fn durations_stay_within_their_bounds() {
    for (pointer, good, bad) in [
        ("/spec/replication/syncInterval", "100ms", "99ms"),
        ("/spec/replication/syncInterval", "30s", "2h"),
        ("/spec/replication/maxLag", "168h", "169h"),
        ("/spec/snapshots/interval", "1m", "59s"),
        ("/spec/retention/exact", "0s", "9000h"),
        ("/spec/retention/window", "8784h", "10s"),
        ("/spec/shutdown/drain", "10m", "11m"),
        ("/spec/restoreTest/deadline", "10s", "1s"),
    ] {
        // Adjust the fields whose order with the tested field has a rule.
        let mut object = backup();
        for (other, value) in [("maxLag", "168h"), ("syncInterval", "100ms")] {
            object = with(object, &format!("/spec/replication/{other}"), json!(value));
        }
        object = with(object, "/spec/retention/exact", json!("0s"));
        accepts::<SqliteBackup>(&with(object.clone(), pointer, json!(good)));
        refuses::<SqliteBackup>(&with(object, pointer, json!(bad)), "must be from");
    }
}

#[test]
fn goals_that_contradict_each_other_are_refused() {
    let lag = with(
        backup(),
        "/spec/replication",
        json!({"syncInterval": "10s", "maxLag": "5s"}),
    );
    refuses::<SqliteBackup>(&lag, "maxLag must be at least syncInterval");
    let exact = with(backup(), "/spec/retention/exact", json!("169h"));
    refuses::<SqliteBackup>(&exact, "exact must be at most window");
}

#[test]
fn a_schedule_has_five_fields() {
    let schedule = |text: &str| with(backup(), "/spec/restoreTest/schedule", json!(text));
    for good in [
        "H 3 * * *",
        "*/5 * * * *",
        "H(0-30) H * * MON-FRI",
        "0 0 L * *",
    ] {
        accepts::<SqliteBackup>(&schedule(good));
    }
    for bad in ["daily", "0 3 * *", "0 3 * * * *", "0 3 * * $"] {
        refuses::<SqliteBackup>(&schedule(bad), "must be five cron fields");
    }
}

#[test]
fn a_check_expects_one_thing_of_a_known_database() {
    let check = |value: Value| with(backup(), "/spec/restoreTest/checks", json!([value]));
    for good in [
        json!({"name": "a", "query": "q", "min": 1, "max": 5}),
        json!({"name": "a", "query": "q", "rows": 0, "database": "*"}),
        json!({"name": "a", "query": "q", "equals": "", "database": "orders.db"}),
        json!({"name": "a", "query": "q", "maxAge": "15m", "database": "/data/orders.db"}),
    ] {
        accepts::<SqliteBackup>(&check(good));
    }
    let refuse = |value: Value, because| refuses::<SqliteBackup>(&check(value), because);
    refuse(
        json!({"name": "a", "query": "q"}),
        "exactly one expectation",
    );
    refuse(
        json!({"name": "a", "query": "q", "min": 1, "rows": 2}),
        "exactly one expectation",
    );
    refuse(
        json!({"name": "a", "query": "q", "min": 2, "max": 1}),
        "min must be at most max",
    );
    refuse(
        json!({"name": "a", "query": "q", "rows": 1, "database": "x.db"}),
        "not in databases",
    );
    refuse(
        json!({"name": "a", "query": "q", "maxAge": "1ms"}),
        "must be from",
    );
}

#[test]
fn all_checks_together_fit_into_the_request_of_a_restore_test() {
    let checks = |last: usize| -> Value {
        let check = |index: usize, query: usize| {
            json!({"name": format!("c{index}"), "query": "q".repeat(query), "equals": "e".repeat(90),
                   "database": "*"})
        };
        let mut all: Vec<Value> = (0..3).map(|index| check(index, 4096)).collect();
        all.push(check(3, last));
        with(backup(), "/spec/restoreTest/checks", json!(all))
    };
    // Four times 91 characters of equals and database.
    let most = 4096 - 4 * 91;
    let spec = |object: &Value| -> SqliteBackup { serde_json::from_value(object.clone()).unwrap() };
    let (good, bad) = (checks(most), checks(most + 1));
    accepts::<SqliteBackup>(&good);
    assert_eq!(api::validate::validate(&spec(&good).spec), Ok(()));
    refuses::<SqliteBackup>(&bad, "may have 16384 characters");
    let refusal = api::validate::validate(&spec(&bad).spec).unwrap_err();
    assert!(refusal.to_string().contains("more than 16384"), "{refusal}");
}

#[test]
fn the_place_of_a_target_never_moves() {
    let old = backup();
    for (pointer, value, because) in [
        (
            "/spec/targets/0/s3/bucket",
            json!("other"),
            "bucket, prefix and endpoint",
        ),
        (
            "/spec/targets/0/s3/prefix",
            json!("x/{database}"),
            "bucket, prefix and endpoint",
        ),
        (
            "/spec/targets/0/s3/endpoint",
            Value::Null,
            "bucket, prefix and endpoint",
        ),
        (
            "/spec/targets/0",
            json!({"name": "primary", "gcs": {"bucket": "shop", "prefix": "x"}}),
            "the kind of a target cannot change",
        ),
    ] {
        refuses_change::<SqliteBackup>(&old, &with(old.clone(), pointer, value), because);
    }
    for (pointer, value) in [
        ("/spec/targets/0/s3/region", json!("eu-west-1")),
        (
            "/spec/targets/0/credentials/secretRef/name",
            json!("rotated"),
        ),
        (
            "/spec/targets/1",
            json!({"name": "second", "s3": {"bucket": "two", "prefix": "x"}}),
        ),
    ] {
        let new = with(old.clone(), pointer, value);
        assert_eq!(broken::<SqliteBackup>(&new, Some(&old)), [""; 0]);
    }
}

#[test]
fn a_name_leaves_room_for_the_names_made_from_it() {
    let name = |length: usize| with(backup(), "/metadata/name", json!("a".repeat(length)));
    accepts::<SqliteBackup>(&name(52));
    refuses::<SqliteBackup>(&name(53), "at most 52 characters");
}

#[test]
fn a_restore_test_is_one_run_at_one_point() {
    accepts::<RestoreTest>(&test());
    let at = |value: Value| with(test(), "/spec/at", value);
    accepts::<RestoreTest>(&at(json!({"timestamp": "2026-11-20T14:59:00Z"})));
    accepts::<RestoreTest>(&at(json!({"txid": "000000000000000a"})));
    refuses::<RestoreTest>(&at(json!({})), "exactly one of latest");
    refuses::<RestoreTest>(&at(json!({"latest": false})), "latest can only be true");
    let both = json!({"latest": true, "txid": "000000000000000a"});
    refuses::<RestoreTest>(&at(both), "exactly one of latest");
    let moved = with(test(), "/spec/backupRef/name", json!("other"));
    refuses_change::<RestoreTest>(&test(), &moved, "is one run and cannot change");
}

#[test]
fn a_restore_over_live_data_is_confirmed_by_name() {
    accepts::<SqliteRestore>(&restore());
    let confirm = |value: Value| with(restore(), "/spec/confirm", value);
    refuses::<SqliteRestore>(&confirm(Value::Null), "confirm must repeat");
    refuses::<SqliteRestore>(&confirm(json!("cart")), "confirm must repeat");
    let claim = with(restore(), "/spec/mode", json!("NewClaim"));
    refuses::<SqliteRestore>(&claim, "newClaim is for mode NewClaim");
    let claim = with(
        claim,
        "/spec/newClaim",
        json!({"name": "x", "storage": "5Gi"}),
    );
    accepts::<SqliteRestore>(&claim);
    let moved = with(restore(), "/spec/member", json!("orders-1"));
    refuses_change::<SqliteRestore>(&restore(), &moved, "is one restore and cannot change");
}
