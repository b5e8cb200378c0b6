//! The source of the configuration of `replicate`, and its changes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::config::{Config, OnDivergence, Startup};
use protocol::exit::ExitCode;
use sha2::{Digest, Sha256};
use store::{Opener, Target};

use crate::args::{Divergence, ReplicateArguments, holder, variable};
use crate::config::{self, ConfigError, Found, Settings};
use crate::failure::Failure;
use crate::signals::Hangups;

/// Pause between reads of the configuration file.
const RELOAD_PAUSE: Duration = Duration::from_secs(5);

/// The command line, or a file.
pub enum Source {
    /// One database and one URL from the command line, which never change.
    Fixed(Box<Config>),
    /// A file that may change.
    File(PathBuf),
}

/// A configuration as read at one time.
pub struct Loaded {
    /// Settings, ready to run.
    pub settings: Settings,
    /// Hex SHA-256 of the file; empty without one.
    pub hash: String,
    /// The databases of its patterns.
    pub found: Found,
}

/// The configuration in force.
pub struct Since {
    hash: String,
    found: Found,
    has_patterns: bool,
}

impl Loaded {
    /// Returns the state to compare later reads with.
    pub fn since(&self) -> Since {
        Since {
            hash: self.hash.clone(),
            has_patterns: !self.found.is_empty(),
            found: self.found.clone(),
        }
    }
}

impl Source {
    /// Takes the source from the command line.
    ///
    /// # Errors
    ///
    /// The command line names no source, or an invalid URL.
    pub fn new(arguments: &ReplicateArguments) -> Result<Source, Failure> {
        match (&arguments.config, &arguments.database, &arguments.url) {
            (Some(file), _, _) => Ok(Source::File(file.clone())),
            (None, Some(database), Some(url)) => {
                Target::from_url(url).map_err(Failure::usage)?;
                let startup = Startup {
                    on_divergence: match arguments.on_divergence {
                        Divergence::Block => OnDivergence::Block,
                        Divergence::NewLineage => OnDivergence::NewLineage,
                    },
                    ..Startup::default()
                };
                let config = Config {
                    startup: Some(startup),
                    ..config::for_url(database.clone(), url.clone())
                };
                Ok(Source::Fixed(Box::new(config)))
            }
            _ => Err(Failure::message(
                ExitCode::Usage,
                "give --config FILE, or a database and a URL",
            )),
        }
    }

    /// Reads the configuration. Its stores share resources through `opener`.
    ///
    /// # Errors
    ///
    /// See [`ConfigError`].
    pub fn read(&self, opener: &mut Opener) -> Result<Loaded, ConfigError> {
        let (config, hash) = match self {
            Source::Fixed(config) => (config.as_ref().clone(), String::new()),
            // Hash first, so that a change between the two reads is detected as a change.
            Source::File(file) => {
                let hash = hash_of(file);
                (config::read(file, &variable)?, hash)
            }
        };
        let found = config::pattern::local(&config)?;
        let settings = config::settings(&config, &found, holder(), opener)?;
        Ok(Loaded {
            settings,
            hash,
            found,
        })
    }

    /// Returns the databases of its patterns, found on a thread that may wait for a disk.
    async fn found(&self) -> Result<Found, ConfigError> {
        let config = match self {
            Source::Fixed(config) => config.as_ref().clone(),
            Source::File(file) => config::read(file, &variable)?,
        };
        let look = tokio::task::spawn_blocking(move || config::pattern::local(&config));
        look.await.expect("looking for files does not panic")
    }

    /// Waits until the file has a new usable content, different from `since`, or until its patterns
    /// find other databases. Returns the new configuration. Polls the file, and reads it at each of
    /// `hangups`.
    pub async fn changed(
        &self,
        since: &Since,
        opener: &mut Opener,
        hangups: &mut Hangups,
    ) -> Loaded {
        let file = match self {
            Source::File(file) => Some(file),
            Source::Fixed(_) => None,
        };
        let mut said = String::new();
        loop {
            tokio::select! {
                () = tokio::time::sleep(RELOAD_PAUSE) => {}
                () = hangups.recv() => {
                    tracing::info!("SIGHUP: looking at the configuration");
                    // After a SIGHUP, report the same problem again.
                    said.clear();
                }
            }
            let hash = file.map_or_else(String::new, |file| hash_of(file));
            let is_same = hash == since.hash || (file.is_some() && hash.is_empty());
            if is_same && !since.has_patterns {
                continue;
            }
            // Most polls find no change. Only a change justifies new settings for each database.
            let read = match self.found().await {
                Ok(found) if is_same && found == since.found => Ok(None),
                Ok(_) => self.read(opener).map(Some),
                Err(error) => Err(error),
            };
            match read {
                Ok(Some(loaded)) if !is_same || loaded.found != since.found => return loaded,
                Ok(_) => said.clear(),
                Err(error) => {
                    let what = if is_same {
                        "the databases go on as they are"
                    } else {
                        "the new configuration is not used"
                    };
                    let message = format!("{what}: {error}");
                    if message != said {
                        tracing::error!("{message}");
                        said = message;
                    }
                }
            }
        }
    }
}

/// Returns the hex SHA-256 of a file; empty when it cannot be read.
fn hash_of(file: &Path) -> String {
    let hex = |bytes: Vec<u8>| {
        let digest = Sha256::digest(bytes);
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    };
    std::fs::read(file).map_or_else(|_| String::new(), hex)
}
