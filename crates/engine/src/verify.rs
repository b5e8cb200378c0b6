//! Proves that a backup can be restored: restores it elsewhere and compares it with the
//! acknowledged state.

use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use ltx::Txid;
use protocol::Span;
use protocol::status::Position;
use protocol::verify::{
    Check, CheckReport, DatabaseExpectation, DatabaseReport, VerifyLevel, VerifyResult,
};
use store::{SharedStore, StoreErrorKind};

use crate::replica::holes::{Exact, holes};
use crate::replica::restore_plan::{PlanError, plan_restore};
use crate::restore::litestream03::{GenerationError, rebuild};
use crate::restore::{
    Assembly, IntegrityCheck, Point, Resolved, RestoreError, Restored, Way, find,
};
use crate::source::sqlite::{Inspection, QueryResult, SqliteError, Stop};

/// Maximum time of one check, and of the check of foreign keys.
const CHECK_TIME: Duration = Duration::from_secs(60);
/// Objects fetched at the same time.
const PARALLELISM: usize = 8;

/// Parameters of the verification of one database.
#[derive(Debug, Clone)]
pub struct VerifyOptions<'a> {
    /// The member, for reports.
    pub member: &'a str,
    /// Path as configured, for reports and to find its checks.
    pub path: &'a str,
    /// The point to restore.
    pub point: Point,
    /// Depth of the verification.
    pub level: VerifyLevel,
    /// State that a live sidecar had acknowledged when the run was requested.
    pub expected: Option<&'a DatabaseExpectation>,
    /// Longest allowed lag of the target at that moment; needs `expected`.
    pub max_lag: Option<Span>,
    /// Longest allowed age of the newest stored commit. An idle database fails this limit although
    /// its backup is good, so it applies only on a person's request.
    pub max_age: Option<Span>,
    /// The span in which the target keeps each capture, where its configuration is known.
    pub exact: Option<Duration>,
    /// Checks given by the user.
    pub checks: &'a [Check],
    /// Where the database is rebuilt; removed afterwards.
    pub scratch: &'a Path,
}

/// The proof, or the failure.
#[derive(Debug, Clone)]
pub struct Verified {
    /// The report.
    pub report: DatabaseReport,
    /// Bytes read from the store.
    pub bytes: u64,
    /// Time from the start to a usable database.
    pub rto: Duration,
    /// Whether the result was compared with the acknowledged state of a live sidecar.
    pub compared: bool,
    /// Span of commits that would have been lost; none without the report of a live sidecar.
    pub rpo: Option<Duration>,
}

/// Restores one database from one target and proves it. Never fails: a failure is a verdict.
pub async fn verify(target: &str, store: &SharedStore, options: &VerifyOptions<'_>) -> Verified {
    let started = Instant::now();
    let mut verified = Verified {
        report: DatabaseReport {
            member: options.member.to_owned(),
            path: options.path.to_owned(),
            target: target.to_owned(),
            result: VerifyResult::Passed,
            message: String::new(),
            resolved: None,
            not_checked: Vec::new(),
            notes: Vec::new(),
            checks: Vec::new(),
        },
        bytes: 0,
        rto: Duration::ZERO,
        compared: false,
        rpo: None,
    };
    if let Err(failure) = prove(store, options, started, &mut verified).await {
        verified.report.result = failure.result;
        verified.report.message = failure.message.chars().take(256).collect();
    }
    verified
}

/// A verdict other than passed.
struct Failure {
    result: VerifyResult,
    message: String,
}

impl Failure {
    fn new(result: VerifyResult, message: impl Into<String>) -> Failure {
        Failure {
            result,
            message: message.into(),
        }
    }
}

