//! What the answers of sidecars mean for a SqliteBackup.

use api::SqliteBackup;
use api::backup::DatabaseSpec;
use api::names::reason;
use protocol::status::{DatabaseState, TargetState};

use super::conditions::Truth;
use super::members::{Member, View};
use crate::answer::{Answer, DatabaseSeen, TargetSeen};

/// What is to be shown as a condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Whether it holds.
    pub truth: Truth,
    /// One word.
    pub reason: &'static str,
    /// For people. It holds no figures, so that it changes only with what it says.
    pub message: String,
}

impl Finding {
    /// A finding.
    pub fn new(truth: Truth, reason: &'static str, message: impl Into<String>) -> Finding {
        Finding {
            truth,
            reason,
            message: message.into(),
        }
    }
}

/// How bad something is; more is worse.
pub type Severity = u8;

/// Severity of what could not be looked at: worse than well, better than known to be bad.
const UNKNOWN: Severity = 2;

/// From here on a severity means that data is not replicated as it should be.
const BAD: Severity = 10;

/// Severity and name of a database state.
fn database(state: DatabaseState) -> (Severity, &'static str) {
    match state {
        DatabaseState::Idle => (0, "Idle"),
        DatabaseState::Replicating => (0, "Replicating"),
        DatabaseState::Starting => (1, reason::STARTING),
        DatabaseState::Missing => (1, "Missing"),
        DatabaseState::DiskFull => (BAD + 1, "DiskFull"),
        DatabaseState::ExclusiveLocking => (BAD + 2, "ExclusiveLocking"),
        DatabaseState::NotWal => (BAD + 3, "NotWal"),
        DatabaseState::NotSqlite => (BAD + 4, "NotSqlite"),
        DatabaseState::NoPermission => (BAD + 5, "NoPermission"),
        DatabaseState::UnknownUser => (BAD + 6, "UnknownUser"),
        DatabaseState::SecondName => (BAD + 6, "SecondName"),
        DatabaseState::UnusableName => (BAD + 6, "UnusableName"),
        DatabaseState::Failed => (BAD + 7, "Failed"),
        DatabaseState::Superseded => (BAD + 8, reason::SUPERSEDED),
        DatabaseState::Diverged => (BAD + 9, "Diverged"),
    }
}

/// Severity and name of a target state, which alone says little: an outage is no loss until the
/// lag is too long.
fn target(state: TargetState) -> (Severity, &'static str) {
    match state {
        TargetState::Ok => (0, "Ok"),
        TargetState::Starting => (1, reason::STARTING),
        TargetState::DestinationUnavailable => (3, "DestinationUnavailable"),
        TargetState::CredentialsMissing => (4, "CredentialsMissing"),
        TargetState::Denied => (5, reason::DENIED),
        TargetState::NoBucket => (BAD + 5, "NoBucket"),
        TargetState::Corrupt => (BAD + 6, "Corrupt"),
        TargetState::Superseded => (BAD + 8, reason::SUPERSEDED),
        TargetState::Diverged => (BAD + 9, "Diverged"),
    }
}

/// Whether another writer has taken over something of this sidecar's.
pub fn is_superseded(answer: &Answer) -> bool {
    (answer.databases.iter()).any(|d| d.state == DatabaseState::Superseded)
        || (answer.targets.iter()).any(|t| t.state == TargetState::Superseded)
}

/// Whether every database of a sidecar is replicated as it should be.
pub fn is_well(backup: &SqliteBackup, answer: &Answer) -> bool {
    !is_starting(backup, answer) && findings(backup, answer).all(|(s, _, _)| s == 0)
}

/// Whether a sidecar has nothing to tell yet. With its configuration read and patterns only, it may
/// be that there is no database so far.
fn is_starting(backup: &SqliteBackup, answer: &Answer) -> bool {
    let may_be_none = backup.spec.databases.iter().all(DatabaseSpec::is_pattern);
    answer.count == 0 && (!answer.is_configured || !may_be_none)
}

/// What one sidecar says, each part with its severity.
fn findings<'a>(backup: &'a SqliteBackup, answer: &'a Answer) -> impl Iterator<Item = Found> + 'a {
    let max_lag = backup.spec.replication.max_lag;
    let targets = answer.targets.iter().map(move |t| {
        let (severity, name, message) = target_found(t);
        let late = t.lag_ms > max_lag.as_millis();
        match severity {
            0 if late => {
                let message = format!(
                    "{} to {}: commits wait longer than maxLag ({max_lag})",
                    t.path, t.name
                );
                (BAD, reason::LAG_EXCEEDED, message)
            }
            // An outage is bad once commits wait too long, or when nothing was ever stored.
            3..BAD if late || !t.is_stored => (severity + BAD, name, message),
            3..BAD => (0, name, String::new()),
            _ => (severity, name, message),
        }
    });
    answer.databases.iter().map(database_found).chain(targets)
}

