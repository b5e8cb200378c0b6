//! The Helm chart, rendered by the real helm.
//!
//! `cargo xtask test` sets the required variables. The definitions in the chart are copies of
//! `crds/`: `UPDATE_CRDS=1` writes them again.

#![expect(
    clippy::unwrap_used,
    reason = "a fixture that cannot be built fails its test"
)]

use std::path::Path;

use serde_json::Value;

mod helm;

use helm::{chart, helm, of_kind, render, rendered, root};

fn one<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    match of_kind(objects, kind).as_slice() {
        [one] => one,
        found => panic!("{} objects of kind {kind}", found.len()),
    }
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Equality that does not distinguish 0 from 0.0: helm reads numbers as floating point.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(k, a)| b.get(k).is_some_and(|b| same(a, b)))
        }
        _ => a == b,
    }
}

const EVERYTHING: [&str; 6] = [
    "metrics.serviceMonitor.enabled=true",
    "metrics.podMonitor.enabled=true",
    "metrics.prometheusRule.enabled=true",
    "networkPolicy.enabled=true",
    "networkPolicy.egress.enabled=true",
    "commonAnnotations.team=data",
];

#[test]
fn the_charts_definitions_are_the_generated_ones() {
    let (generated, copies) = (root().join("crds"), chart().join("crds-src"));
    let names = |directory: &Path| {
        let mut names: Vec<_> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    let wanted = names(&generated);
    if std::env::var_os("UPDATE_CRDS").is_some() {
        for stale in names(&copies) {
            std::fs::remove_file(copies.join(stale)).unwrap();
        }
        for name in &wanted {
            std::fs::copy(generated.join(name), copies.join(name)).unwrap();
        }
    }
    assert_eq!(names(&copies), wanted);
    for name in wanted {
        let [copy, original] = [&copies, &generated].map(|d| std::fs::read(d.join(&name)).unwrap());
        assert!(
            copy == original,
            "{name:?} is stale: run this test with UPDATE_CRDS=1"
        );
    }
}

#[test]
fn lint_finds_nothing() {
    let chart = chart();
    let output = helm(&["lint", "--strict", chart.to_str().unwrap()]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

#[test]
fn definitions_are_rendered_whole_and_kept_when_asked() {
    let objects = rendered(&[]);
    let definitions = of_kind(&objects, "CustomResourceDefinition");
    assert_eq!(definitions.len(), 3);
    for definition in definitions {
        let name = definition["metadata"]["name"].as_str().unwrap();
        let (plural, group) = name.split_once('.').unwrap();
        let path = root().join(format!("crds/{group}_{plural}.yaml"));
        let source: Value = serde_yaml::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert!(
            same(&definition["spec"], &source["spec"]),
            "{name} is not its source"
        );
        assert_eq!(
            definition["metadata"]["annotations"]["helm.sh/resource-policy"],
            "keep"
        );
    }
    let objects = rendered(&["crds.keep=false"]);
    for definition in of_kind(&objects, "CustomResourceDefinition") {
        assert_eq!(definition["metadata"].get("annotations"), None);
    }
    let objects = rendered(&["crds.install=false"]);
    assert!(of_kind(&objects, "CustomResourceDefinition").is_empty());
}

#[test]
fn the_operator_reads_no_secret_but_its_own() {
    for mode in ["selfManaged", "certManager"] {
        let objects = rendered(&[&format!("certificates.mode={mode}")]);
        let roles = of_kind(&objects, "ClusterRole")
            .into_iter()
            .chain(of_kind(&objects, "Role"));
        for rule in roles.flat_map(|role| items(&role["rules"])) {
            let has = |key: &str, value: &str| items(&rule[key]).iter().any(|v| v == value);
            assert!(
                !["apiGroups", "resources", "verbs"]
                    .iter()
                    .any(|key| has(key, "*")),
                "{rule}"
            );
            if let Some(names) = rule.get("resourceNames") {
                assert!(
                    !items(names).is_empty(),
                    "an empty list means every object: {rule}"
                );
            }
            if has("resources", "secrets") {
                assert_eq!(mode, "selfManaged");
                let secret = one(&objects, "Secret")["metadata"]["name"].clone();
                assert_eq!(rule["resourceNames"], Value::Array(vec![secret]));
                assert_eq!(rule["verbs"], serde_json::json!(["get", "update"]));
            }
            if has("resources", "mutatingwebhookconfigurations") {
                let name =
                    one(&objects, "MutatingWebhookConfiguration")["metadata"]["name"].clone();
                assert_eq!(rule["resourceNames"], Value::Array(vec![name]));
                assert!(
                    !has("verbs", "create"),
                    "an uninstalled operator must not bring it back"
                );
            }
        }
    }
}

#[test]
fn what_the_operator_fills_is_rendered_empty() {
    let objects = rendered(&[]);
    let configuration = one(&objects, "MutatingWebhookConfiguration");
    assert_eq!(configuration.get("webhooks"), None);
    assert_eq!(
        configuration["metadata"]["name"],
        api::names::WEBHOOK_CONFIGURATION
    );
    let secret = one(&objects, "Secret");
    assert_eq!((secret.get("data"), secret.get("stringData")), (None, None));
}

#[test]
fn the_admission_policy_never_denies_other_pods() {
    let objects = rendered(&[]);
    let policy = &one(&objects, "ValidatingAdmissionPolicy")["spec"];
    assert_eq!(policy["failurePolicy"], "Ignore");
    assert_eq!(
        policy.get("matchConditions"),
        None,
        "each list costs a third more"
    );
    let opt_out = &policy["matchConstraints"]["objectSelector"]["matchExpressions"][0];
    assert_eq!(opt_out["key"], api::names::INJECT_LABEL);
    let binding = &one(&objects, "ValidatingAdmissionPolicyBinding")["spec"];
    assert_eq!(binding["paramRef"]["parameterNotFoundAction"], "Allow");
    let names = [api::names::SIDECAR_CONTAINER, api::names::BACKUP];
    for name in names {
        assert!(policy.to_string().contains(&format!("'{name}'")), "{name}");
    }
    let objects = rendered(&["admissionPolicy.enabled=false"]);
    assert!(of_kind(&objects, "ValidatingAdmissionPolicyBinding").is_empty());
}

#[test]
fn the_operators_pods_are_restricted_and_never_injected() {
    let objects = rendered(&[]);
    let template = &one(&objects, "Deployment")["spec"]["template"];
    assert_eq!(
        template["metadata"]["labels"][api::names::INJECT_LABEL],
        "false"
    );
    let pod = &template["spec"];
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(
        pod["securityContext"]["seccompProfile"]["type"],
        "RuntimeDefault"
    );
    for container in items(&pod["containers"]) {
        let context = &container["securityContext"];
        assert_eq!(context["allowPrivilegeEscalation"], false);
        assert_eq!(context["readOnlyRootFilesystem"], true);
        assert_eq!(context["capabilities"]["drop"], serde_json::json!(["ALL"]));
        assert!(container["resources"]["requests"].is_object());
    }
}

#[test]
fn labels_of_pods_and_monitors_win_over_common_ones_and_no_key_stands_twice() {
    let objects = rendered(&[
        "commonLabels.team=data",
        "commonLabels.tier=back",
        "operator.podLabels.team=ops",
        "operator.podLabels.sidecar\\.istio\\.io/inject=no",
        "metrics.podMonitor.enabled=true",
        "metrics.podMonitor.labels.team=watch",
        "metrics.prometheusRule.enabled=true",
        "metrics.prometheusRule.labels.team=alerts",
    ]);
    let deployment = one(&objects, "Deployment");
    let pod = &deployment["spec"]["template"]["metadata"]["labels"];
    assert_eq!(pod["team"], "ops");
    assert_eq!(pod["tier"], "back");
    assert_eq!(pod["sidecar.istio.io/inject"], "no");
    assert_eq!(pod[api::names::INJECT_LABEL], "false");
    for (key, value) in deployment["spec"]["selector"]["matchLabels"]
        .as_object()
        .unwrap()
    {
        assert_eq!(&pod[key], value);
    }
    assert_eq!(deployment["metadata"]["labels"]["team"], "data");
    for (kind, team) in [("PodMonitor", "watch"), ("PrometheusRule", "alerts")] {
        assert_eq!(one(&objects, kind)["metadata"]["labels"]["team"], team);
    }
}

/// Returns the `helm install` command of a page, split into words.
fn installation(page: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(page).unwrap();
    let text = text.replace("\\\n", " ");
    let command = text.lines().find(|line| line.starts_with("helm install"));
    let words = command.expect("the page has one").split_whitespace();
    words.map(str::to_owned).collect()
}

#[test]
fn both_readmes_install_the_same_with_images_in_the_namespace_of_the_program() {
    use clap::CommandFactory;

    let command = installation(&root().join("README.md"));
    assert_eq!(installation(&chart().join("README.md")), command);
    let values: Vec<&str> = command
        .windows(2)
        .filter(|words| words[0] == "--set")
        .map(|words| words[1].as_str())
        .collect();
    // Image names are in lower case.
    let values: Vec<String> = values
        .iter()
        .map(|v| v.replace("REGISTRY", "example.com"))
        .collect();
    let objects = rendered(&values.iter().map(String::as_str).collect::<Vec<_>>());
    let container = &one(&objects, "Deployment")["spec"]["template"]["spec"]["containers"][0];
    let version = env!("CARGO_PKG_VERSION");
    let operator = format!("example.com/sqlite-backup-operator:{version}");
    assert_eq!(container["image"], operator);
    let sidecar = format!("--sidecar-image=example.com/sqlite-backup:{version}");
    assert!(items(&container["args"]).contains(&Value::from(sidecar)));

    let namespace = command.iter().position(|word| word == "--namespace");
    let namespace = &command[namespace.unwrap() + 1];
    let program = operator::args::Args::command();
    let argument = program.get_arguments().find(|a| a.get_id() == "namespace");
    assert_eq!(argument.unwrap().get_default_values(), [namespace.as_str()]);
}

#[test]
fn the_operator_understands_its_arguments() {
    use clap::Parser;

    for values in [
        &[][..],
        &[
            "certificates.mode=certManager",
            "operator.logLevel=debug",
            "operator.logFormat=text",
            "image.sidecar.pullPolicy=Always",
        ],
    ] {
        let objects = rendered(values);
        let container = &one(&objects, "Deployment")["spec"]["template"]["spec"]["containers"][0];
        let given = items(&container["args"]).iter().filter_map(Value::as_str);
        let own = ["operator", "--replica=pod-0"];
        let args = operator::args::Args::try_parse_from(own.into_iter().chain(given))
            .unwrap_or_else(|error| panic!("{error}"));
        let service = of_kind(&objects, "Service")
            .into_iter()
            .find(|service| service["metadata"]["name"] == args.webhook_service.as_str())
            .expect("the Service that the operator names is there");
        let port = &service["spec"]["ports"][0]["port"];
        assert_eq!(*port, args.webhook_service_port);
        let lease = Value::from(args.lease);
        let named = of_kind(&objects, "Role")
            .into_iter()
            .flat_map(|role| items(&role["rules"]));
        assert!(
            named
                .into_iter()
                .any(|rule| items(&rule["resourceNames"]).contains(&lease))
        );
    }
}

#[test]
fn every_object_is_labelled_and_lives_in_the_release_namespace() {
    const CLUSTER_SCOPED: [&str; 6] = [
        "CustomResourceDefinition",
        "ClusterRole",
        "ClusterRoleBinding",
        "MutatingWebhookConfiguration",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    ];
    let objects = rendered(&EVERYTHING);
    for object in &objects {
        let (kind, metadata) = (object["kind"].as_str().unwrap(), &object["metadata"]);
        let namespace = (!CLUSTER_SCOPED.contains(&kind)).then_some("ns");
        assert_eq!(metadata["namespace"].as_str(), namespace, "{kind}");
        assert_eq!(
            metadata["labels"]["app.kubernetes.io/name"],
            "sqlite-backup-operator"
        );
    }
}

#[test]
fn images_come_by_digest_or_tag_and_default_to_the_charts_version() {
    let image = |values: &[&str]| -> String {
        let objects = rendered(values);
        let container = &one(&objects, "Deployment")["spec"]["template"]["spec"]["containers"][0];
        container["image"].as_str().unwrap().to_owned()
    };
    let default = image(&[]);
    assert!(
        default.ends_with(concat!(":", env!("CARGO_PKG_VERSION"))),
        "{default}"
    );
    let digest = format!("sha256:{}", "a".repeat(64));
    let by_digest = image(&[
        "image.operator.repository=localhost:5000/a/b",
        "image.operator.tag=v1",
        &format!("image.operator.digest={digest}"),
    ]);
    assert_eq!(by_digest, format!("localhost:5000/a/b@{digest}"));
}

#[test]
fn certificates_of_others_are_mounted() {
    let values = ["certificates.mode=provided", "certificates.secretName=mine"];
    let objects = rendered(&values);
    assert!(of_kind(&objects, "Secret").is_empty());
    let pod = &one(&objects, "Deployment")["spec"]["template"]["spec"];
    assert_eq!(pod["volumes"][0]["secret"]["secretName"], "mine");
    let objects = rendered(&["certificates.mode=certManager"]);
    let certificate = &one(&objects, "Certificate")["spec"];
    assert_eq!(
        certificate["issuerRef"]["name"],
        one(&objects, "Issuer")["metadata"]["name"]
    );
    let service = one(&objects, "Certificate")["spec"]["dnsNames"][0]
        .as_str()
        .unwrap();
    assert_eq!(service, "release-sqlite-backup-operator-webhook.ns.svc");
}

#[test]
fn alerts_are_complete_and_can_be_left_out_one_by_one() {
    let objects = rendered(&EVERYTHING);
    let rules = |objects: &[Value]| {
        items(&one(objects, "PrometheusRule")["spec"]["groups"][0]["rules"]).to_vec()
    };
    let all = rules(&objects);
    assert!(all.len() >= 10);
    for rule in &all {
        let name = rule["alert"].as_str().unwrap();
        assert!(["critical", "warning"].contains(&rule["labels"]["severity"].as_str().unwrap()));
        for key in ["summary", "description", "runbook_url"] {
            assert!(
                rule["annotations"][key]
                    .as_str()
                    .is_some_and(|t| !t.is_empty()),
                "{name} {key}"
            );
        }
        assert!(
            rule["expr"].as_str().unwrap().contains("sqlite_backup_"),
            "{name}"
        );
    }
    let mut values = EVERYTHING.to_vec();
    values.push("metrics.prometheusRule.disabled={SqliteBackupLag}");
    assert_eq!(rules(&rendered(&values)).len(), all.len() - 1);
}

#[test]
fn wrong_values_are_refused_by_the_schema() {
    for (values, expected) in [
        ("replicas=3", "replicas"),
        ("operator.replica=3", "replica"),
        ("operator.replicas=0", "replicas"),
        ("operator.replicas=two", "replicas"),
        ("operator.logLevel=loud", "logLevel"),
        ("operator.resources.limit.memory=1Gi", "limit"),
        ("operator.resources.limits.memory=lots", "memory"),
        ("operator.tolerations[0].keys=a", "keys"),
        ("operator.extraArgs[0]=oops", "extraArgs"),
        ("image.operator.repository=", "repository"),
        ("image.sidecar.digest=abc", "digest"),
        ("image.sidecar.pullPolicy=Sometimes", "pullPolicy"),
        ("crds.instal=false", "instal"),
        ("webhook.port=443", "port"),
        ("certificates.mode=magic", "mode"),
        ("certificates.mode=provided", "secretName"),
        ("metrics.podMonitor.interval=often", "interval"),
        ("metrics.prometheusRule.disabled={NoSuchThing}", "disabled"),
        ("networkPolicy.egress.apiServerPorts={}", "apiServerPorts"),
        (
            r"operator.podLabels.sqlite-backup\.dev/inject=x",
            "podLabels",
        ),
        (
            r"operator.podLabels.app\.kubernetes\.io/name=x",
            "podLabels",
        ),
        (
            r"operator.podAnnotations.kubectl\.kubernetes\.io/default-container=x",
            "podAnnotations",
        ),
        (
            r"commonLabels.app\.kubernetes\.io/instance=x",
            "commonLabels",
        ),
        (
            r"commonAnnotations.helm\.sh/resource-policy=keep",
            "commonAnnotations",
        ),
        (
            r"metrics.podMonitor.labels.helm\.sh/chart=x",
            "podMonitor/labels",
        ),
    ] {
        let result = render(&[values]);
        let error = result.expect_err(values);
        assert!(
            error.contains("schema") && error.contains(expected),
            "{values}: {error}"
        );
    }
}

#[test]
fn every_object_of_the_schema_refuses_unknown_keys() {
    fn check(path: &str, schema: &Value) {
        if let Some(properties) = schema["properties"].as_object() {
            // A condition repeats properties that are declared, and closed, in its parent.
            if !path.contains("allOf") {
                assert_eq!(schema["additionalProperties"], false, "{path}");
            }
            for (name, property) in properties {
                check(&format!("{path}.{name}"), property);
            }
        }
        if schema["items"].is_object() {
            check(&format!("{path}[]"), &schema["items"]);
        }
    }
    let text = std::fs::read(chart().join("values.schema.json")).unwrap();
    check("", &serde_json::from_slice(&text).unwrap());
}

#[test]
fn the_schema_knows_every_value_and_no_other() {
    fn paths(prefix: &str, value: &Value, schema: &Value, found: &mut Vec<String>) {
        let Some(properties) = schema["properties"].as_object() else {
            return;
        };
        for (name, property) in properties {
            let path = format!("{prefix}{name}");
            match value.get(name) {
                Some(value) => paths(&format!("{path}."), value, property, found),
                None => found.push(path),
            }
        }
    }
    let read = |name: &str| std::fs::read(chart().join(name)).unwrap();
    let values: Value = serde_yaml::from_slice(&read("values.yaml")).unwrap();
    let schema: Value = serde_json::from_slice(&read("values.schema.json")).unwrap();
    let mut missing = Vec::new();
    paths("", &values, &schema, &mut missing);
    missing.retain(|path| {
        let free = ["global", "operator.affinity.", "operator.resources."];
        !free.iter().any(|prefix| path.starts_with(prefix))
    });
    assert_eq!(
        missing,
        Vec::<String>::new(),
        "in the schema and not in values.yaml"
    );
}
