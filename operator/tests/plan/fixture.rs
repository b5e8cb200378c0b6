//! A small cluster that tests change.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::names::{INJECT_LABEL, RESTORE_TEST_LABEL};
use api::restore_test::{BackupRef, RestoreTestStatus, TestPoint};
use api::{RestoreTest, RestoreTestSpec, SqliteBackup, SqliteBackupStatus};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhook;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::ObjectMeta;
use operator::cluster_state::{ClusterState, Ended, PodFacts, Report};
use operator::inject;
use operator::plan::webhook::{self, Endpoint};
use operator::plan::{Change, Plan, Settings, plan};
use protocol::status::{
    DatabaseState, DatabaseStatus, Position, SidecarStatus, TargetState, TargetStatus,
};
use protocol::verify::{VerifyReport, VerifyResult};
use serde_json::json;

pub(crate) const NAMESPACE: &str = "shop";

pub(crate) fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// Start time of every cluster.
pub(crate) fn start() -> Timestamp {
    at("2026-11-20T12:00:00Z")
}

pub(crate) fn seconds(count: i64) -> SignedDuration {
    SignedDuration::from_secs(count)
}

pub(crate) fn endpoint() -> Endpoint {
    Endpoint::Service {
        namespace: "system".into(),
        name: "hook".into(),
        port: 443,
    }
}

pub(crate) fn settings() -> Settings {
    Settings {
        inject: inject::Settings::new("sidecar:1"),
        tests_at_once: 2,
    }
}

/// A SqliteBackup created an hour before the start, tested daily at 03:00.
pub(crate) fn backup(name: &str) -> SqliteBackup {
    serde_json::from_value(json!({
        "apiVersion": "sqlite-backup.dev/v1alpha1",
        "kind": "SqliteBackup",
        "metadata": {
            "name": name, "namespace": NAMESPACE, "uid": format!("uid-{name}"), "generation": 1,
            "creationTimestamp": start() - SignedDuration::from_hours(1),
        },
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "databases": [{"path": "/data/app.db"}],
            "targets": [{
                "name": "primary",
                "s3": {"bucket": "shop"},
                "credentials": {"secretRef": {"name": "keys"}},
            }],
            "restoreTest": {"schedule": "0 3 * * *", "deadline": "10m"},
        },
    }))
    .unwrap()
}

/// A Pod of a StatefulSet that is injected and running.
pub(crate) fn pod(backup: &SqliteBackup, name: &str) -> PodFacts {
    PodFacts {
        namespace: NAMESPACE.into(),
        name: name.into(),
        uid: format!("uid-{name}"),
        labels: backup.spec.selector.match_labels.clone(),
        owner_kind: Some("StatefulSet".into()),
        backup: backup.metadata.name.clone(),
        injection: Some(inject::fingerprint(backup, &settings().inject)),
        has_sidecar: true,
        ip: Some("10.0.0.1".into()),
        phase: "Running".into(),
        sidecar_running: true,
        ..PodFacts::default()
    }
}

pub(crate) fn position(txid: u64) -> Position {
    Position {
        txid: format!("{txid:016x}"),
        checksum: format!("{:016x}", 7),
        time: start(),
    }
}

/// Status of a healthy sidecar.
pub(crate) fn well() -> SidecarStatus {
    SidecarStatus {
        version: 1,
        program: "1".into(),
        backup: String::new(),
        member: String::new(),
        config_hash: String::new(),
        started: start(),
        now: start(),
        databases: vec![DatabaseStatus {
            path: "/data/app.db".into(),
            state: DatabaseState::Replicating,
            message: String::new(),
            position: Some(position(9)),
            size_bytes: 1 << 20,
            targets: vec![TargetStatus {
                name: "primary".into(),
                state: TargetState::Ok,
                message: String::new(),
                position: Some(position(9)),
                lag_ms: 0,
                backlog_bytes: 0,
                last_sync: Some(start()),
                last_snapshot: None,
                epoch: 1,
                credentials: None,
            }],
        }],
    }
}

/// A cluster in which plans are executed.
pub(crate) struct Cluster {
    pub(crate) world: ClusterState,
    pub(crate) webhooks: Option<Vec<MutatingWebhook>>,
    pub(crate) ca_pem: String,
    pub(crate) settings: Settings,
}

