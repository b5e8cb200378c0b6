//! Why a selected Pod cannot be served.

use protocol::names::STATUS_PORT;

/// A Pod that a SqliteBackup selects and that we cannot serve. The message goes to whoever creates
/// the Pod, so it names the SqliteBackup and the field to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("SqliteBackup {backup}: {field}: {problem}")]
pub struct Refusal {
    /// The SqliteBackup, as `namespace/name`.
    pub backup: String,
    /// The field of the SqliteBackup, or of the Pod, that does not fit.
    pub field: String,
    /// What does not fit.
    pub problem: Problem,
}

/// What does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The spec itself is not in force.
    #[error("{0}")]
    Spec(api::validate::Refusal),
    /// The Pod is not shaped like a Pod.
    #[error("expected {expected}")]
    Malformed {
        /// What should be there.
        expected: &'static str,
    },
    /// `spec.container` names none of the Pod's containers.
    #[error("the Pod has no container {name:?}; it has {}", list(.found))]
    ContainerNotFound {
        /// The name asked for.
        name: String,
        /// The Pod's containers.
        found: Vec<String>,
    },
    /// Several containers mount every database.
    #[error("containers {} all mount the databases; say whose user and mounts to take over", list(.found))]
    ContainerAmbiguous {
        /// Those containers.
        found: Vec<String>,
    },
    /// The path is in no volume, so the sidecar could not see it, and it would not outlive the
    /// container.
    #[error("{path} is in no volume of container {container:?}; mount one there")]
    NotInVolume {
        /// The database.
        path: String,
        /// The container.
        container: String,
    },
    /// The database file itself is a mount, so its log files would be elsewhere.
    #[error(
        "{path} is itself a mount point of container {container:?}; mount its directory, for the -wal file must be beside it"
    )]
    FileMount {
        /// The database.
        path: String,
        /// The container.
        container: String,
    },
    /// The mount is read-only.
    #[error("volume {volume:?} is mounted read-only at {mount_path}; SQLite needs to write there")]
    ReadOnly {
        /// The volume.
        volume: String,
        /// Where.
        mount_path: String,
    },
    /// SQLite cannot work safely on this kind of volume.
    #[error("volume {volume:?} is of kind {kind}, on which {why}")]
    VolumeKind {
        /// The volume.
        volume: String,
        /// Its kind as Kubernetes names it.
        kind: String,
        /// What goes wrong.
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
    /// The path is where the sidecar keeps files of its own.
    #[error("{path} is in {directory}, which the sidecar needs for itself")]
    OwnDirectory {
        /// The database.
        path: String,
        /// The sidecar's directory.
        directory: &'static str,
    },
    /// `subPathExpr` needs a variable that is not in the container's `env`.
    #[error(
        "subPathExpr of {mount_path} needs variable {variable}, which is not in the env of container {container:?}"
    )]
    UnknownVariable {
        /// Where.
        mount_path: String,
        /// The variable.
        variable: String,
        /// The container.
        container: String,
    },
    /// Another SqliteBackup serves the Pod.
    #[error(
        "the Pod is already served by SqliteBackup {other:?}; one Pod has one SqliteBackup, which may have several databases and targets"
    )]
    AlreadyServed {
        /// The other one's name.
        other: String,
    },
    /// Several SqliteBackups select the Pod.
    #[error("SqliteBackups {} select the same Pod; make their selectors disjoint, or merge them: one may have several databases and targets", list(.all))]
    SeveralSelect {
        /// Their names.
        all: Vec<String>,
    },
    /// A container, init container or volume with one of our names is there and is not ours.
    #[error("{what} {name:?} has the name of an injected one; rename it")]
    NameTaken {
        /// `container`, `init container` or `volume`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// Another container of the Pod listens on the sidecar's port.
    #[error(
        "container {container:?} uses port {STATUS_PORT}, which the sidecar needs; containers of a Pod share their ports"
    )]
    PortTaken {
        /// The container.
        container: String,
    },
    /// We only run on Linux.
    #[error("the Pod runs on {os}; only linux is served")]
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
