//! Injection of the containers into a Pod, as a JSON Patch.
//!
//! Pure: the input is a Pod from the API server, the output a patch or a refusal. The Pod is
//! generic JSON throughout, so unknown fields survive. A second review after the patch gives
//! [`Outcome::Already`]. When other webhooks changed the Pod in between, the second patch repairs
//! the injected containers: their presence, order, variables and mounts.

use api::names::{
    BACKUP, INJECT_LABEL, INJECTION_HASH, MEMBER, ORIGINAL_GRACE, RESTORE_CONTAINER,
    SIDECAR_CONTAINER, SIDECAR_IMAGE,
};
use api::{SqliteBackup, names};
use json_patch::Patch;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

mod build;
mod edit;
mod order;
mod pod;
mod refusal;
mod source;

#[cfg(test)]
mod tests;

pub use refusal::{Problem, Refusal};

use edit::Editor;
use pod::Pod;
use refusal::Problem::{Malformed, NameTaken, OperatingSystem};

/// Default of Kubernetes for a Pod without a grace period, in seconds.
const DEFAULT_GRACE_SECONDS: i64 = 30;

/// Version of the injected containers. Increase it with changes that [`fingerprint`] does not
/// cover.
const SHAPE: u32 = 2;

/// Settings of the injected containers.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Image of the sidecar, with tag or digest.
    pub image: String,
    /// `Always`, `IfNotPresent` or `Never`.
    pub image_pull_policy: String,
    /// Default `resources` of the injected containers.
    pub resources: Value,
    /// `sizeLimit` of the sidecar's state volume. The kubelet evicts a Pod that exceeds it, so it
    /// must be larger than the sidecar's own limit on its backlog.
    pub state_size_limit: String,
}

impl Settings {
    /// Default settings with this image.
    pub fn new(image: impl Into<String>) -> Self {
        Settings {
            image: image.into(),
            image_pull_policy: "IfNotPresent".to_owned(),
            resources: json!({
                "requests": {"cpu": "10m", "memory": "32Mi"},
                "limits": {"memory": "256Mi"},
            }),
            state_size_limit: "5Gi".to_owned(),
        }
    }
}

/// Result for a Pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// This patch adds or repairs what is missing.
    Patch(Patch),
    /// The Pod already has everything.
    Already,
    /// The SqliteBackup does not select the Pod, or is suspended or being deleted.
    NotSelected,
}

/// Whether a SqliteBackup injects its containers into this Pod of its namespace.
pub fn selects(pod: &Value, backup: &SqliteBackup) -> bool {
    let labels = Pod(pod).labels();
    let opted_out = labels
        .get(INJECT_LABEL)
        .is_some_and(|value| value == "false");
    let in_force = !backup.spec.suspend && backup.metadata.deletion_timestamp.is_none();
    in_force && !opted_out && backup.spec.selector.matches(&labels)
}

/// Computes the patch for a new Pod in the SqliteBackup's namespace.
///
/// # Errors
/// [`Refusal`] when the Pod is selected but the containers cannot be injected.
pub fn inject(pod: &Value, backup: &SqliteBackup, settings: &Settings) -> Result<Outcome, Refusal> {
    if !selects(pod, backup) {
        return Ok(Outcome::NotSelected);
    }
    let refuse = |(field, problem)| refusal(backup, field, problem);
    api::validate::validate(&backup.spec)
        .map_err(|error| refuse(("spec".to_owned(), Problem::Spec(error))))?;
    let view = Pod(pod);
    let ours = ownership(view, backup).map_err(refuse)?;
    refuse_unfit(view, backup, settings, ours).map_err(refuse)?;
    let source = source::read(view, backup).map_err(refuse)?;

    let mut editor = Editor::new(pod.clone());
    let member = member(view, backup);
    put_volumes(&mut editor, backup, settings);
    put_containers(
        &mut editor,
        [
            (
                RESTORE_CONTAINER,
                build::restore(backup, member, &source, settings),
            ),
            (
                SIDECAR_CONTAINER,
                build::sidecar(backup, member, &source, settings),
            ),
        ],
    );
    put_grace(&mut editor, view, backup);
    put_annotations(&mut editor, member, backup, settings);

    let patch = editor.finish();
    Ok(if patch.0.is_empty() {
        Outcome::Already
    } else {
        Outcome::Patch(patch)
    })
}

