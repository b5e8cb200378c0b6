//! Refusals of selected Pods.

use protocol::names::STATUS_PORT;

/// Refusal of a Pod that a SqliteBackup selects. The creator of the Pod sees the message, so it
/// names the SqliteBackup and the field to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("SqliteBackup {backup}: {field}: {problem}")]
pub struct Refusal {
    /// The SqliteBackup, as `namespace/name`.
    pub backup: String,
    /// The field to change, in the SqliteBackup or in the Pod.
    pub field: String,
    /// Cause of the refusal.
    pub problem: Problem,
}

/// Cause of a refusal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The spec is not in force.
    #[error("{0}")]
    Spec(api::validate::Refusal),
    /// The Pod does not have the structure of a Pod.
    #[error("expected {expected}")]
    Malformed {
        /// The expected structure.
        expected: &'static str,
    },
    /// `spec.container` names none of the Pod's containers.
    #[error("the Pod has no container {name:?}; it has {}", list(.found))]
    ContainerNotFound {
        /// The name in `spec.container`.
        name: String,
        /// The Pod's containers.
        found: Vec<String>,
    },
    /// Several containers mount every database.
    #[error("containers {} all mount the databases; name the one whose user and mounts the sidecar uses", list(.found))]
    ContainerAmbiguous {
        /// Those containers.
        found: Vec<String>,
    },
    /// The path is in no volume: the sidecar could not read it, and the file would not outlive the
    /// container.
    #[error("{path} is in no volume of container {container:?}; mount a volume at its directory")]
    NotInVolume {
        /// The database.
        path: String,
        /// The container.
        container: String,
    },
    /// The database file itself is a mount, so its `-wal` file would be on another file system.
    #[error(
        "{path} is itself a mount point of container {container:?}; mount its directory, because the -wal file must be beside it"
    )]
    FileMount {
        /// The database.
        path: String,
        /// The container.
        container: String,
    },
    /// The mount is read-only.
    #[error("volume {volume:?} is mounted read-only at {mount_path}; SQLite must write there")]
    ReadOnly {
        /// The volume.
        volume: String,
        /// Path of the mount.
        mount_path: String,
    },
    /// SQLite cannot work safely on this kind of volume.
    #[error("volume {volume:?} is of kind {kind}, on which {why}")]
    VolumeKind {
        /// The volume.
        volume: String,
        /// Its kind as Kubernetes names it.
        kind: String,
        /// Consequence for SQLite.
        why: &'static str,
    },
    /// The mount names a volume that the Pod does not have.
    #[error("container {container:?} mounts volume {volume:?}, which the Pod does not have")]
    NoVolume {
        /// The volume.
        volume: String,
        /// The container.
        container: String,
    },
    /// The path is in a directory that the sidecar uses.
    #[error("{path} is in {directory}, which is reserved for the sidecar")]
    OwnDirectory {
        /// The database.
        path: String,
        /// The sidecar's directory.
        directory: &'static str,
    },
    /// `subPathExpr` uses a variable that is not in the container's `env`.
    #[error(
        "subPathExpr of {mount_path} uses variable {variable}, which is not in the env of container {container:?}"
    )]
    UnknownVariable {
        /// Path of the mount.
        mount_path: String,
        /// The variable.
        variable: String,
        /// The container.
        container: String,
    },
    /// The Pod has the sidecar of another SqliteBackup.
    #[error(
        "the Pod has the sidecar of SqliteBackup {other:?}; only one SqliteBackup may select a Pod, and it may have several databases and targets"
    )]
    AlreadyServed {
        /// The other one's name.
        other: String,
    },
    /// Several SqliteBackups select the Pod.
    #[error("SqliteBackups {} select the same Pod; make their selectors disjoint, or combine them into one with several databases and targets", list(.all))]
    SeveralSelect {
        /// Their names.
        all: Vec<String>,
    },
    /// A foreign container, init container or volume has a reserved name.
    #[error("the name of {what} {name:?} is reserved for an injected one; rename it")]
    NameTaken {
        /// `container`, `init container` or `volume`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// Another container of the Pod uses the sidecar's port.
    #[error(
        "container {container:?} uses port {STATUS_PORT}, which is reserved for the sidecar; choose another port, because containers of a Pod share them"
    )]
    PortTaken {
        /// The container.
        container: String,
    },
    /// The sidecar only runs on Linux.
    #[error("the Pod runs on {os}; the sidecar only runs on linux")]
    OperatingSystem {
        /// The system.
        os: String,
    },
}

impl Problem {
    /// A short name, for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Problem::Spec(_) => "Spec",
            Problem::Malformed { .. } => "Malformed",
            Problem::ContainerNotFound { .. } => "ContainerNotFound",
            Problem::ContainerAmbiguous { .. } => "ContainerAmbiguous",
            Problem::NotInVolume { .. } => "NotInVolume",
            Problem::FileMount { .. } => "FileMount",
            Problem::ReadOnly { .. } => "ReadOnly",
            Problem::VolumeKind { .. } => "VolumeKind",
            Problem::NoVolume { .. } => "NoVolume",
            Problem::OwnDirectory { .. } => "OwnDirectory",
            Problem::UnknownVariable { .. } => "UnknownVariable",
            Problem::AlreadyServed { .. } => "AlreadyServed",
            Problem::SeveralSelect { .. } => "SeveralSelect",
            Problem::NameTaken { .. } => "NameTaken",
            Problem::PortTaken { .. } => "PortTaken",
            Problem::OperatingSystem { .. } => "OperatingSystem",
        }
    }
}

fn list(names: &[String]) -> String {
    names.join(", ")
}
