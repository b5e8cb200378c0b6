//! A running `sqlite-backup replicate`.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use protocol::status::{DatabaseStatus, SidecarStatus};

use super::process::{program, signal, wait_for_end};
use super::until;

/// The process, killed when dropped.
pub struct Sidecar {
    child: Child,
    log: PathBuf,
    address: String,
}

impl Sidecar {
    /// Starts `replicate` with these arguments; its log goes to a file in `directory`. Returns when
    /// the process listens.
    pub fn start(directory: &Path, arguments: &[&str]) -> Sidecar {
        Sidecar::spawn(directory, arguments, program())
    }

    /// As [`start`](Self::start), with a command that has its own environment.
    pub fn spawn(directory: &Path, arguments: &[&str], mut command: Command) -> Sidecar {
        let mut number = 0;
        let log = loop {
            let path = directory.join(format!("replicate-{number}.log"));
            if !path.exists() {
                break path;
            }
            number += 1;
        };
        let child = command
            .arg("replicate")
            .args(arguments)
            .args(["--addr", "127.0.0.1:0"])
            .stderr(File::create(&log).expect("create the log"))
            .spawn()
            .expect("start replicate");
        let mut sidecar = Sidecar {
            child,
            log,
            address: String::new(),
        };
        sidecar.address = sidecar.wait_for_address(0);
        sidecar
    }

    /// Waits until the process logs its address for the `before + 1`th time.
    fn wait_for_address(&mut self, before: usize) -> String {
        until("replicate listens", || {
            if let Some(status) = self.child.try_wait().expect("look at replicate") {
                panic!("replicate ended with {status}:\n{}", self.log());
            }
            let log = self.log();
            let line = log
                .lines()
                .filter(|line| line.contains("listening"))
                .nth(before)?
                .to_owned();
            let (_, address) = line.split_once("addr=")?;
            Some(address.trim().to_owned())
        })
    }

    /// Follows a restarted worker to its new port.
    pub fn follow(&mut self) {
        self.address = self.wait_for_address(1);
    }

    /// Returns its log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Returns its process ID.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns the process ID of its only child.
    pub fn worker(&self) -> u32 {
        let path = format!("/proc/{0}/task/{0}/children", self.id());
        until("the worker runs", || {
            std::fs::read_to_string(&path).ok()?.trim().parse().ok()
        })
    }

    /// Returns the address on which it listens.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Returns the head and the body of an answer.
    pub fn get(&self, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(&self.address).expect("connect to replicate");
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("set a timeout");
        write!(stream, "GET {path} HTTP/1.0\r\nHost: test\r\n\r\n").expect("send");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("read the answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
        (head.to_owned(), body.to_owned())
    }

    /// Returns the content of `/status`.
    pub fn status(&self) -> SidecarStatus {
        let (head, body) = self.get("/status");
        assert!(head.starts_with("HTTP/1.0 200"), "{head}");
        serde_json::from_str(&body).expect("the status is JSON")
    }

    /// Waits until the status of the only database satisfies a condition, and returns it.
    pub fn wait_until(
        &self,
        what: &str,
        wanted: impl Fn(&DatabaseStatus) -> bool,
    ) -> DatabaseStatus {
        until(&format!("{what}; the log:\n{}", self.log()), || {
            let status = self.status().databases.into_iter().next()?;
            wanted(&status).then_some(status)
        })
    }

    /// Waits until every target has acknowledged all captured commits.
    pub fn wait_until_stored(&self) -> DatabaseStatus {
        self.wait_until("everything is stored", |status| {
            status.state.is_healthy()
                && status.position.is_some()
                && status
                    .targets
                    .iter()
                    .all(|target| target.position == status.position)
        })
    }

    /// Sends SIGTERM and waits. Returns the exit code and how long it took.
    pub fn terminate(self) -> (Option<i32>, Duration) {
        self.end_by("TERM")
    }

    /// Sends a signal and waits for the end.
    pub fn end_by(mut self, name: &str) -> (Option<i32>, Duration) {
        signal(self.id(), name);
        wait_for_end(&mut self.child)
    }

    /// Kills it without warning.
    pub fn kill(mut self) {
        self.child.kill().expect("kill replicate");
        self.child.wait().expect("wait for replicate");
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        // It may have ended already.
        let _killed = self.child.kill();
        let _waited = self.child.wait();
    }
}
