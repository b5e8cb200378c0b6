//! Injection as a whole: golden examples, refusals, and random Pods.

use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn settings() -> Settings {
    Settings::new("registry.example/sqlite-backup:1.2.3")
}

fn backup(spec: Value) -> SqliteBackup {
    serde_json::from_value(json!({
        "apiVersion": "sqlite-backup.dev/v1alpha1",
        "kind": "SqliteBackup",
        "metadata": {"name": "orders", "namespace": "shop"},
        "spec": spec,
    }))
    .unwrap()
}

fn orders() -> SqliteBackup {
    backup(json!({
        "selector": {"matchLabels": {"app": "orders"}},
        "databases": [{"path": "/data/orders.db"}],
        "targets": [{
            "name": "primary",
            "s3": {"bucket": "shop", "prefix": "{namespace}/{backup}/{member}/{database}"},
            "credentials": {"secretRef": {"name": "orders-s3"}},
        }],
    }))
}

fn pod() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "orders-0", "labels": {"app": "orders"}},
        "spec": {
            "containers": [{
                "name": "app",
                "image": "app",
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            }],
            "volumes": [{"name": "data", "emptyDir": {}}],
        },
    })
}

fn apply(pod: &Value, patch: &Patch) -> Value {
    let mut patched = pod.clone();
    json_patch::patch(&mut patched, patch).unwrap();
    patched
}

fn injected(pod: &Value, backup: &SqliteBackup) -> Value {
    match inject(pod, backup, &settings()).unwrap() {
        Outcome::Patch(patch) => apply(pod, &patch),
        other => panic!("expected a patch, got {other:?}"),
    }
}

fn refused(pod: &Value, backup: &SqliteBackup) -> String {
    inject(pod, backup, &settings()).unwrap_err().to_string()
}

fn own<'a>(pod: &'a Value, name: &str) -> &'a Value {
    pod::items(pod.pointer("/spec/initContainers"))
        .find(|c| pod::text(c, "name") == Some(name))
        .unwrap()
}

/// Each file of `tests/golden/inject` is an object with `backup`, `pod` and the expected `patch`.
/// `UPDATE_GOLDEN=1` writes the patches anew.
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
    assert_eq!(restore["env"].as_array().unwrap().len(), 4);
    assert_eq!(restore["env"][3], pod["spec"]["containers"][0]["env"][1]);
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
fn the_second_container_is_found_by_its_mounts() {
    let mut pod = pod();
    let mut helper = json!({"name": "helper", "image": "helper"});
    pod["spec"]["containers"]
        .as_array_mut()
        .unwrap()
        .insert(0, helper.clone());
    injected(&pod, &orders());
    helper["volumeMounts"] = json!([{"name": "data", "mountPath": "/data", "readOnly": true}]);
    pod["spec"]["containers"][0] = helper;
    let text = refused(&pod, &orders());
    assert!(
        text.starts_with("SqliteBackup shop/orders: spec.container: "),
        "{text}"
    );
    assert!(text.contains("helper, app"), "{text}");
    let mut backup = orders();
    backup.spec.container = Some("app".to_owned());
    injected(&pod, &backup);
}

/// Changes a Pod and its SqliteBackup into something refused.
type Change = fn(&mut Value, &mut SqliteBackup);

