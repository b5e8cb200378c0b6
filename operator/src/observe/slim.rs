//! Pods and Jobs with the relevant fields only, so that many of them need little memory.
//!
//! Deserialization drops all other fields.

use api::names::{BACKUP, INJECTION_HASH, RESTORE_CONTAINER, SIDECAR_CONTAINER, VERIFY_CONTAINER};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Resource;
use protocol::verify::StartupNotes;
use serde::Deserialize;

use crate::answer::clipped;
use crate::cluster_state::{Ended, JobEnd, JobFacts, PodFacts};

/// Limit on the notes of each kind that are kept for a Pod.
const NOTES_MAX: usize = 8;

/// The relevant fields of a Pod.
#[derive(Debug, Clone, Deserialize, Resource)]
#[resource(inherit = "Pod")]
pub(super) struct SlimPod {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: SlimPodSpec,
    #[serde(default)]
    status: SlimPodStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SlimPodSpec {
    init_containers: Vec<SlimContainer>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SlimContainer {
    name: String,
    restart_policy: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SlimPodStatus {
    phase: String,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    init_container_statuses: Vec<SlimContainerStatus>,
    container_statuses: Vec<SlimContainerStatus>,
}

#[derive(Debug, Clone, Deserialize)]
struct SlimContainerStatus {
    name: String,
    #[serde(default)]
    state: SlimState,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct SlimState {
    running: Option<serde::de::IgnoredAny>,
    terminated: Option<SlimTerminated>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SlimTerminated {
    exit_code: i32,
    message: String,
}

/// The relevant fields of a Job.
#[derive(Debug, Clone, Deserialize, Resource)]
#[resource(inherit = "Job")]
pub(super) struct SlimJob {
    metadata: ObjectMeta,
    #[serde(default)]
    status: SlimJobStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct SlimJobStatus {
    conditions: Vec<SlimJobCondition>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SlimJobCondition {
    #[serde(rename = "type")]
    type_: String,
    status: String,
    #[serde(default)]
    reason: String,
    last_transition_time: Option<Time>,
}

impl From<SlimPod> for PodFacts {
    fn from(pod: SlimPod) -> PodFacts {
        let SlimPod {
            metadata,
            spec,
            status,
        } = pod;
        let annotations = metadata.annotations.unwrap_or_default();
        let owner = metadata.owner_references.unwrap_or_default();
        let owner = owner.into_iter().find(|o| o.controller == Some(true));
        let native = |c: &SlimContainer| {
            c.name == SIDECAR_CONTAINER && c.restart_policy.as_deref() == Some("Always")
        };
        let running =
            |s: &SlimContainerStatus| s.name == SIDECAR_CONTAINER && s.state.running.is_some();
        let restored = status.init_container_statuses.iter();
        let startup_notes = restored
            .filter(|s| s.name == RESTORE_CONTAINER)
            .filter_map(|s| s.state.terminated.as_ref())
            .find(|ended| ended.exit_code == 0)
            .map(|ended| noted(&ended.message))
            .unwrap_or_default();
        let verdict = status
            .container_statuses
            .into_iter()
            .find(|s| s.name == VERIFY_CONTAINER)
            .and_then(|s| s.state.terminated)
            .map(|t| Ended {
                exit_code: t.exit_code,
                message: t.message,
            });
        PodFacts {
            namespace: metadata.namespace.unwrap_or_default(),
            name: metadata.name.unwrap_or_default(),
            uid: metadata.uid.unwrap_or_default(),
            resource_version: metadata.resource_version,
            labels: metadata.labels.unwrap_or_default(),
            owner_kind: owner.map(|o| o.kind),
            backup: annotations.get(BACKUP).cloned(),
            injection: annotations.get(INJECTION_HASH).cloned(),
            has_sidecar: spec.init_containers.iter().any(native),
            ip: status.pod_ip,
            phase: status.phase,
            deleting: metadata.deletion_timestamp.is_some(),
            sidecar_running: status.init_container_statuses.iter().any(running),
            startup_notes,
            verdict,
        }
    }
}

/// Returns the notes of a restore container, each clipped. An older container leaves none.
fn noted(message: &str) -> StartupNotes {
    let mut notes: StartupNotes = serde_json::from_str(message).unwrap_or_default();
    for list in [&mut notes.complaints, &mut notes.not_checked] {
        list.truncate(NOTES_MAX);
        list.iter_mut().for_each(|note| *note = clipped(note));
    }
    notes
}

impl From<SlimJob> for JobFacts {
    fn from(job: SlimJob) -> JobFacts {
        let holds = |c: &&SlimJobCondition| c.status == "True";
        let ends = |c: &SlimJobCondition| match c.type_.as_str() {
            "Complete" => Some((JobEnd::Complete, c.last_transition_time.clone())),
            "Failed" => Some((
                JobEnd::Failed(c.reason.clone()),
                c.last_transition_time.clone(),
            )),
            _ => None,
        };
        let end = job.status.conditions.iter().filter(holds).find_map(ends);
        let (end, ended) = end.unzip();
        JobFacts {
            namespace: job.metadata.namespace.unwrap_or_default(),
            name: job.metadata.name.unwrap_or_default(),
            resource_version: job.metadata.resource_version,
            end,
            ended: ended.flatten().map(|t| t.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_keeps_what_matters_and_fields_of_the_future_do_not_hurt() {
        let pod: SlimPod = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "namespace": "shop", "name": "orders-0", "uid": "u", "labels": {"app": "orders"},
                "annotations": {BACKUP: "orders", INJECTION_HASH: "abc"},
                "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "orders", "uid": "s",
                    "controller": true
                }],
            },
            "spec": {
                "initContainers": [
                    {"name": "sqlite-backup-restore", "new": {"field": 1}},
                    {"name": "sqlite-backup", "restartPolicy": "Always"},
                ],
                "containers": [{"name": "app"}],
            },
            "status": {
                "phase": "Running", "podIP": "10.0.0.1",
                "initContainerStatuses": [
                    {"name": "sqlite-backup", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}},
                ],
            },
        }))
        .unwrap();
        let facts = PodFacts::from(pod);
        assert!(facts.has_sidecar && facts.sidecar_running && facts.is_live());
        assert_eq!(facts.owner_kind.as_deref(), Some("StatefulSet"));
        assert_eq!(
            (facts.backup.as_deref(), facts.ip.as_deref()),
            (Some("orders"), Some("10.0.0.1"))
        );
    }

    #[test]
    fn an_ordinary_init_container_with_our_name_is_no_sidecar() {
        let pod: SlimPod = serde_json::from_value(json!({
            "metadata": {"name": "x"},
            "spec": {"initContainers": [{"name": "sqlite-backup"}]},
        }))
        .unwrap();
        assert!(!PodFacts::from(pod).has_sidecar);
    }

    #[test]
    fn the_notes_of_a_restore_that_succeeded_are_kept_and_nothing_else_it_says() {
        let pod = |exit_code: i32, message: &str| {
            let ended = json!({"terminated": {"exitCode": exit_code, "message": message}});
            let pod: SlimPod = serde_json::from_value(json!({
                "metadata": {"name": "x"},
                "status": {"phase": "Running", "initContainerStatuses": [
                    {"name": "sqlite-backup-restore", "state": ended},
                ]},
            }))
            .unwrap();
            PodFacts::from(pod).startup_notes
        };
        let message = r#"{"complaints": ["/data/app.db: NULL value in t.x"]}"#;
        assert_eq!(
            pod(0, message).complaints,
            ["/data/app.db: NULL value in t.x"]
        );
        assert_eq!(pod(13, message), StartupNotes::default());
        assert_eq!(pod(0, "the application waits"), StartupNotes::default());
    }

    #[test]
    fn the_result_of_a_test_is_read_from_its_container() {
        let pod: SlimPod = serde_json::from_value(json!({
            "metadata": {"name": "x"},
            "status": {"phase": "Failed", "containerStatuses": [
                {"name": "verify", "state": {"terminated": {"exitCode": 12, "message": "{}"}}},
            ]},
        }))
        .unwrap();
        let ended = Ended {
            exit_code: 12,
            message: "{}".into(),
        };
        assert_eq!(PodFacts::from(pod).verdict, Some(ended));
    }

    #[test]
    fn a_job_that_gave_up_says_why_and_when() {
        let job: SlimJob = serde_json::from_value(json!({
            "metadata": {"name": "x"},
            "status": {"conditions": [
                {"type": "FailureTarget", "status": "True", "reason": "DeadlineExceeded"},
                {"type": "Failed", "status": "True", "reason": "DeadlineExceeded",
                 "lastTransitionTime": "2026-01-01T00:00:00Z"},
            ]},
        }))
        .unwrap();
        let facts = JobFacts::from(job);
        assert_eq!(facts.end, Some(JobEnd::Failed("DeadlineExceeded".into())));
        assert!(facts.ended.is_some());
    }
}
