//! Databases that are named by a pattern: their files, and their backups.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use futures::{StreamExt, TryStreamExt};
use glob::MatchOptions;
use protocol::config::{Config, Database};
use store::{SharedStore, Store, StoreError};

use super::ConfigError;

/// Characters that make a path a pattern.
const WILDCARDS: [char; 3] = ['*', '?', '['];
/// Deepest directory that is searched.
const MAX_DEPTH: usize = 32;
/// Limit on the directories that are searched on this machine.
const MAX_DIRECTORIES: usize = 100_000;
/// Number of directories of a store listed at the same time.
const LISTS_AT_ONCE: usize = 16;
/// Suffixes of files that belong to a database beside them.
const SIDE_FILES: [&str; 5] = [
    "-wal",
    "-shm",
    "-journal",
    ".restore.tmp",
    ".before-restore",
];
/// Directory that a file system reserves, and that only root may read.
const LOST_AND_FOUND: &str = "lost+found";
/// A star does not match a slash, and only a dot matches the start of a hidden name.
const OPTIONS: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: true,
};

/// The databases of each pattern, by its number in the file.
pub type Found = BTreeMap<usize, BTreeSet<PathBuf>>;

/// One pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    wanted: glob::Pattern,
    excluded: Vec<glob::Pattern>,
    /// The directory before the first wildcard.
    base: PathBuf,
    /// Number of components below it; `None` for any number.
    depth: Option<usize>,
}

/// A search for the files of a pattern.
#[derive(Default)]
struct Walk {
    found: BTreeSet<PathBuf>,
    /// Device and inode of each directory on the path to the current one.
    way: Vec<(u64, u64)>,
    directories: usize,
}