async fn prove(
    store: &SharedStore,
    options: &VerifyOptions<'_>,
    started: Instant,
    verified: &mut Verified,
) -> Result<(), Failure> {
    let way = find(store, options.point).await;
    let way = way.map_err(|error| judge(&error))?;
    let expected = options.expected.filter(|_| options.point == Point::Latest);
    let output = options.scratch.join("database");
    let mut assembly = Assembly::create(&output).map_err(|error| judge(&error))?;
    let hole = match &way {
        Way::Files(resolved) => hole(resolved, options.exact),
        Way::Generation(_) => None,
    };
    match way {
        Way::Files(resolved) => {
            let level = options.level;
            fetch(&mut assembly, store, &resolved, level, expected, verified).await?;
        }
        Way::Generation(plan) => {
            if let Some(expected) = expected {
                let message = format!(
                    "a restore would give generation {} of Litestream 0.3, not TXID {}, which was \
                     acknowledged",
                    plan.id, expected.acknowledged.txid
                );
                return Err(Failure::new(VerifyResult::ChecksumMismatch, message));
            }
            let rebuilt = rebuild(&mut assembly, store, &plan, PARALLELISM, &|_, _| {}).await;
            rebuilt.map_err(|error| judge(&error))?;
        }
    }
    let integrity = match options.level {
        VerifyLevel::Quick => IntegrityCheck::Quick,
        VerifyLevel::Full | VerifyLevel::Checksum => IntegrityCheck::Full,
    };
    let restored = assembly
        .prove(integrity)
        .await
        .map_err(|error| judge(&error))?;
    verified.bytes = restored.bytes;
    verified.rto = started.elapsed();
    verified.report.resolved = Some(position_of(&restored));
    let mut is_live = false;
    if let Some(expected) = expected
        && parse_txid(&expected.acknowledged)? == restored.txid
    {
        compare(&restored, &expected.acknowledged)?;
        is_live = true;
    }
    verified.report.not_checked = clipped(&restored.checked.not_checked);
    if let Some(problem) = &restored.checked.complaint {
        let is_proven = restored.generation.is_none();
        let message = complaint(problem, is_proven, is_live);
        return Err(Failure::new(VerifyResult::IntegrityFailed, message));
    }
    if let Some(expected) = expected {
        verified.rpo = Some(Duration::from_millis(expected.lag_ms));
        judge_lag(expected, options.max_lag)?;
    }
    judge_age(restored.timestamp_ms, options.max_age, Timestamp::now())?;
    if options.level >= VerifyLevel::Full {
        let inspected = inspect(assembly.path(), options, restored.timestamp_ms).await?;
        let report = &mut verified.report;
        report.not_checked.extend(clipped(&inspected.not_checked));
        report.notes.extend(clipped(&inspected.notes));
        report.checks = inspected.checks;
        let failed = verified.report.checks.iter().find(|check| !check.ok);
        if let Some(check) = failed {
            let message = format!("check {}: {}", check.name, check.detail);
            return Err(Failure::new(VerifyResult::CheckFailed, message));
        }
    }
    // The hole comes last: the restored database is good, and a point beside it is lost.
    hole.map_or(Ok(()), Err)
}

/// A promised capture that is missing, whether or not the restored point needs it.
fn hole(resolved: &Resolved, exact: Option<Duration>) -> Option<Failure> {
    let exact = exact.map(|span| Exact {
        span,
        now_ms: Timestamp::now().as_millisecond(),
    });
    let holes = holes(&resolved.files, exact);
    let mut lost = holes.iter().filter(|hole| hole.is_exact);
    let first = lost.next()?;
    let others = match lost.count() {
        0 => String::new(),
        others => format!(", and {others} more holes"),
    };
    let message = format!(
        "the restored database is good, but stored files were lost: none gives TXID {} to {}, between \
         {} and {}{others}",
        first.first(),
        first.last(),
        first.after,
        first.next
    );
    Some(Failure::new(VerifyResult::Hole, message))
}

