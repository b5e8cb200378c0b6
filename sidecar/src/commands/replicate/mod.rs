//! `replicate`: the long-running process.

mod dry_run;
mod exec;
mod fleet;
mod once;
mod shown;
mod source;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use engine::env::budget::Budgets;
use engine::env::host::Host;
use engine::replication::Env;
use engine::source::capture::Capture;
use engine::source::probe::{Probe, probe};
use jiff::Timestamp;
use protocol::exit::ExitCode;
use protocol::status::{DatabaseState, DatabaseStatus};
use rustix::process::{Signal, set_parent_process_death_signal};
use store::Opener;
use tokio::sync::watch;

pub use shown::{Shown, ShownDatabase};

use crate::args::ReplicateArguments;
use crate::config::Settings;
use crate::descriptors;
use crate::failure::Failure;
use crate::heartbeat::Heart;
use crate::memory;
use crate::server;
use crate::signals::{EndSignals, Hangups};
use fleet::Fleet;
use once::{Goals, Progress};
use source::{Loaded, Source};

/// Pause between attempts to read a configuration that does not exist yet.
const RETRY_PAUSE: Duration = Duration::from_secs(2);
/// Pause between polls of the progress of `--once`.
const ONCE_PAUSE: Duration = Duration::from_millis(50);

/// Replicates until SIGTERM, or once.
///
/// # Errors
///
/// A configuration or a database that cannot work, before anything is started. Afterwards, a
/// database whose last commits could not be stored.
pub async fn run(
    arguments: ReplicateArguments,
    signals: EndSignals,
) -> Result<std::process::ExitCode, Failure> {
    abort_on_panic();
    let source = Source::new(&arguments)?;
    let signals = match source {
        Source::File(_) => signals,
        Source::Fixed(_) => signals.and_hangup()?,
    };
    let running = exec::Running::default();
    let mut stop = signals.watch({
        let running = running.clone();
        move || running.kill()
    });
    if arguments.worker {
        // A killed supervisor must not leave a writer that cannot be ended. If the system does not
        // support this, the lease still keeps a second writer out.
        let _asked = set_parent_process_death_signal(Some(Signal::TERM));
    }
    let mut hangups = Hangups::new(matches!(source, Source::File(_)))?;
    let mut opener = Opener::new();
    let read = first_read(&source, &mut opener, arguments.worker);
    let loaded = tokio::select! {
        loaded = read => loaded?,
        _ = stop.changed() => return Ok(ExitCode::Done.into()),
    };
    if arguments.dry_run {
        return tokio::select! {
            done = dry_run::run(&loaded.settings) => done.map(Into::into),
            _ = stop.changed() => {
                let message = "ended by a signal before it was done";
                Err(Failure::message(ExitCode::Timeout, message))
            }
        };
    }
    let exec = arguments.exec.as_ref().or(loaded.settings.exec.as_ref());
    let child = exec.map(String::as_str).map(exec::parse).transpose()?;
    if child.is_some() && arguments.worker {
        // Each worker would start another application beside the earlier one.
        let message = "exec does not go with --supervise";
        return Err(Failure::message(ExitCode::Usage, message));
    }
    if matches!(source, Source::Fixed(_)) && !arguments.worker {
        refuse_unusable(&loaded.settings, child.is_some() || !arguments.once)?;
        for database in &loaded.settings.databases {
            let path = &database.settings.path;
            if !arguments.once && !path.exists() {
                let path = path.display();
                tracing::warn!("{path} does not exist yet: replication waits until it does");
            }
        }
    }
    if loaded.settings.databases.is_empty() {
        tracing::warn!(
            "there is no database: the configuration names none, or its patterns match no file yet"
        );
    }
    memory::keep_small();
    if child.is_none() {
        descriptors::raise();
    }
    let capture = Capture::start().map_err(|error| Failure::new(ExitCode::LocalIo, error))?;
    let shown = Shown::default();
    if let Some(addr) = arguments.addr.as_ref().or(loaded.settings.addr.as_ref()) {
        server::start(addr, shown.clone(), Timestamp::now(), arguments.worker).await?;
    }
    let mut fleet = Fleet::new(Env {
        host: Host::default(),
        source: Arc::new(capture),
        budgets: Budgets::new(loaded.settings.limits),
    });
    fleet.apply(&loaded, &shown);
    if arguments.once {
        return Ok(once(fleet, &shown, &mut stop).await?.into());
    }
    let mut child = match child {
        None => None,
        // The application must not create an empty database in place of one that is being restored.
        Some(words) => tokio::select! {
            () = fleet.ready() => Some(exec::start(words, &running)?),
            _ = stop.changed() => return ended(fleet, &shown).await.map(Into::into),
        },
    };
    // The child has been started with our earlier limit.
    descriptors::raise();
    let mut since = loaded.since();
    let mut heart = Heart::default();
    heart.follow(loaded.settings.heartbeat.as_ref(), &shown);
    drop(loaded);
    loop {
        tokio::select! {
            loaded = source.changed(&since, &mut opener, &mut hangups) => {
                tracing::info!(databases = loaded.settings.databases.len(), "the databases changed");
                fleet.apply(&loaded, &shown);
                heart.follow(loaded.settings.heartbeat.as_ref(), &shown);
                since = loaded.since();
            }
            code = exec::ended(&mut child) => {
                // It makes no further commits: store the last ones, then end with its exit code.
                return exec::answer(code, ended(fleet, &shown).await);
            }
            _ = stop.changed() => {
                tracing::info!("told to stop: captured commits are stored first; a second signal ends at once");
                let code = exec::end(child).await.unwrap_or_default();
                return exec::answer(code, ended(fleet, &shown).await);
            }
        }
    }
}