impl Pattern {
    /// Returns the pattern of a database entry; `None` when it names one file. `key` is its
    /// position in the file.
    ///
    /// # Errors
    ///
    /// An invalid pattern, or keys that exclude each other.
    pub fn of(database: &Database, key: &str) -> Result<Option<Pattern>, ConfigError> {
        let wrong = |name: &str, message: String| ConfigError::Value {
            key: format!("{key}.{name}"),
            message,
        };
        let text = match (&database.dir, database.path.to_str()) {
            (Some(_), Some(path)) if !path.is_empty() => {
                return Err(wrong("dir", "give a path, or a dir, not both".to_owned()));
            }
            (Some(dir), _) => {
                let between = if database.recursive == Some(true) {
                    "/**/"
                } else {
                    "/"
                };
                let pattern = database.pattern.as_deref().unwrap_or("*.db");
                let dir = glob::Pattern::escape(&dir.to_string_lossy());
                format!("{}{between}{pattern}", dir.trim_end_matches('/'))
            }
            (None, Some(path)) if path.contains(WILDCARDS) && !database.is_literal => {
                path.to_owned()
            }
            (None, _) => {
                let meaningless = [
                    ("pattern", database.pattern.is_some()),
                    ("recursive", database.recursive.is_some()),
                    ("watch", database.watch.is_some()),
                    ("exclude", !database.exclude.is_empty()),
                    ("meta-dir", database.meta_dir.is_some()),
                ];
                return match meaningless.into_iter().find(|(_, given)| *given) {
                    Some((name, _)) => Err(wrong(name, "it goes with a dir, or a pattern".into())),
                    None => Ok(None),
                };
            }
        };
        for (name, given, message) in [
            (
                "meta-path",
                database.meta_path.is_some(),
                "each database needs its own: use meta-dir, or state-dir",
            ),
            (
                "watch",
                database.watch == Some(false),
                "databases are always found while running; remove it",
            ),
            (
                "restore-if-db-not-exists",
                database.restore_if_db_not_exists == Some(true),
                "run `restore --config` before: it finds the databases in the store",
            ),
        ] {
            if given {
                return Err(wrong(name, message.to_owned()));
            }
        }
        let parse = |name: &str, text: &str| {
            glob::Pattern::new(text).map_err(|error| wrong(name, format!("{text:?}: {error}")))
        };
        let wanted = parse("path", &text)?;
        let excluded = database.exclude.iter().map(|text| parse("exclude", text));
        let literal = |component: &Component<'_>| {
            !component.as_os_str().to_string_lossy().contains(WILDCARDS)
        };
        let path = Path::new(&text);
        let base: PathBuf = match &database.dir {
            // Used as it is, because a directory name may contain wildcard characters.
            Some(dir) => {
                let own = dir.components().count();
                let below = path.components().skip(own).take_while(literal);
                dir.components().chain(below).collect()
            }
            None => path.components().take_while(literal).collect(),
        };
        let below = path.components().count() - base.components().count();
        Ok(Some(Pattern {
            wanted,
            excluded: excluded.collect::<Result<_, _>>()?,
            base,
            depth: (!text.contains("**")).then_some(below),
        }))
    }

    /// Returns the path of a database below the directory before the first wildcard. It is also its
    /// path in each target.
    pub fn place<'a>(&self, path: &'a Path) -> Option<&'a str> {
        path.strip_prefix(&self.base).ok()?.to_str()
    }

    /// Returns the mark file beside the databases. While it exists, their restore is not finished,
    /// so the local databases are not complete.
    pub fn restoring(&self) -> PathBuf {
        self.base.join(".sqlite-backup-restoring")
    }

    /// Returns whether a file is one of the databases.
    pub fn matches(&self, path: &Path) -> bool {
        // A name that is not UTF-8 is matched by its lossy form, and refused later.
        let text = path.to_string_lossy();
        let path = Path::new(text.as_ref());
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // An exclusion without a slash applies to names in any directory.
        let excludes = |pattern: &glob::Pattern| match pattern.as_str().contains('/') {
            true => pattern.matches_path_with(path, OPTIONS),
            false => pattern.matches_with(&name, OPTIONS),
        };
        !SIDE_FILES.iter().any(|ending| name.ends_with(ending))
            && self.wanted.matches_path_with(path, OPTIONS)
            && !self.excluded.iter().any(excludes)
    }

    /// Returns the databases on this machine. An empty file does not count.
    ///
    /// # Errors
    ///
    /// A directory that cannot be read, because its content is unknown.
    pub fn files(&self) -> io::Result<BTreeSet<PathBuf>> {
        let base = std::fs::metadata(&self.base);
        let mut walk = Walk {
            way: base
                .map(|base| (base.dev(), base.ino()))
                .into_iter()
                .collect(),
            ..Walk::default()
        };
        self.walk(&self.base, self.depth.unwrap_or(MAX_DEPTH), &mut walk)?;
        Ok(walk.found)
    }

    fn walk(&self, directory: &Path, depth: usize, walk: &mut Walk) -> io::Result<()> {
        walk.directories += 1;
        if walk.directories > MAX_DIRECTORIES {
            let message = format!(
                "there are more than {MAX_DIRECTORIES} directories below {}: do links lead from one to another?",
                self.base.display()
            );
            return Err(io::Error::other(message));
        }
        let entries = match std::fs::read_dir(directory) {
            // The directory does not exist yet, or was removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => {
                let message = format!("{}: {error}", directory.display());
                return Err(io::Error::new(error.kind(), message));
            }
            Ok(entries) => entries,
        };
        for entry in entries {
            let path = entry?.path();
            let metadata = match std::fs::metadata(&path) {
                // The entry was removed meanwhile, or is a dangling link.
                Err(error) if leads_nowhere(&path, &error) => continue,
                Err(error) => {
                    let message = format!("{}: {error}", path.display());
                    return Err(io::Error::new(error.kind(), message));
                }
                Ok(metadata) => metadata,
            };
            // Directories of our state, and the one that the file system reserves.
            let is_ours = || {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                (name.starts_with('.') && name.ends_with("-sqlite-backup"))
                    || name == LOST_AND_FOUND
            };
            if metadata.is_dir() {
                // A link may lead back to a parent directory.
                let identity = (metadata.dev(), metadata.ino());
                if depth > 1 && !is_ours() && !walk.way.contains(&identity) {
                    walk.way.push(identity);
                    self.walk(&path, depth - 1, walk)?;
                    walk.way.pop();
                }
            } else if metadata.is_file() && metadata.len() > 0 && self.matches(&path) {
                walk.found.insert(path);
            }
        }
        Ok(())
    }

    /// Returns the databases with a backup in a store, which is opened at the path of the pattern.
    ///
    /// # Errors
    ///
    /// The store's. An empty result is thus the store's own answer.
    pub async fn stored(&self, store: &SharedStore) -> Result<BTreeSet<PathBuf>, StoreError> {
        let mut found = BTreeSet::new();
        let mut level = vec![String::new()];
        for _ in 0..=self.depth.unwrap_or(MAX_DEPTH) {
            let lists = level.iter().map(|directory| async move {
                let below = store.directories(directory).await?;
                Ok::<_, StoreError>((directory.clone(), below))
            });
            let lists: Vec<_> = futures::stream::iter(lists)
                .buffered(LISTS_AT_ONCE)
                .try_collect()
                .await?;
            level.clear();
            for (directory, below) in lists {
                if below.iter().any(|name| is_level(name)) {
                    let path = self.base.join(&directory);
                    if !directory.is_empty() && self.matches(&path) {
                        found.insert(path);
                    }
                }
                // A database, or a directory of databases, may have the name of a level.
                let below = below.iter().filter(|name| *name != LOST_AND_FOUND);
                level.extend(below.map(|name| match directory.as_str() {
                    "" => name.clone(),
                    directory => format!("{directory}/{name}"),
                }));
            }
            if level.is_empty() {
                break;
            }
        }
        Ok(found)
    }
}

