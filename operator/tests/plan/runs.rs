//! Restore tests from their schedule to their verdict.

use std::sync::Arc;

use api::RestoreTest;
use api::backup::DeletionPolicy;
use api::names::condition::RESTORE_TEST_PASSED;
use api::names::{INJECT_LABEL, RESTORE_TEST_LABEL, reason};
use api::restore_test::RestoreTestPhase::{Error, Failed, Passed, Pending, Running};
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use operator::cluster_state::{JobEnd, JobFacts};
use operator::plan::Change;
use protocol::Span;
use protocol::names::VERIFY_REQUEST_ENV;
use protocol::verify::{DatabaseReport, VerifyRequest, VerifyResult};

use crate::fixture::{Cluster, NAMESPACE, at, position, seconds, well};

fn hours(count: i64) -> SignedDuration {
    SignedDuration::from_hours(count)
}

/// Returns a settled cluster with one running test of this name.
fn running(name: &str) -> Cluster {
    let mut cluster = Cluster::at_rest();
    cluster.add_test(name);
    cluster.settle();
    assert_eq!(cluster.test(name).phase, Running);
    cluster
}

fn end_job(cluster: &mut Cluster, test: &str, end: JobEnd) {
    let name = cluster.test(test).job.unwrap();
    let facts = JobFacts {
        namespace: NAMESPACE.into(),
        name: name.clone(),
        end: Some(end),
        ended: Some(cluster.world.now),
        ..JobFacts::default()
    };
    cluster
        .world
        .jobs
        .insert((NAMESPACE.into(), name), Arc::new(facts));
}

fn created(changes: &[Change]) -> Vec<String> {
    let created = changes.iter().filter_map(|c| match c {
        Change::CreateTest(test) => test.metadata.name.clone(),
        _ => None,
    });
    created.collect()
}

/// Returns the Pod template of the first created Job.
fn job_pod(changes: Vec<Change>) -> PodTemplateSpec {
    let job = changes.into_iter().find_map(|c| match c {
        Change::CreateJob(job) => job.spec,
        _ => None,
    });
    job.unwrap().template
}

#[test]
fn the_schedule_makes_one_run_however_many_were_missed() {
    let mut cluster = Cluster::at_rest();
    cluster.pass_time(hours(24 * 5));
    let first = created(&cluster.settle());
    assert_eq!(first.len(), 1);
    assert!(first[0].starts_with("orders-"), "{first:?}");
    let summary = cluster.status("orders").restore_test.unwrap();
    assert_eq!(
        summary.last_schedule_time.unwrap().0,
        at("2026-11-25T03:00:00Z")
    );
    assert_eq!(summary.next_time.unwrap().0, at("2026-11-26T03:00:00Z"));
    assert_eq!(created(&cluster.settle()), Vec::<String>::new());
}

#[test]
fn two_leaders_make_the_same_run() {
    let mut cluster = Cluster::at_rest();
    cluster.pass_time(hours(24));
    let one = created(&cluster.plan().changes);
    cluster.pass_time(seconds(30));
    assert_eq!(created(&cluster.plan().changes), one);
}

#[test]
fn a_run_that_goes_on_keeps_the_next_one_back() {
    let mut cluster = running("by-hand");
    cluster.pass_time(hours(24));
    assert_eq!(created(&cluster.plan().changes), Vec::<String>::new());
}

#[test]
fn suspended_tests_are_not_made_up_for() {
    let mut cluster = Cluster::at_rest();
    cluster.edit("orders", |b| b.spec.restore_test.suspend = true);
    cluster.pass_time(hours(72));
    assert_eq!(created(&cluster.settle()), Vec::<String>::new());
    assert_eq!(
        cluster.status("orders").restore_test.unwrap().next_time,
        None
    );
    cluster.edit("orders", |b| b.spec.restore_test.suspend = false);
    assert_eq!(created(&cluster.settle()), Vec::<String>::new());
    cluster.pass_time(hours(24));
    assert_eq!(created(&cluster.settle()).len(), 1);
}

