//! The files of `examples/`: every SqliteBackup is valid, and fits the workload beside it.

#![expect(
    clippy::unwrap_used,
    reason = "a fixture that cannot be built fails its test"
)]

use std::path::Path;

use api::SqliteBackup;
use operator::inject::{Outcome, Settings, inject};
use serde_json::{Value, json};

/// Returns the objects of each file, with the file's name.
fn files() -> Vec<(String, Vec<Value>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut files: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "yaml")
        })
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            let objects = serde_yaml::Deserializer::from_str(&text)
                .map(|document| serde::Deserialize::deserialize(document).unwrap());
            (
                path.file_name().unwrap().to_string_lossy().into_owned(),
                objects.collect(),
            )
        })
        .collect();
    files.sort_by(|a, b| a.0.cmp(&b.0));
    files
}

#[test]
fn every_backup_is_served() {
    let mut seen = 0;
    for (file, objects) in files() {
        for object in objects
            .iter()
            .filter(|object| object["kind"] == "SqliteBackup")
        {
            let backup: SqliteBackup = serde_json::from_value(object.clone()).unwrap();
            api::validate::validate(&backup.spec).unwrap_or_else(|error| panic!("{file}: {error}"));
            seen += 1;
        }
    }
    assert!(seen >= 4);
}

#[test]
fn every_workload_beside_a_backup_is_injected() {
    let mut seen = 0;
    for (file, objects) in files() {
        let backup = objects
            .iter()
            .find(|object| object["kind"] == "SqliteBackup");
        let workload = objects
            .iter()
            .find(|object| object["spec"]["template"].is_object());
        let (Some(backup), Some(workload)) = (backup, workload) else {
            continue;
        };
        let mut backup: SqliteBackup = serde_json::from_value(backup.clone()).unwrap();
        backup.metadata.namespace = Some("shop".to_owned());
        let mut pod = workload["spec"]["template"].clone();
        pod["metadata"]["ownerReferences"] =
            json!([{"kind": workload["kind"], "controller": true}]);
        let outcome = inject(&pod, &backup, &Settings::new("sqlite-backup:1"))
            .unwrap_or_else(|refusal| panic!("{file}: {refusal}"));
        let Outcome::Patch(patch) = outcome else {
            panic!("{file}: {outcome:?}")
        };
        json_patch::patch(&mut pod, &patch).unwrap();
        let sidecar = &pod["spec"]["initContainers"][1];
        assert_eq!(sidecar["name"], api::names::SIDECAR_CONTAINER, "{file}");
        assert!(
            sidecar["securityContext"]["runAsUser"].is_number(),
            "{file}: the user is unknown"
        );
        seen += 1;
    }
    assert!(seen >= 2);
}