/// Returns whether an unreadable entry can be ignored: it was removed, or is a link to a missing or
/// forbidden file. After any other error, the content is unknown.
fn leads_nowhere(path: &Path, error: &io::Error) -> bool {
    let nowhere = [libc::ELOOP, libc::ENOTDIR, libc::ENAMETOOLONG, libc::EACCES];
    let is_link = || std::fs::symlink_metadata(path).is_ok_and(|entry| entry.is_symlink());
    error.kind() == io::ErrorKind::NotFound
        || (error
            .raw_os_error()
            .is_some_and(|code| nowhere.contains(&code))
            && is_link())
}

/// Returns whether a name is a directory in the backup of a database: in Litestream 0.5's layouts
/// for directories and for S3, or in that of 0.3.
pub(super) fn is_level(name: &str) -> bool {
    name == "ltx" || (name.len() == 4 && name.starts_with("000")) || name == "generations"
}

/// Returns the patterns of a configuration, by their numbers.
///
/// # Errors
///
/// See [`Pattern::of`].
pub fn patterns(config: &Config) -> Result<BTreeMap<usize, Pattern>, ConfigError> {
    let entries = config.dbs.iter().enumerate();
    entries
        .filter_map(|(index, database)| {
            let pattern = Pattern::of(database, &format!("dbs[{index}]")).transpose()?;
            Some(pattern.map(|pattern| (index, pattern)))
        })
        .collect()
}

/// Returns the databases on this machine that match the patterns of a configuration.
///
/// # Errors
///
/// An invalid pattern, or a directory that cannot be read.
pub fn local(config: &Config) -> Result<Found, ConfigError> {
    let look = |(index, pattern): (usize, Pattern)| {
        let files = pattern.files().map_err(|source| ConfigError::Read {
            path: pattern.base.clone(),
            source,
        })?;
        Ok((index, files))
    };
    patterns(config)?.into_iter().map(look).collect()
}