/// From here on, any panic ends the process, which is then started again. The runtime would only
/// end the task, and a backup that stops silently is the worst failure.
fn abort_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        print(info);
        std::process::abort();
    }));
}

/// Reads the configuration. A worker, whose exit code no caller reads, waits for a usable file: in
/// a Pod it may appear later than the process.
async fn first_read(
    source: &Source,
    opener: &mut Opener,
    is_worker: bool,
) -> Result<Loaded, Failure> {
    loop {
        match source.read(opener) {
            Ok(loaded) => return Ok(loaded),
            Err(error) if is_worker => tracing::warn!("{error}: trying again"),
            Err(error) => return Err(Failure::usage(error)),
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// Ends every database, and reports whether everything is stored.
async fn ended(fleet: Fleet, shown: &Shown) -> Result<ExitCode, Failure> {
    let is_complete = fleet.end().await;
    let states: Vec<_> = shown
        .databases()
        .into_iter()
        .map(|database| database.status())
        .collect();
    if is_complete && !states.iter().any(is_late) {
        return Ok(ExitCode::Done);
    }
    let mut over = states.iter().filter(|status| {
        matches!(
            status.state,
            DatabaseState::Superseded | DatabaseState::Diverged
        )
    });
    if let Some(status) = over.next() {
        let message = format!("{}: {}", status.path, status.message);
        return Err(Failure::message(ExitCode::Superseded, message));
    }
    let message = "stopped before every commit was stored; the last status of each database and \
                   target says why";
    Err(Failure::message(ExitCode::Timeout, message))
}

/// Whether a target lacks a commit, whatever the state of the database.
fn is_late(status: &DatabaseStatus) -> bool {
    status.targets.iter().any(|target| target.lag_ms > 0)
}

/// Refuses databases that cannot work, for a person at a terminal. In a Pod the cause may still go
/// away.
fn refuse_unusable(settings: &Settings, is_made_later: bool) -> Result<(), Failure> {
    let mut databases = settings.databases.iter();
    let first = databases.find_map(|database| {
        unusable(
            &database.settings.path,
            is_made_later || database.restore_first,
        )
    });
    first.map_or(Ok(()), Err)
}

/// Returns why the database at a path cannot be replicated. With `is_made_later` it may be missing.
fn unusable(path: &Path, is_made_later: bool) -> Option<Failure> {
    let Probe::Unfit(state, message) = probe(path) else {
        return None;
    };
    let (code, advice) = match state {
        DatabaseState::Starting => return None,
        // The coming application may also show that the second name is harmless.
        DatabaseState::Missing | DatabaseState::SecondName if is_made_later => return None,
        DatabaseState::NoPermission => (ExitCode::LocalIo, "; run as the owner of the file"),
        DatabaseState::Missing => (
            ExitCode::BadSource,
            "; check the path, or start the application first",
        ),
        DatabaseState::NotSqlite => (ExitCode::BadSource, "; give the path of the database file"),
        _ => (ExitCode::BadSource, ""),
    };
    let path = path.display().to_string();
    // Some messages already contain the file name.
    let named = if message.contains(&path) {
        message
    } else {
        format!("{path}: {message}")
    };
    Some(Failure::message(code, format!("{named}{advice}")))
}

/// Waits until every database has stored everything or has failed, then ends.
async fn once(
    mut fleet: Fleet,
    shown: &Shown,
    stop: &mut watch::Receiver<bool>,
) -> Result<ExitCode, Failure> {
    let mut goals = Goals::default();
    loop {
        let databases = shown.databases();
        let progress = databases.iter().map(|database| goals.progress(database));
        // Poll every database, because the first poll sets its goal.
        let working = progress
            .filter(|progress| *progress == Progress::Working)
            .count();
        if *stop.borrow() || working == 0 {
            break;
        }
        tokio::select! {
            () = tokio::time::sleep(ONCE_PAUSE) => {}
            _ = stop.changed() => {}
        }
    }
    let mut failure = None;
    for database in shown.databases() {
        if let Progress::Failed(code, message) = goals.progress(&database) {
            if failure.is_some() {
                tracing::error!("{message}");
            }
            failure.get_or_insert(Failure::message(code, message));
        }
    }
    // A failed database would only fail again until the shutdown timeout.
    fleet.abandon(|database| matches!(goals.progress(database), Progress::Failed(..)));
    match failure {
        None => ended(fleet, shown).await,
        Some(failure) => {
            fleet.end().await;
            Err(failure)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    /// Environment variable of the child process in which this test panics in a detached task.
    const PANICS: &str = "SQLITE_BACKUP_TEST_PANICS";

    #[test]
    fn a_database_with_lag_is_late_in_every_state() {
        for state in ["Idle", "NotWal", "Missing", "SecondName", "Failed"] {
            let status = |lag: u64| -> DatabaseStatus {
                serde_json::from_str(&format!(
                    r#"{{"path": "/a", "state": "{state}", "targets": [{{"name": "t", "state": "Ok",
                    "lagMs": {lag}, "backlogBytes": 0}}]}}"#
                ))
                .unwrap()
            };
            assert!(is_late(&status(1)), "{state}");
            assert!(!is_late(&status(0)), "{state}");
        }
    }

    #[test]
    fn a_panic_in_a_task_ends_the_process() {
        if std::env::var_os(PANICS).is_some() {
            abort_on_panic();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build()
                .unwrap();
            runtime.block_on(async {
                tokio::spawn(async { panic!("a task fails") });
                tokio::time::sleep(Duration::from_secs(60)).await;
            });
        }
        let ended = Command::new(std::env::current_exe().unwrap())
            .args([
                "--nocapture",
                "--exact",
                "commands::replicate::tests::a_panic_in_a_task_ends_the_process",
            ])
            .env(PANICS, "1")
            .output()
            .unwrap();
        assert_eq!(ended.status.signal(), Some(libc::SIGABRT));
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(said.contains("a task fails"), "{said}");
    }
}
