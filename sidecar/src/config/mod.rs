//! Reads the configuration file, and converts it into settings for the engine.

mod limits;
mod litestream;
#[cfg(test)]
mod litestream_tests;
mod names;
pub mod pattern;
mod target;
#[cfg(test)]
mod tests;
mod text;
mod written;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::Uri;
use engine::env::budget::Limits;
use engine::replica::retention::RetentionPolicy;
use engine::replication::uploader::TargetSettings;
use engine::replication::{DatabaseSettings, default_state_directory};
use protocol::config::{Config, Database, Replica, Snapshot, Startup};
use serde::Serialize;
use sha2::{Digest, Sha256};
use store::{Opener, Target, UrlError};

pub use pattern::Found;
pub use text::read;

use limits::limits;

use crate::args::{LogFormat, is_state_beside};
use crate::heartbeat::Heartbeat;

/// Time span of one file of each compaction level, as in Litestream.
const DEFAULT_LEVELS: [Duration; 3] = [
    Duration::from_secs(30),
    Duration::from_secs(300),
    Duration::from_secs(3600),
];
/// Level 9 is reserved for snapshots.
const MAX_LEVELS: usize = 8;
const DEFAULT_SYNC_INTERVAL: Duration = Duration::from_secs(1);
const DEFAULT_SNAPSHOT_INTERVAL: Duration = Duration::from_secs(24 * 3600);
const DEFAULT_DRAIN: Duration = Duration::from_secs(30);
const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(300);
/// Shortest interval of requests to a user's monitor.
const MIN_HEARTBEAT: Duration = Duration::from_secs(60);
/// Limit on the targets of one database.
const MAX_TARGETS: usize = 4;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file is not YAML, or has an unsupported key or value.
    #[error("{}: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The error, and a probable correction.
        message: String,
    },
    /// `${NAME}` names a variable that is not set.
    #[error("{key}: the environment variable {name} is not set")]
    Variable {
        /// The key that uses it.
        key: String,
        /// The variable.
        name: String,
    },
    /// A value is invalid.
    #[error("{key}: {message}")]
    Value {
        /// The key.
        key: String,
        /// The error, and the remedy.
        message: String,
    },
    /// A target's URL is invalid.
    #[error("{key}: {source}")]
    Url {
        /// The key.
        key: String,
        /// The error.
        source: UrlError,
    },
    /// A store cannot be opened.
    #[error("{key}: {source}")]
    Store {
        /// The key.
        key: String,
        /// The error.
        source: store::StoreError,
    },
}

/// A configuration, ready to run.
pub struct Settings {
    /// Address of the HTTP endpoints.
    pub addr: Option<String>,
    /// A command to run during replication.
    pub exec: Option<String>,
    /// The SqliteBackup, or empty.
    pub backup: String,
    /// The member, or empty.
    pub member: String,
    /// Actions before the application starts.
    pub startup: Startup,
    /// The databases.
    pub databases: Vec<ConfiguredDatabase>,
    /// Databases of patterns that cannot be replicated because of their names, by path.
    pub refused: Vec<Refused>,
    /// Time limit of a shutdown.
    pub drain: Duration,
    /// Recipient of the report that everything is stored.
    pub heartbeat: Option<Heartbeat>,
    /// Resource limits of the process.
    pub limits: Limits,
}

/// One database of a configuration.
pub struct ConfiguredDatabase {
    /// Settings for the engine.
    pub settings: DatabaseSettings,
    /// Restore the database before replication when it is missing.
    pub restore_first: bool,
    /// SHA-256 of everything in the file that affects this database. An equal value means that
    /// nothing has changed.
    pub fingerprint: [u8; 32],
}

/// A database that matches a pattern, but whose name not every store can keep and list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Path of the file.
    pub path: PathBuf,
    /// The fault of its name, and the remedy.
    pub message: String,
}

/// Log settings of the configuration. The command line overrides them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogSettings {
    /// Least severe level to log.
    pub level: Option<tracing::Level>,
    /// Format of the lines.
    pub format: Option<LogFormat>,
    /// Include the source line that wrote each log line.
    pub source: bool,
}

/// Returns a configuration for one database and one URL.
pub fn for_url(database: PathBuf, url: String) -> Config {
    let replica = Replica {
        url: Some(url),
        ..Replica::default()
    };
    let database = Database {
        path: database,
        is_literal: true,
        replica: Some(replica),
        ..Database::default()
    };
    Config {
        dbs: vec![database],
        ..Config::default()
    }
}

