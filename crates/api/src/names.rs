//! Names that several programs must agree on: labels, annotations, containers, volumes,
//! condition types and reasons.

use protocol::names::CREDENTIALS_DIR;

/// Label value and field manager of everything the operator writes.
pub const FIELD_MANAGER: &str = "sqlite-backup-operator";

/// Label on Pods: `"false"` opts a Pod out of injection.
pub const INJECT_LABEL: &str = "sqlite-backup.dev/inject";

/// Annotation on injected Pods and label on our Jobs, Pods and RestoreTests: the SqliteBackup.
pub const BACKUP: &str = "sqlite-backup.dev/backup";

/// Label on the Job and Pod of a restore test: the UID of the RestoreTest.
pub const RESTORE_TEST_LABEL: &str = "sqlite-backup.dev/restore-test";

/// Annotation on a scheduled RestoreTest: its scheduled time, RFC 3339.
pub const SCHEDULED_FOR: &str = "sqlite-backup.dev/scheduled-for";

/// Annotation on injected Pods: hash of the injected containers, to recognize outdated Pods.
pub const INJECTION_HASH: &str = "sqlite-backup.dev/injection";

/// Annotation on injected Pods: the sidecar image, to recognize outdated Pods.
pub const SIDECAR_IMAGE: &str = "sqlite-backup.dev/sidecar-image";

/// Annotation on injected Pods: the name of the member.
pub const MEMBER: &str = "sqlite-backup.dev/member";

/// Annotation on injected Pods: the grace period in seconds before the operator raised it.
pub const ORIGINAL_GRACE: &str = "sqlite-backup.dev/original-termination-grace-period-seconds";

/// Label with the program that manages an object.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";

/// Init container that restores before the application starts.
pub const RESTORE_CONTAINER: &str = "sqlite-backup-restore";

/// Native sidecar that replicates.
pub const SIDECAR_CONTAINER: &str = "sqlite-backup";

/// Name of the sidecar's status port.
pub const STATUS_PORT_NAME: &str = "sqlite-backup";

/// Container of a restore test Job.
pub const VERIFY_CONTAINER: &str = "verify";

/// Volume with the sidecar's configuration.
pub const CONFIG_VOLUME: &str = "sqlite-backup-config";

/// Volume for the sidecar's own state.
pub const STATE_VOLUME: &str = "sqlite-backup-state";

/// Empty volume mounted over the service-account directory.
pub const NO_TOKEN_VOLUME: &str = "sqlite-backup-no-token";

/// Volume of a restore test's scratch space.
pub const SCRATCH_VOLUME: &str = "sqlite-backup-scratch";

/// Directory into which Kubernetes mounts service-account tokens.
pub const SERVICE_ACCOUNT_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Directory under which the volumes of `file` targets are mounted, one directory for each.
pub const TARGETS_DIR: &str = "/var/run/sqlite-backup/targets";

/// The MutatingWebhookConfiguration whose entries the operator writes.
pub const WEBHOOK_CONFIGURATION: &str = "sqlite-backup-operator";

/// Key of the configuration in the ConfigMap of [`config_map`].
pub const CONFIG_KEY: &str = "config.yml";

/// Keys of an S3 credentials Secret; the token is optional.
pub const S3_SECRET_KEYS: [&str; 3] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
];

/// Returns the name of the ConfigMap with the sidecar configuration of a SqliteBackup.
pub fn config_map(backup: &str) -> String {
    format!("{backup}-sqlite-backup")
}

/// Returns the name of the webhook entry of a SqliteBackup, which refusals show.
pub fn webhook(namespace: &str, backup: &str) -> String {
    format!("{backup}.{namespace}.{}", crate::GROUP)
}

/// Returns the name of the volume with the credentials of the target at `index` in the spec.
pub fn credentials_volume(index: usize) -> String {
    format!("sqlite-backup-credentials-{index}")
}

/// Returns the directory in which the credentials of the target `name` are mounted.
pub fn credentials_dir(name: &str) -> String {
    format!("{CREDENTIALS_DIR}/{name}")
}

/// Returns the name of the volume of the `file` target at `index` in the spec.
pub fn target_volume(index: usize) -> String {
    format!("sqlite-backup-target-{index}")
}

/// Returns the directory in which the volume of the `file` target `name` is mounted.
pub fn target_dir(name: &str) -> String {
    format!("{TARGETS_DIR}/{name}")
}

/// Returns the name of a Pod's member. A Pod of a StatefulSet is its own member, because its name
/// stays with its data. Any other Pod's member has the SqliteBackup's name, because only one such
/// Pod may run at a time.
///
/// `owner_kind` is the kind of the Pod's controlling owner, if it has one.
pub fn member<'a>(owner_kind: Option<&str>, pod: &'a str, backup: &'a str) -> &'a str {
    match owner_kind {
        Some("StatefulSet") => pod,
        _ => backup,
    }
}

