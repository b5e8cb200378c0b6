//! `restore`: from a URL, from a configuration, or before an application starts.

pub mod findings;
mod progress;
mod wait;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use engine::replica::restore_plan::{Plan, PlanError};
use engine::replication::DatabaseSettings;
use engine::restore::litestream03::GenerationPlan;
use engine::restore::{
    Point, Resolved, RestoreError, RestoreOptions, Restored, Way, find, restore,
};
use engine::startup::{is_present, restore_in_place};
use futures::StreamExt;
use jiff::Timestamp;
use protocol::config::{Config, Database, Replica};
use protocol::exit::ExitCode;
use serde_json::json;
use store::{Opener, SharedStore, Store, Target};

use crate::args::{LogFormat, RestoreArguments, holder, variable};
use crate::config::{self, Found};
use crate::failure::Failure;
use crate::near;
use progress::Progress;
use wait::wait;

/// Number of databases restored at the same time.
const DATABASES_AT_ONCE: usize = 8;
/// Restores as requested; `log` is the format of the log.
///
/// # Errors
///
/// The first failure, after every database was tried.
pub async fn run(arguments: RestoreArguments, log: LogFormat) -> Result<ExitCode, Failure> {
    let progress = Progress::new(arguments.json, log);
    if arguments.wait {
        return wait(&arguments, &progress).await;
    }
    match (&arguments.config, &arguments.source) {
        (Some(_), Some(url)) if url.contains("://") => {
            let message = "give --config FILE, or the URL of a replica, not both";
            Err(Failure::message(ExitCode::Usage, message))
        }
        (None, Some(url)) if url.contains("://") && arguments.all => {
            all_below(&arguments, url, &progress).await
        }
        (None, Some(url)) if url.contains("://") => from_url(&arguments, url, &progress).await,
        (Some(file), database) => {
            from_config(&arguments, file, database.as_deref(), &progress).await
        }
        (None, Some(path)) => {
            let message = format!(
                "{path:?} is not a URL: write file:///DIRECTORY or s3://BUCKET/PREFIX, or give \
                 --config FILE with this database"
            );
            Err(Failure::message(ExitCode::Usage, message))
        }
        (None, None) => {
            let message = "give the URL of a replica, or --config FILE";
            Err(Failure::message(ExitCode::Usage, message))
        }
    }
}

async fn from_url(
    arguments: &RestoreArguments,
    url: &str,
    progress: &Progress,
) -> Result<ExitCode, Failure> {
    let output = arguments
        .output
        .clone()
        .ok_or_else(|| Failure::message(ExitCode::Usage, "say where the database goes: -o PATH"))?;
    let target = Target::from_url(url).map_err(Failure::usage)?;
    let store = store::open(&target)?;
    let place = Place {
        output: &output,
        home: None,
        progress,
    };
    one(arguments, &[store], &place, arguments.parallelism.into())
        .await
        .map(|()| ExitCode::Done)
}

/// Restores every replica below a URL, to paths below a directory.
async fn all_below(
    arguments: &RestoreArguments,
    url: &str,
    progress: &Progress,
) -> Result<ExitCode, Failure> {
    let output = arguments.output.as_ref().expect("--all requires --output");
    let output = std::path::absolute(output).map_err(local(output))?;
    // The same settings as a configuration with this pattern.
    let replica = Replica {
        url: Some(url.to_owned()),
        ..Replica::default()
    };
    let database = Database {
        dir: Some(output),
        recursive: Some(true),
        pattern: Some("*".to_owned()),
        replica: Some(replica),
        ..Database::default()
    };
    let config = Config {
        dbs: vec![database],
        ..Config::default()
    };
    let mut opener = Opener::new();
    let mut found = Found::new();
    add_stored(&config, &mut found, &mut opener, &|_| false).await?;
    if found.values().all(BTreeSet::is_empty) {
        if arguments.if_replica_exists {
            tracing::info!("there is no backup below {url}: nothing to restore");
            return Ok(ExitCode::Done);
        }
        let message = format!(
            "there is no replica below {url}; for one that is {url} itself, leave --all out"
        );
        return Err(Failure::message(ExitCode::NothingToRestore, message));
    }
    let settings =
        config::settings(&config, &found, holder(), &mut opener).map_err(Failure::usage)?;
    let jobs = settings.databases.iter().map(|database| Job {
        database: &database.settings,
        output: &database.settings.path,
        // A copy for inspection must not replace the original's backup by mistake.
        is_home: false,
    });
    many(arguments, jobs.collect(), true, progress).await
}

