//! `verify`: a restore test, for people and for the operator's Jobs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use engine::replica::retention::RetentionPolicy;
use engine::replication::DatabaseSettings;
use engine::replication::uploader::TargetSettings;
use engine::restore::Point;
use engine::verify::{Verified, VerifyOptions, verify};
use jiff::Timestamp;
use protocol::Span;
use protocol::config::Config;
use protocol::exit::ExitCode;
use protocol::names::{MEMBER_ENV, TERMINATION_MESSAGE_BYTES};
use protocol::verify::{
    Check, MemberExpectation, Point as AskedPoint, VerifyLevel, VerifyReport, VerifyRequest,
    VerifyResult,
};
use store::Opener;
use tempfile::TempDir;

use super::restore::add_stored;
use crate::args::{VerifyArguments, holder, variable};
use crate::config::{self, Found};
use crate::failure::Failure;

/// Restores, proves and reports. A verdict is not an error: it is the exit code.
///
/// # Errors
///
/// An invalid request, or scratch space that cannot be created.
pub async fn run(arguments: VerifyArguments) -> Result<ExitCode, Failure> {
    let started = Timestamp::now();
    let request = request(&arguments)?;
    let point = point(&request.point)?;
    let max_age = arguments.max_lag.filter(|_| arguments.request.is_none());
    let scratch = scratch(arguments.scratch.as_deref())?;
    let mut opener = Opener::new();
    let mut all = Vec::new();
    for member in &request.members {
        for database in databases(&arguments, member, &mut opener).await? {
            let scratch = scratch.path();
            all.extend(
                each_target(
                    &arguments, &request, member, &database, point, max_age, scratch,
                )
                .await,
            );
        }
    }
    let report = report(all, started);
    publish(&arguments, &report)?;
    Ok(report.result.exit_code())
}

/// Proves every target of a database: without a restore from it, a target's state is unknown.
async fn each_target(
    arguments: &VerifyArguments,
    request: &VerifyRequest,
    member: &MemberExpectation,
    database: &DatabaseSettings,
    point: Point,
    max_age: Option<Span>,
    scratch: &Path,
) -> Vec<Verified> {
    let path = database.path.display().to_string();
    let mut all = Vec::new();
    for TargetSettings {
        name,
        store,
        retention,
        ..
    } in &database.targets
    {
        let expected = member
            .databases
            .iter()
            .find(|expected| expected.path == path && expected.target == *name);
        let options = VerifyOptions {
            member: &member.member,
            path: &path,
            point,
            level: request.level,
            expected,
            max_lag: request.max_lag,
            max_age,
            exact: arguments.config.as_ref().and_then(|_| exact(retention)),
            checks: &request.checks,
            scratch,
        };
        all.push(verify(name, store, &options).await);
    }
    all
}

/// Returns the age up to which a target keeps each capture; `None` when nothing is deleted.
fn exact(retention: &RetentionPolicy) -> Option<Duration> {
    let span = retention.exact.min(retention.window);
    retention.enabled.then_some(span)
}

fn request(arguments: &VerifyArguments) -> Result<VerifyRequest, Failure> {
    if let Some(text) = &arguments.request {
        return serde_json::from_str(text).map_err(Failure::usage);
    }
    let checks = match &arguments.checks {
        None => Vec::new(),
        Some(file) => {
            let text = std::fs::read_to_string(file).map_err(|error| {
                Failure::message(ExitCode::Usage, format!("{}: {error}", file.display()))
            })?;
            serde_yaml::from_str::<Vec<Check>>(&text).map_err(|error| {
                Failure::message(ExitCode::Usage, format!("{}: {error}", file.display()))
            })?
        }
    };
    let member = variable(MEMBER_ENV).unwrap_or_default();
    Ok(VerifyRequest {
        level: VerifyLevel::Full,
        point: AskedPoint::Latest,
        members: vec![MemberExpectation {
            member,
            databases: Vec::new(),
        }],
        max_lag: None,
        checks,
    })
}