/// Condition types.
pub mod condition {
    /// The spec is accepted and in force. Other types report health at run time.
    pub const READY: &str = "Ready";
    /// Every live selected Pod has the current sidecar.
    pub const INJECTED: &str = "Injected";
    /// No member has commits older than `maxLag` that are not stored.
    pub const REPLICATING: &str = "Replicating";
    /// The store accepted the credentials at the last call.
    pub const CREDENTIALS_VALID: &str = "CredentialsValid";
    /// The last finished restore test passed and is not overdue.
    pub const RESTORE_TEST_PASSED: &str = "RestoreTestPassed";
    /// Two writers compete for one replica. True is bad.
    pub const WRITER_CONFLICT: &str = "WriterConflict";
    /// False while an application runs on a restored database that fails SQLite's own check. Absent
    /// otherwise.
    pub const RESTORED_CLEANLY: &str = "RestoredCleanly";
    /// On a SqliteRestore: whether this version serves it.
    pub const SERVED: &str = "Served";
}

/// Reasons of conditions and Events. Results of restore tests and states of databases are in
/// `protocol`.
pub mod reason {
    /// `Ready` is True.
    pub const ACCEPTED: &str = "Accepted";
    /// The spec breaks a rule that the schema cannot check.
    pub const INVALID: &str = "Invalid";
    /// Another SqliteBackup has the same Pods or the same destination.
    pub const CONFLICT: &str = "Conflict";
    /// The spec uses a feature that this version does not support.
    pub const NOT_SERVED: &str = "NotServed";
    /// As [`NOT_SERVED`], for a whole kind.
    pub const NOT_SERVED_YET: &str = "NotServedYet";
    /// `spec.suspend` is set.
    pub const SUSPENDED: &str = "Suspended";
    /// `Injected` is True.
    pub const ALL_INJECTED: &str = "AllInjected";
    /// Live Pods are selected and have no sidecar.
    pub const PODS_MISSING_SIDECAR: &str = "PodsMissingSidecar";
    /// Live Pods have an older sidecar.
    pub const OUTDATED: &str = "Outdated";
    /// No live Pod is selected.
    pub const NO_PODS: &str = "NoPods";
    /// `Replicating` is True.
    pub const UP_TO_DATE: &str = "UpToDate";
    /// Commits wait longer than `maxLag`.
    pub const LAG_EXCEEDED: &str = "LagExceeded";
    /// A sidecar does not answer, so its state is unknown.
    pub const SIDECAR_UNREACHABLE: &str = "SidecarUnreachable";
    /// Sidecars have started and have nothing to report yet.
    pub const STARTING: &str = "Starting";
    /// `CredentialsValid` is True.
    pub const VALID: &str = "Valid";
    /// The store refuses the credentials.
    pub const DENIED: &str = "Denied";
    /// There are no credentials.
    pub const MISSING: &str = "Missing";
    /// New credentials are refused; the old ones are still in use.
    pub const ROTATION_PENDING: &str = "RotationPending";
    /// Not observed yet.
    pub const UNKNOWN: &str = "Unknown";
    /// A restored database fails SQLite's own check, although its bytes are proven to be the stored
    /// ones.
    pub const CHECK_FAILED: &str = "CheckFailed";
    /// No restore test has finished.
    pub const NEVER_RUN: &str = "NeverRun";
    /// A scheduled restore test has not ended in time.
    pub const OVERDUE: &str = "Overdue";
    /// The members of a SqliteBackup do not fit into one restore test.
    pub const TOO_MANY_MEMBERS: &str = "TooManyMembers";
    /// The deadline of a restore test passed.
    pub const TIMED_OUT: &str = "TimedOut";
    /// The result was lost with its Pod; the test runs again.
    pub const RESULT_LOST: &str = "ResultLost";
    /// No writer conflict.
    pub const ONE_WRITER: &str = "OneWriter";
    /// Two SqliteBackups, or two members, write to the same destination.
    pub const SAME_DESTINATION: &str = "SameDestination";
    /// Two SqliteBackups select the same Pod.
    pub const SAME_PODS: &str = "SamePods";
    /// More than one Pod serves one member.
    pub const TOO_MANY_REPLICAS: &str = "TooManyReplicas";
    /// Another writer has taken over a replica.
    pub const SUPERSEDED: &str = "Superseded";
    /// A restore test was started.
    pub const TEST_STARTED: &str = "RestoreTestStarted";
    /// The SqliteBackup of a RestoreTest does not exist.
    pub const BACKUP_NOT_FOUND: &str = "BackupNotFound";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stateful_set_pod_is_its_own_member_and_others_share_the_backups_name() {
        assert_eq!(member(Some("StatefulSet"), "db-0", "orders"), "db-0");
        assert_eq!(member(Some("ReplicaSet"), "web-6f-x", "orders"), "orders");
        assert_eq!(member(None, "bare", "orders"), "orders");
    }
}
