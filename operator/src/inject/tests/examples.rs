//! Golden examples of injected Pods, and each setting that is taken over from the application.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::*;

/// Each file of `tests/golden/inject` is an object with `backup`, `pod` and the expected `patch`.
/// `UPDATE_GOLDEN=1` writes the patches again.
#[test]
fn golden_examples_give_exactly_their_patches() {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/inject");
    let mut seen = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let mut example: Value =
            serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let backup: SqliteBackup = serde_json::from_value(example["backup"].clone()).unwrap();
        let patch = match inject(&example["pod"], &backup, &settings()).unwrap() {
            Outcome::Patch(patch) => json!(patch),
            other => panic!("{}: {other:?}", path.display()),
        };
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            example["patch"] = patch;
            let text = serde_json::to_string_pretty(&example).unwrap() + "\n";
            std::fs::write(&path, text).unwrap();
        } else {
            assert_eq!(patch, example["patch"], "{}", path.display());
        }
        seen += 1;
    }
    assert!(seen >= 4, "examples are missing");
}

#[test]
fn only_selected_pods_are_touched() {
    let outcome = |change: Change| {
        let (mut pod, mut backup) = (pod(), orders());
        change(&mut pod, &mut backup);
        inject(&pod, &backup, &settings()).unwrap()
    };
    let cases: [Change; 4] = [
        |pod, _| pod["metadata"]["labels"]["app"] = json!("other"),
        |pod, _| pod["metadata"]["labels"][INJECT_LABEL] = json!("false"),
        |_, backup| backup.spec.suspend = true,
        |pod, _| {
            pod["metadata"].as_object_mut().unwrap().remove("labels");
        },
    ];
    for change in cases {
        assert_eq!(outcome(change), Outcome::NotSelected);
    }
}

#[test]
fn user_and_group_come_from_the_container_then_the_pod() {
    let mut pod = pod();
    pod["spec"]["securityContext"] = json!({"runAsUser": 1, "runAsGroup": 2, "fsGroup": 3});
    pod["spec"]["containers"][0]["securityContext"] = json!({"runAsUser": 9});
    let result = injected(&pod, &orders());
    let context = &own(&result, SIDECAR_CONTAINER)["securityContext"];
    assert_eq!(
        (&context["runAsUser"], &context["runAsGroup"]),
        (&json!(9), &json!(2))
    );
    assert_eq!(
        result["spec"]["securityContext"],
        pod["spec"]["securityContext"]
    );
}

#[test]
fn an_unknown_user_is_not_guessed_and_root_stays_root() {
    let result = injected(&pod(), &orders());
    let context = &own(&result, SIDECAR_CONTAINER)["securityContext"];
    assert_eq!(context.get("runAsUser"), None);
    assert_eq!(context["runAsNonRoot"], json!(true));
    let mut root = pod();
    root["spec"]["containers"][0]["securityContext"] = json!({"runAsUser": 0});
    let result = injected(&root, &orders());
    let context = &own(&result, RESTORE_CONTAINER)["securityContext"];
    assert_eq!(
        (&context["runAsUser"], &context["runAsNonRoot"]),
        (&json!(0), &json!(false))
    );
}

#[test]
fn the_deepest_mount_is_mirrored_with_its_sub_path_and_variables() {
    let mut pod = pod();
    let container = &mut pod["spec"]["containers"][0];
    container["env"] = json!([
        {"name": "UNUSED", "value": "x"},
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
    ]);
    container["volumeMounts"] = json!([
        {"name": "data", "mountPath": "/"},
        {"name": "data", "mountPath": "/data/", "subPathExpr": "at/$(POD)", "mountPropagation": "None"},
    ]);
    let result = injected(&pod, &orders());
    let restore = own(&result, RESTORE_CONTAINER);
    let mount = json!({"name": "data", "mountPath": "/data/", "subPathExpr": "at/$(POD)"});
    assert_eq!(restore["volumeMounts"][0], mount);
    assert_eq!(restore["env"].as_array().unwrap().len(), 6);
    assert_eq!(restore["env"][5], pod["spec"]["containers"][0]["env"][1]);
}