#[test]
fn a_run_is_asked_to_hold_the_backup_against_what_was_acknowledged() {
    let mut cluster = Cluster::at_rest();
    cluster.add_test("t");
    let changes = cluster.settle();
    let pod = job_pod(changes).spec.unwrap();
    let env = pod.containers[0].env.clone().unwrap();
    let request = env
        .iter()
        .find(|e| e.name == VERIFY_REQUEST_ENV)
        .unwrap()
        .value
        .clone();
    let request: VerifyRequest = serde_json::from_str(&request.unwrap()).unwrap();
    assert_eq!(request.members[0].member, "orders-0");
    assert_eq!(request.members[0].databases[0].acknowledged, position(9));
    assert_eq!(request.max_lag, Some(Span::from_secs(60)));
    assert_eq!(pod.automount_service_account_token, Some(false));
    let scratch = pod
        .volumes
        .unwrap()
        .into_iter()
        .find_map(|v| v.empty_dir)
        .unwrap();
    assert_eq!(
        scratch.size_limit.unwrap().0,
        ((3 << 19) + (256 << 20)).to_string()
    );
}

#[test]
fn the_pod_of_a_run_is_told_apart_and_never_injected() {
    let mut cluster = Cluster::at_rest();
    cluster.add_test("t");
    let pod = job_pod(cluster.settle());
    let labels = pod.metadata.unwrap().labels.unwrap();
    assert_eq!(labels[INJECT_LABEL], "false");
    assert_eq!(labels[RESTORE_TEST_LABEL], "t");
}

#[test]
fn no_run_starts_or_ends_before_the_pods_are_known() {
    let mut new = Cluster::at_rest();
    new.world.pods.clear();
    new.add_test("t");
    new.settle();
    assert_eq!(new.test("t").phase, Pending);
    assert!(new.world.jobs.is_empty());

    let mut old = running("t");
    end_job(&mut old, "t", JobEnd::Complete);
    old.pass_time(seconds(60));
    let pods = std::mem::take(&mut old.world.pods);
    assert_eq!(old.settle(), vec![], "its Pod may be there");
    old.world.pods = pods;
    old.finish_test("t", VerifyResult::Passed);
    old.settle();
    assert_eq!((old.test("t").phase, old.test("t").attempts), (Passed, 1));
}

#[test]
fn a_run_waits_for_the_first_answer_of_a_live_sidecar() {
    let mut cluster = Cluster::at_rest();
    cluster.world.reports.clear();
    cluster.add_test("t");
    cluster.settle();
    assert_eq!(cluster.test("t").phase, Pending);
    cluster.answer("orders-0", Ok(well()));
    cluster.settle();
    assert_eq!(cluster.test("t").phase, Running);
}

#[test]
fn verdicts_lead_to_phases_and_to_the_condition() {
    use VerifyResult as V;
    for (result, phase, status, reason) in [
        (V::Passed, Passed, "True", "Passed"),
        (V::Stale, Failed, "False", "Stale"),
        (V::ChecksumMismatch, Failed, "False", "ChecksumMismatch"),
        (V::Corrupt, Failed, "False", "Corrupt"),
        (V::Hole, Failed, "False", "Hole"),
        (V::CheckFailed, Failed, "False", "CheckFailed"),
        (V::NoBackupYet, Failed, "False", "NoBackupYet"),
    ] {
        let mut cluster = running("t");
        cluster.finish_test("t", result);
        cluster.settle();
        assert_eq!(cluster.test("t").phase, phase);
        cluster.assert_condition(RESTORE_TEST_PASSED, status, reason);
        let summary = cluster.status("orders").restore_test.unwrap();
        assert_eq!(summary.last_run.as_deref(), Some("t"));
        assert_eq!(summary.last_result.as_deref(), Some(reason));
        assert_eq!(summary.consecutive_failures, u32::from(phase != Passed));
        assert_eq!(summary.last_success_time.is_some(), phase == Passed);
    }
}

#[test]
fn a_pass_shows_what_it_measured_and_is_told_on_both_objects() {
    let mut cluster = running("t");
    cluster.finish_test("t", VerifyResult::Passed);
    let events = cluster.plan().events;
    let about: Vec<_> = events
        .iter()
        .map(|n| n.about.kind.clone().unwrap())
        .collect();
    assert_eq!(about, ["RestoreTest", "SqliteBackup"]);
    cluster.settle();
    let status = cluster.test("t");
    assert_eq!(
        (status.rpo_summary.as_str(), status.rto_summary.as_str()),
        ("0.0s", "1.2s")
    );
    assert_eq!(
        cluster.status("orders").restore_test.unwrap().rto_seconds,
        Some(2)
    );
}