/// Refuses a Pod that several SqliteBackups select.
///
/// `selected` are those whose [`selects`] is true, at least two.
pub fn several_select(selected: &[&SqliteBackup]) -> Option<Refusal> {
    let (first, _) = selected
        .split_first()
        .filter(|(_, others)| !others.is_empty())?;
    let mut all: Vec<String> = selected
        .iter()
        .map(|b| b.metadata.name.clone().unwrap_or_default())
        .collect();
    all.sort();
    Some(refusal(
        first,
        "spec.selector".to_owned(),
        Problem::SeveralSelect { all },
    ))
}

/// Hash of all inputs of the injected containers: 16 hex digits, stored in the annotation
/// [`INJECTION_HASH`]. A Pod with another value is outdated until it is created again. Settings
/// that the sidecar reads from its ConfigMap, such as buckets and retention, are not part of it.
pub fn fingerprint(backup: &SqliteBackup, settings: &Settings) -> String {
    let spec = &backup.spec;
    let paths: Vec<&str> = spec.databases.iter().map(|d| d.path.as_str()).collect();
    let shape = json!([
        SHAPE,
        settings.image,
        settings.image_pull_policy,
        settings.resources,
        build::volumes(backup, settings),
        spec.container,
        paths,
        spec.targets
            .iter()
            .map(|t| (&t.name, t.uses_workload_identity()))
            .collect::<Vec<_>>(),
        spec.sidecar.resources,
        spec.sidecar.state,
        spec.sidecar.run_as_user,
        spec.sidecar.run_as_group,
        spec.shutdown.drain,
    ]);
    let digest = Sha256::digest(shape.to_string());
    digest
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn refusal(backup: &SqliteBackup, field: String, problem: Problem) -> Refusal {
    let namespace = backup.metadata.namespace.as_deref().unwrap_or_default();
    let name = backup.metadata.name.as_deref().unwrap_or_default();
    Refusal {
        backup: format!("{namespace}/{name}"),
        field,
        problem,
    }
}

fn member<'a>(pod: Pod<'a>, backup: &'a SqliteBackup) -> &'a str {
    let name = backup.metadata.name.as_deref().unwrap_or_default();
    names::member(pod.owner_kind(), pod.name(), name)
}

/// Whether the containers with reserved names belong to this SqliteBackup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ownership {
    Untouched,
    Ours,
}

fn ownership(pod: Pod<'_>, backup: &SqliteBackup) -> Result<Ownership, source::Misfit> {
    match pod.annotation(BACKUP) {
        None => Ok(Ownership::Untouched),
        Some(name) if Some(name) == backup.metadata.name.as_deref() => Ok(Ownership::Ours),
        Some(other) => Err((
            "spec.selector".to_owned(),
            Problem::AlreadyServed {
                other: other.to_owned(),
            },
        )),
    }
}

fn refuse_unfit(
    pod: Pod<'_>,
    backup: &SqliteBackup,
    settings: &Settings,
    ownership: Ownership,
) -> Result<(), source::Misfit> {
    let at = |field: &str, problem| Err((format!("{field} of the Pod"), problem));
    if !pod.0.get("spec").is_some_and(Value::is_object) {
        return at(
            "spec",
            Malformed {
                expected: "an object",
            },
        );
    }
    for (field, path) in [
        ("spec.initContainers", "/spec/initContainers"),
        ("spec.volumes", "/spec/volumes"),
    ] {
        if pod
            .0
            .pointer(path)
            .is_some_and(|list| !list.is_array() && !list.is_null())
        {
            return at(field, Malformed { expected: "a list" });
        }
    }
    if let Some(os) = pod.os().filter(|os| *os != "linux") {
        return at("spec.os.name", OperatingSystem { os: os.to_owned() });
    }
    let own = [RESTORE_CONTAINER, SIDECAR_CONTAINER];
    if let Some(taken) = pod.containers().find(|c| own.contains(&c.name())) {
        let name = taken.name().to_owned();
        return at(
            "spec.containers",
            NameTaken {
                what: "container",
                name,
            },
        );
    }
    if ownership == Ownership::Ours {
        return Ok(());
    }
    if let Some(taken) = pod.init_containers().find(|c| own.contains(&c.name())) {
        let name = taken.name().to_owned();
        return at(
            "spec.initContainers",
            NameTaken {
                what: "init container",
                name,
            },
        );
    }
    let volumes = build::volumes(backup, settings);
    let mut names = volumes
        .iter()
        .filter_map(|volume| pod::text(volume, "name"));
    match names.find(|name| pod.volume(name).is_some()) {
        Some(name) => at(
            "spec.volumes",
            NameTaken {
                what: "volume",
                name: name.to_owned(),
            },
        ),
        None => Ok(()),
    }
}

