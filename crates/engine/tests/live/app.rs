//! The application: this test binary, started once more, writing to a database on command.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde::{Deserialize, Serialize};

const VARIABLE: &str = "ENGINE_TEST_APPLICATION";
/// The sum of the balances of all accounts after each commit.
pub const TOTAL: i64 = 2000;

/// How the application uses its database.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Habits {
    pub path: PathBuf,
    pub seed: u64,
    pub page_size: u32,
    pub auto_vacuum: u32,
    pub autocheckpoint: u32,
    pub synchronous: String,
    pub threads: u64,
    /// Time for which a connection waits for a lock, in milliseconds.
    pub busy_timeout_ms: u64,
    /// False: small commits only. True: every action that an application may take.
    pub wild: bool,
}

impl Habits {
    pub fn calm(path: &Path, seed: u64) -> Habits {
        Habits {
            path: path.to_owned(),
            seed,
            page_size: 4096,
            auto_vacuum: 0,
            autocheckpoint: 1000,
            synchronous: "NORMAL".into(),
            threads: 1,
            busy_timeout_ms: 5000,
            wild: false,
        }
    }
}

/// A deterministic sequence of numbers: SplitMix64.
#[derive(Debug, Clone)]
pub struct Numbers(pub u64);

impl Numbers {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }

    /// As [`Numbers::below`], in the type that SQLite takes.
    fn value(&mut self, limit: u64) -> i64 {
        self.below(limit) as i64
    }

    pub fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize].clone()
    }
}

/// The seed of this run: given, or from the clock; printed either way.
pub fn seed() -> u64 {
    let given = std::env::var("ENGINE_TEST_SEED").ok();
    let seed = given.map_or_else(
        || engine::env::clock::unix_ms() as u64,
        |text| text.parse().expect("ENGINE_TEST_SEED is a number"),
    );
    println!("ENGINE_TEST_SEED={seed}");
    seed
}

/// The application process, seen from the test. It is killed when dropped.
pub struct App {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl App {
    /// Starts the application with the database open and its threads at rest.
    pub fn start(habits: &Habits) -> App {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["application", "--exact", "--nocapture", "--test-threads=1"])
            .env(VARIABLE, serde_json::to_string(habits).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut app = App {
            child,
            input,
            output,
        };
        app.answer();
        app
    }

    /// Lets the threads work.
    pub fn go(&mut self) {
        self.ask("go");
    }

    /// Waits until each thread has finished its step; connections stay open.
    pub fn pause(&mut self) {
        self.ask("pause");
    }

    /// As `pause`, and closes every connection.
    pub fn close(&mut self) {
        self.ask("close");
    }

    /// Runs statements on a connection of its own, kept open.
    pub fn sql(&mut self, sql: &str) -> String {
        self.ask(&format!("sql {sql}"))
    }

    /// The pages of the database as SQLite sees them at this moment.
    pub fn dump(&mut self) -> Vec<u8> {
        let file = tempfile::NamedTempFile::new().unwrap();
        self.ask(&format!("dump {}", file.path().display()));
        std::fs::read(file.path()).unwrap()
    }

    /// Lets the threads work until this many more commits were made.
    pub fn work(&mut self, commits: u64) {
        self.go();
        self.wait_for_commits(commits);
        self.pause();
    }

    /// Waits, while the threads work, until this many more commits were made.
    pub fn wait_for_commits(&mut self, more: u64) {
        let goal = self.commits() + more;
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.commits() < goal {
            assert!(Instant::now() < deadline, "the application is stuck");
            std::thread::sleep(Duration::from_millis(2)); // bounded: a poll, up to a deadline
        }
    }

    /// Commits so far in this process.
    pub fn commits(&mut self) -> u64 {
        self.ask("commits").parse().unwrap()
    }