#[test]
fn what_a_passed_run_noted_is_in_the_statuses() {
    let mut cluster = running("odd");
    let mut report = crate::fixture::report(VerifyResult::Passed);
    let reason = "table t: no such collation sequence: mine";
    report.message = format!("/data/app.db from primary: not checked: {reason}");
    report.databases.push(DatabaseReport {
        member: "orders-0".into(),
        path: "/data/app.db".into(),
        target: "primary".into(),
        result: VerifyResult::Passed,
        message: String::new(),
        resolved: None,
        not_checked: vec![reason.into()],
        notes: vec!["foreign keys: a row".into()],
        checks: Vec::new(),
    });
    cluster.end_test("odd", 0, serde_json::to_string(&report).unwrap());
    cluster.settle();
    let test = cluster.test("odd");
    assert!(test.message.contains(reason), "{}", test.message);
    let expected = format!("{reason}; foreign keys: a row");
    assert_eq!(test.databases[0].message, expected);
    cluster.assert_condition(RESTORE_TEST_PASSED, "True", "Passed");
    assert!(
        cluster
            .condition(RESTORE_TEST_PASSED)
            .message
            .contains(reason)
    );
}

#[test]
fn an_environment_failure_is_tried_again_by_the_job_and_does_not_undo_a_pass() {
    let mut cluster = running("good");
    cluster.finish_test("good", VerifyResult::Passed);
    cluster.settle();
    cluster.pass_time(seconds(60));
    cluster.add_test("bad");
    cluster.settle();
    cluster.finish_test("bad", VerifyResult::DestinationUnavailable);
    assert_eq!(cluster.settle(), vec![], "the Job has tries left");
    end_job(
        &mut cluster,
        "bad",
        JobEnd::Failed("BackoffLimitExceeded".into()),
    );
    cluster.settle();
    assert_eq!(cluster.test("bad").phase, Error);
    assert_eq!(
        cluster.test("bad").result.as_deref(),
        Some("DestinationUnavailable")
    );
    cluster.assert_condition(RESTORE_TEST_PASSED, "True", "Passed");
}

#[test]
fn a_failure_shows_although_another_run_could_not_be_carried_out_since() {
    let mut cluster = running("first");
    cluster.finish_test("first", VerifyResult::Stale);
    cluster.add_test("second");
    cluster.edit("orders", |b| {
        b.spec.deletion_policy = DeletionPolicy::Delete
    });
    cluster.settle();
    let phases = ["first", "second"].map(|name| cluster.test(name).phase);
    assert_eq!(phases, [Failed, Error]);
    let summary = cluster.status("orders").restore_test.unwrap();
    assert_eq!(summary.last_run.as_deref(), Some("second"), "both at once");
    cluster.assert_condition(RESTORE_TEST_PASSED, "False", "Stale");
}

#[test]
fn a_condition_keeps_its_verdict_while_the_next_run_goes_on() {
    let mut cluster = running("first");
    cluster.finish_test("first", VerifyResult::Stale);
    cluster.settle();
    cluster.add_test("second");
    cluster.settle();
    assert_eq!(cluster.test("second").phase, Running);
    cluster.assert_condition(RESTORE_TEST_PASSED, "False", "Stale");
}

#[test]
fn tests_that_stay_away_become_overdue_and_a_pass_heals_it() {
    let mut cluster = Cluster::at_rest();
    cluster.assert_condition(RESTORE_TEST_PASSED, "Unknown", reason::NEVER_RUN);
    cluster.pass_time(hours(24));
    let name = created(&cluster.settle()).remove(0);
    end_job(
        &mut cluster,
        &name,
        JobEnd::Failed("DeadlineExceeded".into()),
    );
    cluster.settle();
    assert_eq!(
        cluster.test(&name).result.as_deref(),
        Some(reason::TIMED_OUT)
    );
    cluster.assert_condition(RESTORE_TEST_PASSED, "Unknown", reason::TIMED_OUT);
    cluster.pass_time(hours(24));
    let next = created(&cluster.settle()).remove(0);
    cluster.assert_condition(RESTORE_TEST_PASSED, "False", reason::OVERDUE);
    cluster.finish_test(&next, VerifyResult::Passed);
    cluster.settle();
    cluster.assert_condition(RESTORE_TEST_PASSED, "True", "Passed");
}

