//! Plans of restore tests: schedule, Jobs and results.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::names::{RESTORE_TEST_LABEL, SCHEDULED_FOR, reason};
use api::restore_test::{BackupRef, RestoreTestPhase, RestoreTestStatus, TestPoint};
use api::{RestoreTest, RestoreTestSpec, SqliteBackup};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Resource;
use kube::api::ObjectMeta;

use super::acceptance::Acceptance;
use super::conditions::whole_second;
use super::events::EventDraft;
use super::job::{job, job_name, short_hash};
use super::members::{View, members};
use super::requests::request;
use super::verdict::{self, Outcome};
use super::{Change, Plan, Settings, key, labels};
use crate::cache::Key;
use crate::cluster_state::{ClusterState, PodFacts};
use crate::schedule::Schedule;

/// Limit on the Jobs of one run. After the last one, a lost result is an error.
const ATTEMPTS_MAX: u32 = 3;

/// Time that a run waits for a SqliteBackup that does not exist: one file may hold both.
const BACKUP_GRACE: SignedDuration = SignedDuration::from_secs(60);

/// Time that a run waits for the first answer of started sidecars, so that it can compare the
/// backup with their acknowledged positions.
const ANSWER_GRACE: SignedDuration = SignedDuration::from_secs(60);

/// Restore tests of one SqliteBackup, after this plan.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Runs {
    /// Finished runs, the oldest first.
    pub finished: Vec<(String, RestoreTestStatus)>,
    /// Name of the current run.
    pub running: Option<String>,
    /// The newest scheduled time for which a run was created or skipped.
    pub scheduled: Option<Timestamp>,
}

/// Plans every existing run, and creates due ones.
pub fn plan(
    cluster: &ClusterState,
    settings: &Settings,
    acceptances: &BTreeMap<Key, Acceptance>,
    plan: &mut Plan,
) -> BTreeMap<Key, Runs> {
    let backups: BTreeMap<Key, &Arc<SqliteBackup>> =
        cluster.backups.iter().map(|b| (key(b), b)).collect();
    let mut tests: Vec<&Arc<RestoreTest>> = cluster.tests.iter().collect();
    tests.sort_by_key(|t| {
        (
            t.metadata.creation_timestamp.as_ref().map(|c| c.0),
            test_key(t),
        )
    });

    let mut planner = TestPlanner {
        cluster,
        settings,
        acceptances,
        running: tests
            .iter()
            .filter(|t| phase(t) == RestoreTestPhase::Running)
            .count(),
        runs: BTreeMap::new(),
    };
    // Running tests come first, so that a waiting one sees them.
    tests.sort_by_key(|t| phase(t) != RestoreTestPhase::Running);
    for test in tests {
        let own = (test_key(test).0, test.spec.backup_ref.name.clone());
        let status = planner.step(test, backups.get(&own).map(|b| &***b), plan);
        planner.file(own, test, status);
    }
    let TestPlanner { mut runs, .. } = planner;
    for (own, backup) in &backups {
        let runs = runs.entry(own.clone()).or_default();
        runs.finished
            .sort_by_key(|(name, s)| (s.finished.as_ref().map(|t| t.0), name.clone()));
        if let Some(schedule) = acceptances.get(own).and_then(Acceptance::schedule) {
            due(cluster, backup, schedule, runs, plan);
        }
        prune(cluster, backup, plan);
    }
    runs
}

/// State while the runs are planned one after another.
struct TestPlanner<'a> {
    cluster: &'a ClusterState,
    settings: &'a Settings,
    acceptances: &'a BTreeMap<Key, Acceptance>,
    running: usize,
    runs: BTreeMap<Key, Runs>,
}

