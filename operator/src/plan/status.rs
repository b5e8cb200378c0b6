//! Status of a SqliteBackup, derived from its members and restore tests.

use std::collections::BTreeMap;

use api::names::{INJECT_LABEL, condition, reason};
use api::restore_test::RestoreTestPhase;
use api::status::{MEMBERS_SHOWN, MemberStatus, PodsStatus, ReplicationStatus, TestSummary};
use api::{SqliteBackup, SqliteBackupStatus};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::acceptance::Acceptance;
use super::conditions::{ConditionStatus, Conditions, whole_second};
use super::health::{self, Finding};
use super::members::{Member, View, members};
use super::restore_tests::{Runs, is_suspended};
use super::{Change, Plan, Settings, events, key, lag};
use crate::answer::Answer;
use crate::cluster_state::ClusterState;
use crate::inject;
use crate::schedule::Schedule;

/// Minimum time between two writes of figures that change all the time.
const REFRESH: SignedDuration = SignedDuration::from_secs(30);

/// Additional time for each SqliteBackup in the cluster, in milliseconds.
const REFRESH_EACH_MS: i64 = 400;

/// Plans the status of one SqliteBackup, and the Events about its changes.
pub fn plan(
    cluster: &ClusterState,
    settings: &Settings,
    backup: &SqliteBackup,
    acceptance: &Acceptance,
    runs: Runs,
    plan: &mut Plan,
) {
    let old = backup.status.clone().unwrap_or_default();
    let members = members(cluster, backup);
    let mut conditions = Conditions::new(&old.conditions, backup.metadata.generation, cluster.now);

    ready(backup, acceptance, &mut conditions);
    let pods = pods(backup, &members, settings);
    injected(&pods, &members, &mut conditions);
    set(
        &mut conditions,
        condition::REPLICATING,
        health::replicating(backup, &members),
    );
    set(
        &mut conditions,
        condition::CREDENTIALS_VALID,
        health::credentials(&members),
    );
    let schedule = acceptance.schedule();
    let summary = tests(cluster, backup, schedule, runs, old.restore_test.as_ref());
    let overdue = verdict(cluster, backup, schedule, &summary, &mut conditions);
    plan.wake_at(overdue);
    set(
        &mut conditions,
        condition::WRITER_CONFLICT,
        conflict(backup, acceptance, &members),
    );

    restored_cleanly(&members, &mut conditions);

    let new = SqliteBackupStatus {
        observed_generation: backup.metadata.generation,
        conditions: conditions.finish(),
        pods: Some(pods),
        replication: Some(replication(&members, old.replication.as_ref())),
        members: shown(backup, &members, &old.members),
        restore_test: Some(summary.summary),
    };
    if backup.status.is_none() || is_worth_writing(&old, &new, cluster.backups.len()) {
        plan.events
            .extend(events::changes(backup, &old.conditions, &new.conditions));
        plan.changes
            .push(Change::BackupStatus(key(backup), Box::new(new)));
    }
}

fn set(conditions: &mut Conditions, type_: &str, finding: Finding) {
    conditions.set(type_, finding.status, finding.reason, finding.message);
}

fn ready(backup: &SqliteBackup, acceptance: &Acceptance, conditions: &mut Conditions) {
    let (status, reason, message) = match acceptance {
        Acceptance::Refused(refused) => (false, refused.reason, refused.message.clone()),
        Acceptance::Accepted(_) if backup.spec.suspend => {
            let message = "suspended: new Pods get no sidecar, and no restore tests are scheduled";
            (true, reason::SUSPENDED, message.to_owned())
        }
        Acceptance::Accepted(_) => (true, reason::ACCEPTED, "the spec is in force".to_owned()),
    };
    conditions.set(condition::READY, status, reason, message);
}