#[test]
fn state_is_beside_the_databases_where_all_their_volumes_outlive_the_pod() {
    let claim = json!({"persistentVolumeClaim": {"claimName": "data-orders-0"}});
    let host_path = json!({"hostPath": {"path": "/data"}});
    let ephemeral = json!({"ephemeral": {"volumeClaimTemplate": {"spec": {}}}});
    for (volume, state, expected) in [
        (&claim, "Auto", "true"),
        (&host_path, "Auto", "true"),
        (&ephemeral, "Auto", "false"),
        (&json!({"emptyDir": {}}), "Auto", "false"),
        (&claim, "PodVolume", "false"),
        (&json!({"emptyDir": {}}), "BesideDatabases", "true"),
    ] {
        let (mut pod, mut backup) = (pod(), orders());
        backup.spec.sidecar.state = serde_json::from_value(json!(state)).unwrap();
        let volumes = pod["spec"]["volumes"].as_array_mut().unwrap();
        for place in volumes {
            let name = place["name"].clone();
            *place = volume.clone();
            place["name"] = name;
        }
        let result = injected(&pod, &backup);
        for container in [RESTORE_CONTAINER, SIDECAR_CONTAINER] {
            let env = pod::items(own(&result, container).get("env"));
            let values: Vec<&Value> = env
                .filter(|entry| entry["name"] == protocol::names::STATE_BESIDE_ENV)
                .map(|entry| &entry["value"])
                .collect();
            assert_eq!(values, [expected], "{volume} {state}");
        }
    }
}

#[test]
fn the_token_is_hidden_unless_it_is_the_identity() {
    let hides = |pod: &Value| {
        pod::items(own(pod, SIDECAR_CONTAINER).get("volumeMounts"))
            .any(|m| m["mountPath"] == names::SERVICE_ACCOUNT_DIR)
    };
    let mut backup = orders();
    assert!(hides(&injected(&pod(), &backup)));
    backup.spec.targets[0].credentials = None;
    assert!(!hides(&injected(&pod(), &backup)));
}

#[test]
fn workload_identity_given_before_us_is_copied() {
    let mut pod = pod();
    let token_dir = "/var/run/secrets/eks.amazonaws.com/serviceaccount";
    pod["spec"]["containers"][0]["env"] = json!([
        {"name": "AWS_ROLE_ARN", "value": "arn:aws:iam::1:role/r"},
        {"name": "AWS_WEB_IDENTITY_TOKEN_FILE", "value": format!("{token_dir}/token")},
        {"name": "SECRET", "value": "not ours"},
    ]);
    pod["spec"]["containers"][0]["volumeMounts"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "aws-iam-token", "mountPath": token_dir, "readOnly": true}));
    let mut backup = orders();
    backup.spec.targets[0].credentials = None;
    let result = injected(&pod, &backup);
    let sidecar = own(&result, SIDECAR_CONTAINER);
    let names: Vec<&str> = pod::items(sidecar.get("env"))
        .filter_map(|e| pod::text(e, "name"))
        .collect();
    assert!(names.contains(&"AWS_ROLE_ARN") && !names.contains(&"SECRET"));
    let mounts = sidecar["volumeMounts"].as_array().unwrap();
    assert!(
        mounts
            .iter()
            .any(|m| m["mountPath"] == token_dir && m["readOnly"] == true)
    );
}

#[test]
fn the_grace_period_grows_once() {
    let mut pod = pod();
    pod["spec"]["terminationGracePeriodSeconds"] = json!(10);
    let result = injected(&pod, &orders());
    assert_eq!(result["spec"]["terminationGracePeriodSeconds"], 40);
    assert_eq!(result["metadata"]["annotations"][ORIGINAL_GRACE], "10");
    assert_eq!(
        inject(&result, &orders(), &settings()).unwrap(),
        Outcome::Already
    );
}

#[test]
fn the_member_is_the_pod_of_a_stateful_set_and_the_backup_otherwise() {
    let member = |kind: &str| {
        let mut pod = pod();
        pod["metadata"]["ownerReferences"] =
            json!([{"kind": kind, "name": "o", "controller": true}]);
        injected(&pod, &orders())["metadata"]["annotations"][MEMBER].clone()
    };
    assert_eq!(member("StatefulSet"), "orders-0");
    assert_eq!(member("ReplicaSet"), "orders");
}

#[test]
fn the_fingerprint_changes_with_what_is_injected_only() {
    let base = fingerprint(&orders(), &settings());
    assert_eq!(base.len(), 16);
    let mut other = orders();
    other.spec.targets[0].s3.as_mut().unwrap().bucket = "elsewhere".to_owned();
    assert_eq!(
        fingerprint(&other, &settings()),
        base,
        "a bucket is read from the ConfigMap"
    );
    other.spec.databases[0].path = "/data/other.db".to_owned();
    assert_ne!(fingerprint(&other, &settings()), base);
    assert_ne!(fingerprint(&orders(), &Settings::new("other")), base);
}

#[test]
fn an_image_that_a_registry_mirror_rewrote_is_left() {
    let mut pod = injected(&pod(), &orders());
    pod["spec"]["initContainers"][1]["image"] = json!("mirror/sqlite-backup:1.2.3");
    assert_eq!(
        inject(&pod, &orders(), &settings()).unwrap(),
        Outcome::Already
    );
}