impl TestPlanner<'_> {
    /// Plans the next step of one run, and returns its new status.
    fn step(
        &mut self,
        test: &RestoreTest,
        backup: Option<&SqliteBackup>,
        plan: &mut Plan,
    ) -> RestoreTestStatus {
        let old = test.status.clone().unwrap_or_default();
        if old.phase.is_finished() || test.metadata.deletion_timestamp.is_some() {
            return old;
        }
        let new = match old.phase {
            RestoreTestPhase::Running => self.running(test, backup, &old, plan),
            _ => self.pending(test, backup, &old, plan),
        };
        if test.status.as_ref() != Some(&new) {
            plan.changes
                .push(Change::TestStatus(test_key(test), Box::new(new.clone())));
            if new.phase.is_finished() {
                tell_end(test, backup, &new, plan);
            }
        }
        new
    }

    fn running(
        &mut self,
        test: &RestoreTest,
        backup: Option<&SqliteBackup>,
        old: &RestoreTestStatus,
        plan: &mut Plan,
    ) -> RestoreTestStatus {
        let cluster = self.cluster;
        let (namespace, _) = test_key(test);
        let Some(pods) = cluster.pods.get(&namespace) else {
            return old.clone();
        };
        let job_key = (namespace, old.job.clone().unwrap_or_default());
        let uid = test.metadata.uid.as_deref().unwrap_or_default();
        let ours = |p: &&Arc<PodFacts>| p.labels.get(RESTORE_TEST_LABEL).is_some_and(|v| v == uid);
        let pods: Vec<&PodFacts> = pods.iter().filter(ours).map(|p| &**p).collect();
        let deadline = backup.map_or(SignedDuration::from_hours(1), |b| {
            SignedDuration::try_from(b.spec.restore_test.deadline.0).unwrap_or(SignedDuration::MAX)
        });
        let job = cluster.jobs.get(&job_key).map(|j| &**j);
        match verdict::look(old, job, &pods, deadline, cluster.now) {
            Outcome::Waiting(until) => {
                plan.wake_at(until);
                old.clone()
            }
            Outcome::Finished(status) => {
                self.running -= 1;
                *status
            }
            Outcome::Lost(why) if old.attempts < ATTEMPTS_MAX && backup.is_some() => {
                self.running -= 1;
                RestoreTestStatus {
                    phase: RestoreTestPhase::Pending,
                    message: format!("the result was lost because {why}; the test runs again"),
                    job: None,
                    ..old.clone()
                }
            }
            Outcome::Lost(why) => {
                self.running -= 1;
                let message = format!(
                    "the result was lost {} times, last because {why}",
                    old.attempts
                );
                verdict::error(old, reason::RESULT_LOST, &message, cluster.now)
            }
        }
    }

    fn pending(
        &mut self,
        test: &RestoreTest,
        backup: Option<&SqliteBackup>,
        old: &RestoreTestStatus,
        plan: &mut Plan,
    ) -> RestoreTestStatus {
        let now = self.cluster.now;
        let waits = |message: String| RestoreTestStatus {
            phase: RestoreTestPhase::Pending,
            message,
            ..old.clone()
        };
        let created = test
            .metadata
            .creation_timestamp
            .as_ref()
            .map_or(now, |t| t.0);
        let name = &test.spec.backup_ref.name;
        let Some(backup) = backup else {
            let end = created + BACKUP_GRACE;
            let message = format!("SqliteBackup {name} does not exist in this namespace");
            if now >= end {
                return verdict::error(old, reason::BACKUP_NOT_FOUND, &message, now);
            }
            plan.wake_at(Some(end));
            return waits(message);
        };
        let own = key(backup);
        if let Some(Acceptance::Refused(refused)) = self.acceptances.get(&own) {
            let message = format!("SqliteBackup {name} is not in force: {}", refused.message);
            return verdict::error(old, refused.reason, &message, now);
        }
        if let Some(other) = self.runs.get(&own).and_then(|r| r.running.as_ref()) {
            return waits(format!(
                "waits for {other}: only one test of a SqliteBackup runs at a time"
            ));
        }
        if self.running >= self.settings.tests_at_once {
            let cap = self.settings.tests_at_once;
            return waits(format!(
                "waits for its turn: at most {cap} tests run at once"
            ));
        }
        if !self.cluster.pods.contains_key(&own.0) {
            return waits("waits for the list of Pods in the namespace".to_owned());
        }
        let members = members(self.cluster, backup);
        let unasked =
            |m: &super::members::Member<'_>| m.view == View::Starting && m.pod.sidecar_running;
        if members.iter().any(unasked) && now < created + ANSWER_GRACE {
            plan.wake_at(Some(created + ANSWER_GRACE));
            return waits("waits for the first answer of the sidecars".to_owned());
        }
        self.start(test, backup, old, plan)
    }

    fn start(
        &mut self,
        test: &RestoreTest,
        backup: &SqliteBackup,
        old: &RestoreTestStatus,
        plan: &mut Plan,
    ) -> RestoreTestStatus {
        let members = members(self.cluster, backup);
        let attempt = old.attempts + 1;
        let request = match request(backup, test, &members) {
            Ok(request) => request,
            Err(error) => {
                let (why, now) = (error.to_string(), self.cluster.now);
                return verdict::error(old, reason::TOO_MANY_MEMBERS, &why, now);
            }
        };
        let job = job(
            backup,
            test,
            attempt,
            &request,
            &members,
            &self.settings.inject,
        );
        plan.changes.push(Change::CreateJob(Box::new(job)));
        self.running += 1;
        let name = test.metadata.name.as_deref().unwrap_or_default();
        let message = format!("restore test {name} started");
        plan.events.push(EventDraft::new(
            backup,
            true,
            "RestoreTest",
            reason::TEST_STARTED,
            &message,
        ));
        RestoreTestStatus {
            phase: RestoreTestPhase::Running,
            message: String::new(),
            job: Some(job_name(test, attempt)),
            attempts: attempt,
            started: Some(Time(whole_second(self.cluster.now))),
            ..old.clone()
        }
    }

    /// Adds a run to those of its SqliteBackup.
    fn file(&mut self, own: Key, test: &RestoreTest, status: RestoreTestStatus) {
        let runs = self.runs.entry(own).or_default();
        let name = test_key(test).1;
        runs.scheduled = runs.scheduled.max(scheduled_for(test));
        if status.phase.is_finished() {
            runs.finished.push((name, status));
        } else if status.phase == RestoreTestPhase::Running {
            runs.running = Some(name);
        }
    }
}

