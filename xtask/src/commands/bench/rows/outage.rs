//! Memory and local state of many databases during an outage of the store, and after it.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Result;

use super::figures::{Figure, Goal, Unit, percentile};
use super::many::{lose_machine, restore_missing};
use super::place::{Place, Program, STOP_LIMIT, Settings};
use super::proxy::Weather;
use super::state::Footprint;
use super::{Bench, MIB, Outcome, Row, in_turn, mib};

pub(super) const ROW: Row = Row {
    name: "outage",
    about: "Peak memory and peak local state of 64 databases, the store away under load, then back",
    remark: "64 databases of 2 MiB, one process that writes rows of 3 MB a second into all of them in turn: \
             10 s with the store, then the time without it, then 20 s with it again. Ours has \
             `limits.memory: 128Mi` and `limits.state: 512Mi`; Litestream has no such settings. Local \
             state is what the files take on disk, files without a name that the process has open \
             included, the WALs excluded; they are in the notes. Peaks are of the whole run, first \
             sync included (VmHWM for memory). All databases are restored afterwards and compared.",
    run,
};

const DATABASES: usize = 64;
const BYTES: u64 = 2 << 20;
const BYTES_PER_SECOND: u64 = 3_000_000;
const MEMORY_MIB: u64 = 128;
const STATE_MIB: u64 = 512;
/// Duration of the load before the outage, and after it.
const BEFORE: Duration = Duration::from_secs(10);
const AFTER: Duration = Duration::from_secs(20);
/// The pause between two measurements of local state.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(200);

struct Taken {
    peak_kib: u64,
    footprint: Footprint,
    commits_ms: Vec<f64>,
    stored_seconds: f64,
}

fn run(bench: &Bench) -> Result<Outcome> {
    let taken = in_turn(|program| measure(bench, program))?;
    let [ours, peer] = &taken;
    let away = bench.sizes().away.as_secs();
    let state = |taken: &Taken| taken.footprint.state() as f64 / MIB;
    let figure = |what: &str, ours, peer, most| Figure {
        row: ROW.name,
        what: format!("store away for {away} s, {what}"),
        unit: Unit::Mib,
        ours,
        peer: Some(peer),
        goal: Goal::AtMost(most),
    };
    let figures = vec![
        figure(
            "peak memory",
            mib(ours.peak_kib),
            mib(peer.peak_kib),
            MEMORY_MIB as f64,
        ),
        figure("peak state", state(ours), state(peer), STATE_MIB as f64),
    ];
    let notes = ["ours", "Litestream"].iter().zip(&taken).map(|(name, taken)| {
        let Footprint {
            named,
            unnamed,
            wal,
        } = taken.footprint;
        format!(
            "{name}: state {:.1} MiB in files with a name and {:.1} MiB without; WALs up to {:.1} MiB; \
             all stored {:.1} s after the load; {} commits, p99 {:.2} ms, longest {:.1} ms",
            named as f64 / MIB,
            unnamed as f64 / MIB,
            wal as f64 / MIB,
            taken.stored_seconds,
            taken.commits_ms.len(),
            percentile(&taken.commits_ms, 0.99),
            percentile(&taken.commits_ms, 1.0),
        )
    });
    Ok(Outcome {
        figures,
        notes: notes.collect(),
    })
}

fn measure(bench: &Bench, program: Program) -> Result<Taken> {
    let limits = format!("limits:\n  memory: {MEMORY_MIB}Mi\n  state: {STATE_MIB}Mi\n");
    let settings = Settings {
        own: [limits, String::new()],
        ..Settings::default()
    };
    let place = Place::with(bench, ROW.name, program, settings)?;
    let databases: Vec<PathBuf> = (0..DATABASES).map(|n| place.database(n)).collect();
    bench.application().fill(&databases[0], BYTES)?;
    for database in &databases[1..] {
        fs::copy(&databases[0], database)?;
    }
    let mut running = place.replicate_all(DATABASES)?;
    let stop = AtomicBool::new(false);
    let (footprint, written) = thread::scope(|scope| {
        let (data, id, stop) = (place.data(), running.id(), &stop);
        let sampler = scope.spawn(move || {
            let mut peak = Footprint::default();
            while !stop.load(Ordering::Relaxed) {
                peak = peak.peak(Footprint::measure(&data, id));
                thread::sleep(SAMPLE_INTERVAL);
            }
            peak
        });
        let written = write(bench, &place, &databases);
        stop.store(true, Ordering::Relaxed);
        let peak = sampler.join().expect("measuring does not panic");
        (peak, written)
    });
    let (commits_ms, stored_seconds) = written?;
    running.must_run()?;
    let peak_kib = running.peak_kib()?;
    running.stop(STOP_LIMIT)?;

    let sources = lose_machine(&place, &databases)?;
    restore_missing(bench, &place, &databases)?;
    place.compare(&sources, &databases)?;
    Ok(Taken {
        peak_kib,
        footprint,
        commits_ms,
        stored_seconds,
    })
}

/// Writes during the outage, and waits until all is stored. Returns the durations of the commits in
/// milliseconds, and the time from the end of the load until all was stored.
fn write(bench: &Bench, place: &Place<'_>, databases: &[PathBuf]) -> Result<(Vec<f64>, f64)> {
    let (application, sizes) = (bench.application(), bench.sizes());
    let time = BEFORE + sizes.away + AFTER;
    let (writer, load) = thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let limit = time + sizes.work_limit;
            application.spread(databases, BYTES_PER_SECOND, time, limit)
        });
        thread::sleep(BEFORE);
        place.proxy().set(Weather::Dead);
        thread::sleep(sizes.away);
        place.proxy().set(bench.weather());
        writer.join().expect("the thread does not panic")
    })?;
    let (ended, counts) = (std::time::Instant::now(), place.proxy().counts());
    let stored = place.stored(&counts)?;
    drop(writer);
    let commits = load.commits_us.iter();
    Ok((
        commits.map(|us| *us as f64 / 1000.0).collect(),
        stored.saturating_duration_since(ended).as_secs_f64(),
    ))
}