fn point(asked: &AskedPoint) -> Result<Point, Failure> {
    Ok(match asked {
        AskedPoint::Latest => Point::Latest,
        AskedPoint::Timestamp(time) => Point::Timestamp(*time),
        AskedPoint::Txid(text) => Point::Txid(text.parse().map_err(|_| {
            Failure::message(
                ExitCode::Usage,
                format!("{text:?} is not a TXID of 16 hex digits"),
            )
        })?),
    })
}

/// Returns the databases of one member: those that the configuration names, and those of its
/// patterns that have a backup or that a live sidecar had stored. So a database whose whole backup
/// is gone is detected.
async fn databases(
    arguments: &VerifyArguments,
    member: &MemberExpectation,
    opener: &mut Opener,
) -> Result<Vec<DatabaseSettings>, Failure> {
    let of_member = |name: &str| {
        if name == MEMBER_ENV {
            Some(member.member.clone())
        } else {
            variable(name)
        }
    };
    let config: Config = match (&arguments.config, &arguments.url) {
        (Some(file), _) => config::read(file, &of_member).map_err(Failure::usage)?,
        (None, Some(url)) => config::for_url(PathBuf::from("database"), url.clone()),
        (None, None) => {
            return Err(Failure::message(
                ExitCode::Usage,
                "give a URL, or --config FILE",
            ));
        }
    };
    let mut found = Found::new();
    add_stored(&config, &mut found, opener, &|_| false).await?;
    for (index, pattern) in config::pattern::patterns(&config).map_err(Failure::usage)? {
        let expected = member.databases.iter().map(|it| PathBuf::from(&it.path));
        let of_pattern = expected.filter(|path| pattern.matches(path));
        found.entry(index).or_default().extend(of_pattern);
    }
    let settings = config::settings(&config, &found, holder(), opener).map_err(Failure::usage)?;
    let databases = settings.databases.into_iter();
    Ok(databases.map(|database| database.settings).collect())
}

/// Combines the verdicts into a report with the worst one; failed databases come first.
fn report(all: Vec<Verified>, started: Timestamp) -> VerifyReport {
    let failed = all
        .iter()
        .filter(|one| one.report.result != VerifyResult::Passed)
        .count();
    let worst = all
        .iter()
        .map(|one| &one.report)
        .filter(|report| report.result != VerifyResult::Passed)
        .min_by_key(|report| {
            (
                report.result.exit_code().is_environment(),
                report.result.exit_code() as u8,
            )
        });
    let (result, message) = match worst {
        None if all.is_empty() => {
            let message = "no member, or no database in the configuration, has a backup";
            (VerifyResult::NoBackupYet, message.to_owned())
        }
        None => (VerifyResult::Passed, noted(&all).unwrap_or_default()),
        Some(report) => {
            let member = if report.member.is_empty() { "" } else { " of " };
            let message = format!(
                "{}{member}{} from {}: {}",
                report.path, report.member, report.target, report.message
            );
            (report.result, message)
        }
    };
    let rpo_ms = all
        .iter()
        .filter_map(|one| one.rpo)
        .max()
        .map(|rpo| rpo.as_millis() as u64);
    let freshness_evaluated = !all.is_empty() && all.iter().all(|one| one.compared);
    let rto_ms = all
        .iter()
        .filter(|one| one.report.resolved.is_some())
        .map(|one| one.rto.as_millis() as u64)
        .max();
    let (passed, bytes) = (all.len() - failed, all.iter().map(|one| one.bytes).sum());
    let mut databases: Vec<_> = all.into_iter().map(|one| one.report).collect();
    databases.sort_by_key(|report| {
        let is_silent = report.not_checked.is_empty() && report.notes.is_empty();
        (report.result == VerifyResult::Passed, is_silent)
    });
    VerifyReport {
        result,
        message,
        started,
        finished: Timestamp::now(),
        passed: passed as u32,
        failed: failed as u32,
        bytes,
        rto_ms,
        rpo_ms,
        freshness_evaluated,
        sqlite_version: engine::source::sqlite::version().to_owned(),
        databases,
        omitted: 0,
    }
}