async fn from_config(
    arguments: &RestoreArguments,
    file: &Path,
    only: Option<&str>,
    progress: &Progress,
) -> Result<ExitCode, Failure> {
    let config = config::read(file, &variable).map_err(Failure::usage)?;
    let mut opener = Opener::new();
    let mut found = config::pattern::local(&config).map_err(Failure::usage)?;
    add_stored(&config, &mut found, &mut opener, &|_| false).await?;
    let settings =
        config::settings(&config, &found, holder(), &mut opener).map_err(Failure::usage)?;
    let databases: Vec<&DatabaseSettings> = settings
        .databases
        .iter()
        .map(|database| &database.settings)
        .filter(|database| only.is_none_or(|only| database.path == Path::new(only)))
        .collect();
    if databases.is_empty() {
        let file = file.display();
        return match only {
            Some(only) => {
                let message = format!("{file} has no database {only}");
                Err(Failure::message(ExitCode::Usage, message))
            }
            None if config.dbs.is_empty() => {
                let message = format!("{file} has no database");
                Err(Failure::message(ExitCode::Usage, message))
            }
            None if arguments.if_replica_exists => {
                tracing::info!("the patterns of {file} match no backup: nothing to restore");
                Ok(ExitCode::Done)
            }
            None => {
                let message = format!("the patterns of {file} match no backup");
                Err(Failure::message(ExitCode::NothingToRestore, message))
            }
        };
    }
    if arguments.output.is_some() && databases.len() > 1 {
        let message = "-o goes with one database: name it behind the configuration file";
        return Err(Failure::message(ExitCode::Usage, message));
    }
    let jobs = databases.into_iter().map(|database| {
        let output = arguments.output.as_ref().unwrap_or(&database.path);
        Job {
            database,
            output,
            is_home: database.path == *output,
        }
    });
    many(arguments, jobs.collect(), only.is_none(), progress).await
}

/// A database to restore, and its targets.
struct Job<'a> {
    database: &'a DatabaseSettings,
    output: &'a Path,
    /// The restore goes to the configured path, where replication will continue from it.
    is_home: bool,
}

/// Restores databases, several at once; with `missing_only`, only those that do not exist.
async fn many(
    arguments: &RestoreArguments,
    jobs: Vec<Job<'_>>,
    missing_only: bool,
    progress: &Progress,
) -> Result<ExitCode, Failure> {
    let at_once = jobs.len().clamp(1, DATABASES_AT_ONCE);
    // All of them together fetch the requested number of objects at once.
    let parallelism = usize::from(arguments.parallelism).div_ceil(at_once);
    let restores = jobs.into_iter().map(|job| async move {
        let (database, output) = (job.database, job.output);
        if missing_only && !arguments.force && is_present(output) {
            tracing::info!(database = %output.display(), "exists: left alone");
            return Ok(());
        }
        let stores: Vec<SharedStore> = database
            .targets
            .iter()
            .map(|target| target.store.clone())
            .collect();
        let place = Place {
            output,
            home: job.is_home.then_some(database),
            progress,
        };
        one(arguments, &stores, &place, parallelism)
            .await
            .map_err(|error| error.context(output.display()))
    });
    let mut restores = futures::stream::iter(restores).buffer_unordered(at_once);
    let mut failure = None;
    while let Some(restored) = restores.next().await {
        let Err(error) = restored else { continue };
        if failure.is_some() {
            tracing::error!("{error}");
        }
        failure.get_or_insert(error);
    }
    failure.map_or(Ok(ExitCode::Done), Err)
}

