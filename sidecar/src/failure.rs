//! Errors with an exit code that a script can react to.

use std::fmt;

use engine::replica::lease::LeaseError;
use engine::replica::restore_plan::PlanError;
use engine::replication::uploader::TargetError;
use engine::restore::RestoreError;
use engine::restore::litestream03::GenerationError;
use engine::startup::StartupError;
use engine::verify::judge_restore;
use protocol::exit::ExitCode;
use store::{StoreError, StoreErrorKind};

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub code: ExitCode,
    error: anyhow::Error,
}

impl Failure {
    /// Creates a failure with an exit code.
    pub fn new(code: ExitCode, error: impl Into<anyhow::Error>) -> Failure {
        Failure {
            code,
            error: error.into(),
        }
    }

    /// Creates a failure from a message.
    pub fn message(code: ExitCode, message: impl Into<String>) -> Failure {
        Failure {
            code,
            error: anyhow::Error::msg(message.into()),
        }
    }

    /// Prefixes the failure with its subject, unless its message already names it.
    pub fn context(self, about: impl fmt::Display) -> Failure {
        let about = about.to_string();
        if self.to_string().contains(&about) {
            return self;
        }
        Failure {
            code: self.code,
            error: self.error.context(about),
        }
    }

    /// Creates a failure for an invalid command line or configuration.
    pub fn usage(error: impl Into<anyhow::Error>) -> Failure {
        Failure::new(ExitCode::Usage, error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.error.to_string())?;
        let mut said = self.error.to_string();
        for cause in self.error.chain().skip(1) {
            let text = cause.to_string();
            // Many sources repeat the message of the error above them.
            if !said.contains(&text) {
                write!(f, ": {text}")?;
                said.push_str(&text);
            }
        }
        Ok(())
    }
}

/// Returns the exit code for an error of a store.
pub fn store_code(error: &StoreError) -> ExitCode {
    match error.kind() {
        StoreErrorKind::Denied | StoreErrorKind::CredentialsMissing => ExitCode::Credentials,
        StoreErrorKind::NoSpace => ExitCode::DiskFull,
        StoreErrorKind::InvalidKey => ExitCode::Usage,
        _ => ExitCode::Unreachable,
    }
}

/// Returns the exit code for an error of a target.
fn target_code(error: &TargetError) -> ExitCode {
    match error {
        TargetError::Store(error) => store_code(error),
        TargetError::Lease(error) => lease_code(error),
        TargetError::Remote(_) => ExitCode::Corrupt,
        TargetError::Superseded { .. } | TargetError::Diverged { .. } => ExitCode::Superseded,
        _ => ExitCode::LocalIo,
    }
}

/// Returns the exit code for an error of a lease.
pub fn lease_code(error: &LeaseError) -> ExitCode {
    match error {
        LeaseError::Store(error) => store_code(error),
        LeaseError::Foreign(_) => ExitCode::Corrupt,
        // Other processes compete for the lease, or the store does not keep its promises.
        _ => ExitCode::Unreachable,
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        Failure::new(store_code(&error), error)
    }
}

impl From<RestoreError> for Failure {
    fn from(error: RestoreError) -> Failure {
        let code = match &error {
            RestoreError::Store(error) if error.kind() != StoreErrorKind::Missing => {
                store_code(error)
            }
            RestoreError::Exists { .. }
            | RestoreError::InUse { .. }
            | RestoreError::Link { .. } => ExitCode::Usage,
            // The data is good, but does not contain the requested point.
            RestoreError::TooEarly { .. }
            | RestoreError::Generation(GenerationError::NoTxid | GenerationError::Between { .. })
            | RestoreError::Plan(PlanError::NotStored { .. } | PlanError::Compacted { .. }) => {
                ExitCode::NothingToRestore
            }
            error => judge_restore(error).exit_code(),
        };
        Failure::new(code, error)
    }
}

impl From<StartupError> for Failure {
    fn from(error: StartupError) -> Failure {
        match error {
            StartupError::Restore {
                source,
                database,
                target,
            } => {
                let code = Failure::from(*source);
                let error = code
                    .error
                    .context(format!("{database}: restore from target {target}"));
                Failure {
                    code: code.code,
                    error,
                }
            }
            StartupError::NoBackup { .. } => Failure::new(ExitCode::NothingToRestore, error),
            StartupError::CouldNotLook { ref source, .. } => {
                Failure::new(target_code(source), error)
            }
            StartupError::Local(ref source) if source.is_disk_full() => {
                Failure::new(ExitCode::DiskFull, error)
            }
            _ => Failure::new(ExitCode::LocalIo, error),
        }
    }
}
