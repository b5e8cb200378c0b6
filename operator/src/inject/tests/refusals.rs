//! Refusals of Pods, and their messages.

use serde_json::json;

use super::*;

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
            "spec.databases[/data/orders.db].path: subPathExpr of /data uses variable WHO",
        ),
        (
            |_, backup| backup.spec.databases[0].path = "/var/lib/sqlite-backup/a.db".to_owned(),
            "is in /var/lib/sqlite-backup, which is reserved for the sidecar",
        ),
        (
            |pod, _| pod["metadata"]["annotations"] = json!({BACKUP: "invoices"}),
            "spec.selector: the Pod has the sidecar of SqliteBackup \"invoices\"",
        ),
        (
            |pod, _| pod["spec"]["initContainers"] = json!([{"name": "sqlite-backup"}]),
            "spec.initContainers of the Pod: the name of init container \"sqlite-backup\" is reserved",
        ),
        (
            |pod, _| {
                let volumes = pod["spec"]["volumes"].as_array_mut().unwrap();
                volumes.push(json!({"name": "sqlite-backup-state", "emptyDir": {}}));
            },
            "spec.volumes of the Pod: the name of volume \"sqlite-backup-state\" is reserved",
        ),
        (
            |pod, _| {
                pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": 9347}]);
            },
            "spec.containers of the Pod: container \"app\" uses port 9347",
        ),
        (
            |pod, _| pod["spec"]["os"] = json!({"name": "windows"}),
            "spec.os.name of the Pod: the Pod runs on windows; the sidecar only runs on linux",
        ),
        (
            |_, backup| backup.spec.databases[0].path = "/*/app.db".to_owned(),
            "spec.databases[/*/app.db].path",
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