/// Adds the databases of each pattern that have a backup in one of its targets. A target that
/// cannot be reached may hold the only backup of a database, so it is an error. It is left out only
/// when `can_do_without` permits it for the pattern.
pub(super) async fn add_stored(
    config: &Config,
    found: &mut Found,
    opener: &mut Opener,
    can_do_without: &dyn Fn(usize) -> bool,
) -> Result<(), Failure> {
    for (index, pattern) in config::pattern::patterns(config).map_err(Failure::usage)? {
        let key = format!("dbs[{index}]");
        let targets = config::targets(config, &config.dbs[index], &key, None, opener);
        let (mut stored, mut failure) = (BTreeSet::new(), None);
        for target in targets.map_err(Failure::usage)?.0 {
            match pattern.stored(&target.store).await {
                Ok(paths) => stored.extend(paths),
                Err(error) => {
                    tracing::warn!(replica = %target.name, "which backups are there: {error}");
                    failure.get_or_insert(error);
                }
            }
        }
        match failure {
            Some(error) if !can_do_without(index) => return Err(error.into()),
            _ => found.entry(index).or_default().extend(stored),
        }
    }
    Ok(())
}

/// The destination of a restored database.
struct Place<'a> {
    output: &'a Path,
    /// The database whose configured path this is: replication will continue from it.
    home: Option<&'a DatabaseSettings>,
    progress: &'a Progress,
}

/// Restores one database from the first target that has a usable backup.
async fn one(
    arguments: &RestoreArguments,
    stores: &[SharedStore],
    place: &Place<'_>,
    parallelism: usize,
) -> Result<(), Failure> {
    let output = place.output;
    if arguments.if_db_not_exists && is_present(output) {
        tracing::info!(database = %output.display(), "exists: left alone");
        return Ok(());
    }
    let mut failure: Option<(RestoreError, String)> = None;
    for store in stores {
        match from_store(arguments, store, place, parallelism).await {
            Ok(()) => return Ok(()),
            Err(error) => {
                let source = store.describe();
                if stores.len() > 1 {
                    tracing::warn!(%source, "{error}");
                }
                // An empty target says nothing while another target may have the backup.
                if failure.as_ref().is_none_or(|(first, _)| is_empty(first)) {
                    failure = Some((error, source));
                }
            }
        }
    }
    match failure {
        Some((error, _)) if is_empty(&error) && arguments.if_replica_exists => {
            let hints = futures::future::join_all(stores.iter().map(near::hint)).await;
            let hints = hints.concat();
            let database = output.display();
            match hints.is_empty() {
                true => tracing::info!(%database, "there is no backup: nothing to restore"),
                false => tracing::warn!(%database, "there is no backup: nothing to restore{hints}"),
            }
            Ok(())
        }
        Some((error, source)) if is_empty(&error) => {
            let hints = futures::future::join_all(stores.iter().map(near::hint)).await;
            let failure = Failure::from(error);
            let message = format!("{source}: {failure}{}", hints.concat());
            Err(Failure::message(failure.code, message))
        }
        Some((error, source)) => Err(Failure::from(error).context(source)),
        None => Ok(()),
    }
}

fn is_empty(error: &RestoreError) -> bool {
    matches!(error, RestoreError::Plan(PlanError::Empty))
}

