//! Restore of one database with a snapshot and many captured transactions.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::counts::Counts;
use super::figures::{Figure, Goal, Unit, percentile};
use super::place::{Place, Program, STOP_LIMIT};
use super::{Bench, MIB, Outcome, Row, in_turn, mib};
use crate::commands::child::Finished;

pub(super) const ROW: Row = Row {
    name: "restore",
    about: "Restore of one database with a base and many captured transactions",
    remark: "Each program restores its own replica, made with `sync-interval: 1s` by the same load with a \
             pause of 2 ms between transactions, so there is about one captured file a second, less \
             what the program has compacted. Both run with their usual flags: ours then includes \
             `PRAGMA quick_check` and proves page checksums and coverage, Litestream's includes no \
             check; ours without that look is in the notes. Each restores several times: time and CPU \
             are medians, memory is the highest.",
    run,
};

const PAUSE: Duration = Duration::from_millis(2);

/// Number of restores of one replica.
const TIMES: usize = 5;

struct Taken {
    seconds: Vec<f64>,
    cpu_seconds: Vec<f64>,
    peak_kib: u64,
    unchecked: Option<Finished>,
    requests: String,
    received_bytes: u64,
}

fn run(bench: &Bench) -> Result<Outcome> {
    let taken = in_turn(|program| measure(bench, program))?;
    let [ours, peer] = &taken;
    let sizes = bench.sizes();
    let what = format!(
        "{} MiB and {} commits",
        sizes.restore_bytes >> 20,
        sizes.restore_commits
    );
    let figure = |what, unit, ours, peer, goal| Figure {
        row: ROW.name,
        what,
        unit,
        ours,
        peer: Some(peer),
        goal,
    };
    let mut outcome = Outcome {
        figures: vec![
            figure(
                format!("{what}, time"),
                Unit::Seconds,
                percentile(&ours.seconds, 0.5),
                percentile(&peer.seconds, 0.5),
                Goal::OfPeer(1.0 / 3.0),
            ),
            figure(
                "peak memory".to_owned(),
                Unit::Mib,
                mib(ours.peak_kib),
                mib(peer.peak_kib),
                Goal::AtMost(64.0),
            ),
            figure(
                "CPU".to_owned(),
                Unit::Seconds,
                percentile(&ours.cpu_seconds, 0.5),
                percentile(&peer.cpu_seconds, 0.5),
                Goal::None,
            ),
        ],
        notes: Vec::new(),
    };
    for (name, taken) in ["ours", "Litestream"].iter().zip(&taken) {
        let received = taken.received_bytes as f64 / MIB;
        let each = taken.seconds.iter().map(|time| format!("{time:.2} s"));
        let (each, requests) = (each.collect::<Vec<_>>().join(", "), &taken.requests);
        let mut note = format!("{name}: {each}; {requests}, {received:.1} MiB each");
        if let Some(unchecked) = &taken.unchecked {
            let time = unchecked.time.as_secs_f64();
            note.push_str(&format!("; {time:.2} s with `--integrity-check none`"));
        }
        outcome.notes.push(note);
    }
    Ok(outcome)
}

fn measure(bench: &Bench, program: Program) -> Result<Taken> {
    let place = Place::new(bench, ROW.name, program)?;
    let (database, sizes) = (place.database(0), bench.sizes());
    bench.application().fill(&database, sizes.restore_bytes)?;
    let mut running = place.replicate_all(1)?;
    let counts = place.proxy().counts();
    let (writer, _) =
        bench
            .application()
            .load(&database, sizes.restore_commits, PAUSE, sizes.work_limit)?;
    place.stored(&counts)?;
    drop(writer);
    running.stop(STOP_LIMIT)?;

    let output = place.folder().join("restored.db");
    let before = place.proxy().counts();
    let (mut seconds, mut cpu_seconds, mut peak_kib) = (Vec::new(), Vec::new(), 0);
    let mut counts = Counts::default();
    for time in 0..TIMES {
        let mut command = place.restore(&database, Some(&output));
        let finished = place.start(&mut command)?.finish(sizes.work_limit)?;
        seconds.push(finished.time.as_secs_f64());
        cpu_seconds.push(finished.cpu_seconds);
        peak_kib = finished.peak_kib.max(peak_kib);
        if time == 0 {
            counts = place.proxy().counts().since(&before);
        }
        place.compare(
            std::slice::from_ref(&database),
            std::slice::from_ref(&output),
        )?;
        fs::remove_file(&output)?;
    }
    let unchecked = match program {
        Program::Ours => Some(unchecked(bench, &place, &database)?),
        Program::Peer => None,
    };
    Ok(Taken {
        seconds,
        cpu_seconds,
        peak_kib,
        unchecked,
        requests: counts.to_string(),
        received_bytes: counts.received_bytes,
    })
}

/// Our restore once more, with as few checks as the peer does.
fn unchecked(bench: &Bench, place: &Place<'_>, database: &Path) -> Result<Finished> {
    let output = place.folder().join("unchecked.db");
    let mut command: Command = place.restore(database, Some(&output));
    command.args(["--integrity-check", "none"]);
    place.start(&mut command)?.finish(bench.sizes().work_limit)
}