/// Checks a configuration and opens its stores, which share resources through `opener`. `holder`
/// names the writer, and `found` holds the databases of each pattern.
///
/// # Errors
///
/// See [`ConfigError`]; each names the key.
pub fn settings(
    config: &Config,
    found: &Found,
    holder: &str,
    opener: &mut Opener,
) -> Result<Settings, ConfigError> {
    log_settings(config)?;
    let identity = config.identity.clone().unwrap_or_default();
    let startup = config.startup.unwrap_or_default();
    let mut databases: Vec<ConfiguredDatabase> = Vec::new();
    let mut places: BTreeMap<String, String> = BTreeMap::new();
    let common = json(&Config {
        addr: None,
        exec: None,
        limits: None,
        identity: None,
        logging: None,
        heartbeat_url: None,
        heartbeat_interval: None,
        dbs: Vec::new(),
        ..config.clone()
    });
    let (entries, mut refused) = entries(config, found, opener)?;
    let taken = names::places(config, &entries)?;
    for (index, database, place) in entries {
        let (key, place) = (format!("dbs[{index}]"), place.as_deref());
        if let Some(message) = names::among_others(&taken, config, &database, &key, place)? {
            if place.is_none() {
                return Err(ConfigError::Value { key, message });
            }
            let path = database.path.clone();
            refused.push(Refused { path, message });
            continue;
        }
        for (number, target) in targets_of(config, &database, &key, place)?
            .iter()
            .enumerate()
        {
            let key = format!("{key}.replicas[{number}]");
            let state = state_directory(config, &database);
            if matches!(target, Target::File { path } if path.starts_with(&state)) {
                let state = state.display();
                let message = format!("it lies in {state}, where we keep what is only ours");
                return Err(ConfigError::Value { key, message });
            }
            if let Some(other) = places.insert(target::place(target), key.clone()) {
                let message = format!("it stores to the same place as {other}");
                return Err(ConfigError::Value { key, message });
            }
        }
        let settings = database_settings(config, &database, &key, place, holder, opener)?;
        databases.push(ConfiguredDatabase {
            settings,
            restore_first: database.restore_if_db_not_exists.unwrap_or(false),
            fingerprint: Sha256::new()
                .chain_update(&common)
                .chain_update(json(&database))
                .finalize()
                .into(),
        });
    }
    let addr = config
        .addr
        .as_ref()
        .map(|addr| match addr.strip_prefix(':') {
            Some(port) => format!("0.0.0.0:{port}"),
            None => addr.clone(),
        });
    let limits = limits(config, &databases)?;
    Ok(Settings {
        addr,
        exec: config.exec.clone(),
        backup: identity.backup,
        member: identity.member,
        startup,
        databases,
        refused,
        drain: config
            .shutdown_sync_timeout
            .map_or(DEFAULT_DRAIN, |span| span.0),
        heartbeat: heartbeat(config)?,
        limits,
    })
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("a configuration has string keys and plain values")
}

fn heartbeat(config: &Config) -> Result<Option<Heartbeat>, ConfigError> {
    let wrong = |key: &str, message: &str| ConfigError::Value {
        key: key.to_owned(),
        message: message.to_owned(),
    };
    let interval = (config.heartbeat_interval).map_or(DEFAULT_HEARTBEAT, |span| span.0);
    if interval < MIN_HEARTBEAT {
        return Err(wrong("heartbeat-interval", "1m is the least"));
    }
    let Some(text) = &config.heartbeat_url else {
        return Ok(None);
    };
    let message = "it has to begin with http:// or https:// and a host";
    let url: Uri = text.parse().map_err(|_| wrong("heartbeat-url", message))?;
    if !matches!(url.scheme_str(), Some("http" | "https")) || url.host().is_none() {
        return Err(wrong("heartbeat-url", message));
    }
    Ok(Some(Heartbeat { url, interval }))
}

/// One database: its number in the file, and for a database of a pattern its path below the
/// targets.
type Entry = (usize, Database, Option<String>);