async fn from_store(
    arguments: &RestoreArguments,
    store: &SharedStore,
    place: &Place<'_>,
    parallelism: usize,
) -> Result<(), RestoreError> {
    let output = place.output;
    let point = match (arguments.txid, arguments.timestamp) {
        (Some(txid), _) => Point::Txid(txid),
        (None, Some(time)) => Point::Timestamp(time),
        (None, None) => Point::Latest,
    };
    if arguments.dry_run {
        match find(store, point).await? {
            Way::Files(Resolved { plan, .. }) => show_plan(arguments, store, &plan, output),
            Way::Generation(plan) => show_generation(arguments, store, &plan, output),
        }
        return Ok(());
    }
    let options = RestoreOptions {
        point,
        output: output.to_owned(),
        force: arguments.force,
        integrity: findings::by_hand(arguments.integrity_check),
        parallelism,
    };
    let started = std::time::Instant::now();
    let step = place.progress.of(output);
    let progress = |done, total| step.show(done, total);
    let restored = match place.home {
        Some(home) => restore_in_place(home, store, &options, &progress).await?,
        None => restore(store, &options, &progress).await?,
    };
    drop(step);
    findings::warn(output, &restored.checked);
    show(arguments, store, &restored, output, started.elapsed());
    Ok(())
}

fn show_plan(arguments: &RestoreArguments, store: &SharedStore, plan: &Plan, output: &Path) {
    if arguments.json {
        let files: Vec<_> = plan
            .files
            .iter()
            .map(|file| json!({"level": file.level, "name": file.name().to_string(), "bytes": file.size}))
            .collect();
        println!(
            "{}",
            json!({"database": output, "source": store.describe(), "txid": plan.txid.to_string(),
                   "bytes": plan.bytes(), "files": files})
        );
        return;
    }
    println!(
        "would restore {} from {} at TXID {}: {} files, {} bytes",
        output.display(),
        store.describe(),
        plan.txid,
        plan.files.len(),
        plan.bytes()
    );
    for file in &plan.files {
        println!("  level {} {} {} bytes", file.level, file.name(), file.size);
    }
}

fn show_generation(
    arguments: &RestoreArguments,
    store: &SharedStore,
    plan: &GenerationPlan,
    output: &Path,
) {
    let time = Timestamp::from_millisecond(plan.time_ms).unwrap_or_default();
    let (source, id) = (store.describe(), plan.id.to_string());
    if arguments.json {
        let files = plan.objects();
        let files: Vec<_> = files
            .map(|object| json!({"name": object.key, "bytes": object.size}))
            .collect();
        println!(
            "{}",
            json!({"database": output, "source": source, "generation": id,
                   "time": time.to_string(), "bytes": plan.bytes(), "files": files})
        );
        return;
    }
    println!(
        "would restore {} from {source}, generation {id} at {time}: {} files, {} bytes",
        output.display(),
        plan.objects().count(),
        plan.bytes()
    );
    for object in plan.objects() {
        println!("  {} {} bytes", object.key, object.size);
    }
}

fn show(
    arguments: &RestoreArguments,
    store: &SharedStore,
    restored: &Restored,
    output: &Path,
    took: Duration,
) {
    let time = Timestamp::from_millisecond(restored.timestamp_ms).unwrap_or_default();
    if arguments.json {
        let mut result = json!({
            "database": output, "source": store.describe(), "time": time.to_string(),
            "checksum": format!("{:016x}", restored.hashes.checksum()),
            "bytes": restored.bytes, "files": restored.files, "damaged": restored.damaged,
            "complaint": restored.checked.complaint, "notChecked": restored.checked.not_checked,
            "milliseconds": took.as_millis() as u64,
        });
        match restored.generation {
            None => result["txid"] = json!(restored.txid.to_string()),
            Some(id) => result["generation"] = json!(id.to_string()),
        }
        println!("{result}");
        return;
    }
    let point = match restored.generation {
        None => format!(" at TXID {} of {time}", restored.txid),
        Some(id) => format!(", generation {id} at {time}"),
    };
    println!(
        "restored {} from {}{point}: {} files, {} bytes, {} ms",
        output.display(),
        store.describe(),
        restored.files,
        restored.bytes,
        took.as_millis()
    );
}

fn local(path: &Path) -> impl Fn(std::io::Error) -> Failure {
    let path = path.display().to_string();
    move |error| Failure::message(ExitCode::LocalIo, format!("{path}: {error}"))
}