#[test]
fn each_refusal_names_the_backup_and_what_to_change() {
    let cases: Vec<(Change, &str)> = vec![
        (
            |_, backup| backup.spec.container = Some("web".to_owned()),
            "spec.container: the Pod has no container \"web\"; it has app",
        ),
        (
            |pod, _| pod["spec"]["containers"][0]["volumeMounts"] = json!([]),
            "spec.databases[/data/orders.db].path: /data/orders.db is in no volume of container",
        ),
        (
            |pod, _| pod["spec"]["containers"][0]["volumeMounts"][0]["readOnly"] = json!(true),
            "spec.databases[/data/orders.db].path: volume \"data\" is mounted read-only at /data",
        ),
        (
            |pod, _| {
                pod["spec"]["volumes"][0] = json!({"name": "data", "persistentVolumeClaim": {"claimName": "c", "readOnly": true}});
            },
            "spec.databases[/data/orders.db].path: volume \"data\" is mounted read-only",
        ),
        (
            |pod, _| {
                pod["spec"]["volumes"][0] =
                    json!({"name": "data", "nfs": {"server": "s", "path": "/"}});
            },
            "spec.databases[/data/orders.db].path: volume \"data\" is of kind nfs",
        ),
        (
            |pod, _| {
                pod["spec"]["containers"][0]["volumeDevices"] =
                    json!([{"name": "raw", "devicePath": "/data"}]);
            },
            "spec.databases[/data/orders.db].path: volume \"raw\" is of kind block device",
        ),
        (
            |pod, _| {
                pod["spec"]["containers"][0]["volumeMounts"][0]["mountPath"] =
                    json!("/data/orders.db");
            },
            "spec.databases[/data/orders.db].path: /data/orders.db is itself a mount point",
        ),
        (
            |pod, _| pod["spec"]["volumes"] = json!([]),
            "spec.databases[/data/orders.db].path: container \"app\" mounts volume \"data\", which",
        ),
        (
            |pod, _| {
                pod["spec"]["containers"][0]["volumeMounts"][0]["subPathExpr"] = json!("$(WHO)");
            },
            "spec.databases[/data/orders.db].path: subPathExpr of /data needs variable WHO",
        ),
        (
            |_, backup| backup.spec.databases[0].path = "/var/lib/sqlite-backup/a.db".to_owned(),
            "is in /var/lib/sqlite-backup, which the sidecar needs for itself",
        ),
        (
            |pod, _| pod["metadata"]["annotations"] = json!({BACKUP: "invoices"}),
            "spec.selector: the Pod is already served by SqliteBackup \"invoices\"",
        ),
        (
            |pod, _| pod["spec"]["initContainers"] = json!([{"name": "sqlite-backup"}]),
            "spec.initContainers of the Pod: init container \"sqlite-backup\" has the name of an injected one",
        ),
        (
            |pod, _| {
                let volumes = pod["spec"]["volumes"].as_array_mut().unwrap();
                volumes.push(json!({"name": "sqlite-backup-state", "emptyDir": {}}));
            },
            "spec.volumes of the Pod: volume \"sqlite-backup-state\" has the name of an injected one",
        ),
        (
            |pod, _| {
                pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": 9347}]);
            },
            "spec.containers of the Pod: container \"app\" uses port 9347",
        ),
        (
            |pod, _| pod["spec"]["os"] = json!({"name": "windows"}),
            "spec.os.name of the Pod: the Pod runs on windows; only linux is served",
        ),
        (
            |_, backup| backup.spec.databases[0].path = "/data/*.db".to_owned(),
            "spec: spec.databases[/data/*.db] is not served by this version",
        ),
    ];
    for (change, expected) in cases {
        let (mut pod, mut backup) = (pod(), orders());
        change(&mut pod, &mut backup);
        let text = refused(&pod, &backup);
        assert!(text.starts_with("SqliteBackup shop/orders: "), "{text}");
        assert!(
            text.contains(expected),
            "{text}\n  does not contain\n{expected}"
        );
    }
}

