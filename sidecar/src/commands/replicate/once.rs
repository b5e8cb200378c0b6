//! `replicate --once`: detects that a database has stored everything from before the start, or
//! never will.

use std::collections::BTreeMap;

use engine::replication::uploader::TargetReport;
use protocol::exit::ExitCode;
use protocol::status::{DatabaseState, DatabaseStatus, Position, TargetState};
use store::StoreErrorKind;

use super::shown::ShownDatabase;

/// Progress of a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Commits wait for a target.
    Working,
    /// Every target has all commits.
    Done,
    /// The database cannot continue. The code gives the reason.
    Failed(ExitCode, String),
}

/// The goal of each database, by path: the position of its first capture. Later commits do not
/// count, because they may never end.
#[derive(Debug, Default)]
pub struct Goals(BTreeMap<String, String>);

impl Goals {
    /// Returns the current progress of a database.
    pub fn progress(&mut self, database: &ShownDatabase) -> Progress {
        progress(database, |status| self.is_stored(status))
    }

    fn is_stored(&mut self, status: &DatabaseStatus) -> bool {
        let Some(captured) = &status.position else {
            return false;
        };
        let goal = self.0.entry(status.path.clone());
        let goal = goal.or_insert_with(|| captured.txid.clone());
        // Hex digits of equal length sort like the numbers.
        let stored = |position: &Option<Position>| {
            position.as_ref().is_some_and(|stored| stored.txid >= *goal)
        };
        status.targets.iter().all(|target| stored(&target.position))
    }
}

fn progress(database: &ShownDatabase, is_stored: impl FnOnce(&DatabaseStatus) -> bool) -> Progress {
    if let Some((code, message)) = database.held() {
        return Progress::Failed(code, message);
    }
    let is_full =
        |(_, report): &(String, TargetReport)| report.failure == Some(StoreErrorKind::NoSpace);
    let full = database.counters().iter().any(is_full);
    judge(&database.status(), full, is_stored)
}

/// `full` means that a target's disk or quota is full, for which a status has no state.
fn judge(
    status: &DatabaseStatus,
    full: bool,
    is_stored: impl FnOnce(&DatabaseStatus) -> bool,
) -> Progress {
    let failed = |code, message: &str| {
        let message = format!("{}: {message}", status.path);
        Progress::Failed(code, message)
    };
    for target in &status.targets {
        let code = match target.state {
            TargetState::Starting | TargetState::Ok => continue,
            TargetState::Denied | TargetState::CredentialsMissing => ExitCode::Credentials,
            TargetState::Superseded | TargetState::Diverged => ExitCode::Superseded,
            TargetState::Corrupt => ExitCode::Corrupt,
            TargetState::DestinationUnavailable if full => ExitCode::DiskFull,
            TargetState::DestinationUnavailable | TargetState::NoBucket => ExitCode::Unreachable,
        };
        return failed(code, &target.message);
    }
    match status.state {
        DatabaseState::Starting => Progress::Working,
        DatabaseState::Replicating | DatabaseState::Idle => match is_stored(status) {
            true => Progress::Done,
            false => Progress::Working,
        },
        DatabaseState::DiskFull => failed(ExitCode::DiskFull, &status.message),
        DatabaseState::Failed | DatabaseState::NoPermission => {
            failed(ExitCode::LocalIo, &status.message)
        }
        DatabaseState::Superseded | DatabaseState::Diverged => {
            failed(ExitCode::Superseded, &status.message)
        }
        DatabaseState::Missing
        | DatabaseState::NotWal
        | DatabaseState::NotSqlite
        | DatabaseState::ExclusiveLocking
        | DatabaseState::SecondName
        | DatabaseState::UnusableName
        | DatabaseState::UnknownUser => failed(ExitCode::BadSource, &status.message),
    }
}
