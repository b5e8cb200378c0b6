//! `docs/from-litestream.md`: every command on the page is run, in order.
//!
//! `/srv` on the page is the test's directory, and its port a free one.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rusqlite::Connection;

use crate::compat::litestream_program;
use crate::support::database::{Rows, assert_same, create, insert, rows};
use crate::support::place::{Place, text};
use crate::support::process::{Finished, clean, finish, signal, wait_for_end};
use crate::support::until;

const PAGE: &str = include_str!("../../../docs/from-litestream.md");
const ADDRESS: &str = "127.0.0.1:9090";

/// The testable parts of the page, in order.
enum Part {
    File(String),
    /// A command and the lines that it prints.
    Command(String, Vec<String>),
    /// Two equivalent commands, Litestream's and ours.
    Pair(String, String),
}

fn is_command(text: &str) -> bool {
    ["litestream ", "sqlite-backup "]
        .iter()
        .any(|program| text.starts_with(program))
}

fn parts() -> Vec<Part> {
    let mut parts = Vec::new();
    let mut lines = PAGE.lines();
    while let Some(line) = lines.next() {
        let block = |lines: &mut std::str::Lines<'_>| -> Vec<String> {
            let inside = lines.take_while(|line| line.trim() != "```");
            inside.map(str::to_owned).collect()
        };
        match line.trim() {
            "```yaml" => parts.push(Part::File(block(&mut lines).join("\n"))),
            "```console" => {
                for line in block(&mut lines) {
                    match (line.trim_start().strip_prefix("$ "), parts.last_mut()) {
                        (Some(command), _) => {
                            parts.push(Part::Command(command.to_owned(), Vec::new()));
                        }
                        (None, Some(Part::Command(_, output))) => output.push(line),
                        (None, _) => panic!("output of nothing: {line}"),
                    }
                }
            }
            row if row.starts_with('|') => {
                let cells: Vec<_> = row.split('`').filter(|cell| is_command(cell)).collect();
                if let [theirs, ours] = cells[..] {
                    parts.push(Part::Pair(theirs.to_owned(), ours.to_owned()));
                }
            }
            _ => {}
        }
    }
    parts
}

/// A machine with Litestream installed.
struct Machine {
    place: Place,
    connection: Connection,
    programs: PathBuf,
    port: u16,
    running: Option<Child>,
    time: String,
    txid: String,
}

impl Machine {
    fn new() -> Machine {
        let place = Place::new();
        std::fs::create_dir(place.path().join("app")).unwrap();
        let programs = place.path().join("bin");
        std::fs::create_dir(&programs).unwrap();
        symlink(litestream_program("0.5.17"), programs.join("litestream")).unwrap();
        let ours = env!("CARGO_BIN_EXE_sqlite-backup");
        symlink(ours, programs.join("sqlite-backup")).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let connection = create(&place.path().join("app/app.db"), 5);
        Machine {
            place,
            connection,
            programs,
            port,
            running: None,
            time: String::new(),
            txid: String::new(),
        }
    }

    fn here(&self, text: &str) -> String {
        let address = format!("127.0.0.1:{}", self.port);
        let srv = format!("{}/", self.place.path().display());
        text.replace(ADDRESS, &address).replace("/srv/", &srv)
    }

    fn shell(&self, command: &str) -> Command {
        let path = std::env::var("PATH").unwrap();
        let mut shell = clean(Command::new("sh"));
        shell
            .args(["-ec", &format!("exec {}", self.here(command))])
            .current_dir(self.place.path())
            .env("PATH", format!("{}:{path}", text(&self.programs)))
            .env("TIME", &self.time)
            .env("TXID", &self.txid);
        shell
    }

    fn run(&self, command: &str) -> Finished {
        let done = finish(self.shell(command));
        assert_eq!(done.code, Some(0), "{command}: {done:?}");
        done
    }

