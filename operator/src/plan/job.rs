//! The Job of a restore test.

use api::names::{
    self, BACKUP, CONFIG_VOLUME, INJECT_LABEL, RESTORE_TEST_LABEL, SCRATCH_VOLUME, VERIFY_CONTAINER,
};
use api::target::Place;
use api::{RestoreTest, SqliteBackup};
use k8s_openapi::api::batch::v1::{
    Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement,
    PodFailurePolicyOnPodConditionsPattern, PodFailurePolicyRule,
};
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, EmptyDirVolumeSource, EnvVar,
    PersistentVolumeClaimVolumeSource, PodSecurityContext, PodSpec, PodTemplateSpec,
    ResourceRequirements, SeccompProfile, SecretVolumeSource, SecurityContext, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::Resource;
use kube::api::ObjectMeta;
use protocol::names::{
    CONFIG_DIR, CONFIG_FILE, SCRATCH_DIR, TERMINATION_MESSAGE_FILE, VERIFY_REQUEST_ENV,
};
use protocol::verify::VerifyRequest;
use sha2::{Digest, Sha256};

use super::members::Member;
use super::{key, labels};
use crate::inject;

/// User and group of a restore test, which only uses its own scratch space.
const USER: i64 = 65_532;

/// Time for which a Job is kept after its end, in seconds: enough for the operator to restart and
/// read it.
const TTL_SECONDS: i32 = 7200;

/// Number of retries when the environment fails. Bad data is never retried.
const BACKOFF_LIMIT: i32 = 2;

/// Scratch space in addition to 1.5 times the known sizes, in bytes.
const SCRATCH_MARGIN: u64 = 256 << 20;

/// Returns the name of the Job of the given attempt, from 1.
pub fn job_name(test: &RestoreTest, attempt: u32) -> String {
    let name = test.metadata.name.as_deref().unwrap_or_default();
    let uid = test.metadata.uid.as_deref().unwrap_or_default();
    // A Job's name has at most 63 characters, and its Pods' names may not contain dots.
    let readable: String = name.replace('.', "-").chars().take(50).collect();
    format!(
        "{}-{}",
        readable.trim_end_matches('-'),
        short_hash(&format!("{uid}/{attempt}"))
    )
}

/// Ten hex digits of a hash of the text.
pub fn short_hash(text: &str) -> String {
    Sha256::digest(text)
        .iter()
        .take(5)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Builds the Job of a run, which executes `request`.
pub fn job(
    backup: &SqliteBackup,
    test: &RestoreTest,
    attempt: u32,
    request: &VerifyRequest,
    members: &[Member<'_>],
    settings: &inject::Settings,
) -> Job {
    let (namespace, backup_name) = key(backup);
    let mut labels = labels(&backup_name);
    labels.insert(INJECT_LABEL.to_owned(), "false".to_owned());
    labels.insert(
        RESTORE_TEST_LABEL.to_owned(),
        test.metadata.uid.clone().unwrap_or_default(),
    );
    let deadline = backup.spec.restore_test.deadline.0.as_secs();
    Job {
        metadata: ObjectMeta {
            name: Some(job_name(test, attempt)),
            namespace: Some(namespace),
            labels: Some(labels.clone()),
            owner_references: test.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(JobSpec {
            backoff_limit: Some(BACKOFF_LIMIT),
            active_deadline_seconds: Some(i64::try_from(deadline).unwrap_or(i64::MAX)),
            ttl_seconds_after_finished: Some(TTL_SECONDS),
            pod_failure_policy: Some(failure_policy()),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(labels),
                    annotations: Some([(BACKUP.to_owned(), backup_name)].into()),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod(backup, request, members, settings)),
            },
            ..JobSpec::default()
        }),
        status: None,
    }
}

/// Bad data and an empty store end the Job at once. A Pod that is lost with its node does not count
/// as a failure.
fn failure_policy() -> PodFailurePolicy {
    PodFailurePolicy {
        rules: vec![
            PodFailurePolicyRule {
                action: "FailJob".to_owned(),
                on_exit_codes: Some(PodFailurePolicyOnExitCodesRequirement {
                    container_name: Some(VERIFY_CONTAINER.to_owned()),
                    operator: "In".to_owned(),
                    values: (10..=19).chain([30]).collect(),
                }),
                on_pod_conditions: None,
            },
            PodFailurePolicyRule {
                action: "Ignore".to_owned(),
                on_exit_codes: None,
                on_pod_conditions: Some(vec![PodFailurePolicyOnPodConditionsPattern {
                    type_: "DisruptionTarget".to_owned(),
                    status: "True".to_owned(),
                }]),
            },
        ],
    }
}

fn pod(
    backup: &SqliteBackup,
    request: &VerifyRequest,
    members: &[Member<'_>],
    settings: &inject::Settings,
) -> PodSpec {
    let (volumes, mounts) = volumes(backup, members);
    let by_token = backup
        .spec
        .targets
        .iter()
        .any(|t| t.uses_workload_identity());
    PodSpec {
        restart_policy: Some("Never".to_owned()),
        automount_service_account_token: Some(by_token),
        enable_service_links: Some(false),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            fs_group: Some(USER),
            seccomp_profile: Some(runtime_default()),
            ..PodSecurityContext::default()
        }),
        containers: vec![container(backup, request, mounts, settings)],
        volumes: Some(volumes),
        ..PodSpec::default()
    }
}

