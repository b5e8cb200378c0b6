//! Settings that the injected containers take over from the application: its mounts, their
//! variables, and its user.

use std::collections::BTreeSet;

use api::backup::StatePlacement;
use api::{SqliteBackup, SqliteBackupSpec};
use protocol::names::{CONFIG_DIR, CREDENTIALS_DIR, STATE_DIR, STATUS_PORT};
use serde_json::{Map, Value};

use super::pod::{Container, Mount, Pod, is_under, text};
use super::refusal::Problem;

/// Kinds of volumes on which SQLite cannot work. On network file systems its locks are unreliable
/// and its shared memory does not work; the others are read-only.
const UNFIT_KINDS: [(&str, &str); 12] = [
    ("nfs", NETWORK),
    ("cephfs", NETWORK),
    ("glusterfs", NETWORK),
    ("quobyte", NETWORK),
    ("azureFile", NETWORK),
    ("flocker", NETWORK),
    ("configMap", READ_ONLY),
    ("secret", READ_ONLY),
    ("downwardAPI", READ_ONLY),
    ("projected", READ_ONLY),
    ("image", READ_ONLY),
    ("gitRepo", READ_ONLY),
];
const NETWORK: &str = "SQLite's locks and shared memory are not safe";
const READ_ONLY: &str = "databases cannot be written";

/// Directories that are reserved for the injected containers.
const OWN_DIRECTORIES: [&str; 5] = [
    CONFIG_DIR,
    STATE_DIR,
    CREDENTIALS_DIR,
    api::names::TARGETS_DIR,
    api::names::SERVICE_ACCOUNT_DIR,
];

/// Variables of workload identity, which are copied for a target without a Secret.
const IDENTITY_VARIABLES: [&str; 8] = [
    "AWS_ROLE_ARN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_SESSION_NAME",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_STS_REGIONAL_ENDPOINTS",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
];

/// Those variables whose value is the path of a file.
const IDENTITY_FILES: [&str; 2] = [
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
];

/// Settings that the injected containers take over.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Source {
    /// Mounts of the injected containers.
    pub(super) mounts: Vec<Value>,
    /// Variables that the mounts or workload identity need.
    pub(super) env: Vec<Value>,
    /// User that owns the databases, if the Pod names it.
    pub(super) user: Option<i64>,
    /// Group of that user.
    pub(super) group: Option<i64>,
    /// SELinux label of the container.
    pub(super) selinux: Option<Value>,
    /// Whether local state is beside the databases.
    pub(super) is_state_beside: bool,
}

/// A field and its problem.
pub(super) type Misfit = (String, Problem);

/// Reads the settings from the Pod.
pub(super) fn read(pod: Pod<'_>, backup: &SqliteBackup) -> Result<Source, Misfit> {
    let spec = &backup.spec;
    let container = choose(pod, spec)?;
    let mut source = Source {
        user: number(spec.sidecar.run_as_user, container, pod, "runAsUser"),
        group: number(spec.sidecar.run_as_group, container, pod, "runAsGroup"),
        selinux: container.security_context("seLinuxOptions").cloned(),
        ..Source::default()
    };
    let mut all_outlive = true;
    let mut taken = BTreeSet::new();
    for database in &spec.databases {
        let field = || format!("spec.databases[{}].path", database.path);
        let mount = fit_mount(pod, container, &database.path).map_err(|p| (field(), p))?;
        all_outlive &= pod.volume(mount.volume()).is_some_and(outlives_pod);
        if taken.insert(mount.path()) {
            let env = env_of_mount(container, mount).map_err(|p| (field(), p))?;
            source.mounts.push(mirrored(mount));
            source.add_env(env);
        }
    }
    source.is_state_beside = match spec.sidecar.state {
        StatePlacement::Auto => all_outlive,
        StatePlacement::PodVolume => false,
        StatePlacement::BesideDatabases => true,
    };
    if spec.targets.iter().any(api::Target::uses_workload_identity) {
        add_identity(&mut source, container, &taken);
    }
    refuse_port(pod)?;
    Ok(source)
}