/// Returns the first note, or the first unchecked part, of a database that passed.
fn noted(all: &[Verified]) -> Option<String> {
    all.iter().map(|one| &one.report).find_map(|report| {
        let place = format!("{} from {}", report.path, report.target);
        let not_checked = report.not_checked.first();
        let not_checked = not_checked.map(|reason| format!("{place}: not checked: {reason}"));
        not_checked.or_else(|| Some(format!("{place}: {}", report.notes.first()?)))
    })
}

/// Returns the report as JSON of at most `limit` bytes: entries are dropped, the verdict never is.
fn fitted(report: &VerifyReport, limit: usize) -> String {
    let mut report = report.clone();
    loop {
        let text = serde_json::to_string(&report).expect("a report has string keys");
        if text.len() <= limit || report.databases.pop().is_none() {
            return text;
        }
        report.omitted += 1;
    }
}

fn publish(arguments: &VerifyArguments, report: &VerifyReport) -> Result<(), Failure> {
    if let Some(file) = &arguments.termination_message {
        let text = fitted(report, TERMINATION_MESSAGE_BYTES);
        std::fs::write(file, text).map_err(|error| {
            Failure::message(ExitCode::LocalIo, format!("{}: {error}", file.display()))
        })?;
    }
    if arguments.json {
        println!(
            "{}",
            serde_json::to_string(report).expect("a report has string keys")
        );
        return Ok(());
    }
    for database in &report.databases {
        let place = format!("{} from {}", database.path, database.target);
        match (&database.resolved, database.message.as_str()) {
            (Some(at), "") => println!("passed {place}: TXID {} of {}", at.txid, at.time),
            (_, message) => println!("FAILED {place}: {:?}: {message}", database.result),
        }
        for reason in &database.not_checked {
            println!("  not checked: {reason}");
        }
        for note in &database.notes {
            println!("  note: {note}");
        }
        for check in &database.checks {
            println!(
                "  {} {}: {}",
                if check.ok { "ok" } else { "FAILED" },
                check.name,
                check.detail
            );
        }
    }
    Ok(())
}

/// Creates a directory for restored databases. They are production data, so only our user may read
/// it, and it is emptied at the end.
fn scratch(directory: Option<&Path>) -> Result<TempDir, Failure> {
    let parent = directory.map_or_else(std::env::temp_dir, Path::to_owned);
    std::fs::create_dir_all(&parent)
        .and_then(|()| {
            tempfile::Builder::new()
                .prefix("sqlite-backup-verify-")
                .tempdir_in(&parent)
        })
        .map_err(|error| {
            Failure::message(ExitCode::LocalIo, format!("{}: {error}", parent.display()))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::verify::DatabaseReport;

    fn report_of(count: usize) -> VerifyReport {
        let database = |index: usize| DatabaseReport {
            member: "orders-0".into(),
            path: format!("/data/{index}.db"),
            target: "primary".into(),
            result: VerifyResult::Passed,
            message: String::new(),
            resolved: None,
            not_checked: Vec::new(),
            notes: Vec::new(),
            checks: Vec::new(),
        };
        VerifyReport {
            result: VerifyResult::Passed,
            message: String::new(),
            started: Timestamp::UNIX_EPOCH,
            finished: Timestamp::UNIX_EPOCH,
            passed: count as u32,
            failed: 0,
            bytes: 0,
            rto_ms: None,
            rpo_ms: None,
            freshness_evaluated: true,
            sqlite_version: "3".into(),
            databases: (0..count).map(database).collect(),
            omitted: 0,
        }
    }

    #[test]
    fn a_report_fits_a_termination_message_and_says_what_it_leaves_out() {
        for count in [0, 1, 64, 1000] {
            let text = fitted(&report_of(count), TERMINATION_MESSAGE_BYTES);
            assert!(text.len() <= TERMINATION_MESSAGE_BYTES);
            let back: VerifyReport = serde_json::from_str(&text).unwrap();
            assert_eq!(back.databases.len() + back.omitted as usize, count);
            assert_eq!(back.passed as usize, count);
        }
    }
}