fn container(
    backup: &SqliteBackup,
    request: &VerifyRequest,
    mounts: Vec<VolumeMount>,
    settings: &inject::Settings,
) -> Container {
    let request = serde_json::to_string(request).expect("a request is plain data");
    let args = [
        "verify",
        "--config",
        CONFIG_FILE,
        "--scratch",
        SCRATCH_DIR,
        "--termination-message",
        TERMINATION_MESSAGE_FILE,
        "--json",
    ];
    Container {
        name: VERIFY_CONTAINER.to_owned(),
        image: Some(settings.image.clone()),
        image_pull_policy: Some(settings.image_pull_policy.clone()),
        // A test that ends without a report leaves the end of its log.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        args: Some(args.map(str::to_owned).to_vec()),
        env: Some(vec![EnvVar {
            name: VERIFY_REQUEST_ENV.to_owned(),
            // Kubernetes expands $(NAME) in values, and a user's query may contain one.
            value: Some(request.replace("$(", "$$(")),
            value_from: None,
        }]),
        resources: Some(resources(backup, settings)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            capabilities: Some(Capabilities {
                add: None,
                drop: Some(vec!["ALL".to_owned()]),
            }),
            seccomp_profile: Some(runtime_default()),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(mounts),
        ..Container::default()
    }
}

fn resources(backup: &SqliteBackup, settings: &inject::Settings) -> ResourceRequirements {
    let given = &backup.spec.sidecar.resources;
    if given.requests.is_empty() && given.limits.is_empty() {
        return serde_json::from_value(settings.resources.clone()).unwrap_or_default();
    }
    ResourceRequirements {
        requests: (!given.requests.is_empty()).then(|| given.requests.clone()),
        limits: (!given.limits.is_empty()).then(|| given.limits.clone()),
        claims: None,
    }
}

fn runtime_default() -> SeccompProfile {
    SeccompProfile {
        type_: "RuntimeDefault".to_owned(),
        localhost_profile: None,
    }
}

fn volumes(backup: &SqliteBackup, members: &[Member<'_>]) -> (Vec<Volume>, Vec<VolumeMount>) {
    let mut volumes = vec![
        Volume {
            name: CONFIG_VOLUME.to_owned(),
            config_map: Some(ConfigMapVolumeSource {
                name: names::config_map(&key(backup).1),
                optional: Some(true),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        },
        Volume {
            name: SCRATCH_VOLUME.to_owned(),
            empty_dir: Some(EmptyDirVolumeSource {
                size_limit: scratch_bytes(members).map(|bytes| Quantity(bytes.to_string())),
                medium: None,
            }),
            ..Volume::default()
        },
    ];
    let mut mounts = vec![
        mount(CONFIG_VOLUME, CONFIG_DIR, true),
        mount(SCRATCH_VOLUME, SCRATCH_DIR, false),
    ];
    let own = backup.spec.restore_test.credentials.as_ref();
    for (index, target) in backup.spec.targets.iter().enumerate() {
        // The configuration of a target without a Secret names no directory: the test would not
        // read its own Secret.
        let secret = target
            .secret()
            .map(|s| own.map_or(s, |c| c.secret_ref.name.as_str()));
        if let Some(secret) = secret {
            let name = names::credentials_volume(index);
            mounts.push(mount(&name, &names::credentials_dir(&target.name), true));
            volumes.push(Volume {
                name,
                secret: Some(SecretVolumeSource {
                    secret_name: Some(secret.to_owned()),
                    optional: Some(true),
                    default_mode: Some(0o444),
                    items: None,
                }),
                ..Volume::default()
            });
        }
        if let Some(Place::File(file)) = target.place() {
            let name = names::target_volume(index);
            mounts.push(mount(&name, &names::target_dir(&target.name), true));
            volumes.push(Volume {
                name,
                persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                    claim_name: file.claim_name.clone(),
                    read_only: None,
                }),
                ..Volume::default()
            });
        }
    }
    (volumes, mounts)
}

fn mount(name: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}

/// Limit on the scratch space, from the sizes that live sidecars report. `None` when one is
/// unknown.
fn scratch_bytes(members: &[Member<'_>]) -> Option<u64> {
    let mut bytes = 0u64;
    for member in members {
        bytes = bytes.saturating_add(member.answer()?.size_bytes);
    }
    (!members.is_empty()).then(|| {
        bytes
            .saturating_add(bytes / 2)
            .saturating_add(SCRATCH_MARGIN)
            // The largest quantity of the API server.
            .min(i64::MAX as u64)
    })
}
