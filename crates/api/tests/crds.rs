//! The files in `crds/` match the types.

use std::path::Path;

/// Set `UPDATE_CRDS=1` to write the files instead of comparing them.
#[test]
fn the_files_in_crds_are_generated_from_the_types() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crds");
    let update = std::env::var_os("UPDATE_CRDS").is_some();
    for (name, yaml) in api::crd::files() {
        let path = directory.join(&name);
        if update {
            std::fs::write(&path, &yaml).expect("crds/ can be written");
        }
        let stored = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            stored == yaml,
            "crds/{name} is stale; run the tests of `api` with UPDATE_CRDS=1"
        );
    }
}

#[test]
fn no_field_is_without_a_description_a_user_can_read() {
    fn walk(path: &str, schema: &serde_json::Value, missing: &mut Vec<String>) {
        if let Some(properties) = schema["properties"].as_object() {
            for (name, field) in properties {
                let path = format!("{path}.{name}");
                // Types of the Kubernetes API have descriptions of their own; so have the `items`
                // of our types.
                if field["description"].as_str().is_none_or(str::is_empty) {
                    missing.push(path.clone());
                }
                walk(&path, field, missing);
            }
        }
        if schema["items"].is_object() {
            walk(&format!("{path}[]"), &schema["items"], missing);
        }
    }
    let mut missing = Vec::new();
    for crd in api::crds() {
        let value = serde_json::to_value(&crd.spec.versions[0].schema).expect("plain data");
        for part in ["spec", "status"] {
            let path = format!("{}.{part}", crd.spec.names.kind);
            walk(
                &path,
                &value["openAPIV3Schema"]["properties"][part],
                &mut missing,
            );
        }
    }
    assert!(missing.is_empty(), "without description: {missing:#?}");
}
