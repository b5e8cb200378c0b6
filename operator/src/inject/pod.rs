//! Views of a Pod as generic JSON, which keeps fields of newer Kubernetes versions.

use std::collections::BTreeMap;

use serde_json::Value;

/// A read-only view of a Pod.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pod<'a>(pub(super) &'a Value);

impl<'a> Pod<'a> {
    pub(super) fn labels(self) -> BTreeMap<String, String> {
        strings(self.0.pointer("/metadata/labels"))
    }

    pub(super) fn annotation(self, key: &str) -> Option<&'a str> {
        self.0
            .get("metadata")?
            .get("annotations")?
            .get(key)?
            .as_str()
    }

    /// The name; a Pod of a ReplicaSet or Job has none yet.
    pub(super) fn name(self) -> &'a str {
        self.0
            .pointer("/metadata/name")
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// The kind of the controlling owner.
    pub(super) fn owner_kind(self) -> Option<&'a str> {
        items(self.0.pointer("/metadata/ownerReferences"))
            .find(|owner| owner.get("controller") == Some(&Value::Bool(true)))
            .and_then(|owner| text(owner, "kind"))
    }

    /// `None` when the API server has not defaulted it.
    pub(super) fn grace_seconds(self) -> Option<i64> {
        self.0
            .pointer("/spec/terminationGracePeriodSeconds")
            .and_then(Value::as_i64)
    }

    pub(super) fn containers(self) -> impl Iterator<Item = Container<'a>> {
        items(self.0.pointer("/spec/containers")).map(Container)
    }

    pub(super) fn init_containers(self) -> impl Iterator<Item = Container<'a>> {
        items(self.0.pointer("/spec/initContainers")).map(Container)
    }

    pub(super) fn volume(self, name: &str) -> Option<&'a Value> {
        items(self.0.pointer("/spec/volumes")).find(|volume| text(volume, "name") == Some(name))
    }

    pub(super) fn security_context(self, key: &str) -> Option<&'a Value> {
        self.0
            .pointer("/spec/securityContext")
            .and_then(|context| context.get(key))
    }

    pub(super) fn os(self) -> Option<&'a str> {
        self.0.pointer("/spec/os/name").and_then(Value::as_str)
    }
}

/// A read-only view of a container.
#[derive(Debug, Clone, Copy)]
pub(super) struct Container<'a>(pub(super) &'a Value);

impl<'a> Container<'a> {
    pub(super) fn name(self) -> &'a str {
        text(self.0, "name").unwrap_or_default()
    }

    /// A native sidecar: an init container that keeps running.
    pub(super) fn is_sidecar(self) -> bool {
        text(self.0, "restartPolicy") == Some("Always")
    }

    pub(super) fn mounts(self) -> impl Iterator<Item = Mount<'a>> {
        items(self.0.get("volumeMounts")).map(Mount)
    }

    pub(super) fn devices(self) -> impl Iterator<Item = (&'a str, &'a str)> {
        items(self.0.get("volumeDevices"))
            .filter_map(|device| Some((text(device, "name")?, text(device, "devicePath")?)))
    }

    pub(super) fn env(self, name: &str) -> Option<&'a Value> {
        items(self.0.get("env")).find(|env| text(env, "name") == Some(name))
    }

    pub(super) fn security_context(self, key: &str) -> Option<&'a Value> {
        self.0
            .get("securityContext")
            .and_then(|context| context.get(key))
    }

    pub(super) fn uses_port(self, port: u16) -> bool {
        items(self.0.get("ports")).any(|entry| {
            entry.get("containerPort").and_then(Value::as_u64) == Some(u64::from(port))
                && text(entry, "protocol").is_none_or(|protocol| protocol == "TCP")
        })
    }

    /// The mount that holds a path: the deepest one above it, or at it.
    pub(super) fn mount_of(self, path: &str) -> Option<Mount<'a>> {
        self.mounts()
            .filter(|mount| is_under(path, mount.path()))
            .max_by_key(|mount| mount.path().len())
    }
}

/// A read-only view of a volume mount.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mount<'a>(pub(super) &'a Value);

impl<'a> Mount<'a> {
    pub(super) fn volume(self) -> &'a str {
        text(self.0, "name").unwrap_or_default()
    }

    /// The mount path without a slash at its end.
    pub(super) fn path(self) -> &'a str {
        let path = text(self.0, "mountPath").unwrap_or_default();
        if path.len() > 1 {
            path.trim_end_matches('/')
        } else {
            path
        }
    }

    pub(super) fn is_read_only(self) -> bool {
        self.0.get("readOnly") == Some(&Value::Bool(true))
    }

    pub(super) fn sub_path_expr(self) -> Option<&'a str> {
        text(self.0, "subPathExpr")
    }
}

/// Whether a path is a directory or lies in it.
pub(super) fn is_under(path: &str, directory: &str) -> bool {
    match path.strip_prefix(directory) {
        Some(rest) => rest.is_empty() || rest.starts_with('/') || directory == "/",
        None => false,
    }
}

/// The elements of an array; none when there is no array.
pub(super) fn items(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    value.and_then(Value::as_array).into_iter().flatten()
}

/// A text member of an object.
pub(super) fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key).and_then(Value::as_str)
}

fn strings(value: Option<&Value>) -> BTreeMap<String, String> {
    let members = value.and_then(Value::as_object).into_iter().flatten();
    members
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_under_whole_segments_only() {
        assert!(is_under("/data/a.db", "/data"));
        assert!(is_under("/data", "/data"));
        assert!(is_under("/data/a.db", "/"));
        assert!(!is_under("/database/a.db", "/data"));
    }

    #[test]
    fn the_deepest_mount_holds_a_path() {
        let container = serde_json::json!({"volumeMounts": [
            {"name": "outer", "mountPath": "/data"},
            {"name": "inner", "mountPath": "/data/db/"},
        ]});
        let container = Container(&container);
        assert_eq!(
            container.mount_of("/data/db/a.db").unwrap().volume(),
            "inner"
        );
        assert_eq!(
            container.mount_of("/data/dba.db").unwrap().volume(),
            "outer"
        );
        assert!(container.mount_of("/elsewhere").is_none());
    }
}
