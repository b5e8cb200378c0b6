//! The stored commits and the time since when they are stored, derived from the directory of a
//! replica.
//!
//! Nothing here relies on reports of a program. Each commit of the application carries a marker of
//! random bytes. A file that holds the marker of a commit stores it and all commits before it.
//! Random bytes do not compress, so LZ4 leaves a marker unchanged.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};

/// Pause between two reads of the directory.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Larger files are not read. Both programs also store the commits of a snapshot in level 0.
const LARGEST_READ: u64 = 64 << 20;
/// Number of bytes of a marker that are searched for, from its start.
const KEY_BYTES: usize = 8;
/// The level of snapshots.
const SNAPSHOT_LEVEL: u64 = 9;

/// A commit that the application printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Commit {
    /// Time at which COMMIT had returned, in nanoseconds of the wall clock.
    pub at_ns: u64,
    key: [u8; KEY_BYTES],
}

/// A file that has appeared in a replica.
#[derive(Debug, Clone)]
pub(super) struct StoredFile {
    /// Time at which it got its name, according to the file system.
    pub at_ns: u64,
    pub level: u64,
    /// Empty if the file is larger than [`LARGEST_READ`].
    content: Vec<u8>,
}

/// A report of the age of the oldest commit that is not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Report {
    pub asked_ns: u64,
    pub answered_ns: u64,
    pub lag_ns: u64,
}

/// A report beside the true value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Judged {
    /// The reported lag.
    pub lag_ns: u64,
    /// The true age of the oldest commit that was not stored.
    pub age_ns: u64,
    /// Time of the request.
    pub asked_ns: u64,
}

impl Judged {
    /// Returns by how much the report is below the true value.
    pub(super) fn error_ns(&self) -> u64 {
        self.age_ns.saturating_sub(self.lag_ns)
    }
}

/// A span of the wall clock, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub from_ns: u64,
    pub to_ns: u64,
}

impl StoredFile {
    pub(super) fn is_snapshot(&self) -> bool {
        self.level == SNAPSHOT_LEVEL
    }
}

/// Returns nanoseconds of the wall clock, which the application also uses.
pub(super) fn now_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

/// Parses the lines of the application: a time and a marker. An incomplete last line is ignored.
pub(super) fn commits(told: &str) -> Result<Vec<Commit>> {
    let Some((whole, _)) = told.rsplit_once('\n') else {
        return Ok(Vec::new());
    };
    let commit = |line: &str| -> Option<Commit> {
        let (at, marker) = line.split_once(' ')?;
        let mut key = [0; KEY_BYTES];
        for (byte, digits) in key.iter_mut().zip(marker.as_bytes().chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        }
        let whole = marker.len() >= 2 * KEY_BYTES;
        let at_ns = at.parse().ok().filter(|_| whole)?;
        Some(Commit { at_ns, key })
    };
    let lines = whole.lines();
    lines
        .map(|line| commit(line).with_context(|| format!("not a commit: {line}")))
        .collect()
}

/// Returns the time at which each commit was first stored; `None` for never. Files are in order of
/// time.
pub(super) fn stored_at(commits: &[Commit], files: &[StoredFile]) -> Vec<Option<u64>> {
    let numbers: HashMap<[u8; KEY_BYTES], usize> = commits
        .iter()
        .enumerate()
        .map(|(number, commit)| (commit.key, number))
        .collect();
    let mut stored = vec![None; commits.len()];
    let mut next = 0;
    for file in files {
        let windows = file.content.windows(KEY_BYTES);
        let found = windows.filter_map(|window| numbers.get(window)).max();
        if let Some(newest) = found.filter(|newest| **newest >= next) {
            stored[next..=*newest].fill(Some(file.at_ns));
            next = newest + 1;
        }
    }
    stored
}

/// Returns the longest time within a span in which no further commit was stored.
///
/// It includes the time from the start of the span to the first file, and from the last file to its
/// end.
pub(super) fn longest_gap_ns(stored: &[Option<u64>], span: Span) -> u64 {
    let inside = |at: &u64| (span.from_ns..=span.to_ns).contains(at);
    let mut before = span.from_ns;
    let mut longest = 0;
    for at in stored.iter().flatten().copied().filter(inside) {
        longest = longest.max(at.saturating_sub(before));
        before = at;
    }
    longest.max(span.to_ns.saturating_sub(before))
}

/// Returns the report of a span that is furthest below the age of the oldest commit that is not
/// stored.
///
/// A report is judged by the smallest age that was true while it was made. This is the age, at the
/// time of the request, of a commit that was still not stored at the time of the answer.
pub(super) fn worst_report(
    commits: &[Commit],
    stored: &[Option<u64>],
    reports: &[Report],
    span: Span,
) -> Judged {
    let judge = |report: &Report| {
        // Both are in order of time, so the first commit that is not stored is the oldest one.
        let number = stored.partition_point(|at| at.is_some_and(|at| at <= report.answered_ns));
        let oldest = commits.get(number)?;
        Some(Judged {
            lag_ns: report.lag_ns,
            age_ns: report.asked_ns.checked_sub(oldest.at_ns)?,
            asked_ns: report.asked_ns,
        })
    };
    let inside = |one: &&Report| one.asked_ns >= span.from_ns && one.answered_ns <= span.to_ns;
    let judged = reports.iter().filter(inside).filter_map(judge);
    judged.max_by_key(Judged::error_ns).unwrap_or_default()
}