/// Whether the backup or the database is at fault when SQLite complains.
fn complaint(problem: &str, is_proven: bool, is_live: bool) -> String {
    let cause = match (is_proven, is_live) {
        (_, true) => "the live database has the same checksum: it is so itself, not the backup",
        (true, false) => {
            "every checksum holds and every page is there: the database was stored so, and the live \
             one should be checked"
        }
        (false, false) => {
            "Litestream 0.3 stores no checksum that proves the end of a log: the backup may differ"
        }
    };
    // Truncate the complaint, so that the cause is not cut off.
    let problem: String = problem.chars().take(120).collect();
    format!("SQLite complains: {problem}; {cause}")
}

fn clipped(texts: &[String]) -> Vec<String> {
    let clip = |text: &String| text.chars().take(256).collect();
    texts.iter().map(clip).collect()
}

/// Fetches the files of a plan into the assembly. On the way it compares the acknowledged position.
async fn fetch(
    assembly: &mut Assembly,
    store: &SharedStore,
    resolved: &Resolved,
    level: VerifyLevel,
    expected: Option<&DatabaseExpectation>,
    verified: &mut Verified,
) -> Result<(), Failure> {
    let wanted = resolved.plan.txid;
    let acknowledged = expected
        .map(|expected| parse_txid(&expected.acknowledged))
        .transpose()?;
    if let (Some(acknowledged), Some(expected)) = (acknowledged, expected)
        && wanted < acknowledged
    {
        let message = format!(
            "the newest stored position is TXID {wanted}, but TXID {acknowledged} had been \
             acknowledged at {}",
            expected.acknowledged.time
        );
        return Err(Failure::new(VerifyResult::Stale, message));
    }
    verified.compared = expected.is_some();
    // Stop at the acknowledged position, if it still is one of its own, and compare; then continue.
    let halfway = acknowledged
        .filter(|_| level == VerifyLevel::Checksum)
        .and_then(|txid| plan_restore(&resolved.files, Some(txid)).ok());
    let first = halfway.as_ref().unwrap_or(&resolved.plan);
    assembly
        .fetch(store, first, PARALLELISM, &|_, _| {})
        .await
        .map_err(|error| judge(&error))?;
    if let (Some(_), Some(expected)) = (&halfway, expected) {
        let proven = assembly
            .prove(IntegrityCheck::None)
            .await
            .map_err(|error| judge(&error))?;
        compare(&proven, &expected.acknowledged)?;
        let advanced = assembly
            .advance(store, &resolved.files, wanted, PARALLELISM)
            .await;
        advanced.map_err(|error| judge(&error))?;
    }
    Ok(())
}

fn parse_txid(position: &Position) -> Result<Txid, Failure> {
    position.txid.parse().map_err(|_| {
        let message = format!("the expected position {:?} is not a TXID", position.txid);
        Failure::new(VerifyResult::RestoreFailed, message)
    })
}

fn compare(restored: &Restored, acknowledged: &Position) -> Result<(), Failure> {
    let found = format!("{:016x}", restored.hashes.checksum());
    if found == acknowledged.checksum {
        return Ok(());
    }
    let message = format!(
        "the database at TXID {} has checksum {found}, but {} was acknowledged",
        restored.txid, acknowledged.checksum
    );
    Err(Failure::new(VerifyResult::ChecksumMismatch, message))
}

fn position_of(restored: &Restored) -> Position {
    Position {
        txid: restored.txid.to_string(),
        checksum: format!("{:016x}", restored.hashes.checksum()),
        time: time_of(restored.timestamp_ms),
    }
}

