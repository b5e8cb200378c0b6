//! Health of a SqliteBackup, derived from the answers of its sidecars.

use api::SqliteBackup;
use api::backup::DatabaseSpec;
use api::names::reason;
use protocol::duration::Span;
use protocol::status::{DatabaseState, TargetState};

use super::conditions::ConditionStatus;
use super::members::{Member, View};
use crate::answer::{Answer, DatabaseSeen, TargetSeen};

/// Content of one condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Status of the condition.
    pub status: ConditionStatus,
    /// Reason in one word.
    pub reason: &'static str,
    /// Message for people. It has no figures, so that it changes only with its meaning.
    pub message: String,
}

impl Finding {
    /// Creates a finding.
    pub fn new(
        status: ConditionStatus,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Finding {
        Finding {
            status,
            reason,
            message: message.into(),
        }
    }
}

/// Rank of a state; a greater one is worse.
pub type Severity = u8;

/// Severity of an outage within `maxLag`. It counts as healthy.
const TOLERATED: Severity = 1;

/// Severity of a database or target without a state yet.
const STARTING: Severity = 2;

/// Severity of a sidecar that does not answer: worse than healthy, better than known to be bad.
const UNKNOWN: Severity = 3;

/// Lowest severity that means that data is not replicated as it should be.
const BAD: Severity = 10;

/// Severity and name of a database state.
fn database(state: DatabaseState) -> (Severity, &'static str) {
    match state {
        DatabaseState::Idle => (0, "Idle"),
        DatabaseState::Replicating => (0, "Replicating"),
        DatabaseState::Starting => (STARTING, reason::STARTING),
        DatabaseState::Missing => (STARTING, "Missing"),
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

/// Whether another writer has taken over a replica of this sidecar.
pub fn is_superseded(answer: &Answer) -> bool {
    (answer.databases.iter()).any(|d| d.state == DatabaseState::Superseded)
        || (answer.targets.iter()).any(|t| t.state == TargetState::Superseded)
}

/// Whether every database of a sidecar is replicated as it should be.
pub fn is_well(backup: &SqliteBackup, answer: &Answer) -> bool {
    !is_starting(backup, answer) && findings(backup, answer).all(|(s, _, _)| s <= TOLERATED)
}

/// Whether a sidecar has no databases to report yet. A sidecar that has read its configuration and
/// has patterns only may have no database at all.
fn is_starting(backup: &SqliteBackup, answer: &Answer) -> bool {
    let may_be_none = backup.spec.databases.iter().all(DatabaseSpec::is_pattern);
    answer.count == 0 && (!answer.is_configured || !may_be_none)
}

/// Every database and target of one sidecar, each with its severity.
fn findings<'a>(backup: &'a SqliteBackup, answer: &'a Answer) -> impl Iterator<Item = Found> + 'a {
    let max_lag = backup.spec.replication.max_lag;
    let targets = answer.targets.iter().map(move |t| target(t, max_lag));
    answer.databases.iter().map(database_found).chain(targets)
}

/// A severity, a state in one word, and a message.
type Found = (Severity, &'static str, String);

fn database_found(seen: &DatabaseSeen) -> Found {
    let (severity, name) = database(seen.state);
    (severity, name, said(&seen.path, &seen.message))
}

/// Severity of a target. An outage is tolerated while no commit waits longer than `max_lag`,
/// provided that a position was ever stored.
fn target(seen: &TargetSeen, max_lag: Span) -> Found {
    let late = seen.lag_ms > max_lag.as_millis();
    let outage = |severity| match late || !seen.is_stored {
        true => BAD + severity,
        false => TOLERATED,
    };
    let place = format!("{} to {}", seen.path, seen.name);
    let (severity, name) = match seen.state {
        TargetState::Ok if late => {
            let message = format!("{place}: commits wait longer than maxLag ({max_lag})");
            return (BAD, reason::LAG_EXCEEDED, message);
        }
        TargetState::Ok => (0, "Ok"),
        TargetState::Starting => (STARTING, reason::STARTING),
        TargetState::DestinationUnavailable => (outage(3), "DestinationUnavailable"),
        TargetState::CredentialsMissing => (outage(4), "CredentialsMissing"),
        TargetState::Denied => (outage(5), reason::DENIED),
        TargetState::NoBucket => (BAD + 5, "NoBucket"),
        TargetState::Corrupt => (BAD + 6, "Corrupt"),
        TargetState::Superseded => (BAD + 8, reason::SUPERSEDED),
        TargetState::Diverged => (BAD + 9, "Diverged"),
    };
    (severity, name, said(&place, &seen.message))
}

fn said(what: &str, message: &str) -> String {
    match message {
        "" => what.to_owned(),
        message => format!("{what}: {message}"),
    }
}

/// State of a member in the status: severity, state in one word, message.
pub fn member(backup: &SqliteBackup, member: &Member<'_>) -> (Severity, String, String) {
    match member.view {
        View::NotInjected => (BAD, "NotInjected".to_owned(), String::new()),
        View::Starting => (STARTING, reason::STARTING.to_owned(), String::new()),
        View::Unreachable(error) => (
            UNKNOWN,
            reason::SIDECAR_UNREACHABLE.to_owned(),
            error.to_owned(),
        ),
        View::Answered(answer) => {
            let worst = findings(backup, answer).max_by_key(|(severity, ..)| *severity);
            match worst {
                None if is_starting(backup, answer) => {
                    (STARTING, reason::STARTING.to_owned(), String::new())
                }
                Some((severity, name, message)) if severity > TOLERATED => {
                    (severity, name.to_owned(), message)
                }
                healthy => {
                    let mut databases = answer.databases.iter();
                    let idle = databases.all(|d| d.state == DatabaseState::Idle);
                    let state = if idle { "Idle" } else { "Replicating" };
                    let tolerated = healthy.filter(|(severity, ..)| *severity == TOLERATED);
                    let (severity, message) = tolerated.map_or_else(
                        || (0, String::new()),
                        |(severity, _, message)| (severity, message),
                    );
                    (severity, state.to_owned(), message)
                }
            }
        }
    }
}

/// The condition `Replicating`. A state that is known to be bad outranks an unknown one.
pub fn replicating(backup: &SqliteBackup, members: &[Member<'_>]) -> Finding {
    let mut worst: (Severity, &'static str, String) = (0, reason::UP_TO_DATE, String::new());
    for member in members {
        let found = match member.view {
            View::NotInjected => continue,
            View::Starting => (
                STARTING,
                reason::STARTING,
                format!("Pod {} is starting", member.pod.name),
            ),
            View::Unreachable(_) => (
                UNKNOWN,
                reason::SIDECAR_UNREACHABLE,
                format!(
                    "the sidecar of Pod {} does not answer, so its state is unknown; \
                     check that the operator can reach its port {}",
                    member.pod.name,
                    protocol::names::STATUS_PORT
                ),
            ),
            View::Answered(answer) => {
                let worst = findings(backup, answer).max_by_key(|(severity, ..)| *severity);
                match worst {
                    Some((severity, name, message)) => {
                        let message = format!("Pod {}: {message}", member.pod.name);
                        (severity, name, message)
                    }
                    None if is_starting(backup, answer) => {
                        (STARTING, reason::STARTING, String::new())
                    }
                    None => continue,
                }
            }
        };
        if found.0 > worst.0 {
            worst = found;
        }
    }
    let injected = members.iter().any(|m| m.view != View::NotInjected);
    match worst {
        _ if !injected => Finding::new(
            ConditionStatus::Unknown,
            reason::NO_PODS,
            "no Pod has the sidecar",
        ),
        (0..=TOLERATED, ..) => {
            let message = "every commit older than maxLag is stored";
            Finding::new(ConditionStatus::True, reason::UP_TO_DATE, message)
        }
        (severity, name, message) if severity >= BAD => {
            Finding::new(ConditionStatus::False, name, message)
        }
        (_, name, message) => Finding::new(ConditionStatus::Unknown, name, message),
    }
}

/// The condition `CredentialsValid`: whether stores accept the credentials of the sidecars.
pub fn credentials(members: &[Member<'_>]) -> Finding {
    let accepted = "every store accepts the credentials";
    let mut worst = Finding::new(ConditionStatus::True, reason::VALID, accepted);
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
                // A target that was not reached proves nothing about credentials.
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
                    worst = Finding::new(ConditionStatus::False, reason, message);
                }
            }
        }
    }
    match worst.status {
        ConditionStatus::True
            if members
                .iter()
                .any(|m| matches!(m.view, View::Unreachable(_))) =>
        {
            let message = "a sidecar does not answer, so the state of its credentials is unknown";
            Finding::new(
                ConditionStatus::Unknown,
                reason::SIDECAR_UNREACHABLE,
                message,
            )
        }
        ConditionStatus::True if !asked => {
            let message = "no store has been contacted yet";
            Finding::new(ConditionStatus::Unknown, reason::UNKNOWN, message)
        }
        _ => worst,
    }
}
