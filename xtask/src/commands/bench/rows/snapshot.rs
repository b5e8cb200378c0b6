//! Stored commits and reported lag while snapshots of a large database are made.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::slice;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::figures::{Figure, Goal, Unit};
use super::lag::{Reports, Source, control_socket_lines, free_address};
use super::place::{Place, Program, STOP_LIMIT, Settings};
use super::truth::{self, Judged, Span, Watch, now_ns};
use super::{Bench, Outcome, Row, in_turn};

pub(super) const ROW: Row = Row {
    name: "snapshot",
    about: "Longest gap between stored files, and error of the reported lag, while snapshots are made",
    remark: "A database of random bytes, replicated to a directory, with a snapshot each 40 s and a commit \
             each 50 ms for 90 s, and on until two snapshots have been stored. Each commit carries random \
             bytes by which a file in the replica's directory is known to hold it, so that nothing \
             rests on the words of a program. A gap is the time in which no further commit was stored. \
             The goal allows two sync intervals and one request: the longest time that 64 KiB took to \
             be written beside the replica and synced in the same span. The error is the most by \
             which reported lag was below the age of the oldest commit that was not stored. Litestream \
             reports no lag; the time since its `last_sync_at` stands for it.",
    run,
};

const INTERVAL_SECONDS: u64 = 40;
const SYNC_INTERVAL: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(50);
/// Duration of the load before the measurement starts.
const RUN_UP: Duration = Duration::from_secs(3);
/// The shortest and the longest measurement.
const SHORTEST: Duration = Duration::from_secs(90);
const LONGEST: Duration = Duration::from_secs(240);
/// Number of snapshots that must be stored during it.
const SNAPSHOTS: usize = 2;
/// The first sync counts as done when the replica has not changed for this time.
const QUIET: Duration = Duration::from_secs(5);
/// Size of a measured request, in bytes.
const REQUEST_BYTES: usize = 64 << 10;
const REQUEST_INTERVAL: Duration = Duration::from_secs(1);

struct Taken {
    gap: f64,
    worst: Judged,
    /// Time from the start of the span to the worst report, and to each snapshot.
    worst_at: f64,
    snapshots_at: Vec<f64>,
    longest_lag: f64,
    request: f64,
    seconds: f64,
    missing_reports: usize,
}

fn run(bench: &Bench) -> Result<Outcome> {
    let taken = in_turn(|program| measure(bench, program))?;
    let [ours, peer] = &taken;
    let size = bench.sizes().snapshot_bytes >> 20;
    let figure = |what: &str, ours, peer, most| Figure {
        row: ROW.name,
        what: format!("{size} MiB, {what}"),
        unit: Unit::Seconds,
        ours,
        peer: Some(peer),
        goal: Goal::AtMost(most),
    };
    let error = |taken: &Taken| seconds(taken.worst.error_ns());
    let longest_gap = 2.0 * SYNC_INTERVAL.as_secs_f64() + ours.request;
    let figures = vec![
        figure("longest gap", ours.gap, peer.gap, longest_gap),
        figure("error of lag", error(ours), error(peer), 1.0),
    ];
    let notes = ["ours", "Litestream"].iter().zip(&taken).map(|(name, taken)| {
        format!(
            "{name}: {:.0} s measured, snapshots stored after {} s; a commit was up to {:.2} s old before it \
             was stored; worst report after {:.1} s: {:.2} s where {:.2} s was true, {} without an \
             answer; one request took up to {:.2} s",
            taken.seconds,
            join(&taken.snapshots_at),
            taken.longest_lag,
            taken.worst_at,
            seconds(taken.worst.lag_ns),
            seconds(taken.worst.age_ns),
            taken.missing_reports,
            taken.request,
        )
    });
    Ok(Outcome {
        figures,
        notes: notes.collect(),
    })
}