/// Whether the files on a volume are still there for the next Pod.
fn outlives_pod(volume: &Value) -> bool {
    let kinds = ["persistentVolumeClaim", "hostPath"];
    kinds.iter().any(|kind| volume.get(kind).is_some())
}

impl Source {
    fn add_env(&mut self, env: Vec<Value>) {
        for entry in env {
            if !self.env.contains(&entry) {
                self.env.push(entry);
            }
        }
    }
}

/// The container named by the spec, else the only one that mounts every database.
fn choose<'a>(pod: Pod<'a>, spec: &SqliteBackupSpec) -> Result<Container<'a>, Misfit> {
    let field = || "spec.container".to_owned();
    let names = |all: &[Container<'_>]| all.iter().map(|c| c.name().to_owned()).collect();
    let all: Vec<Container<'a>> = pod.containers().collect();
    if let Some(name) = &spec.container {
        return all
            .iter()
            .copied()
            .find(|c| c.name() == name)
            .ok_or_else(|| {
                (
                    field(),
                    Problem::ContainerNotFound {
                        name: name.clone(),
                        found: names(&all),
                    },
                )
            });
    }
    let mounts_all =
        |c: &Container<'_>| spec.databases.iter().all(|d| c.mount_of(&d.path).is_some());
    let fitting: Vec<Container<'a>> = all.iter().copied().filter(mounts_all).collect();
    match (fitting.as_slice(), all.first()) {
        ([only], _) => Ok(*only),
        // The refusal is clearer for one container: it names the path without a mount.
        ([], Some(first)) => Ok(*first),
        ([], None) => Err((
            "spec.containers of the Pod".to_owned(),
            Problem::Malformed {
                expected: "at least one container",
            },
        )),
        (several, _) => Err((
            field(),
            Problem::ContainerAmbiguous {
                found: names(several),
            },
        )),
    }
}

/// The mount of a database, on which SQLite can work.
fn fit_mount<'a>(pod: Pod<'a>, container: Container<'a>, path: &str) -> Result<Mount<'a>, Problem> {
    if let Some(directory) = OWN_DIRECTORIES.into_iter().find(|own| is_under(path, own)) {
        return Err(Problem::OwnDirectory {
            path: path.to_owned(),
            directory,
        });
    }
    if let Some((volume, _)) = container
        .devices()
        .find(|(_, device)| is_under(path, device))
    {
        let (volume, kind) = (volume.to_owned(), "block device".to_owned());
        return Err(Problem::VolumeKind {
            volume,
            kind,
            why: "there is no file system",
        });
    }
    let Some(mount) = container.mount_of(path) else {
        let container = container.name().to_owned();
        return Err(Problem::NotInVolume {
            path: path.to_owned(),
            container,
        });
    };
    if mount.path() == path {
        let container = container.name().to_owned();
        return Err(Problem::FileMount {
            path: path.to_owned(),
            container,
        });
    }
    let volume = mount.volume().to_owned();
    let Some(definition) = pod.volume(mount.volume()) else {
        return Err(Problem::NoVolume {
            volume,
            container: container.name().to_owned(),
        });
    };
    for (kind, why) in UNFIT_KINDS {
        if definition.get(kind).is_some() {
            return Err(Problem::VolumeKind {
                volume,
                kind: kind.to_owned(),
                why,
            });
        }
    }
    let claim_read_only = definition.pointer("/persistentVolumeClaim/readOnly");
    if mount.is_read_only() || claim_read_only == Some(&Value::Bool(true)) {
        return Err(Problem::ReadOnly {
            volume,
            mount_path: mount.path().to_owned(),
        });
    }
    Ok(mount)
}

/// Copies the fields that define the visible files. Propagation and similar fields stay with the
/// application.
fn mirrored(mount: Mount<'_>) -> Value {
    let keys = ["name", "mountPath", "subPath", "subPathExpr"];
    let kept = keys
        .iter()
        .filter_map(|key| Some(((*key).to_owned(), mount.0.get(*key)?.clone())));
    Value::Object(kept.collect::<Map<String, Value>>())
}