    /// Bytes that the application has written to files so far.
    pub fn written(&self) -> u64 {
        let path = format!("/proc/{}/io", self.child.id());
        let io = std::fs::read_to_string(path).unwrap();
        let line = io.lines().find_map(|line| line.strip_prefix("wchar: "));
        line.unwrap().parse().unwrap()
    }

    /// Latencies of the steps so far, in microseconds: median, 99th percentile, longest.
    pub fn latencies(&mut self) -> [u32; 3] {
        serde_json::from_str(&self.ask("latencies")).unwrap()
    }

    /// Steps so far that SQLite refused, such as for a lock.
    pub fn refused(&mut self) -> u64 {
        self.ask("refused").parse().unwrap()
    }

    /// Kills the application, as a power cut would.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn ask(&mut self, command: &str) -> String {
        writeln!(self.input, "{command}").unwrap();
        self.answer()
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert!(
                self.output.read_line(&mut line).unwrap() > 0,
                "the application died"
            );
            if let Some(answer) = line.trim_end_matches('\n').strip_prefix("# ") {
                return answer.to_owned();
            }
        }
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Run,
    Pause,
    Close,
}

struct Shared {
    mode: Mode,
    resting: u64,
    closed: u64,
    commits: u64,
    refused: u64,
    latencies: Vec<u32>,
}

type Crew = Arc<(Mutex<Shared>, Condvar)>;

/// Becomes the application if this process was started as one.
pub fn serve_if_asked() {
    let Ok(habits) = std::env::var(VARIABLE) else {
        return;
    };
    let habits: Habits = serde_json::from_str(&habits).unwrap();
    serve(&habits);
    std::process::exit(0);
}

fn serve(habits: &Habits) {
    let mut control = Some(set_up(habits));
    let shared = Shared {
        mode: Mode::Pause,
        resting: 0,
        closed: 0,
        commits: 0,
        refused: 0,
        latencies: Vec::new(),
    };
    let crew: Crew = Arc::new((Mutex::new(shared), Condvar::new()));
    for index in 0..habits.threads {
        let (habits, crew) = (habits.clone(), Arc::clone(&crew));
        std::thread::spawn(move || Worker::new(&habits, index, crew).run());
    }
    rest(&crew, Mode::Pause, habits.threads);
    println!("\n# ready");
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let (command, rest_of_line) = line.split_once(' ').unwrap_or((&line, ""));
        let answer = match command {
            "go" => {
                crew.0.lock().unwrap().mode = Mode::Run;
                crew.1.notify_all();
                String::new()
            }
            "pause" => rest(&crew, Mode::Pause, habits.threads),
            "close" => {
                control = None;
                rest(&crew, Mode::Close, habits.threads)
            }
            "sql" => {
                let control = control.get_or_insert_with(|| open(habits));
                run_all(control, rest_of_line)
            }
            "dump" => {
                let control = control.get_or_insert_with(|| open(habits));
                let pages = control.serialize(rusqlite::MAIN_DB).unwrap();
                std::fs::write(rest_of_line, &*pages).unwrap();
                String::new()
            }
            "commits" => crew.0.lock().unwrap().commits.to_string(),
            "refused" => crew.0.lock().unwrap().refused.to_string(),
            "latencies" => {
                let mut all = crew.0.lock().unwrap().latencies.clone();
                all.sort_unstable();
                let at = |part: usize| all.get(all.len() * part / 1000).copied().unwrap_or(0);
                let longest = all.last().copied().unwrap_or(0);
                format!("[{}, {}, {longest}]", at(500), at(990))
            }
            other => panic!("unknown command {other}"),
        };
        println!("# {answer}");
    }
}

fn rest(crew: &Crew, mode: Mode, threads: u64) -> String {
    let mut shared = crew.0.lock().unwrap();
    shared.mode = mode;
    crew.1.notify_all();
    let done = |shared: &mut Shared| match mode {
        Mode::Close => shared.closed < threads,
        _ => shared.resting < threads,
    };
    drop(crew.1.wait_while(shared, done).unwrap());
    String::new()
}

