//! A directory for one test.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// The directory, with a path for the database; removed at the end.
pub struct Place {
    directory: TempDir,
    database: PathBuf,
    fresh: Cell<u32>,
}

impl Place {
    /// An empty directory.
    pub fn new() -> Place {
        let directory = tempfile::tempdir().expect("make a directory");
        let database = directory.path().join("app.db");
        Place {
            directory,
            database,
            fresh: Cell::new(0),
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Path of the database.
    pub fn database(&self) -> PathBuf {
        self.database.clone()
    }

    /// Path of the database, for command lines.
    pub fn database_text(&self) -> &str {
        text(&self.database)
    }

    /// A path that is not in use.
    pub fn fresh(&self, name: &str) -> PathBuf {
        self.fresh.set(self.fresh.get() + 1);
        self.path().join(format!("{}-{name}", self.fresh.get()))
    }

    /// The URL of a directory in it.
    pub fn url(&self, name: &str) -> String {
        format!("file://{}/{name}", self.path().display())
    }

    /// Writes a file in one step, as `kubectl` and editors do, and returns its path.
    pub fn write(&self, name: &str, content: &str) -> String {
        let path = self.path().join(name);
        let temporary = self.fresh("written");
        std::fs::write(&temporary, content).expect("write a file");
        std::fs::rename(&temporary, &path).expect("rename a file");
        text(&path).to_owned()
    }

    /// Writes a configuration of one database and one directory, and returns its path.
    pub fn config(&self, database: &Path, target: &str) -> String {
        let (database, url) = (database.display(), self.url(target));
        let content = format!("dbs:\n- path: {database}\n  replica: {{url: '{url}'}}\n");
        self.write("config.yml", &content)
    }
}

/// A path for command lines.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}