fn tell_end(
    test: &RestoreTest,
    backup: Option<&SqliteBackup>,
    status: &RestoreTestStatus,
    plan: &mut Plan,
) {
    let passed = status.phase == RestoreTestPhase::Passed;
    let result = status.result.as_deref().unwrap_or_default();
    let name = test.metadata.name.as_deref().unwrap_or_default();
    let message = match (status.phase, status.message.as_str()) {
        (RestoreTestPhase::Passed, _) => format!(
            "restore test {name} passed: {} databases verified, RPO {}, RTO {}",
            status.passed.unwrap_or_default(),
            status.rpo_summary,
            status.rto_summary
        ),
        (RestoreTestPhase::Failed, why) => format!("restore test {name} failed: {why}"),
        (_, why) => format!("restore test {name} did not run to its end: {why}"),
    };
    plan.events.push(EventDraft::new(
        test,
        passed,
        "RestoreTest",
        result,
        &message,
    ));
    if let Some(backup) = backup {
        plan.events.push(EventDraft::new(
            backup,
            passed,
            "RestoreTest",
            result,
            &message,
        ));
    }
}

/// Creates a due run. Several missed times become one run. No run is created while another one is
/// unfinished; while tests are suspended, scheduled times are skipped.
fn due(
    cluster: &ClusterState,
    backup: &SqliteBackup,
    schedule: &Schedule,
    runs: &mut Runs,
    plan: &mut Plan,
) {
    let shown = backup.status.as_ref().and_then(|s| s.restore_test.as_ref());
    let shown = shown
        .and_then(|t| t.last_schedule_time.as_ref())
        .map(|t| t.0);
    let created = backup.metadata.creation_timestamp.as_ref().map(|t| t.0);
    runs.scheduled = runs.scheduled.max(shown);
    let Some(after) = runs.scheduled.or(created) else {
        return;
    };
    plan.wake_at(schedule.next(cluster.now));
    let Some(time) = schedule.due(after, cluster.now) else {
        return;
    };
    if is_suspended(backup) {
        runs.scheduled = Some(time);
        return;
    }
    let own = key(backup);
    let unfinished = cluster.tests.iter().any(|t| {
        test_key(t).0 == own.0 && t.spec.backup_ref.name == own.1 && !phase(t).is_finished()
    });
    if unfinished || backup.metadata.deletion_timestamp.is_some() {
        return;
    }
    runs.scheduled = Some(time);
    plan.changes
        .push(Change::CreateTest(Box::new(scheduled_test(backup, time))));
}

