//! An application: another process, with another build of SQLite than ours.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread::JoinHandle;

use super::until;

/// Inserts row after row until its input ends, and prints each number once it is committed.
const SCRIPT: &str = r#"
import os, sqlite3, sys, threading, time
path, pause = sys.argv[1], float(sys.argv[2])
go = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), go.set()), daemon=True).start()
db = sqlite3.connect(path, isolation_level=None, timeout=30)
db.execute("PRAGMA journal_mode=WAL")
db.execute("CREATE TABLE IF NOT EXISTS log(id INTEGER PRIMARY KEY, body BLOB)")
while not go.is_set():
    row = db.execute("INSERT INTO log(body) VALUES(?)", (os.urandom(300),)).lastrowid
    print(row, flush=True)
    time.sleep(pause)
db.close()
"#;

/// The process, killed when dropped.
pub struct Writer {
    child: Child,
    input: Option<ChildStdin>,
    last: Arc<AtomicI64>,
    listener: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts a writer that commits every few milliseconds, and waits for its first commit.
    pub fn start(database: &Path) -> Writer {
        let mut child = Command::new("python3")
            .args(["-c", SCRIPT])
            .arg(database)
            .arg("0.003")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start python3");
        let input = child.stdin.take();
        let output = child.stdout.take().expect("it was piped");
        let last = Arc::new(AtomicI64::new(0));
        let told = Arc::clone(&last);
        let listener = std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                told.store(line.parse().expect("a number"), Ordering::SeqCst);
            }
        });
        let writer = Writer {
            child,
            input,
            last,
            listener: Some(listener),
        };
        writer.wait_for(1);
        writer
    }

    /// Returns the newest row that it has printed.
    pub fn last(&self) -> i64 {
        self.last.load(Ordering::SeqCst)
    }

    /// Waits until that row is committed.
    pub fn wait_for(&self, row: i64) {
        until(&format!("row {row} is committed"), || {
            (self.last() >= row).then_some(())
        });
    }

    /// Waits for this number of further rows.
    pub fn write_more(&self, rows: i64) {
        self.wait_for(self.last() + rows);
    }

    /// Makes it close its connection and end.
    pub fn stop(mut self) {
        self.input.take();
        let status = self.child.wait().expect("wait for the writer");
        assert!(status.success(), "{status}");
    }

    /// Kills it at any point of its work. Returns the newest row that it has printed.
    pub fn kill(mut self) -> i64 {
        self.child.kill().expect("kill the writer");
        self.child.wait().expect("wait for the writer");
        let listener = self.listener.take().expect("it is taken here only");
        listener.join().expect("its output ends with it");
        self.last()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // It may have ended already.
        let _killed = self.child.kill();
        let _waited = self.child.wait();
    }
}