fn time_of(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Fails when commits waited for the store longer than allowed.
fn judge_lag(expected: &DatabaseExpectation, limit: Option<Span>) -> Result<(), Failure> {
    match limit {
        Some(limit) if expected.lag_ms > limit.as_millis() => {
            let message = format!(
                "commits have waited {} ms, longer than {limit}",
                expected.lag_ms
            );
            Err(Failure::new(VerifyResult::Stale, message))
        }
        _ => Ok(()),
    }
}

/// Fails when the newest commit, of `ms`, is older than allowed at `now`.
fn judge_age(ms: i64, limit: Option<Span>, now: Timestamp) -> Result<(), Failure> {
    let Some(limit) = limit else {
        return Ok(());
    };
    let time = time_of(ms);
    let age = now.duration_since(time);
    // A time in the future is from another machine's clock, and counts as new.
    if age.is_negative() || age.unsigned_abs() <= limit.0 {
        return Ok(());
    }
    let message = format!("the newest stored commit is of {time}, older than {limit}");
    Err(Failure::new(VerifyResult::Stale, message))
}

/// The verdict on a backup, from an error of its restore.
pub fn judge_restore(error: &RestoreError) -> VerifyResult {
    match error {
        RestoreError::Store(error) => match error.kind() {
            StoreErrorKind::Denied | StoreErrorKind::CredentialsMissing => {
                VerifyResult::CredentialsInvalid
            }
            StoreErrorKind::Missing => VerifyResult::Hole,
            _ => VerifyResult::DestinationUnavailable,
        },
        RestoreError::Remote(_) | RestoreError::PageSizeChanged { .. } => VerifyResult::Corrupt,
        RestoreError::Generation(GenerationError::Damaged { .. }) => VerifyResult::Corrupt,
        RestoreError::Plan(PlanError::Empty) => VerifyResult::NoBackupYet,
        RestoreError::Plan(_)
        | RestoreError::Generation(_)
        | RestoreError::TooEarly { .. }
        | RestoreError::HoleAtTime { .. }
        | RestoreError::MissingPage { .. } => VerifyResult::Hole,
        RestoreError::Integrity { .. } => VerifyResult::IntegrityFailed,
        RestoreError::Io { source, .. } if crate::env::disk::is_disk_full(source) => {
            VerifyResult::ScratchTooSmall
        }
        RestoreError::Sqlite(_)
        | RestoreError::Exists { .. }
        | RestoreError::Link { .. }
        | RestoreError::InUse { .. }
        | RestoreError::Io { .. } => VerifyResult::RestoreFailed,
    }
}

fn judge(error: &RestoreError) -> Failure {
    Failure::new(judge_restore(error), error.to_string())
}

/// The findings in a restored database.
struct Inspected {
    not_checked: Vec<String>,
    notes: Vec<String>,
    checks: Vec<CheckReport>,
}

/// Checks foreign keys and runs the user's checks, on a thread that may block. When the future is
/// dropped, the running statement ends.
async fn inspect(
    path: &Path,
    options: &VerifyOptions<'_>,
    timestamp_ms: i64,
) -> Result<Inspected, Failure> {
    let mine = options.checks.iter();
    let mine = mine.filter(|check| applies(check, options.path));
    let mine: Vec<Check> = mine.cloned().collect();
    let (path, at) = (path.to_owned(), time_of(timestamp_ms));
    let stop = Stop::default();
    let _ends_with_us = stop.on_drop();
    let inspected = tokio::task::spawn_blocking(move || inspect_file(&path, &mine, at, &stop));
    let inspected = inspected.await.expect("an inspection does not panic");
    inspected.map_err(|error| Failure::new(VerifyResult::RestoreFailed, error.to_string()))
}

fn inspect_file(
    path: &Path,
    checks: &[Check],
    at: Timestamp,
    stop: &Stop,
) -> Result<Inspected, SqliteError> {
    let mut inspection = Inspection::open_until(path, stop)?;
    let (mut not_checked, mut notes) = (Vec::new(), Vec::new());
    // SQLite enforces foreign keys only where the application asks for it, so a backup of a
    // database with orphans is good. A user who forbids orphans adds a check.
    match inspection.foreign_key_check(CHECK_TIME) {
        Ok(checked) => {
            let told = |text: String| format!("foreign keys: {text}");
            notes.extend(checked.complaint.map(told));
            not_checked.extend(checked.not_checked.into_iter().map(told));
        }
        Err(error) if error.is_interrupt() => {
            let seconds = CHECK_TIME.as_secs();
            not_checked.push(format!("foreign keys: not done after {seconds} s"));
        }
        Err(error) => not_checked.push(format!("foreign keys: {}", error.message)),
    }
    let run = |check: &Check| {
        let outcome = inspection
            .query(&check.query, CHECK_TIME)
            .map_err(|error| error.to_string())
            .and_then(|found| evaluate(check, &found, at));
        let (ok, detail) = match outcome {
            Ok(detail) => (true, detail),
            Err(detail) => (false, detail),
        };
        CheckReport {
            name: check.name.clone(),
            ok,
            detail: detail.chars().take(256).collect(),
        }
    };
    Ok(Inspected {
        checks: checks.iter().map(run).collect(),
        not_checked,
        notes,
    })
}

/// Whether a check applies to this database: by path, by file name, or to every one.
fn applies(check: &Check, path: &str) -> bool {
    match check.database.as_deref() {
        None | Some("*") => true,
        Some(name) => name == path || path.rsplit('/').next() == Some(name),
    }
}

/// Compares a result with a check; `at` is the time of the restored point.
///
/// # Errors
///
/// The found and the expected value.
pub fn evaluate(check: &Check, found: &QueryResult, at: Timestamp) -> Result<String, String> {
    let shown = found.first.clone().unwrap_or_else(|| "NULL".to_owned());
    if let Some(rows) = check.rows {
        let text = format!("{} rows, expected {rows}", found.rows);
        return if found.rows == rows {
            Ok(text)
        } else {
            Err(text)
        };
    }
    if let Some(wanted) = &check.equals {
        let text = format!("{shown:?}, expected {wanted:?}");
        return if found.first.as_ref() == Some(wanted) {
            Ok(text)
        } else {
            Err(text)
        };
    }
    if let Some(limit) = check.max_age {
        let time = found.first.as_deref().and_then(parse_time);
        let Some(time) = time else {
            return Err(format!("{shown:?} is not a time"));
        };
        let text = format!("{time}, at most {limit} before {at}");
        let age = at.duration_since(time);
        let fresh = age.is_negative() || age.unsigned_abs() <= limit.0;
        return if fresh { Ok(text) } else { Err(text) };
    }
    let number = found
        .first
        .as_deref()
        .and_then(|text| text.parse::<f64>().ok());
    let Some(number) = number else {
        return Err(format!("{shown:?} is not a number"));
    };
    let (low, high) = (check.min.unwrap_or(i64::MIN), check.max.unwrap_or(i64::MAX));
    let text = match (check.min, check.max) {
        (Some(min), Some(max)) => format!("{shown}, expected {min} to {max}"),
        (Some(min), None) => format!("{shown}, expected at least {min}"),
        (None, Some(max)) => format!("{shown}, expected at most {max}"),
        (None, None) => return Err("the check expects nothing".to_owned()),
    };
    if number >= low as f64 && number <= high as f64 {
        Ok(text)
    } else {
        Err(text)
    }
}

/// Parses a time as applications store it: RFC 3339, SQLite's `YYYY-MM-DD HH:MM:SS` in UTC, or a
/// Unix time in seconds or, beyond 10^11, milliseconds.
fn parse_time(text: &str) -> Option<Timestamp> {
    if let Ok(number) = text.parse::<f64>() {
        let ms = if number.abs() > 1e11 {
            number
        } else {
            number * 1000.0
        };
        return Timestamp::from_millisecond(ms as i64).ok();
    }
    text.parse::<Timestamp>().ok().or_else(|| {
        let civil: DateTime = text.parse().ok()?;
        Some(civil.to_zoned(TimeZone::UTC).ok()?.timestamp())
    })
}

#[cfg(test)]
mod tests;