#[test]
fn several_backups_on_one_pod_are_all_named() {
    let (one, mut two) = (orders(), orders());
    two.metadata.name = Some("invoices".to_owned());
    assert_eq!(several_select(&[&one]), None);
    let text = several_select(&[&one, &two]).unwrap().to_string();
    assert!(text.contains("invoices, orders"), "{text}");
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

/// Others' init containers, as webhooks and users write them.
fn init_container() -> impl Strategy<Value = Value> {
    let names = prop_oneof![
        Just("istio-proxy"),
        Just("istio-init"),
        Just("linkerd-proxy"),
        Just("migrate"),
        Just("seed"),
        Just("tailer"),
    ];
    (names, any::<bool>(), any::<u16>()).prop_map(|(name, native, unknown)| {
        let mut container = json!({"name": name, "fieldOfTheFuture": {"deep": [unknown]}});
        if native {
            container["restartPolicy"] = json!("Always");
        }
        container
    })
}

fn random_pod() -> impl Strategy<Value = Value> {
    let inits = prop::option::of(prop::collection::vec(init_container(), 0..5));
    let extras = prop::collection::vec(("[a-z~/]{1,8}", any::<i32>()), 0..4);
    let user = prop::option::of(0i64..5);
    (
        inits,
        extras,
        user,
        any::<bool>(),
        prop::option::of(0i64..100),
    )
        .prop_map(|(inits, extras, user, annotated, grace)| {
            let mut pod = pod();
            for (key, value) in extras {
                pod["spec"]["containers"][0][format!("x{key}")] = json!(value);
                pod["spec"][format!("x{key}")] = json!({"inner": value});
            }
            if let Some(inits) = inits {
                pod["spec"]["initContainers"] = json!(inits);
            }
            if let Some(user) = user {
                pod["spec"]["securityContext"] = json!({"runAsUser": user});
            }
            if annotated {
                pod["metadata"]["annotations"] = json!({"other/annotation": "kept"});
            }
            if let Some(grace) = grace {
                pod["spec"]["terminationGracePeriodSeconds"] = json!(grace);
            }
            pod
        })
}

/// What other webhooks and the API server do to a Pod after us.
#[derive(Debug, Clone)]
enum Disturbance {
    StripRestartPolicy,
    PrependMesh,
    Rotate(usize),
    DropEnv,
    Default,
    AddEnv,
    ReplaceMount,
}

fn disturbance() -> impl Strategy<Value = Disturbance> {
    prop_oneof![
        Just(Disturbance::StripRestartPolicy),
        Just(Disturbance::PrependMesh),
        (0usize..6).prop_map(Disturbance::Rotate),
        Just(Disturbance::DropEnv),
        Just(Disturbance::Default),
        Just(Disturbance::AddEnv),
        Just(Disturbance::ReplaceMount),
    ]
}

fn disturb(pod: &mut Value, disturbance: &Disturbance) {
    let all = pod["spec"]["initContainers"].as_array_mut().unwrap();
    if let Disturbance::PrependMesh = disturbance {
        all.insert(0, json!({"name": "istio-proxy", "restartPolicy": "Always"}));
    }
    if let Disturbance::Rotate(by) = disturbance {
        let by = by % all.len();
        all.rotate_left(by);
    }
    let sidecar = all
        .iter_mut()
        .find(|c| c["name"] == SIDECAR_CONTAINER)
        .unwrap();
    match disturbance {
        Disturbance::StripRestartPolicy => {
            sidecar.as_object_mut().unwrap().remove("restartPolicy");
        }
        Disturbance::DropEnv => sidecar["env"] = json!([]),
        Disturbance::Default => {
            for reference in sidecar["env"].as_array_mut().unwrap() {
                if let Some(reference) = reference.pointer_mut("/valueFrom/fieldRef") {
                    reference["apiVersion"] = json!("v1");
                }
            }
            sidecar["terminationMessagePath"] = json!("/dev/termination-log");
        }
        Disturbance::AddEnv => {
            sidecar["env"]
                .as_array_mut()
                .unwrap()
                .push(json!({"name": "X", "value": "y"}));
        }
        Disturbance::ReplaceMount => sidecar["volumeMounts"][0]["name"] = json!("other"),
        Disturbance::PrependMesh | Disturbance::Rotate(_) => {}
    }
}

/// The order that matters to us, and that nobody else's relative order changed.
fn check_order(pod: &Value) {
    let all = pod["spec"]["initContainers"].as_array().unwrap();
    let at = |name: &str| all.iter().position(|c| c["name"] == name).unwrap();
    let (restore, sidecar) = (at(RESTORE_CONTAINER), at(SIDECAR_CONTAINER));
    assert_eq!(
        sidecar,
        restore + 1,
        "nothing between restore and replication"
    );
    for (index, container) in all.iter().enumerate() {
        let name = container["name"].as_str().unwrap();
        let native = container["restartPolicy"] == "Always";
        if native && ["istio-proxy", "linkerd-proxy"].contains(&name) {
            assert!(index < restore, "{name} gives the network");
        }
        if ["migrate", "seed", "tailer"].contains(&name) {
            assert!(index > sidecar, "{name} runs on restored data");
        }
    }
    assert_eq!(all[sidecar]["restartPolicy"], "Always");
}

/// Takes away what we add. What is left must be what was there.
fn strip(mut pod: Value, original: &Value) -> Value {
    let ours = |value: &Value| {
        pod::text(value, "name").is_some_and(|name| name.starts_with("sqlite-backup"))
    };
    for list in ["initContainers", "volumes"] {
        pod["spec"][list]
            .as_array_mut()
            .unwrap()
            .retain(|value| !ours(value));
        if original["spec"].get(list).is_none() {
            assert_eq!(pod["spec"][list], json!([]));
            pod["spec"].as_object_mut().unwrap().remove(list);
        }
    }
    let annotations = pod["metadata"]["annotations"].as_object_mut().unwrap();
    annotations.retain(|key, _| !key.starts_with("sqlite-backup.dev/"));
    if original["metadata"].get("annotations").is_none() {
        pod["metadata"]
            .as_object_mut()
            .unwrap()
            .remove("annotations");
    }
    match original["spec"].get("terminationGracePeriodSeconds") {
        Some(grace) => pod["spec"]["terminationGracePeriodSeconds"] = grace.clone(),
        None => {
            pod["spec"]
                .as_object_mut()
                .unwrap()
                .remove("terminationGracePeriodSeconds");
        }
    }
    pod
}

/// Others' init containers as a multiset, for a mesh proxy may have been pulled forward.
fn sorted_inits(mut pod: Value) -> Value {
    if let Some(all) = pod
        .pointer_mut("/spec/initContainers")
        .and_then(Value::as_array_mut)
    {
        all.sort_by_key(|c| c.to_string());
    }
    pod
}

proptest! {
    #[test]
    fn twice_equals_once_and_unknown_fields_survive(original in random_pod()) {
        let once = injected(&original, &orders());
        check_order(&once);
        prop_assert_eq!(inject(&once, &orders(), &settings()).unwrap(), Outcome::Already);
        let rest = strip(once, &original);
        prop_assert_eq!(sorted_inits(rest), sorted_inits(original));
    }

    #[test]
    fn a_second_pass_repairs_what_others_did(
        original in random_pod(),
        disturbances in prop::collection::vec(disturbance(), 1..5),
    ) {
        let mut pod = injected(&original, &orders());
        for disturbance in &disturbances {
            disturb(&mut pod, disturbance);
        }
        if let Outcome::Patch(patch) = inject(&pod, &orders(), &settings()).unwrap() {
            pod = apply(&pod, &patch);
        }
        check_order(&pod);
        prop_assert_eq!(&own(&pod, SIDECAR_CONTAINER)["volumeMounts"][0]["name"], &json!("data"));
        prop_assert_eq!(inject(&pod, &orders(), &settings()).unwrap(), Outcome::Already);
    }

    #[test]
    fn no_json_makes_it_panic(pod in json_value()) {
        let _ = inject(&pod, &orders(), &settings());
        let mut spec = json!({"metadata": {"labels": {"app": "orders"}}});
        spec["spec"] = pod;
        let _ = inject(&spec, &orders(), &settings());
    }
}

/// Arbitrary JSON whose members have the names that we look at.
fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z/$()]{0,6}".prop_map(Value::from),
        Just(json!("/data")),
        Just(json!("sqlite-backup")),
    ];
    let keys = prop::sample::select(vec![
        "metadata",
        "labels",
        "annotations",
        "spec",
        "containers",
        "initContainers",
        "volumes",
        "name",
        "mountPath",
        "volumeMounts",
        "env",
        "value",
        "restartPolicy",
        "subPathExpr",
        "securityContext",
        "app",
    ]);
    leaf.prop_recursive(5, 48, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(keys.clone(), inner, 0..6).prop_map(|map| json!(map)),
        ]
    })
}