/// Sets `RestoredCleanly` while an application runs on a database that fails SQLite's own check.
fn restored_cleanly(members: &[Member<'_>], conditions: &mut Conditions) {
    let complaints = members.iter().filter_map(|member| {
        let first = member.pod.startup_notes.complaints.first()?;
        Some((member.pod.name.as_str(), first))
    });
    let complaints: Vec<_> = complaints.collect();
    let Some((pod, complaint)) = complaints.first() else {
        return;
    };
    let others = match complaints.len() - 1 {
        0 => String::new(),
        others => format!(" (and {others} more Pods)"),
    };
    let message = format!(
        "Pod {pod}{others} runs on a restored database that SQLite complains about, {complaint}; every \
         checksum holds, so the database was so before; repair it, or set startup.onCheckFailed: Block"
    );
    let type_ = condition::RESTORED_CLEANLY;
    conditions.set(type_, false, reason::CHECK_FAILED, message);
}

fn pods(backup: &SqliteBackup, members: &[Member<'_>], settings: &Settings) -> PodsStatus {
    let current = inject::fingerprint(backup, &settings.inject);
    let count = |test: &dyn Fn(&Member<'_>) -> bool| {
        u32::try_from(members.iter().filter(|m| test(m)).count()).unwrap_or(u32::MAX)
    };
    let is_injected = |m: &Member<'_>| m.view != View::NotInjected;
    let desired = count(&|_| true);
    let replicating = count(&|m| m.answer().is_some_and(|a| health::is_well(backup, a)));
    PodsStatus {
        desired,
        injected: count(&is_injected),
        replicating,
        outdated: count(&|m| is_injected(m) && m.pod.injection.as_ref() != Some(&current)),
        summary: format!("{replicating}/{desired}"),
    }
}

fn injected(pods: &PodsStatus, members: &[Member<'_>], conditions: &mut Conditions) {
    let missing: Vec<&str> = members
        .iter()
        .filter(|m| m.view == View::NotInjected)
        .map(|m| m.pod.name.as_str())
        .take(3)
        .collect();
    let (status, reason, message) = if pods.desired == 0 {
        (
            ConditionStatus::Unknown,
            reason::NO_PODS,
            "no live Pod matches spec.selector".to_owned(),
        )
    } else if !missing.is_empty() {
        let message = format!(
            "Pods without the sidecar are not backed up: {}; \
             recreate them, or label them {INJECT_LABEL}=false",
            missing.join(", ")
        );
        (
            ConditionStatus::False,
            reason::PODS_MISSING_SIDECAR,
            message,
        )
    } else if pods.outdated > 0 {
        let message = "some Pods have an outdated sidecar; they get the new one when they are \
                       created again";
        (ConditionStatus::False, reason::OUTDATED, message.to_owned())
    } else {
        let message = "every live Pod has the current sidecar";
        (
            ConditionStatus::True,
            reason::ALL_INJECTED,
            message.to_owned(),
        )
    };
    conditions.set(condition::INJECTED, status, reason, message);
}

fn conflict(backup: &SqliteBackup, acceptance: &Acceptance, members: &[Member<'_>]) -> Finding {
    if let Acceptance::Refused(refused) = acceptance
        && let Some(reason) = refused.conflict
    {
        return Finding::new(ConditionStatus::True, reason, refused.message.clone());
    }
    let mut by_member: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for member in members.iter().filter(|m| m.view != View::NotInjected) {
        by_member
            .entry(&member.name)
            .or_default()
            .push(&member.pod.name);
    }
    if let Some(pods) = by_member.values().find(|pods| pods.len() > 1) {
        let message = format!(
            "Pods {} serve one member, and only one of them can replicate; \
             use a StatefulSet, or one replica with strategy Recreate",
            pods[..2].join(" and ")
        );
        return Finding::new(ConditionStatus::True, reason::TOO_MANY_REPLICAS, message);
    }
    let apart = backup.spec.targets.iter().filter_map(|t| t.place());
    let shared = apart.filter(|p| !p.prefix().contains("{member}")).count() > 0;
    if shared && by_member.len() > 1 {
        let message = "several members write to one prefix; put {member} into it";
        return Finding::new(ConditionStatus::True, reason::SAME_DESTINATION, message);
    }
    let superseded = members
        .iter()
        .find(|m| m.answer().is_some_and(health::is_superseded));
    if let Some(member) = superseded {
        let message = format!(
            "another writer has taken over a replica of Pod {}; \
             find it by the holder in the store's lease",
            member.pod.name
        );
        return Finding::new(ConditionStatus::True, reason::SUPERSEDED, message);
    }
    Finding::new(
        ConditionStatus::False,
        reason::ONE_WRITER,
        "every replica has one writer",
    )
}

fn replication(members: &[Member<'_>], old: Option<&ReplicationStatus>) -> ReplicationStatus {
    // The time of the last acknowledgement stays valid while sidecars do not answer.
    let before = old.and_then(|r| r.last_sync_time.as_ref()).map(|t| t.0);
    let answers: Vec<&Answer> = members.iter().filter_map(Member::answer).collect();
    let unreachable = members
        .iter()
        .any(|m| matches!(m.view, View::Unreachable(_)));
    let lag = answers
        .iter()
        .map(|a| a.lag_ms)
        .max()
        .map(lag::step_seconds);
    let position = match answers.as_slice() {
        [answer] if answer.count == 1 => {
            let stored = answer.acknowledged.iter().map(|a| &a.acknowledged.txid);
            stored.max().cloned()
        }
        _ => None,
    };
    ReplicationStatus {
        lag_seconds: lag.filter(|_| !unreachable),
        lag_summary: match lag {
            _ if unreachable => "unknown".to_owned(),
            Some(seconds) => lag::text(seconds),
            None => String::new(),
        },
        backlog_bytes: (!answers.is_empty()).then(|| {
            answers
                .iter()
                .map(|a| a.backlog_bytes)
                .fold(0, u64::saturating_add)
        }),
        last_sync_time: answers
            .iter()
            .filter_map(|a| a.last_sync)
            .chain(before)
            .max()
            .map(stored),
        position,
    }
}

fn stored(at: Timestamp) -> Time {
    Time(whole_second(at))
}

/// The worst members. Without live members, those of the previous status stay: a restore test needs
/// their names.
fn shown(backup: &SqliteBackup, members: &[Member<'_>], old: &[MemberStatus]) -> Vec<MemberStatus> {
    if members.is_empty() {
        let gone = |m: &MemberStatus| MemberStatus {
            name: m.name.clone(),
            pod: m.pod.clone(),
            state: reason::NO_PODS.to_owned(),
            databases: m.databases,
            last_sync_time: m.last_sync_time.clone(),
            ..MemberStatus::default()
        };
        return old.iter().map(gone).collect();
    }
    let mut all: Vec<(health::Severity, MemberStatus)> =
        members.iter().map(|it| member(backup, it)).collect();
    all.sort_by(|(a, x), (b, y)| b.cmp(a).then_with(|| x.pod.cmp(&y.pod)));
    all.into_iter()
        .map(|(_, status)| status)
        .take(MEMBERS_SHOWN)
        .collect()
}

fn member(backup: &SqliteBackup, member: &Member<'_>) -> (health::Severity, MemberStatus) {
    let (severity, state, message) = health::member(backup, member);
    let answer = member.answer();
    let status = MemberStatus {
        name: member.name.clone(),
        pod: member.pod.name.clone(),
        state,
        message,
        databases: answer.map_or(0, |a| u32::try_from(a.count).unwrap_or(u32::MAX)),
        lag_seconds: answer.map(|a| lag::step_seconds(a.lag_ms)),
        backlog_bytes: answer.map(|a| a.backlog_bytes),
        last_sync_time: answer.and_then(|a| a.last_sync).map(stored),
    };
    (severity, status)
}

/// Summary of restore tests, and the result of the run that ended since the previous status.
struct Tests {
    summary: TestSummary,
    latest: Option<(RestoreTestPhase, String, String)>,
}

fn tests(
    cluster: &ClusterState,
    backup: &SqliteBackup,
    schedule: Option<&Schedule>,
    runs: Runs,
    old: Option<&TestSummary>,
) -> Tests {
    let mut summary = old.cloned().unwrap_or_default();
    let mut latest = None;
    for (name, run) in &runs.finished {
        let Some(at) = &run.finished else { continue };
        let seen = summary.last_finish_time.as_ref().is_some_and(|last| {
            (last.0, summary.last_run.as_deref().unwrap_or_default()) >= (at.0, name.as_str())
        });
        if seen {
            continue;
        }
        let result = run.result.clone().unwrap_or_default();
        summary.last_run = Some(name.clone());
        summary.last_result = Some(result.clone());
        summary.last_finish_time = Some(at.clone());
        if run.phase == RestoreTestPhase::Passed {
            summary.last_success_time = Some(at.clone());
            summary.consecutive_failures = 0;
            summary.rpo_seconds = run.rpo_seconds;
            summary.rto_seconds = run.rto_seconds;
        } else {
            summary.consecutive_failures += 1;
        }
        // A run with an error proves nothing: an earlier result in this list stays the relevant
        // one.
        if run.phase != RestoreTestPhase::Error || latest.is_none() {
            latest = Some((run.phase, result, run.message.clone()));
        }
    }
    summary.running = runs.running;
    summary.last_schedule_time = runs.scheduled.map(stored);
    summary.next_time = match schedule {
        Some(schedule) if !is_suspended(backup) => schedule.next(cluster.now).map(stored),
        _ => None,
    };
    Tests { summary, latest }
}

/// Sets `RestoreTestPassed`, and returns the time at which it becomes overdue.
///
/// Only a run that verified the data changes the condition. Running and failed runs keep it, until
/// it is overdue.
fn verdict(
    cluster: &ClusterState,
    backup: &SqliteBackup,
    schedule: Option<&Schedule>,
    tests: &Tests,
    conditions: &mut Conditions,
) -> Option<Timestamp> {
    let type_ = condition::RESTORE_TEST_PASSED;
    let had_verdict = conditions
        .old(type_)
        .is_some_and(|c| c.status != "Unknown" && c.reason != reason::OVERDUE);
    match &tests.latest {
        Some((RestoreTestPhase::Passed, result, noted)) => {
            let verified = "the last restore test verified every database";
            let message = match noted.as_str() {
                "" => verified.to_owned(),
                noted => format!("{verified}; noted: {noted}"),
            };
            conditions.set(type_, true, result, message);
        }
        Some((RestoreTestPhase::Failed, result, message)) => {
            conditions.set(type_, false, result, message.as_str());
        }
        Some((_, result, message)) if !had_verdict => {
            conditions.set(type_, ConditionStatus::Unknown, result, message.as_str());
        }
        _ if conditions.keep(type_) => {}
        _ => conditions.set(
            type_,
            ConditionStatus::Unknown,
            reason::NEVER_RUN,
            "no restore test has ended yet",
        ),
    }
    if is_suspended(backup) {
        return None;
    }
    let passed = tests.summary.last_success_time.as_ref();
    let since = passed.or(backup.metadata.creation_timestamp.as_ref())?.0;
    let deadline = SignedDuration::try_from(backup.spec.restore_test.deadline.0).ok()?;
    let overdue = schedule?.overdue_after(since)?.checked_add(deadline).ok()?;
    if cluster.now < overdue {
        return Some(overdue);
    }
    if conditions.is_false(type_) {
        return None;
    }
    let message = match &tests.summary.last_result {
        Some(result) => format!(
            "no restore test has passed for two scheduled times; the last one ended with {result}"
        ),
        None => "two scheduled times have passed and no restore test has ended".to_owned(),
    };
    conditions.set(type_, false, reason::OVERDUE, message);
    None
}

/// Whether a status differs by more than figures that change all the time, or these are due.
fn is_worth_writing(old: &SqliteBackupStatus, new: &SqliteBackupStatus, backups: usize) -> bool {
    if still(old) != still(new) {
        return true;
    }
    let lag = |s: &SqliteBackupStatus| s.replication.as_ref().and_then(|r| r.lag_seconds);
    let far = match (lag(old), lag(new)) {
        (Some(old), Some(new)) => old.abs_diff(new) >= 3,
        (old, new) => old != new,
    };
    let sync = |s: &SqliteBackupStatus| {
        s.replication
            .as_ref()
            .and_then(|r| r.last_sync_time.as_ref())
            .map(|t| t.0)
    };
    let refresh = i64::try_from(backups).map_or(REFRESH, |n| {
        REFRESH.max(SignedDuration::from_millis(
            n.saturating_mul(REFRESH_EACH_MS),
        ))
    });
    far || match (sync(old), sync(new)) {
        (Some(old), Some(new)) => new.duration_since(old).abs() >= refresh,
        (old, new) => old != new,
    }
}

/// A status without the figures that change all the time.
fn still(status: &SqliteBackupStatus) -> SqliteBackupStatus {
    let mut status = status.clone();
    if let Some(replication) = &mut status.replication {
        let unknown = replication.lag_seconds.is_none();
        *replication = ReplicationStatus {
            lag_summary: if unknown {
                replication.lag_summary.clone()
            } else {
                String::new()
            },
            ..ReplicationStatus::default()
        };
    }
    for member in &mut status.members {
        member.lag_seconds = None;
        member.backlog_bytes = None;
        member.last_sync_time = None;
    }
    status
}