fn run_all(connection: &Connection, sql: &str) -> String {
    let mut answer = String::new();
    for statement in sql
        .split(';')
        .filter(|statement| !statement.trim().is_empty())
    {
        let result = connection.prepare(statement).and_then(|mut statement| {
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                answer = format!("{:?}", row.get_ref(0)?);
            }
            Ok(())
        });
        if let Err(error) = result {
            return format!("error: {error}");
        }
    }
    answer
}

fn open(habits: &Habits) -> Connection {
    let connection = Connection::open(&habits.path).unwrap();
    let wait = Duration::from_millis(habits.busy_timeout_ms);
    connection.busy_timeout(wait).unwrap();
    connection
        .execute_batch(&format!(
            "PRAGMA wal_autocheckpoint={}; PRAGMA synchronous={}; PRAGMA cache_size=8",
            habits.autocheckpoint, habits.synchronous
        ))
        .unwrap();
    connection
}

fn set_up(habits: &Habits) -> Connection {
    let connection = Connection::open(&habits.path).unwrap();
    connection.busy_timeout(Duration::from_secs(5)).unwrap();
    let text = format!(
        "PRAGMA page_size={}; PRAGMA auto_vacuum={}; PRAGMA journal_mode=WAL;
         BEGIN IMMEDIATE;
         CREATE TABLE IF NOT EXISTS account(id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<20)
         INSERT OR IGNORE INTO account SELECT i, 100 FROM n;
         CREATE TABLE IF NOT EXISTS item(id INTEGER PRIMARY KEY, bytes BLOB);
         COMMIT",
        habits.page_size, habits.auto_vacuum
    );
    connection.execute_batch(&text).unwrap();
    drop(connection);
    open(habits)
}

struct Worker {
    habits: Habits,
    numbers: Numbers,
    crew: Crew,
    connection: Option<Connection>,
}

impl Worker {
    fn new(habits: &Habits, index: u64, crew: Crew) -> Worker {
        Worker {
            habits: habits.clone(),
            numbers: Numbers(habits.seed.wrapping_mul(31).wrapping_add(index)),
            crew,
            connection: Some(open(habits)),
        }
    }

    fn run(mut self) {
        loop {
            self.rest_when_told();
            let connection = self.connection.take().unwrap_or_else(|| open(&self.habits));
            let began = std::time::Instant::now();
            let result = if self.habits.wild {
                self.wild_step(&connection)
            } else {
                self.transfer(&connection)
            };
            match result {
                Ok(()) => {
                    let mut shared = self.crew.0.lock().unwrap();
                    shared.commits += 1;
                    shared.latencies.push(began.elapsed().as_micros() as u32);
                }
                Err(rusqlite::Error::SqliteFailure(failure, text)) => {
                    use rusqlite::ErrorCode as Code;
                    let took = began.elapsed().as_micros() as u32;
                    let mut shared = self.crew.0.lock().unwrap();
                    shared.latencies.push(took);
                    shared.refused += 1;
                    drop(shared);
                    assert!(
                        !matches!(failure.code, Code::DatabaseCorrupt | Code::NotADatabase),
                        "the application's database is corrupt: {text:?}"
                    );
                }
                Err(error) => panic!("{error}"),
            }
            if !connection.is_autocommit() {
                let _ended = connection.execute_batch("ROLLBACK");
            }
            if !self.habits.wild || self.numbers.below(40) > 0 {
                self.connection = Some(connection);
            }
        }
    }

    fn rest_when_told(&mut self) {
        let crew = Arc::clone(&self.crew);
        let mut shared = crew.0.lock().unwrap();
        if shared.mode == Mode::Run {
            return;
        }
        shared.resting += 1;
        let mut closed = false;
        while shared.mode != Mode::Run {
            if shared.mode == Mode::Close && !closed {
                self.connection = None;
                closed = true;
                shared.closed += 1;
            }
            crew.1.notify_all();
            shared = crew.1.wait(shared).unwrap();
        }
        shared.resting -= 1;
        shared.closed -= u64::from(closed);
    }