/// The variables of a mount's `subPathExpr`, each after the variables in its value.
fn env_of_mount(container: Container<'_>, mount: Mount<'_>) -> Result<Vec<Value>, Problem> {
    let mut found = Vec::new();
    let Some(expression) = mount.sub_path_expr() else {
        return Ok(found);
    };
    for variable in references(expression) {
        if container.env(variable).is_none() {
            return Err(Problem::UnknownVariable {
                mount_path: mount.path().to_owned(),
                variable: variable.to_owned(),
                container: container.name().to_owned(),
            });
        }
        collect_env(container, variable, &mut found, &mut BTreeSet::new());
    }
    Ok(found)
}

/// Adds a variable after the variables in its value. `visited` ends cycles, which Kubernetes does
/// not expand.
fn collect_env<'a>(
    container: Container<'a>,
    variable: &'a str,
    found: &mut Vec<Value>,
    visited: &mut BTreeSet<&'a str>,
) {
    let Some(entry) = container.env(variable) else {
        return;
    };
    if !visited.insert(variable) {
        return;
    }
    for reference in references(text(entry, "value").unwrap_or_default()) {
        collect_env(container, reference, found, visited);
    }
    if !found.contains(entry) {
        found.push(entry.clone());
    }
}

/// The names in `$(NAME)`. `$$(NAME)` is an escape.
fn references(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        loop {
            let dollar = rest.find('$')?;
            let after = &rest[dollar + 1..];
            if let Some(escaped) = after.strip_prefix('$') {
                rest = escaped;
            } else if let Some(name) = after.strip_prefix('(') {
                let end = name.find(')')?;
                rest = &name[end + 1..];
                return Some(&name[..end]);
            } else {
                rest = after;
            }
        }
    })
}

/// Copies the variables and mounts that an earlier identity webhook added to the application. A
/// later one adds them to the injected containers itself.
fn add_identity(source: &mut Source, container: Container<'_>, taken: &BTreeSet<&str>) {
    let mut mounted = BTreeSet::new();
    for variable in IDENTITY_VARIABLES {
        let Some(entry) = container.env(variable) else {
            continue;
        };
        source.add_env(vec![entry.clone()]);
        let file = text(entry, "value").filter(|_| IDENTITY_FILES.contains(&variable));
        if let Some(mount) = file.and_then(|file| container.mount_of(file))
            && !taken.contains(mount.path())
            && mounted.insert(mount.path())
        {
            let mut copy = mirrored(mount);
            copy["readOnly"] = Value::Bool(true);
            source.mounts.push(copy);
        }
    }
}

fn number(chosen: Option<i64>, container: Container<'_>, pod: Pod<'_>, key: &str) -> Option<i64> {
    let own = || container.security_context(key).and_then(Value::as_i64);
    let shared = || pod.security_context(key).and_then(Value::as_i64);
    chosen.or_else(own).or_else(shared)
}

fn refuse_port(pod: Pod<'_>) -> Result<(), Misfit> {
    let others = pod
        .containers()
        .chain(pod.init_containers().filter(|c| c.is_sidecar()));
    let mut others = others.filter(|c| c.name() != api::names::SIDECAR_CONTAINER);
    match others.find(|c| c.uses_port(STATUS_PORT)) {
        None => Ok(()),
        Some(container) => Err((
            "spec.containers of the Pod".to_owned(),
            Problem::PortTaken {
                container: container.name().to_owned(),
            },
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn references_are_found_and_escapes_are_not() {
        let found: Vec<&str> = references("a/$(ONE)/$$(NOT)/$(TWO)$x$(").collect();
        assert_eq!(found, ["ONE", "TWO"]);
    }

    #[test]
    fn variables_come_after_those_they_refer_to_and_cycles_end() {
        let container = json!({"env": [
            {"name": "A", "value": "$(B)-$(C)"},
            {"name": "B", "value": "$(A)"},
            {"name": "C", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        ]});
        let mut found = Vec::new();
        collect_env(Container(&container), "A", &mut found, &mut BTreeSet::new());
        let names: Vec<&str> = found.iter().filter_map(|e| text(e, "name")).collect();
        assert_eq!(names, ["B", "C", "A"]);
    }
}