/// A severity, a word and a message.
type Found = (Severity, &'static str, String);

fn database_found(seen: &DatabaseSeen) -> Found {
    let (severity, name) = database(seen.state);
    (severity, name, said(&seen.path, &seen.message))
}

fn target_found(seen: &TargetSeen) -> Found {
    let (severity, name) = target(seen.state);
    let place = format!("{} to {}", seen.path, seen.name);
    (severity, name, said(&place, &seen.message))
}

fn said(what: &str, message: &str) -> String {
    match message {
        "" => what.to_owned(),
        message => format!("{what}: {message}"),
    }
}

/// State of a member for the list in the status: its severity, a word, and a message.
pub fn member(backup: &SqliteBackup, member: &Member<'_>) -> (Severity, String, String) {
    match member.view {
        View::NotInjected => (BAD, "NotInjected".to_owned(), String::new()),
        View::Starting => (1, reason::STARTING.to_owned(), String::new()),
        View::Unreachable(error) => (
            UNKNOWN,
            reason::SIDECAR_UNREACHABLE.to_owned(),
            error.to_owned(),
        ),
        View::Answered(answer) => {
            let databases = answer.databases.iter().map(database_found);
            let all = databases.chain(answer.targets.iter().map(target_found));
            match all.max_by_key(|(severity, ..)| *severity) {
                None if is_starting(backup, answer) => {
                    (1, reason::STARTING.to_owned(), String::new())
                }
                None | Some((0, _, _)) => {
                    let mut databases = answer.databases.iter();
                    let idle = databases.all(|d| d.state == DatabaseState::Idle);
                    let state = if idle { "Idle" } else { "Replicating" };
                    (0, state.to_owned(), String::new())
                }
                Some((severity, name, message)) => (severity, name.to_owned(), message),
            }
        }
    }
}

/// The condition `Replicating`: what is known to be bad counts before what is not known.
pub fn replicating(backup: &SqliteBackup, members: &[Member<'_>]) -> Finding {
    let mut worst: (Severity, &'static str, String) = (0, reason::UP_TO_DATE, String::new());
    for member in members {
        let found = match member.view {
            View::NotInjected => continue,
            View::Starting => (
                1,
                reason::STARTING,
                format!("Pod {} is starting", member.pod.name),
            ),
            View::Unreachable(_) => (
                UNKNOWN,
                reason::SIDECAR_UNREACHABLE,
                format!(
                    "the sidecar of Pod {} does not answer, so nothing is known about it; \
                     is port {} open to the operator?",
                    member.pod.name,
                    protocol::names::STATUS_PORT
                ),
            ),
            View::Answered(answer) => findings(backup, answer)
                .max_by_key(|(severity, ..)| *severity)
                .map_or(
                    (
                        u8::from(is_starting(backup, answer)),
                        reason::STARTING,
                        String::new(),
                    ),
                    |(severity, name, message)| {
                        (
                            severity,
                            name,
                            format!("Pod {}: {message}", member.pod.name),
                        )
                    },
                ),
        };
        if found.0 > worst.0 {
            worst = found;
        }
    }
    let injected = members.iter().any(|m| m.view != View::NotInjected);
    match worst {
        _ if !injected => Finding::new(Truth::Unknown, reason::NO_PODS, "no Pod has the sidecar"),
        (0, ..) => {
            let message = "every commit older than maxLag is stored";
            Finding::new(Truth::True, reason::UP_TO_DATE, message)
        }
        (severity, name, message) if severity >= BAD => Finding::new(Truth::False, name, message),
        (_, name, message) => Finding::new(Truth::Unknown, name, message),
    }
}

/// The condition `CredentialsValid`: whether stores accept what sidecars present.
pub fn credentials(members: &[Member<'_>]) -> Finding {
    let accepted = "every store accepts the credentials";
    let mut worst = Finding::new(Truth::True, reason::VALID, accepted);
    let mut asked = false;
    for member in members {
        let Some(answer) = member.answer() else {
            continue;
        };
        for target in &answer.targets {
            let place = format!(
                "Pod {}: {} to {}",
                member.pod.name, target.path, target.name
            );
            let found = match target.state {
                TargetState::Denied => Some((reason::DENIED, "the store refuses the credentials")),
                TargetState::CredentialsMissing => Some((reason::MISSING, "no credentials")),
                _ if target.rotation_pending => Some((
                    reason::ROTATION_PENDING,
                    "the store refuses the new credentials; the old ones are still in use",
                )),
                // What was not contacted, or not reached, says nothing about credentials.
                TargetState::Starting | TargetState::DestinationUnavailable => None,
                _ => {
                    asked = true;
                    None
                }
            };
            if let Some((reason, what)) = found {
                let message = said(&format!("{place}: {what}"), &target.message);
                let rank = |r: &str| {
                    [reason::ROTATION_PENDING, reason::MISSING, reason::DENIED]
                        .iter()
                        .position(|known| *known == r)
                };
                if rank(reason) > rank(worst.reason) {
                    worst = Finding::new(Truth::False, reason, message);
                }
            }
        }
    }
    match worst.truth {
        Truth::True
            if members
                .iter()
                .any(|m| matches!(m.view, View::Unreachable(_))) =>
        {
            let message = "a sidecar does not answer, so nothing is known about its credentials";
            Finding::new(Truth::Unknown, reason::SIDECAR_UNREACHABLE, message)
        }
        Truth::True if !asked => {
            let message = "no store has been asked yet";
            Finding::new(Truth::Unknown, reason::UNKNOWN, message)
        }
        _ => worst,
    }
}
