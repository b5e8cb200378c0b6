//! The lag that a program itself reports, polled repeatedly.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::truth::{Report, now_ns};

/// Pause between two polls.
const PAUSE: Duration = Duration::from_millis(100);
/// Time limit of an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The endpoint that reports the lag.
#[derive(Debug, Clone)]
pub(super) enum Source {
    /// `GET /status` of our program: `lagMs` of its first target.
    Status(SocketAddr),
    /// The peer's control socket: the time since `last_sync_at`, because it reports no lag.
    ControlSocket(PathBuf),
}

/// Polls one program on a separate thread.
pub(super) struct Reports {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Option<Report>>>,
}

impl Reports {
    pub(super) fn start(source: Source) -> Reports {
        let stop = Arc::new(AtomicBool::new(false));
        let own = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut reports = Vec::new();
            while !own.load(Ordering::Relaxed) {
                reports.push(source.ask().ok());
                thread::sleep(PAUSE);
            }
            reports
        });
        Reports { stop, thread }
    }

    /// Ends the thread; returns the answers, and the number of polls without an answer.
    pub(super) fn finish(self) -> (Vec<Report>, usize) {
        self.stop.store(true, Ordering::Relaxed);
        let all = self.thread.join().expect("asking does not panic");
        let reports: Vec<Report> = all.iter().flatten().copied().collect();
        let missing = all.len() - reports.len();
        (reports, missing)
    }
}

impl Source {
    fn ask(&self) -> Result<Report> {
        let asked_ns = now_ns();
        let answer = match self {
            Source::Status(address) => {
                let connection = TcpStream::connect(address)?;
                connection.set_read_timeout(Some(PATIENCE))?;
                get(&connection, "/status")?
            }
            Source::ControlSocket(path) => {
                let connection = UnixStream::connect(path)?;
                connection.set_read_timeout(Some(PATIENCE))?;
                get(&connection, "/list")?
            }
        };
        let answered_ns = now_ns();
        let lag_ns = match self {
            Source::Status(_) => status_lag_ns(&answer)?,
            Source::ControlSocket(_) => asked_ns.saturating_sub(last_sync_ns(&answer)?),
        };
        Ok(Report {
            asked_ns,
            answered_ns,
            lag_ns,
        })
    }
}

/// Returns a port of 127.0.0.1 that is currently free.
pub(super) fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("find a free port")?;
    Ok(listener.local_addr()?)
}

/// Returns configuration lines that open the peer's control socket.
pub(super) fn control_socket_lines(path: &Path) -> String {
    format!("socket:\n  enabled: true\n  path: {}\n", path.display())
}

/// Returns the body of an answer. The end of the connection ends the body.
fn get<C: Read + Write>(mut connection: C, path: &str) -> Result<Value> {
    write!(
        connection,
        "GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    let first = head.lines().next().unwrap_or_default();
    ensure!(first.contains(" 200"), "answer {first}");
    serde_json::from_str(body).context("an answer that is not JSON")
}

fn status_lag_ns(status: &Value) -> Result<u64> {
    let lag_ms = status["databases"][0]["targets"][0]["lagMs"].as_u64();
    Ok(lag_ms.context("no lagMs")? * 1_000_000)
}

fn last_sync_ns(list: &Value) -> Result<u64> {
    let text = list["databases"][0]["last_sync_at"].as_str();
    let text = text.context("no last_sync_at")?;
    timestamp_ns(text).with_context(|| format!("not a time: {text}"))
}

/// Parses a time such as `2026-11-30T11:49:27.352965452Z` into nanoseconds since 1970.
fn timestamp_ns(text: &str) -> Option<u64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(clock, ':')?;
    // Days since 1970-01-01, with years that begin in March so that a leap day is the last day.
    let year = if month <= 2 { year - 1 } else { year };
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = (365 * year + year / 4 - year / 100 + year / 400 + of_year).checked_sub(719_468)?;
    let seconds = ((days * 24 + hour) * 60 + minute) * 60 + second;
    let nanoseconds: u64 = format!("{fraction:0<9.9}").parse().ok()?;
    Some(seconds * 1_000_000_000 + nanoseconds)
}

fn numbers(text: &str, between: char) -> Option<[u64; 3]> {
    let numbers: Result<Vec<u64>, _> = text.split(between).map(str::parse).collect();
    numbers.ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lag_is_read_from_what_each_program_answers() {
        let status = serde_json::json!({"databases": [{"targets": [{"lagMs": 1500}]}]});
        assert_eq!(status_lag_ns(&status).unwrap(), 1_500_000_000);
        assert!(status_lag_ns(&serde_json::json!({"databases": []})).is_err());
        let list = serde_json::json!({"databases": [{"last_sync_at": "1970-01-01T00:00:02.5Z"}]});
        assert_eq!(last_sync_ns(&list).unwrap(), 2_500_000_000);
        assert!(last_sync_ns(&serde_json::json!({})).is_err());
    }

    #[test]
    fn a_time_is_read_to_the_nanosecond() {
        let second = |text| timestamp_ns(text).map(|ns| ns / 1_000_000_000);
        assert_eq!(second("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(second("2000-02-29T12:00:00Z"), Some(951_825_600));
        assert_eq!(second("2026-11-30T11:49:27Z"), Some(1_796_039_367));
        let precise = timestamp_ns("1970-01-01T00:00:00.000000012Z");
        assert_eq!(precise, Some(12));
        for bad in [
            "",
            "2026-11-30",
            "2026-11-30T11:49Z",
            "2026-11-30T11:49:27+01:00",
        ] {
            assert_eq!(timestamp_ns(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_program_that_does_not_answer_has_no_report() {
        let address = free_address().unwrap();
        assert!(Source::Status(address).ask().is_err());
    }
}