impl Cluster {
    pub(crate) fn new(backups: impl IntoIterator<Item = SqliteBackup>) -> Cluster {
        let world = ClusterState {
            now: start(),
            backups: backups.into_iter().map(Arc::new).collect(),
            unreadable: Vec::new(),
            tests: Vec::new(),
            restores: Vec::new(),
            pods: BTreeMap::from([(NAMESPACE.to_owned(), Vec::new())]),
            jobs: BTreeMap::new(),
            config_maps: BTreeMap::new(),
            reports: BTreeMap::new(),
        };
        Cluster {
            world,
            webhooks: Some(Vec::new()),
            ca_pem: "pem".into(),
            settings: settings(),
        }
    }

    /// A SqliteBackup with one Pod and a healthy sidecar, with all plans executed.
    pub(crate) fn at_rest() -> Cluster {
        let mut cluster = Cluster::new([backup("orders")]);
        cluster.add_pod(pod(&backup("orders"), "orders-0"));
        cluster.answer("orders-0", Ok(well()));
        cluster.settle();
        cluster
    }

    pub(crate) fn plan(&self) -> Plan {
        let held = self.webhooks.as_deref();
        let mut all =
            webhook::plan(&self.world.backups, held, Some(&self.ca_pem), &endpoint()).changes;
        let mut plan = plan(&self.world, &self.settings);
        all.append(&mut plan.changes);
        Plan {
            changes: all,
            ..plan
        }
    }

    /// Executes plans until they are empty.
    pub(crate) fn settle(&mut self) -> Vec<Change> {
        let mut all = Vec::new();
        for _ in 0..10 {
            let plan = self.plan();
            if plan.changes.is_empty() {
                return all;
            }
            for change in plan.changes {
                self.carry_out(change.clone());
                all.push(change);
            }
        }
        panic!("the plan never comes to rest: {:#?}", self.plan().changes);
    }

    fn carry_out(&mut self, change: Change) {
        let world = &mut self.world;
        match change {
            Change::ConfigMap(map) => {
                let name = map.metadata.name.clone().unwrap();
                world
                    .config_maps
                    .insert((NAMESPACE.into(), name), Arc::new(*map));
            }
            Change::Webhooks(configuration) => self.webhooks = configuration.webhooks,
            Change::CreateTest(mut test) => {
                test.metadata.uid = test.metadata.name.clone();
                test.metadata.creation_timestamp = Some(Time(world.now));
                world.tests.push(Arc::new(*test));
            }
            Change::DeleteTest((_, name)) => {
                world
                    .tests
                    .retain(|t| t.metadata.name.as_deref() != Some(&name));
            }
            Change::CreateJob(job) => {
                let name = job.metadata.name.unwrap();
                let facts = operator::cluster_state::JobFacts {
                    namespace: NAMESPACE.into(),
                    name: name.clone(),
                    ..Default::default()
                };
                world.jobs.insert((NAMESPACE.into(), name), Arc::new(facts));
            }
            Change::BackupStatus((_, name), status) => {
                edit(&mut world.backups, &name, |b: &mut SqliteBackup| {
                    b.status = Some(*status)
                });
            }
            Change::TestStatus((_, name), status) => {
                edit(&mut world.tests, &name, |t: &mut RestoreTest| {
                    t.status = Some(*status)
                });
            }
            Change::RestoreStatus(..) => {}
        }
    }

    pub(crate) fn pass_time(&mut self, span: SignedDuration) {
        self.world.now += span;
    }

    pub(crate) fn edit(&mut self, name: &str, change: impl FnOnce(&mut SqliteBackup)) {
        edit(&mut self.world.backups, name, change);
    }

    pub(crate) fn add_pod(&mut self, pod: PodFacts) {
        self.world
            .pods
            .get_mut(NAMESPACE)
            .unwrap()
            .push(Arc::new(pod));
    }

    pub(crate) fn remove_pods(&mut self) {
        self.world.pods.get_mut(NAMESPACE).unwrap().clear();
    }

