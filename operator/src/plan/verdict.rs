//! Result of the Job of a restore test.

use api::names::reason;
use api::restore_test::{RestoreTestPhase, RestoreTestStatus, TestedCheck, TestedDatabase};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use protocol::verify::{VerifyReport, VerifyResult};

use super::conditions::whole_second;
use super::lag::measured;
use crate::cluster_state::{Ended, JobEnd, JobFacts, PodFacts};

/// Time by which the watches of Jobs and Pods may differ.
const SETTLE: SignedDuration = SignedDuration::from_secs(20);

/// Time beyond a Job's deadline that Kubernetes gets to enforce it.
const ENFORCE: SignedDuration = SignedDuration::from_mins(5);

/// Limit on the databases in the status of a RestoreTest.
const DATABASES_MAX: usize = 32;

/// Limit on the quote from an unreadable message, in characters.
const EXCERPT: usize = 200;

/// State of a run.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It continues; the next step is due at this time, if any.
    Waiting(Option<Timestamp>),
    /// It has ended with this status.
    Finished(Box<RestoreTestStatus>),
    /// It has ended and its result was lost, for this reason.
    Lost(&'static str),
}

/// Evaluates a run whose Job was created, from its status, its Job and its Pods.
pub fn look(
    status: &RestoreTestStatus,
    job: Option<&JobFacts>,
    pods: &[&PodFacts],
    deadline: SignedDuration,
    now: Timestamp,
) -> Outcome {
    let started = status.started.as_ref().map_or(now, |t| t.0);
    let ended: Vec<&Ended> = pods.iter().filter_map(|p| p.verdict.as_ref()).collect();
    let reports: Vec<VerifyReport> = ended.iter().filter_map(|e| parse(e)).collect();
    if let Some(report) = reports.iter().find(|r| is_final(r.result)) {
        return finished(reported(status, report, now));
    }
    let Some(job) = job else {
        let gone = started + SETTLE;
        return if now >= gone {
            Outcome::Lost("its Job no longer exists")
        } else {
            Outcome::Waiting(Some(gone))
        };
    };
    match &job.end {
        None => {
            let late = started + deadline + ENFORCE;
            match now >= late {
                true => finished(timed_out(status, now)),
                false => Outcome::Waiting(Some(late)),
            }
        }
        Some(JobEnd::Failed(why)) if why == "DeadlineExceeded" => finished(timed_out(status, now)),
        Some(end) => {
            if let Some(report) = reports.last() {
                return finished(reported(status, report, now));
            }
            if let Some(ended) = ended.last() {
                return finished(unreadable(status, ended, now));
            }
            let settled = job.ended.unwrap_or(started) + SETTLE;
            match (now >= settled, end) {
                (false, _) => Outcome::Waiting(Some(settled)),
                (true, JobEnd::Complete) => Outcome::Lost("its Pod no longer exists"),
                (true, JobEnd::Failed(_)) => Outcome::Lost("its Pods no longer exist"),
            }
        }
    }
}

fn finished(status: RestoreTestStatus) -> Outcome {
    Outcome::Finished(Box::new(status))
}

fn parse(ended: &Ended) -> Option<VerifyReport> {
    serde_json::from_str(&ended.message).ok()
}

/// Whether a retry could not change the result.
fn is_final(result: VerifyResult) -> bool {
    !result.exit_code().is_environment()
}

/// The phase for a result.
fn phase(result: VerifyResult) -> RestoreTestPhase {
    match result {
        VerifyResult::Passed => RestoreTestPhase::Passed,
        result if result.exit_code().is_environment() => RestoreTestPhase::Error,
        _ => RestoreTestPhase::Failed,
    }
}

/// The status of a run that ended without a result for the backup.
pub fn error(
    status: &RestoreTestStatus,
    result: &str,
    message: &str,
    now: Timestamp,
) -> RestoreTestStatus {
    RestoreTestStatus {
        phase: RestoreTestPhase::Error,
        result: Some(result.to_owned()),
        message: message.to_owned(),
        finished: Some(Time(whole_second(now))),
        ..status.clone()
    }
}

fn timed_out(status: &RestoreTestStatus, now: Timestamp) -> RestoreTestStatus {
    let message = "the deadline passed, so nothing is known about the backup. \
                   Check that the Pod of the Job can be scheduled and can pull its image; \
                   Large databases need a longer spec.restoreTest.deadline";
    error(status, reason::TIMED_OUT, message, now)
}

fn unreadable(status: &RestoreTestStatus, ended: &Ended, now: Timestamp) -> RestoreTestStatus {
    let excerpt: String = ended.message.trim().chars().take(EXCERPT).collect();
    let message = format!(
        "the test ended with exit code {}: {excerpt}",
        ended.exit_code
    );
    error(
        status,
        "RestoreFailed",
        message.trim_end_matches([':', ' ']),
        now,
    )
}

fn reported(
    status: &RestoreTestStatus,
    report: &VerifyReport,
    now: Timestamp,
) -> RestoreTestStatus {
    RestoreTestStatus {
        phase: phase(report.result),
        result: Some(format!("{:?}", report.result)),
        message: report.message.clone(),
        job: status.job.clone(),
        attempts: status.attempts,
        started: status.started.clone(),
        finished: Some(Time(whole_second(now))),
        passed: Some(report.passed),
        failed: Some(report.failed),
        bytes: Some(report.bytes),
        rpo_seconds: report.rpo_ms.map(|ms| ms.div_ceil(1000)),
        rpo_summary: match report.rpo_ms {
            Some(ms) => measured(ms),
            None => "NotEvaluated".to_owned(),
        },
        rto_seconds: report.rto_ms.map(|ms| ms.div_ceil(1000)),
        rto_summary: report.rto_ms.map(measured).unwrap_or_default(),
        sqlite_version: report.sqlite_version.clone(),
        databases: report
            .databases
            .iter()
            .take(DATABASES_MAX)
            .map(tested)
            .collect(),
    }
}

fn tested(database: &protocol::verify::DatabaseReport) -> TestedDatabase {
    let check = |c: &protocol::verify::CheckReport| TestedCheck {
        name: c.name.clone(),
        ok: c.ok,
        detail: c.detail.clone(),
    };
    TestedDatabase {
        member: database.member.clone(),
        path: database.path.clone(),
        target: database.target.clone(),
        result: format!("{:?}", database.result),
        message: match database.message.as_str() {
            "" => [&database.not_checked[..], &database.notes]
                .concat()
                .join("; "),
            message => message.to_owned(),
        },
        txid: database.resolved.as_ref().map(|p| p.txid.clone()),
        checks: database
            .checks
            .iter()
            .take(DATABASES_MAX)
            .map(check)
            .collect(),
    }
}