    /// Starts a long-running command, in place of the previous one.
    fn start(&mut self, command: &str) {
        self.stop();
        let mut shell = self.shell(command);
        shell.stdout(Stdio::null()).stderr(Stdio::null());
        self.running = Some(shell.spawn().unwrap());
        for _ in 0..3 {
            self.store(3);
        }
    }

    /// Adds rows, and waits until they are stored.
    fn store(&self, count: i64) {
        insert(&self.connection, count);
        until("everything is stored", || {
            let output = self.place.fresh("look.db");
            let source = format!("file://{}/backup/app", self.place.path().display());
            let restore = format!("litestream restore -o {} {source}", text(&output));
            let done = finish(self.shell(&restore));
            (done.code == Some(0) && rows(&output) == self.rows()).then_some(())
        });
    }

    fn stop(&mut self) {
        if let Some(mut running) = self.running.take() {
            signal(running.id(), "TERM");
            assert_eq!(wait_for_end(&mut running).0, Some(0));
        }
    }

    fn rows(&self) -> Rows {
        rows(&self.place.path().join("app/app.db"))
    }

    /// Runs both commands, and compares the restored databases.
    fn compare(&self, theirs: &str, ours: &str) {
        let outputs = ["theirs.db", "ours.db"].map(|name| self.place.path().join(name));
        self.run(theirs);
        self.run(ours);
        let are_restored = outputs.each_ref().map(|output| output.exists());
        assert_eq!(are_restored[0], are_restored[1], "{theirs}, {ours}");
        if are_restored[0] {
            assert_same(&rows(&outputs[1]), &rows(&outputs[0]));
        }
        for output in outputs {
            std::fs::remove_file(output).ok();
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(running) = &mut self.running {
            // It may have ended already.
            let _killed = running.kill();
            let _waited = running.wait();
        }
    }
}

/// Returns a line without the parts that differ between runs.
fn shape(line: &str) -> String {
    let mut shape = String::new();
    for word in line.split(' ') {
        let is_txid = word.len() > 16 && word.trim_end_matches(',').len() == 16;
        shape.push_str(if is_txid { "TXID" } else { word });
        shape.push(' ');
    }
    shape
}

#[test]
fn every_command_of_the_page_works_in_its_order() {
    let mut machine = Machine::new();
    let mut ran = BTreeSet::new();
    for part in parts() {
        match part {
            Part::File(content) => {
                machine
                    .place
                    .write("litestream.yml", &machine.here(&content));
                machine.start("litestream replicate -config litestream.yml");
                machine.time = jiff::Timestamp::now().to_string();
            }
            Part::Command(command, output) => {
                let is_replication =
                    command.contains(" replicate ") && !command.contains("dry-run");
                if is_replication {
                    machine.start(&command);
                    let newest = machine.run("sqlite-backup inspect file:///srv/backup/app --json");
                    let newest: serde_json::Value = serde_json::from_str(&newest.out).unwrap();
                    machine.txid = newest["latest"]["txid"].as_str().unwrap().to_owned();
                    machine.store(1);
                } else {
                    if command.starts_with("rm ") {
                        machine.stop();
                    }
                    let done = machine.run(&command);
                    let printed: Vec<_> = done.out.lines().map(shape).collect();
                    for line in output {
                        let line = shape(&machine.here(&line));
                        assert!(printed.contains(&line), "{line:?} is not in {printed:#?}");
                    }
                }
                ran.insert(command);
            }
            Part::Pair(theirs, ours) => {
                machine.compare(&theirs, &ours);
                ran.extend([theirs, ours]);
            }
        }
    }
    // And once more, after another program has written.
    machine.start("sqlite-backup replicate --config litestream.yml");
    machine.stop();
    // Every command on the page was run.
    let told = PAGE
        .split(['`', '\n'])
        .map(|text| text.trim().trim_start_matches("$ "));
    for command in told.filter(|text| is_command(text)) {
        assert!(ran.contains(command), "{command} is told and not run");
    }
}
