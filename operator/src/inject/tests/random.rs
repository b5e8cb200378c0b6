//! Random Pods, and changes that other programs make to a Pod after the injection.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// Foreign init containers, as webhooks and users write them.
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

/// Changes that other webhooks and the API server make to a Pod after the injection.
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

/// Checks the order of the injected containers, and that foreign ones kept their relative order.
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

/// Removes the injected parts. The rest must equal the original.
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

/// Foreign init containers as a multiset, because a mesh proxy may have been moved forward.
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

/// Arbitrary JSON whose members have the names that the injection reads.
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
