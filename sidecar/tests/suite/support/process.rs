//! One run of the program, from its start to its end.

use std::ffi::OsStr;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::{PATIENCE, until};

/// The result of a finished run.
#[derive(Debug)]
pub struct Finished {
    /// Exit code; none after a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Finished {
    /// Asserts the exit code and that the last line of the log names all of `words`.
    pub fn fails_with(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        let said = self.err.trim_end();
        for word in words {
            assert!(said.contains(word), "{word:?} is not in: {said}");
        }
        let backtrace = ["panicked", "stack backtrace"];
        assert!(!backtrace.iter().any(|word| said.contains(word)), "{said}");
    }

    /// Asserts success and returns what was printed.
    pub fn succeeds(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }
}

/// The program, in an environment without credentials of this machine.
pub fn program() -> Command {
    clean(Command::new(env!("CARGO_BIN_EXE_sqlite-backup")))
}

/// Removes cloud credentials of this machine from the environment.
pub fn clean(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if ["AWS_", "SQLITE_BACKUP_", "LITESTREAM_"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
        {
            command.env_remove(name);
        }
    }
    command
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_CONFIG_FILE", "/dev/null")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        .stdin(Stdio::null());
    command
}

/// Runs the program to its end.
pub fn run<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Finished {
    let mut command = program();
    command.args(arguments);
    finish(command)
}

/// Runs a command to its end. A command that does not end is killed and fails the test.
pub fn finish(mut command: Command) -> Finished {
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start the program");
    let id = child.id();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let output = child.wait_with_output().expect("wait for the program");
        // After a timeout the receiver is gone.
        let _sent = sender.send(output);
    });
    let output: Output = receiver.recv_timeout(PATIENCE).unwrap_or_else(|_| {
        signal(id, "KILL");
        panic!("{command:?} does not end");
    });
    Finished {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Sends a signal to one process.
pub fn signal(id: u32, name: &str) {
    let status = Command::new("kill")
        .arg(format!("-{name}"))
        .arg(id.to_string())
        .status()
        .expect("run kill");
    assert!(status.success(), "kill -{name} {id}");
}

/// Waits for the end of a process that was asked to end, and returns how long it took.
pub fn wait_for_end(child: &mut Child) -> (Option<i32>, Duration) {
    let start = Instant::now();
    let status = until("the process ends", || {
        child.try_wait().expect("look at the process")
    });
    (status.code(), start.elapsed())
}