/// Whether the schedule of a SqliteBackup is suspended.
pub fn is_suspended(backup: &SqliteBackup) -> bool {
    backup.spec.suspend || backup.spec.restore_test.suspend
}

/// The run for one scheduled time. Its name is derived from both, so that two leaders create one
/// object.
fn scheduled_test(backup: &SqliteBackup, time: Timestamp) -> RestoreTest {
    let (namespace, name) = key(backup);
    let uid = backup.metadata.uid.as_deref().unwrap_or_default();
    let hash = short_hash(&format!("{uid}/{}", time.as_second()));
    RestoreTest {
        metadata: ObjectMeta {
            name: Some(format!("{name}-{hash}")),
            namespace: Some(namespace),
            labels: Some(labels(&name)),
            annotations: Some([(SCHEDULED_FOR.to_owned(), time.to_string())].into()),
            owner_references: backup.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: RestoreTestSpec {
            backup_ref: BackupRef { name },
            at: TestPoint::default(),
        },
        status: None,
    }
}

/// Deletes old scheduled runs. The last failed one always stays.
fn prune(cluster: &ClusterState, backup: &SqliteBackup, plan: &mut Plan) {
    let own = key(backup);
    let policy = &backup.spec.restore_test;
    let mut old: Vec<&Arc<RestoreTest>> = (cluster.tests.iter())
        .filter(|t| test_key(t).0 == own.0 && t.spec.backup_ref.name == own.1)
        .filter(|t| scheduled_for(t).is_some() && phase(t).is_finished())
        .filter(|t| t.metadata.deletion_timestamp.is_none())
        .collect();
    old.sort_by_key(|t| std::cmp::Reverse((scheduled_for(t), test_key(t))));
    let (passed, failed): (Vec<_>, Vec<_>) = old
        .into_iter()
        .partition(|t| phase(t) == RestoreTestPhase::Passed);
    let keep_passed = policy.successful_history_limit as usize;
    let keep_failed = (policy.failed_history_limit as usize).max(1);
    let extra = passed
        .into_iter()
        .skip(keep_passed)
        .chain(failed.into_iter().skip(keep_failed));
    plan.changes
        .extend(extra.map(|t| Change::DeleteTest(test_key(t))));
}

fn phase(test: &RestoreTest) -> RestoreTestPhase {
    test.status
        .as_ref()
        .map_or(RestoreTestPhase::Pending, |s| s.phase)
}

fn scheduled_for(test: &RestoreTest) -> Option<Timestamp> {
    test.metadata
        .annotations
        .as_ref()?
        .get(SCHEDULED_FOR)?
        .parse()
        .ok()
}

fn test_key(test: &RestoreTest) -> Key {
    (
        test.metadata.namespace.clone().unwrap_or_default(),
        test.metadata.name.clone().unwrap_or_default(),
    )
}