fn put_volumes(editor: &mut Editor, backup: &SqliteBackup, settings: &Settings) {
    editor.ensure(&["spec", "volumes"], json!([]));
    for volume in build::volumes(backup, settings) {
        let name = pod::text(&volume, "name").unwrap_or_default();
        // An existing volume has defaults by now. It is ours, because foreign ones are refused.
        if Pod(editor.document()).volume(name).is_none() {
            editor.push(&["spec", "volumes"], volume);
        }
    }
}

fn put_containers(editor: &mut Editor, containers: [(&str, Value); 2]) {
    editor.ensure(&["spec", "initContainers"], json!([]));
    for (name, container) in &containers {
        let found = Pod(editor.document())
            .init_containers()
            .position(|c| c.name() == *name);
        match found {
            Some(index) => repair(editor, index, container),
            None => {
                let index = order::position(editor, name);
                editor.insert(&["spec", "initContainers"], index, container.clone());
            }
        }
    }
    order::arrange(editor);
}

/// Restores the fields that the container needs. Others stay as they are: a registry mirror
/// rewrites images, a limit range sets resources, an identity webhook adds variables and mounts.
fn repair(editor: &mut Editor, index: usize, wanted: &Value) {
    let index = index.to_string();
    let at = |member| ["spec", "initContainers", index.as_str(), member];
    editor.set(&at("args"), wanted["args"].clone());
    match wanted.get("restartPolicy") {
        Some(policy) => editor.set(&at("restartPolicy"), policy.clone()),
        None => editor.remove(&at("restartPolicy")),
    }
    for (list, key) in [("env", "name"), ("volumeMounts", "mountPath")] {
        for element in pod::items(wanted.get(list)) {
            editor.upsert(&at(list), key, element);
        }
    }
}

/// Extends the grace period, so that the sidecar has time for its last upload after the
/// application.
fn put_grace(editor: &mut Editor, pod: Pod<'_>, backup: &SqliteBackup) {
    let original = pod
        .annotation(ORIGINAL_GRACE)
        .and_then(|seconds| seconds.parse().ok())
        .or(pod.grace_seconds())
        .unwrap_or(DEFAULT_GRACE_SECONDS);
    let drain = backup.spec.shutdown.drain.0.as_secs_f64().ceil() as i64;
    let wanted = original.saturating_add(drain);
    editor.ensure(&["metadata"], json!({}));
    editor.ensure(&["metadata", "annotations"], json!({}));
    editor.set(
        &["metadata", "annotations", ORIGINAL_GRACE],
        json!(original.to_string()),
    );
    if pod.grace_seconds().is_none_or(|now| now < wanted) {
        editor.set(&["spec", "terminationGracePeriodSeconds"], json!(wanted));
    }
}

fn put_annotations(editor: &mut Editor, member: &str, backup: &SqliteBackup, settings: &Settings) {
    let backup_name = backup.metadata.name.as_deref().unwrap_or_default();
    for (key, value) in [
        (BACKUP, backup_name.to_owned()),
        (MEMBER, member.to_owned()),
        (SIDECAR_IMAGE, settings.image.clone()),
        (INJECTION_HASH, fingerprint(backup, settings)),
    ] {
        editor.set(&["metadata", "annotations", key], json!(value));
    }
}