/// Returns the entries of a configuration, one for each database. A file with its own entry, or
/// found by an earlier pattern, is not added again. Databases that cannot be stored are returned
/// separately.
fn entries(
    config: &Config,
    found: &Found,
    opener: &mut Opener,
) -> Result<(Vec<Entry>, Vec<Refused>), ConfigError> {
    let patterns = pattern::patterns(config)?;
    let mut taken: BTreeSet<&Path> = BTreeSet::new();
    let (mut all, mut refused) = (Vec::new(), Vec::new());
    for (index, database) in config.dbs.iter().enumerate() {
        if patterns.contains_key(&index) {
            continue;
        }
        if !taken.insert(&database.path) {
            return Err(ConfigError::Value {
                key: format!("dbs[{index}].path"),
                message: format!("{} is configured twice", database.path.display()),
            });
        }
        all.push((index, database.clone(), None));
    }
    for (index, pattern) in &patterns {
        let entry = &config.dbs[*index];
        // Report invalid targets even while no database matches.
        targets(config, entry, &format!("dbs[{index}]"), None, opener)?;
        for path in found.get(index).into_iter().flatten() {
            if !taken.insert(path) {
                continue;
            }
            if let Some(message) = names::fault(config, entry, pattern, path)? {
                let path = path.clone();
                refused.push(Refused { path, message });
            } else if let Some(place) = pattern.place(path) {
                let below = |meta: &PathBuf| meta.join(format!("{place}-sqlite-backup"));
                let database = Database {
                    path: path.clone(),
                    dir: None,
                    meta_path: entry.meta_dir.as_ref().map(below),
                    ..entry.clone()
                };
                all.push((*index, database, Some(place.to_owned())));
            }
        }
    }
    Ok((all, refused))
}

fn database_settings(
    config: &Config,
    database: &Database,
    key: &str,
    place: Option<&str>,
    holder: &str,
    opener: &mut Opener,
) -> Result<DatabaseSettings, ConfigError> {
    let path_message = match database.path.to_str() {
        None => Some("it is not UTF-8"),
        Some("") => Some("a database needs its path"),
        Some(path) if path.starts_with("~/") => Some("write ${HOME} instead of ~"),
        Some(path) if path.contains("://") => Some("give the path of the file, not a URL"),
        _ => None,
    };
    if let Some(message) = path_message {
        return Err(ConfigError::Value {
            key: format!("{key}.path"),
            message: message.to_owned(),
        });
    }
    let (targets, sync_interval) = targets(config, database, key, place, opener)?;
    let replicas = database.replica.iter().chain(&database.replicas);
    let shortest = replicas
        .filter_map(|it| it.snapshot_interval)
        .min_by_key(|it| it.0);
    Ok(DatabaseSettings {
        path: database.path.clone(),
        state: state_directory(config, database),
        targets,
        sync_interval,
        snapshot_interval: snapshot(config, database)
            .interval
            .or(shortest)
            .map_or(DEFAULT_SNAPSHOT_INTERVAL, |span| span.0),
        holder: holder.to_owned(),
        on_divergence: config.startup.unwrap_or_default().on_divergence,
    })
}

/// Returns the targets of an entry, without opening their stores.
fn targets_of(
    config: &Config,
    database: &Database,
    key: &str,
    place: Option<&str>,
) -> Result<Vec<Target>, ConfigError> {
    let replicas = database.replica.iter().chain(&database.replicas);
    let target = |(index, replica): (usize, &Replica)| {
        let key = format!("{key}.replicas[{index}]");
        target::check_own(replica, &key)?;
        let target = target::target(&replica.or_defaults(config), &key)?;
        match place {
            Some(place) => target::below(target, place, &key),
            None => Ok(target),
        }
    };
    replicas.enumerate().map(target).collect()
}

/// Returns the targets of an entry and their sync interval. `place` is the path of a pattern's
/// database below the targets.
///
/// # Errors
///
/// See [`ConfigError`].
pub fn targets(
    config: &Config,
    database: &Database,
    key: &str,
    place: Option<&str>,
    opener: &mut Opener,
) -> Result<(Vec<TargetSettings>, Duration), ConfigError> {
    let value = |name: &str, message: &str| ConfigError::Value {
        key: format!("{key}.{name}"),
        message: message.to_owned(),
    };
    litestream::check_database(database, key)?;
    let replicas = database.replica.iter().chain(&database.replicas);
    let replicas: Vec<Replica> = replicas.map(|it| it.or_defaults(config)).collect();
    if replicas.is_empty() || replicas.len() > MAX_TARGETS {
        return Err(value("replicas", "1 to 4 are needed"));
    }
    let mut targets: Vec<TargetSettings> = Vec::new();
    let mut sync_interval = DEFAULT_SYNC_INTERVAL;
    let (compaction_interval, higher_levels) = levels(config)?;
    for (index, (replica, target)) in replicas
        .iter()
        .zip(targets_of(config, database, key, place)?)
        .enumerate()
    {
        let key = format!("{key}.replicas[{index}]");
        litestream::check_replica(replica, &key)?;
        let name = replica
            .name
            .clone()
            .unwrap_or_else(|| target::kind_of(&target).to_owned());
        if targets.iter().any(|other| other.name == name) {
            let message = format!("the name {name:?} is taken; give each replica its own");
            return Err(ConfigError::Value {
                key: format!("{key}.name"),
                message,
            });
        }
        sync_interval = replica.sync_interval.map_or(sync_interval, |span| span.0);
        let store = opener.open(&target).map_err(|source| ConfigError::Store {
            key: key.clone(),
            source,
        })?;
        targets.push(TargetSettings {
            name,
            store,
            compaction_interval,
            higher_levels: higher_levels.clone(),
            retention: retention(config, database, replica),
        });
    }
    Ok((targets, sync_interval))
}

