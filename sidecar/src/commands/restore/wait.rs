//! `restore --wait`: before an application starts.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use engine::env::host::Host;
use engine::replication::DatabaseSettings;
use engine::restore::Check;
use engine::startup::{Ready, StartupError, is_present, make_ready};
use futures::{StreamExt, TryStreamExt};
use protocol::config::{OnMissing, WhenUnreachable};
use protocol::exit::ExitCode;
use protocol::verify::StartupNotes;
use store::{Opener, Store};

use super::progress::Progress;
use super::{DATABASES_AT_ONCE, add_stored, findings, local};
use crate::args::{RestoreArguments, holder, variable};
use crate::config;
use crate::failure::Failure;
use crate::near;

/// Pause after a first failure; doubles up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause between attempts.
const MAX_PAUSE: Duration = Duration::from_secs(15);

/// Prepares the databases before an application starts. Returns only when the application may
/// start, or when waiting cannot help.
///
/// # Errors
///
/// Damaged data that another attempt cannot repair.
pub(super) async fn wait(
    arguments: &RestoreArguments,
    progress: &Progress,
) -> Result<ExitCode, Failure> {
    let file = arguments.config.as_ref().expect("--wait requires --config");
    let mut pause = MIN_PAUSE;
    let mut said = String::new();
    loop {
        let failure = match attempt(arguments, file, progress).await {
            Ok(notes) => {
                // Replaces the message that was written while the command waited.
                findings::leave(&findings::fitted(&notes));
                return Ok(ExitCode::Done);
            }
            Err(failure) => failure,
        };
        // A missing configuration, store or credential may appear later; bad data stays bad.
        let may_heal = failure.code.is_environment()
            || matches!(failure.code, ExitCode::NothingToRestore | ExitCode::Usage);
        if !may_heal {
            return Err(failure);
        }
        let message = failure.to_string();
        if message != said {
            tracing::warn!("the application waits: {message}");
            findings::leave(&message);
            said = message;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

async fn attempt(
    arguments: &RestoreArguments,
    file: &Path,
    progress: &Progress,
) -> Result<StartupNotes, Failure> {
    let config = config::read(file, &variable).map_err(Failure::usage)?;
    let startup = config.startup.unwrap_or_default();
    let mut opener = Opener::new();
    let mut found = config::pattern::local(&config).map_err(Failure::usage)?;
    let marks: BTreeMap<usize, PathBuf> = config::pattern::patterns(&config)
        .map_err(Failure::usage)?
        .into_iter()
        .map(|(index, pattern)| (index, pattern.restoring()))
        .collect();
    if startup.on_missing != OnMissing::StartEmpty {
        // An application with databases may start although the complete list of databases is
        // unknown.
        let may_start = startup.when_unreachable == WhenUnreachable::StartIfLocalExists;
        let local = found.clone();
        let marks = &marks;
        let has_some = |index| {
            let is_whole = |mark: &PathBuf| !mark.exists();
            may_start
                && local.get(&index).is_some_and(|it| !it.is_empty())
                && marks.get(&index).is_some_and(is_whole)
        };
        add_stored(&config, &mut found, &mut opener, &has_some).await?;
    }
    let settings =
        config::settings(&config, &found, holder(), &mut opener).map_err(Failure::usage)?;
    let databases = || settings.databases.iter().map(|database| &database.settings);
    let all_here = databases().all(|database| is_present(&database.path));
    if all_here && startup.when_unreachable == WhenUnreachable::Wait {
        for target in databases().flat_map(|database| &database.targets) {
            target.store.list("lock", None).await?;
        }
    }
    let check = findings::unattended(arguments.integrity_check, startup.on_check_failed);
    if !databases().all(|database| is_present(&database.path)) {
        for mark in marks.values() {
            set_mark(mark)?;
        }
    }
    let restores =
        databases().map(|database| make_one_ready(database, startup.on_missing, check, progress));
    let mut restores = futures::stream::iter(restores).buffer_unordered(DATABASES_AT_ONCE);
    let mut notes = StartupNotes::default();
    while let Some(more) = restores.try_next().await? {
        notes.complaints.extend(more.complaints);
        notes.not_checked.extend(more.not_checked);
    }
    for mark in marks.values().filter(|mark| mark.exists()) {
        std::fs::remove_file(mark).map_err(local(mark))?;
    }
    Ok(notes)
}

/// Creates a mark file durably. Without it, a later start would mistake some databases for all.
fn set_mark(mark: &Path) -> Result<(), Failure> {
    let directory = mark.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(directory).map_err(local(directory))?;
    File::create(mark)
        .and_then(|file| file.sync_all())
        .and_then(|()| File::open(directory)?.sync_all())
        .map_err(local(mark))
}

async fn make_one_ready(
    database: &DatabaseSettings,
    on_missing: OnMissing,
    check: Check,
    progress: &Progress,
) -> Result<StartupNotes, StartupError> {
    let step = progress.of(&database.path);
    let show = |done, total| step.show(done, total);
    let ready = make_ready(database, &Host::default(), on_missing, check, &show).await?;
    let mut notes = StartupNotes::default();
    if let Ready::Restored { restored, .. } = &ready {
        findings::warn(&database.path, &restored.checked);
        findings::add(&mut notes, &database.path, &restored.checked);
    }
    let stores: Vec<_> = database.targets.iter().map(|it| it.store.clone()).collect();
    let database = database.path.display().to_string();
    match ready {
        Ready::Present => tracing::info!(%database, "exists: left alone"),
        Ready::Empty => {
            let hints = futures::future::join_all(stores.iter().map(near::hint)).await;
            let hints = hints.concat();
            match hints.is_empty() {
                true => tracing::info!(%database, "there is no backup: starts empty"),
                false => tracing::warn!(%database, "there is no backup: starts empty{hints}"),
            }
        }
        Ready::Restored { target, restored } => {
            let (txid, bytes) = (restored.txid.to_string(), restored.bytes);
            match restored.generation {
                None => tracing::info!(%database, replica = %target, txid, bytes, "restored"),
                Some(generation) => tracing::info!(
                    %database, replica = %target, %generation, bytes, "restored from Litestream 0.3"
                ),
            }
        }
    }
    Ok(notes)
}