    /// Sets the answer of a Pod's sidecar; errors increase the number of failures.
    pub(crate) fn answer(&mut self, pod: &str, answer: Result<SidecarStatus, &str>) {
        let uid = format!("uid-{pod}");
        let old = self.world.reports.get(&uid);
        // Parsed in the same way as a real answer.
        let received = |status| {
            let json = serde_json::to_vec(&status).unwrap();
            Arc::new(operator::answer::read(&json).unwrap().answer)
        };
        let answer = answer.map(received);
        let report = Report {
            at: self.world.now,
            failures: match answer {
                Ok(_) => 0,
                Err(_) => old.map_or(0, |r| r.failures) + 1,
            },
            last_answer: answer
                .clone()
                .ok()
                .or(old.and_then(|r| r.last_answer.clone())),
            answer: answer.map_err(str::to_owned),
        };
        self.world.reports.insert(uid, Arc::new(report));
    }

    pub(crate) fn status(&self, name: &str) -> SqliteBackupStatus {
        let backup = self
            .world
            .backups
            .iter()
            .find(|b| b.metadata.name.as_deref() == Some(name));
        backup.unwrap().status.clone().unwrap_or_default()
    }

    pub(crate) fn condition(&self, type_: &str) -> Condition {
        let status = self.status("orders");
        status
            .conditions
            .into_iter()
            .find(|c| c.type_ == type_)
            .unwrap()
    }

    /// Returns status and reason of a condition.
    #[track_caller]
    pub(crate) fn assert_condition(&self, type_: &str, status: &str, reason: &str) {
        let condition = self.condition(type_);
        assert_eq!(
            (condition.status.as_str(), condition.reason.as_str()),
            (status, reason),
            "{type_}: {}",
            condition.message
        );
    }

    /// Adds a run created by hand.
    pub(crate) fn add_test(&mut self, name: &str) {
        self.world.tests.push(Arc::new(RestoreTest {
            metadata: ObjectMeta {
                name: Some(name.into()),
                namespace: Some(NAMESPACE.into()),
                uid: Some(name.into()),
                creation_timestamp: Some(Time(self.world.now)),
                ..ObjectMeta::default()
            },
            spec: RestoreTestSpec {
                backup_ref: BackupRef {
                    name: "orders".into(),
                },
                at: TestPoint::default(),
            },
            status: None,
        }));
    }

    pub(crate) fn test(&self, name: &str) -> RestoreTestStatus {
        let test = self
            .world
            .tests
            .iter()
            .find(|t| t.metadata.name.as_deref() == Some(name));
        test.unwrap().status.clone().unwrap_or_default()
    }

    /// Ends the Pod of a test's Job with this message.
    pub(crate) fn end_test(&mut self, test: &str, exit_code: i32, message: String) {
        let labels = [(RESTORE_TEST_LABEL, test), (INJECT_LABEL, "false")];
        let labels = labels.map(|(k, v)| (k.to_owned(), v.to_owned()));
        self.add_pod(PodFacts {
            namespace: NAMESPACE.into(),
            name: format!("{test}-pod"),
            uid: format!("{test}-pod"),
            labels: labels.into(),
            phase: "Failed".into(),
            verdict: Some(Ended { exit_code, message }),
            ..PodFacts::default()
        });
    }

    pub(crate) fn finish_test(&mut self, test: &str, result: VerifyResult) {
        let exit_code = i32::from(result.exit_code() as u8);
        self.end_test(
            test,
            exit_code,
            serde_json::to_string(&report(result)).unwrap(),
        );
    }
}

pub(crate) fn report(result: VerifyResult) -> VerifyReport {
    let passed = result == VerifyResult::Passed;
    VerifyReport {
        result,
        message: if passed {
            String::new()
        } else {
            "what is wrong".into()
        },
        started: start(),
        finished: start(),
        passed: u32::from(passed),
        failed: u32::from(!passed),
        bytes: 4096,
        rto_ms: Some(1234),
        rpo_ms: Some(0),
        freshness_evaluated: true,
        sqlite_version: "3.50.0".into(),
        databases: Vec::new(),
        omitted: 0,
    }
}

trait Named {
    fn name(&self) -> Option<&str>;
}

impl Named for SqliteBackup {
    fn name(&self) -> Option<&str> {
        self.metadata.name.as_deref()
    }
}

impl Named for RestoreTest {
    fn name(&self) -> Option<&str> {
        self.metadata.name.as_deref()
    }
}

fn edit<K: Named + Clone>(list: &mut [Arc<K>], name: &str, change: impl FnOnce(&mut K)) {
    let held = list
        .iter_mut()
        .find(|k| k.name() == Some(name))
        .expect("it exists");
    change(Arc::make_mut(held));
}