/// Returns the log settings of a configuration.
///
/// # Errors
///
/// An unknown level or format.
pub fn log_settings(config: &Config) -> Result<LogSettings, ConfigError> {
    let Some(logging) = &config.logging else {
        return Ok(LogSettings::default());
    };
    let wrong = |key: &str, value: &str, served: &str| ConfigError::Value {
        key: format!("logging.{key}"),
        message: format!("{value:?} is none of {served}"),
    };
    let level = logging.level.as_ref().map(|level| {
        let levels = "error, warn, info, debug, trace";
        level.parse().map_err(|_| wrong("level", level, levels))
    });
    let format = logging.format.as_deref().map(|format| match format {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        other => Err(wrong("type", other, "text, json")),
    });
    Ok(LogSettings {
        level: level.transpose()?,
        format: format.transpose()?,
        source: logging.source.unwrap_or(false),
    })
}

fn state_directory(config: &Config, database: &Database) -> PathBuf {
    if let Some(path) = &database.meta_path {
        return path.clone();
    }
    match config.state_dir.as_ref().filter(|_| !is_state_beside()) {
        None => default_state_directory(&database.path),
        Some(directory) => {
            let path = database.path.to_string_lossy();
            let name = path
                .trim_start_matches('/')
                .replace('%', "%25")
                .replace('/', "%2F");
            directory.join(name)
        }
    }
}

/// Returns the time span of the files of level 1, and of each higher level.
fn levels(config: &Config) -> Result<(Duration, Vec<Duration>), ConfigError> {
    let given = config.levels.as_deref();
    let levels = given.map_or(DEFAULT_LEVELS.to_vec(), |levels| {
        levels.iter().map(|level| level.interval.0).collect()
    });
    let longer = levels.windows(2).all(|pair| pair[0] < pair[1]);
    match levels.split_first() {
        Some((first, higher)) if !first.is_zero() && longer && higher.len() < MAX_LEVELS => {
            Ok((*first, higher.to_vec()))
        }
        _ => Err(ConfigError::Value {
            key: "levels".to_owned(),
            message: "1 to 8 levels are needed, each with a longer interval than the one before"
                .to_owned(),
        }),
    }
}

/// Returns the snapshot settings of one database, else the common ones.
fn snapshot(config: &Config, database: &Database) -> Snapshot {
    let (own, all) = (
        database.snapshot.unwrap_or_default(),
        config.snapshot.unwrap_or_default(),
    );
    Snapshot {
        interval: own.interval.or(all.interval),
        retention: own.retention.or(all.retention),
    }
}

fn retention(config: &Config, database: &Database, replica: &Replica) -> RetentionPolicy {
    let wanted = config.retention.unwrap_or_default();
    let default = RetentionPolicy::default();
    // Zero is Litestream's value for "never". Then only the window applies.
    let l0_retention = config.l0_retention.map(|span| match span.0 {
        Duration::ZERO => Duration::MAX,
        span => span,
    });
    let exact = wanted.exact.map(|span| span.0).or(l0_retention);
    let own = database.snapshot.and_then(|snapshot| snapshot.retention);
    let window = replica
        .retention
        .or(own)
        .or(wanted.window)
        .or(snapshot(config, database).retention);
    RetentionPolicy {
        enabled: wanted.enabled.unwrap_or(default.enabled),
        exact: exact.unwrap_or(default.exact),
        window: window.map_or(default.window, |span| span.0),
        daily: wanted.daily.unwrap_or(default.daily),
        weekly: wanted.weekly.unwrap_or(default.weekly),
        monthly: wanted.monthly.unwrap_or(default.monthly),
    }
}
