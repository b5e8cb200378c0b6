//! Databases that the tests themselves create and read.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use rusqlite::Connection;

/// Every row of the table that [`super::writer`] fills: number and checksum, as text.
pub type Rows = Vec<String>;

/// Creates a database in WAL mode with this number of rows.
pub fn create(path: &Path, rows: i64) -> Connection {
    let connection = Connection::open(path).expect("create a database");
    connection
        .execute_batch(
            "PRAGMA journal_mode=WAL;
             CREATE TABLE IF NOT EXISTS log(id INTEGER PRIMARY KEY, body BLOB);",
        )
        .expect("make it a WAL database");
    insert(&connection, rows);
    connection
}

/// Adds rows, each in a transaction of its own.
pub fn insert(connection: &Connection, rows: i64) {
    for _ in 0..rows {
        connection
            .execute("INSERT INTO log(body) VALUES(randomblob(300))", [])
            .expect("insert a row");
    }
}

/// Reads every row, after SQLite has checked all of the database.
pub fn rows(path: &Path) -> Rows {
    let connection = Connection::open(path).expect("open the database");
    let verdict: String = connection
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .expect("check the database");
    assert_eq!(verdict, "ok", "{}", path.display());
    let mut statement = connection
        .prepare("SELECT id, body FROM log ORDER BY id")
        .expect("the table is there");
    statement
        .query_map([], |row| {
            let (id, body): (i64, Vec<u8>) = (row.get(0)?, row.get(1)?);
            let mut hash = DefaultHasher::new();
            body.hash(&mut hash);
            Ok(format!("{id} {:016x}", hash.finish()))
        })
        .expect("read the rows")
        .collect::<Result<_, _>>()
        .expect("read a row")
}

/// Asserts that a restored database has the rows of its source.
#[track_caller]
pub fn assert_same(restored: &Rows, source: &Rows) {
    let differs =
        (0..restored.len().max(source.len())).find(|n| restored.get(*n) != source.get(*n));
    if let Some(n) = differs {
        panic!(
            "{} rows restored, {} in the source; row {n} is {:?}, expected {:?}",
            restored.len(),
            source.len(),
            restored.get(n),
            source.get(n)
        );
    }
}

/// Returns the files below a directory whose names match a predicate, in order.
pub fn files(directory: &Path, wanted: &dyn Fn(&str) -> bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory).expect("list a directory") {
            let path = entry.expect("read an entry").path();
            if path.is_dir() {
                pending.push(path);
            } else if wanted(&path.to_string_lossy()) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}