    fn transfer(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        connection.execute_batch("BEGIN IMMEDIATE")?;
        self.move_money(connection)?;
        self.add_items(connection, 1)?;
        connection.execute_batch("COMMIT")
    }

    fn move_money(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let (from, to) = (1 + self.numbers.value(20), 1 + self.numbers.value(20));
        let sql = "UPDATE account SET balance = balance + ?1 WHERE id = ?2";
        connection.prepare_cached(sql)?.execute((-1, from))?;
        connection.prepare_cached(sql)?.execute((1, to))?;
        Ok(())
    }

    fn add_items(&mut self, connection: &Connection, count: u64) -> rusqlite::Result<()> {
        for _ in 0..count {
            let (id, bytes) = (self.numbers.value(400), self.numbers.value(1500));
            connection
                .prepare_cached("INSERT OR REPLACE INTO item VALUES(?1, randomblob(?2))")?
                .execute((id, bytes))?;
        }
        Ok(())
    }

    fn wild_step(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        match self.numbers.below(40) {
            // A transaction larger than the cache, which spills into the WAL before it ends.
            0 => {
                connection.execute_batch("BEGIN IMMEDIATE")?;
                self.move_money(connection)?;
                self.add_items(connection, 300)?;
                connection.execute_batch(self.numbers.pick(&["COMMIT", "ROLLBACK"]))
            }
            // Half of a transfer, never committed.
            1..=3 => {
                connection.execute_batch("BEGIN IMMEDIATE; UPDATE account SET balance = 0")?;
                connection.execute_batch("ROLLBACK")
            }
            4..=5 => {
                connection.execute_batch("BEGIN IMMEDIATE; SAVEPOINT a")?;
                self.add_items(connection, 20)?;
                connection.execute_batch("UPDATE account SET balance = 7; ROLLBACK TO a")?;
                self.move_money(connection)?;
                connection.execute_batch("RELEASE a; COMMIT")
            }
            6..=9 => {
                let mode = self
                    .numbers
                    .pick(&["PASSIVE", "FULL", "RESTART", "TRUNCATE"]);
                connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(()))
            }
            10 => connection.execute_batch("VACUUM"),
            11 => connection.execute_batch("PRAGMA incremental_vacuum(20)"),
            12 => {
                let name = self.numbers.below(4);
                connection.execute_batch(&format!(
                    "CREATE TABLE IF NOT EXISTS extra{name}(a, b);
                     CREATE INDEX IF NOT EXISTS extra_index{name} ON extra{name}(b);
                     INSERT INTO extra{name} VALUES(1, randomblob(900))"
                ))
            }
            13 => {
                let name = self.numbers.below(4);
                connection.execute_batch(&format!("DROP TABLE IF EXISTS extra{name}"))
            }
            14 => {
                connection.execute_batch("BEGIN EXCLUSIVE")?;
                self.move_money(connection)?;
                connection.execute_batch("COMMIT")
            }
            // A reader that stays open.
            15 => {
                connection.execute_batch("BEGIN; SELECT count(*) FROM account")?;
                std::thread::sleep(Duration::from_millis(self.numbers.below(60))); // bounded: the application works meanwhile
                connection.execute_batch("COMMIT")
            }
            16 => {
                let from = self.numbers.value(400);
                let sql = "DELETE FROM item WHERE id BETWEEN ?1 AND ?1 + 100";
                connection.execute(sql, [from]).map(|_| ())
            }
            17 => {
                connection.execute_batch("BEGIN IMMEDIATE; DELETE FROM item")?;
                connection.execute_batch("COMMIT")
            }
            _ => {
                // Applications pause between commits, some more than others.
                std::thread::sleep(Duration::from_micros(self.numbers.below(3000))); // bounded: the application works meanwhile
                self.transfer(connection)
            }
        }
    }
}
