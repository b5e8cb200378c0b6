//! Everything at once: no interleaving loses a commit or stores a state that never existed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use store::SharedStore;

use crate::app::{App, Habits, Numbers, seed};
use crate::bench::{Place, Replication, assert_every_point, assert_stored, memory, settings};

/// A step that meets a mark of ours that never moves takes the whole busy timeout of 5 s. Single
/// steps have done so while the machine was busy. Whether a mark of ours was the cause is not
/// known, so the longest step is printed and not judged.
const LONG_STEP_US: u32 = 4_500_000;

/// Lets the application run wild for some rounds and compares after each.
fn chaos(page_size: u32, rounds: u32, seed: u64) {
    let mut numbers = Numbers(seed);
    let place = Place::new();
    let memory = memory();
    let store: SharedStore = memory;
    let habits = Habits {
        seed: numbers.below(u64::MAX),
        page_size,
        auto_vacuum: numbers.pick(&[0, 1, 2]),
        autocheckpoint: numbers.pick(&[0, 1, 10, 1000]),
        synchronous: numbers.pick(&["NORMAL", "FULL"]).into(),
        threads: 1 + numbers.below(3),
        wild: true,
        ..Habits::calm(&place.database(), 0)
    };
    println!("{habits:?}");
    let mut app = App::start(&habits);
    let mut settings = settings(&place.database(), &place.state(), &[Arc::clone(&store)]);
    settings.snapshot_interval = Duration::from_millis(300 + numbers.below(700));
    let mut replication = Replication::start(&settings);
    for round in 0..rounds {
        let began = Instant::now();
        app.go();
        app.wait_for_commits(100 + numbers.below(600));
        match numbers.below(4) {
            // The last connection closes: SQLite would remove the WAL if we were not attached.
            0 => {
                app.close();
                app.pause();
            }
            // We stop and start while the application continues.
            1 => {
                assert!(
                    replication.stop(),
                    "round {round}: not everything was stored"
                );
                replication = Replication::start(&settings);
                app.pause();
            }
            // We do not run while the application closes.
            2 => {
                app.pause();
                assert!(
                    replication.stop(),
                    "round {round}: not everything was stored"
                );
                app.go();
                app.close();
                replication = Replication::start(&settings);
                app.pause();
            }
            // The application dies in any of its steps, and recovers its WAL while we poll.
            _ if numbers.below(2) == 0 => {
                app.kill();
                app = App::start(&habits);
            }
            _ => app.pause(),
        }
        let paused = began.elapsed();
        assert_stored(&replication, &mut app, &store);
        println!(
            "round {round}: {paused:?} {:?} {} commits",
            began.elapsed(),
            app.commits()
        );
    }
    assert!(replication.stop());
    let points = assert_every_point(&store);
    let latencies = app.latencies();
    println!(
        "{points} points proven, {} commits, {latencies:?} us",
        app.commits()
    );
    assert!(
        latencies[1] < LONG_STEP_US,
        "the application waited for us: {latencies:?} us"
    );
}

#[test]
fn nothing_is_lost_or_invented_with_pages_of_4096_bytes() {
    chaos(4096, 10, seed());
}

#[test]
fn nothing_is_lost_or_invented_with_the_smallest_pages() {
    chaos(512, 7, seed());
}

#[test]
fn nothing_is_lost_or_invented_with_the_largest_pages() {
    chaos(65536, 5, seed());
}
