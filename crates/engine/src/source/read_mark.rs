//! A read mark that keeps the pages of a database as they are.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::sqlite::{Connection, SqliteError};

/// A read mark on a database. While it is held, no checkpoint overwrites a page.
#[derive(Debug)]
// The mutex is needed only because a connection must not be shared between threads.
pub struct ReadMark(Mutex<Connection>);

impl ReadMark {
    /// Takes a read mark without waiting.
    ///
    /// # Errors
    ///
    /// The error of SQLite, or the application does not have the database open.
    pub fn take(path: &Path) -> Result<ReadMark, SqliteError> {
        let connection = Connection::open(path)?;
        connection.begin_read()?;
        Ok(ReadMark(Mutex::new(connection)))
    }

    /// The connection that holds the mark.
    pub(crate) fn into_connection(self) -> Connection {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}
