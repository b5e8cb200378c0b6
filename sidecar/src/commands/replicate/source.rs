//! Where the configuration of `replicate` comes from, and when it changes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::config::{Config, OnDivergence, Startup};
use protocol::exit::ExitCode;
use sha2::{Digest, Sha256};
use store::{Opener, Target};

use crate::args::{Divergence, ReplicateArguments, holder, variable};
use crate::config::{self, ConfigError, Settings};
use crate::failure::Failure;

/// Pause between looks at the configuration file.
const RELOAD_PAUSE: Duration = Duration::from_secs(5);

/// The command line, or a file.
pub enum Source {
    /// One database and one URL, which never change.
    Fixed(Box<Config>),
    /// A file that may change.
    File(PathBuf),
}

/// A configuration as read at one moment.
pub struct Loaded {
    /// Ready to run.
    pub settings: Settings,
    /// Hex SHA-256 of the file; empty without one.
    pub hash: String,
}

impl Source {
    /// What the command line names.
    ///
    /// # Errors
    ///
    /// It names nothing, or a URL that makes no sense.
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

    /// Reads it. Stores share what `opener` can share.
    ///
    /// # Errors
    ///
    /// See [`ConfigError`].
    pub fn read(&self, opener: &mut Opener) -> Result<Loaded, ConfigError> {
        let (config, hash) = match self {
            Source::Fixed(config) => (config.as_ref().clone(), String::new()),
            // The hash first: a change between the two reads is then seen as one.
            Source::File(file) => {
                let hash = hash_of(file);
                (config::read(file, &variable)?, hash)
            }
        };
        let settings = config::settings(&config, holder(), opener)?;
        Ok(Loaded { settings, hash })
    }

    /// Waits until the file has a content other than `since` that is usable, and returns it.
    pub async fn changed(&self, since: &str, opener: &mut Opener) -> Loaded {
        let Source::File(file) = self else {
            return std::future::pending().await;
        };
        let mut refused = String::new();
        loop {
            tokio::time::sleep(RELOAD_PAUSE).await;
            let hash = hash_of(file);
            if hash == since || hash == refused || hash.is_empty() {
                continue;
            }
            match self.read(opener) {
                Ok(loaded) => return loaded,
                Err(error) => {
                    tracing::error!("the new configuration is not used: {error}");
                    refused = hash;
                }
            }
        }
    }
}

/// Hex SHA-256 of a file; empty when it cannot be read.
fn hash_of(file: &Path) -> String {
    let hex = |bytes: Vec<u8>| {
        let digest = Sha256::digest(bytes);
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    };
    std::fs::read(file).map_or_else(|_| String::new(), hex)
}