/// Returns the highest age that a commit of a span reached before it was stored.
pub(super) fn longest_lag_ns(commits: &[Commit], stored: &[Option<u64>], span: Span) -> u64 {
    let inside = |at: u64| (span.from_ns..=span.to_ns).contains(&at);
    let ages = commits.iter().zip(stored).filter_map(|(commit, stored)| {
        let end = stored.unwrap_or(span.to_ns).min(span.to_ns);
        inside(commit.at_ns).then(|| end.saturating_sub(commit.at_ns))
    });
    ages.max().unwrap_or_default()
}

/// Polls the directory of a replica on a separate thread.
pub(super) struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    seen: Mutex<Vec<StoredFile>>,
}

impl Watch {
    /// Starts to poll; existing files do not count.
    pub(super) fn start(replica: &Path) -> Watch {
        let shared = Arc::new(Shared::default());
        let mut known: HashMap<PathBuf, u64> = list(replica).into_iter().collect();
        let (own, replica) = (Arc::clone(&shared), replica.to_owned());
        let thread = thread::spawn(move || {
            while !own.stop.load(Ordering::Relaxed) {
                for (path, bytes) in list(&replica) {
                    if known.insert(path.clone(), bytes).is_none() {
                        own.files().push(read(&path, bytes, now_ns()));
                    }
                }
                thread::sleep(POLL_INTERVAL);
            }
        });
        Watch {
            shared,
            thread: Some(thread),
        }
    }

    /// Returns the number of new snapshots so far.
    pub(super) fn snapshots(&self) -> usize {
        let files = self.shared.files();
        files.iter().filter(|file| file.is_snapshot()).count()
    }

    /// Ends the thread and returns the new files, in order of time.
    pub(super) fn finish(mut self) -> Vec<StoredFile> {
        self.end();
        let mut files = std::mem::take(&mut *self.shared.files());
        files.sort_by_key(|file| file.at_ns);
        files
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("watching does not panic");
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn files(&self) -> MutexGuard<'_, Vec<StoredFile>> {
        self.seen.lock().expect("watching does not panic")
    }
}

/// Waits until a replica holds at least `least` bytes and has not changed for `quiet`.
pub(super) fn wait_quiet(
    replica: &Path,
    least: u64,
    quiet: Duration,
    limit: Duration,
) -> Result<()> {
    let start = SystemTime::now();
    let elapsed = |since: SystemTime| since.elapsed().unwrap_or_default();
    let (mut before, mut since) = (0, start);
    while elapsed(start) < limit {
        let bytes = super::state::disk_bytes(replica);
        if bytes != before {
            (before, since) = (bytes, SystemTime::now());
        }
        if bytes >= least && elapsed(since) >= quiet {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(200));
    }
    bail!("the replica was not quiet for {quiet:?} within {limit:?}")
}

/// Returns all finished files of a replica, with their sizes.
fn list(folder: &Path) -> Vec<(PathBuf, u64)> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        // Skip directories and files that were removed meanwhile.
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "ltx") {
                files.push((path, entry.metadata().map_or(0, |data| data.len())));
            }
        }
    }
    files
}