#[test]
fn a_lost_result_is_got_again_and_not_for_ever() {
    let mut cluster = running("t");
    for attempt in 1..=3 {
        assert_eq!(cluster.test("t").attempts, attempt);
        end_job(&mut cluster, "t", JobEnd::Complete);
        assert_eq!(cluster.settle(), vec![], "the Pod may only be late");
        cluster.pass_time(seconds(20));
        cluster.settle();
    }
    assert_eq!(cluster.test("t").phase, Error);
    assert_eq!(
        cluster.test("t").result.as_deref(),
        Some(reason::RESULT_LOST)
    );
    let jobs: std::collections::BTreeSet<_> = cluster.world.jobs.keys().collect();
    assert_eq!(jobs.len(), 3, "each attempt has a Job of its own");
}

#[test]
fn a_crash_between_the_job_and_its_note_does_not_start_a_second_job() {
    let mut cluster = Cluster::at_rest();
    cluster.add_test("t");
    let name = |cluster: &Cluster| {
        cluster.plan().changes.into_iter().find_map(|c| match c {
            Change::CreateJob(job) => job.metadata.name,
            _ => None,
        })
    };
    let first = name(&cluster);
    assert!(first.is_some());
    cluster.pass_time(seconds(60));
    assert_eq!(name(&cluster), first);
}

#[test]
fn no_more_run_at_once_than_allowed_and_one_for_each_backup() {
    let mut cluster = Cluster::at_rest();
    for name in ["a", "b", "c"] {
        cluster.add_test(name);
    }
    cluster.settle();
    assert_eq!(
        ["a", "b", "c"].map(|n| cluster.test(n).phase),
        [Running, Pending, Pending]
    );
    assert!(cluster.test("b").message.contains("waits for a"));
    cluster.finish_test("a", VerifyResult::Passed);
    cluster.settle();
    assert_eq!(
        ["a", "b", "c"].map(|n| cluster.test(n).phase),
        [Passed, Running, Pending]
    );
    cluster.settings.tests_at_once = 1;
    cluster.finish_test("b", VerifyResult::Passed);
    cluster.settle();
    assert_eq!(cluster.test("c").phase, Running);
}

#[test]
fn old_runs_of_the_schedule_go_and_the_last_failed_one_stays() {
    let mut cluster = Cluster::at_rest();
    cluster.edit("orders", |b| b.spec.restore_test.failed_history_limit = 0);
    for day in 0..6 {
        cluster.pass_time(hours(24));
        let name = created(&cluster.settle()).remove(0);
        let result = if day < 2 {
            VerifyResult::Stale
        } else {
            VerifyResult::Passed
        };
        cluster.finish_test(&name, result);
        cluster.settle();
    }
    let phases: Vec<_> = cluster
        .world
        .tests
        .iter()
        .map(|t| t.status.clone().unwrap().phase)
        .collect();
    assert_eq!(phases, [Failed, Passed, Passed, Passed]);
}

#[test]
fn runs_by_hand_stay_however_many_there_are() {
    let mut cluster = Cluster::at_rest();
    cluster.edit("orders", |b| {
        b.spec.restore_test.successful_history_limit = 0;
        b.spec.restore_test.failed_history_limit = 0;
    });
    for name in ["a", "b", "c", "d"] {
        for (suffix, result) in [("1", VerifyResult::Passed), ("2", VerifyResult::Stale)] {
            let name = format!("{name}{suffix}");
            cluster.add_test(&name);
            cluster.settle();
            cluster.finish_test(&name, result);
            cluster.settle();
        }
    }
    let finished = |t: &&Arc<RestoreTest>| t.status.as_ref().unwrap().phase.is_finished();
    assert_eq!(cluster.world.tests.iter().filter(finished).count(), 8);
}

#[test]
fn a_run_of_a_missing_backup_waits_a_little_and_gives_up() {
    let mut cluster = Cluster::at_rest();
    let backups = std::mem::take(&mut cluster.world.backups);
    cluster.add_test("t");
    cluster.settle();
    assert_eq!(cluster.test("t").phase, Pending);
    cluster.pass_time(seconds(60));
    cluster.settle();
    assert_eq!(
        cluster.test("t").result.as_deref(),
        Some(reason::BACKUP_NOT_FOUND)
    );
    drop(backups);
}

#[test]
fn without_a_live_sidecar_the_members_of_before_are_restored() {
    let mut cluster = Cluster::at_rest();
    cluster.remove_pods();
    cluster.settle();
    cluster.add_test("t");
    let changes = cluster.settle();
    let job = changes.iter().find_map(|c| match c {
        Change::CreateJob(job) => serde_json::to_string(job).ok(),
        _ => None,
    });
    assert!(
        job.unwrap()
            .contains(r#"\"members\":[{\"member\":\"orders-0\"}]"#)
    );
}
