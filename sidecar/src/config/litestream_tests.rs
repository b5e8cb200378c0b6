//! The table of keys in `docs/from-litestream.md` is correct.

use std::collections::BTreeSet;

use serde_yaml::{Mapping, Value};

use super::*;

const PAGE: &str = include_str!("../../../docs/from-litestream.md");

/// Every key that Litestream 0.5.17 reads, by its position in the file.
const KEYS: [(&str, &[&str]); 3] = [
    (
        "",
        &[
            "addr",
            "mcp-addr",
            "socket",
            "exec",
            "levels",
            "snapshot",
            "l0-retention",
            "l0-retention-check-interval",
            "retention",
            "verify-compaction",
            "validation",
            "heartbeat-url",
            "heartbeat-interval",
            "shutdown-sync-timeout",
            "shutdown-sync-interval",
            "logging",
        ],
    ),
    (
        "dbs[].",
        &[
            "path",
            "dir",
            "pattern",
            "recursive",
            "watch",
            "snapshot",
            "meta-path",
            "meta-dir",
            "restore-if-db-not-exists",
            "monitor-interval",
            "checkpoint-interval",
            "min-checkpoint-page-count",
            "truncate-page-n",
            "busy-timeout",
            "max-sync-wal-bytes",
            "replica",
            "replicas",
        ],
    ),
    (
        "dbs[].replica.",
        &[
            "type",
            "url",
            "name",
            "path",
            "sync-interval",
            "max-sync-ltx-files",
            "auto-recover",
            "validation-interval",
            "access-key-id",
            "secret-access-key",
            "region",
            "bucket",
            "endpoint",
            "force-path-style",
            "sign-payload",
            "require-content-md5",
            "skip-verify",
            "storage-class",
            "part-size",
            "concurrency",
            "sse-customer-algorithm",
            "sse-customer-key",
            "sse-customer-key-path",
            "sse-kms-key-id",
            "age",
            "account-name",
            "account-key",
            "sas-token",
            "host",
            "user",
            "password",
            "key-path",
            "host-key",
            "concurrent-writes",
            "webdav-url",
            "webdav-username",
            "webdav-password",
            "jwt",
            "seed",
            "creds",
            "nkey",
            "username",
            "token",
            "tls",
            "root-cas",
            "client-cert",
            "client-key",
            "max-reconnects",
            "reconnect-wait",
            "timeout",
        ],
    ),
];

/// Keys of a replica that cannot be used at the top level.
const OF_ONE_REPLICA: [&str; 4] = ["type", "url", "name", "path"];

struct Row {
    place: String,
    keys: Vec<String>,
    examples: Vec<String>,
    verdict: String,
}

fn quoted(cell: &str) -> Vec<String> {
    let parts = cell.split('`').skip(1).step_by(2);
    parts.map(str::to_owned).collect()
}

fn rows() -> Vec<Row> {
    let table = PAGE.split_once("## Keys of litestream.yml").unwrap().1;
    let table = table.split("\n## ").next().unwrap();
    let lines = table.lines().filter(|line| line.starts_with("| `"));
    let row = |line: &str| {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").collect();
        let mut keys = quoted(cells[0]);
        let at = keys[0].rfind('.').map_or(0, |dot| dot + 1);
        let (place, first) = keys[0].split_at(at);
        let (place, first) = (place.to_owned(), first.to_owned());
        keys[0] = first;
        Row {
            place,
            keys,
            examples: quoted(cells[1]),
            verdict: cells[2].trim().to_owned(),
        }
    };
    lines.map(row).collect()
}

/// Returns a working configuration with these keys added.
fn document(place: &str, keys: &[&String], example: &str, key_file: &str) -> String {
    let mut example: Value = serde_yaml::from_str(example).unwrap();
    let is = |name: &str| keys[0] == name;
    let mut top = Mapping::new();
    let mut replica: Mapping = serde_yaml::from_str("{type: s3, bucket: backups}").unwrap();
    let of_patterns = ["dir", "pattern", "recursive", "watch", "meta-dir"];
    let is_pattern = place == "dbs[]." && of_patterns.iter().any(|name| is(name));
    let entry = if is_pattern {
        "{dir: /data, pattern: '*.db'}"
    } else {
        "{path: /data/app.db}"
    };
    let mut entry: Mapping = serde_yaml::from_str(entry).unwrap();
    match keys[0].as_str() {
        "url" => replica.clear(),
        // The key needs another key to apply to.
        "sse-customer-algorithm" => {
            let key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
            replica.insert("sse-customer-key".into(), key.into());
        }
        "sse-customer-key-path" => example = key_file.into(),
        _ => {}
    }
    let filled = match place {
        "" => &mut top,
        "dbs[]." => &mut entry,
        _ => &mut replica,
    };
    for key in keys {
        filled.insert(key.as_str().into(), example.clone());
    }
    if !entry.contains_key("replica") && !entry.contains_key("replicas") {
        entry.insert("replica".into(), replica.into());
    }
    top.insert("dbs".into(), vec![Value::from(entry)].into());
    serde_yaml::to_string(&top).unwrap()
}

/// Returns the error of a configuration, with all its causes.
fn verdict(text: &str) -> Option<String> {
    let settings = |text| -> Result<(), anyhow::Error> {
        let config = text::parse(text, Path::new("litestream.yml"), &|_| None)?;
        super::settings(&config, &Found::new(), "me", &mut Opener::new())?;
        Ok(())
    };
    settings(text).err().map(|error| format!("{error:#}"))
}

#[test]
fn the_table_has_every_key_and_tells_the_truth() {
    let key_file = tempfile::NamedTempFile::new().unwrap();
    let key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n";
    std::fs::write(key_file.path(), key).unwrap();
    let key_file = key_file.path().to_str().unwrap();
    let mut seen = BTreeSet::new();
    for row in rows() {
        seen.extend(row.keys.iter().map(|key| (row.place.clone(), key.clone())));
        let is_for_all = row.place == "dbs[].replica."
            && !row
                .keys
                .iter()
                .any(|key| OF_ONE_REPLICA.contains(&key.as_str()));
        let places = [Some(row.place.as_str()), is_for_all.then_some("")];
        for (place, example) in places
            .into_iter()
            .flatten()
            .flat_map(|place| row.examples.iter().map(move |example| (place, example)))
        {
            let all: Vec<&String> = row.keys.iter().collect();
            if row.verdict != "refused" {
                assert!(
                    ["honoured", "accepted"].contains(&row.verdict.as_str()),
                    "{all:?}"
                );
                let text = document(place, &all, example, key_file);
                assert_eq!(verdict(&text), None, "{text}");
                continue;
            }
            for key in all {
                let text = document(place, &[key], example, key_file);
                let said = verdict(&text).unwrap_or_else(|| panic!("accepted: {text}"));
                assert!(said.contains(key), "{said}\n{text}");
                for unhelpful in ["did you mean", "this program does not honour it"] {
                    assert!(!said.contains(unhelpful), "{said}\n{text}");
                }
            }
        }
    }
    let owned = |(place, keys): &(&str, &[&str])| {
        let place = (*place).to_owned();
        let key = move |key: &&str| (place.clone(), (*key).to_owned());
        keys.iter().map(key).collect::<Vec<_>>()
    };
    let expected: BTreeSet<_> = KEYS.iter().flat_map(owned).collect();
    assert_eq!(seen, expected);
}