/// Reads a file that was seen at `seen_ns`.
///
/// It existed before it was seen, and a report may already count it. The change time of a file is
/// that of its last rename or link, so the earlier of both times is used.
fn read(path: &Path, bytes: u64, seen_ns: u64) -> StoredFile {
    let changed_ns = fs::metadata(path).ok().and_then(|data| {
        let seconds = u64::try_from(data.ctime()).ok()?;
        Some(seconds * 1_000_000_000 + u64::try_from(data.ctime_nsec()).ok()?)
    });
    let level = path.parent().and_then(Path::file_name);
    let level = level.and_then(|name| name.to_str()?.parse().ok());
    StoredFile {
        at_ns: changed_ns.map_or(seen_ns, |changed| changed.min(seen_ns)),
        level: level.unwrap_or_default(),
        content: match bytes <= LARGEST_READ {
            true => fs::read(path).unwrap_or_default(),
            false => Vec::new(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn marker(number: u64) -> [u8; KEY_BYTES] {
        number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()
    }

    /// Commits at these seconds.
    fn at(seconds: &[u64]) -> Vec<Commit> {
        let commit = |(number, second): (usize, &u64)| Commit {
            at_ns: second * SECOND,
            key: marker(number as u64),
        };
        seconds.iter().enumerate().map(commit).collect()
    }

    /// A file that appears at a second and holds the markers of these commits.
    fn file(second: u64, numbers: &[u64]) -> StoredFile {
        let mut content = b"LTX1 some header".to_vec();
        for number in numbers {
            content.extend_from_slice(&marker(*number));
            content.extend_from_slice(b"xxxx");
        }
        StoredFile {
            at_ns: second * SECOND,
            level: 0,
            content,
        }
    }

    fn span(from: u64, to: u64) -> Span {
        Span {
            from_ns: from * SECOND,
            to_ns: to * SECOND,
        }
    }

    fn report(asked: u64, answered: u64, lag: u64) -> Report {
        Report {
            asked_ns: asked * SECOND,
            answered_ns: answered * SECOND,
            lag_ns: lag * SECOND,
        }
    }

    #[test]
    fn a_commit_is_read_with_its_time_and_marker() {
        let told = "5 0102030405060708ff\n7 1112131415161718ff\n8 21";
        let read = commits(told).unwrap();
        assert_eq!(read.len(), 2);
        assert_eq!((read[0].at_ns, read[0].key), (5, [1, 2, 3, 4, 5, 6, 7, 8]));
        assert!(commits("").unwrap().is_empty());
        for bad in ["5 0102\n", "x 0102030405060708\n", "5 0102030405060z08\n"] {
            assert!(commits(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_stores_its_newest_commit_and_all_before_it() {
        let commits = at(&[0, 1, 2, 3]);
        // The second file is a compaction of stored files; a page also holds old markers.
        let files = [file(5, &[1]), file(6, &[0, 1]), file(8, &[2, 0, 1])];
        let stored = stored_at(&commits, &files);
        let seconds: Vec<Option<u64>> = stored.iter().map(|at| at.map(|at| at / SECOND)).collect();
        assert_eq!(seconds, [Some(5), Some(5), Some(8), None]);
    }

    #[test]
    fn the_longest_gap_may_be_at_an_end_of_the_span() {
        let stored = |seconds: &[u64]| -> Vec<Option<u64>> {
            let stored = seconds.iter().map(|second| Some(second * SECOND));
            stored.chain([None]).collect()
        };
        let gap = |seconds: &[u64]| longest_gap_ns(&stored(seconds), span(10, 20)) / SECOND;
        assert_eq!(gap(&[11, 11, 15, 19]), 4);
        assert_eq!(gap(&[16, 18]), 6);
        assert_eq!(gap(&[11, 12, 13]), 7);
        assert_eq!(gap(&[]), 10);
        // Files outside the span neither end nor begin a gap.
        assert_eq!(gap(&[9, 15, 21]), 5);
    }

    #[test]
    fn a_report_is_wrong_by_what_it_is_below_the_truth() {
        let commits = at(&[10, 12, 20]);
        let stored = [Some(11 * SECOND), Some(19 * SECOND), None];
        let error = |reports: &[Report]| {
            worst_report(&commits, &stored, reports, span(10, 40)).error_ns() / SECOND
        };
        // The commit of second 12 is 5 s old at 17.
        assert_eq!(error(&[report(17, 17, 0)]), 5);
        assert_eq!(error(&[report(17, 17, 5)]), 0);
        assert_eq!(error(&[report(17, 17, 9)]), 0);
        // A commit that was stored while the report was made does not count.
        assert_eq!(error(&[report(18, 19, 0)]), 0);
        // A commit that is never stored counts from the time at which it was made.
        assert_eq!(error(&[report(19, 19, 0)]), 0);
        assert_eq!(error(&[report(17, 17, 4), report(30, 30, 7)]), 3);
        // Reports outside the span do not.
        assert_eq!(error(&[report(39, 41, 0)]), 0);
        assert_eq!(error(&[]), 0);
    }

    #[test]
    fn the_longest_lag_is_that_of_a_commit_that_waited_longest() {
        let commits = at(&[10, 12, 20]);
        let stored = [Some(11 * SECOND), Some(19 * SECOND), None];
        let lag = |span| longest_lag_ns(&commits, &stored, span) / SECOND;
        assert_eq!(lag(span(10, 22)), 7);
        assert_eq!(lag(span(10, 40)), 20);
        assert_eq!(lag(span(10, 11)), 1);
    }

    #[test]
    fn files_that_appear_are_seen_once_with_their_level() {
        let folder = std::env::temp_dir().join(format!("bench-truth-{}", std::process::id()));
        let level = folder.join("ltx/0009");
        fs::create_dir_all(&level).unwrap();
        fs::write(level.join("1-1.ltx"), b"old").unwrap();
        let watch = Watch::start(&folder);
        fs::write(level.join("1-2.ltx.tmp"), marker(0)).unwrap();
        fs::rename(level.join("1-2.ltx.tmp"), level.join("1-2.ltx")).unwrap();
        while watch.snapshots() == 0 {
            thread::yield_now();
        }
        let files = watch.finish();
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(files.len(), 1);
        assert_eq!(
            (files[0].level, files[0].content.as_slice()),
            (9, &marker(0)[..])
        );
    }
}