fn measure(bench: &Bench, program: Program) -> Result<Taken> {
    let address = free_address()?;
    let socket = bench.folder().join("control.sock");
    let settings = Settings {
        both: format!("snapshot:\n  interval: {INTERVAL_SECONDS}s\n"),
        own: [format!("addr: {address}\n"), control_socket_lines(&socket)],
        in_directory: true,
    };
    let source = match program {
        Program::Ours => Source::Status(address),
        Program::Peer => Source::ControlSocket(socket),
    };
    let place = Place::with(bench, ROW.name, program, settings)?;
    let (database, sizes) = (place.database(0), bench.sizes());
    bench
        .application()
        .fill_dense(&database, sizes.snapshot_bytes)?;
    let mut running = place.replicate(1)?;
    let replica = place.replicas();
    truth::wait_quiet(&replica, sizes.snapshot_bytes / 2, QUIET, sizes.store_limit)?;
    running.must_run()?;

    let told = place.folder().join("told");
    let mut writer = bench.application().mark(&database, PAUSE, &told)?;
    let watch = Watch::start(&replica);
    let reports = Reports::start(source);
    thread::sleep(RUN_UP);
    let from_ns = now_ns();
    let request = slowest_request(place.folder(), || load(&watch, &mut writer))?;
    let span = Span {
        from_ns,
        to_ns: now_ns(),
    };
    drop(writer);
    let files = watch.finish();
    let (reports, missing_reports) = reports.finish();
    running.must_run()?;
    running.stop(STOP_LIMIT)?;
    compare(bench, &place, &database)?;

    let commits = truth::commits(&fs::read_to_string(&told)?)?;
    let stored = truth::stored_at(&commits, &files);
    ensure!(!commits.is_empty(), "the application told no commit");
    ensure!(!reports.is_empty(), "no lag was reported");
    let worst = truth::worst_report(&commits, &stored, &reports, span);
    Ok(Taken {
        gap: seconds(truth::longest_gap_ns(&stored, span)),
        worst_at: seconds(worst.asked_ns.saturating_sub(span.from_ns)),
        worst,
        snapshots_at: files
            .iter()
            .filter(|file| file.is_snapshot())
            .map(|file| seconds(file.at_ns.saturating_sub(span.from_ns)))
            .collect(),
        longest_lag: seconds(truth::longest_lag_ns(&commits, &stored, span)),
        request: request.as_secs_f64(),
        seconds: seconds(span.to_ns - span.from_ns),
        missing_reports,
    })
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

fn join(all: &[f64]) -> String {
    let all: Vec<String> = all.iter().map(|one| format!("{one:.0}")).collect();
    all.join(", ")
}

/// Waits during the load until enough snapshots have been stored.
fn load(watch: &Watch, writer: &mut crate::commands::child::Running) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < SHORTEST || watch.snapshots() < SNAPSHOTS {
        ensure!(
            start.elapsed() < LONGEST,
            "{} snapshots within {LONGEST:?}, not {SNAPSHOTS}",
            watch.snapshots()
        );
        writer.must_run()?;
        thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// Runs `work`, and returns the longest time that a small file took meanwhile to become durable.
fn slowest_request(folder: &Path, work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let stop = AtomicBool::new(false);
    let request = || -> std::io::Result<Duration> {
        let path = folder.join("request");
        let start = Instant::now();
        let mut file = File::create(&path)?;
        file.write_all(&[0; REQUEST_BYTES])?;
        file.sync_all()?;
        fs::rename(&path, folder.join("request.done"))?;
        File::open(folder)?.sync_all()?;
        Ok(start.elapsed())
    };
    thread::scope(|scope| {
        let requests = scope.spawn(|| -> std::io::Result<Duration> {
            let mut slowest = Duration::ZERO;
            while !stop.load(Ordering::Relaxed) {
                slowest = slowest.max(request()?);
                thread::sleep(REQUEST_INTERVAL);
            }
            Ok(slowest)
        });
        let result = work();
        stop.store(true, Ordering::Relaxed);
        let slowest = requests.join().expect("the thread does not panic");
        result.and_then(|()| slowest.context("write a small file"))
    })
}

fn compare(bench: &Bench, place: &Place<'_>, database: &PathBuf) -> Result<()> {
    let output = place.folder().join("restored.db");
    let mut command = place.restore(database, Some(&output));
    place
        .start(&mut command)?
        .finish(bench.sizes().work_limit)?;
    place.compare(slice::from_ref(database), slice::from_ref(&output))
}
