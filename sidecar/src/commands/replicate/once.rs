//! `replicate --once`: when a database has stored everything, or never will.

use engine::target::TargetReport;
use protocol::exit::ExitCode;
use protocol::status::{DatabaseState, DatabaseStatus, TargetState};
use store::StoreErrorKind;

use super::shown::ShownDatabase;

/// How far a database is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Commits wait for a target.
    Working,
    /// Every target has everything.
    Done,
    /// It cannot go on, for the reason that the code tells.
    Failed(ExitCode, String),
}

/// How far a database is at this moment.
pub fn progress(database: &ShownDatabase) -> Progress {
    if let Some((code, message)) = database.held() {
        return Progress::Failed(code, message);
    }
    let is_full =
        |(_, report): &(String, TargetReport)| report.failure == Some(StoreErrorKind::NoSpace);
    let full = database.handle.counters().iter().any(is_full);
    judge(&database.status(), full)
}

/// `full` says that a target's disk or quota is full: no state of its own in a status.
fn judge(status: &DatabaseStatus, full: bool) -> Progress {
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
        DatabaseState::Replicating | DatabaseState::Idle if is_stored(status) => Progress::Done,
        DatabaseState::Replicating | DatabaseState::Idle => Progress::Working,
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
        | DatabaseState::UnknownUser => failed(ExitCode::BadSource, &status.message),
    }
}

fn is_stored(status: &DatabaseStatus) -> bool {
    let Some(captured) = &status.position else {
        return false;
    };
    let stored = |position: &Option<protocol::status::Position>| {
        position
            .as_ref()
            .is_some_and(|stored| stored.txid == captured.txid)
    };
    status.targets.iter().all(|target| stored(&target.position))
}
