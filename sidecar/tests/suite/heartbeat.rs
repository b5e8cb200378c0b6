//! A user's monitor receives requests while everything is stored.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::database::{create, insert};
use crate::support::monitor::Monitor;
use crate::support::place::Place;
use crate::support::sidecar::Sidecar;
use crate::support::until;

fn config(place: &Place, url: &str) -> String {
    let content = format!(
        "heartbeat-url: '{url}'\nheartbeat-interval: 1m\n\
         dbs: [{{path: {}, replica: {{url: '{}'}}}}]\n",
        place.database_text(),
        place.url("blocker/backup")
    );
    place.write("config.yml", &content)
}

#[test]
fn a_monitor_hears_of_us_once_everything_is_stored_and_not_before() {
    let place = Place::new();
    let _connection = create(&place.database(), 3);
    let may_be_stored = Arc::new(AtomicBool::new(false));
    let allowed = Arc::clone(&may_be_stored);
    let monitor = Monitor::start("200 OK", move || {
        assert!(allowed.load(Ordering::SeqCst), "nothing is stored yet");
    });
    // A directory below a file: a target that cannot work.
    let blocker = place.write("blocker", "");
    let config = config(&place, &monitor.url("/secret-path"));
    let sidecar = Sidecar::start(place.path(), &["--config", &config]);
    sidecar.wait_until("the target fails", |status| {
        !status.targets[0].message.is_empty()
    });
    may_be_stored.store(true, Ordering::SeqCst);
    std::fs::remove_file(&blocker).unwrap();
    assert_eq!(monitor.hear(), "GET /secret-path HTTP/1.1\r\n");
    let status = sidecar.wait_until_stored();
    assert!(status.targets[0].last_sync.is_some());
    assert!(!sidecar.log().contains("secret-path"));
    assert_eq!(sidecar.terminate().0, Some(0));
}

#[test]
fn a_monitor_that_fails_holds_nothing_back_and_is_told_once() {
    for (answer, word) in [(Some("500 Oh No"), "HTTP 500"), (None, "refused")] {
        let place = Place::new();
        let connection = create(&place.database(), 3);
        let monitor = answer.map(|answer| Monitor::start(answer, || ()));
        let closed = "http://127.0.0.1:1/secret-path".to_owned();
        let url = monitor.as_ref().map_or(closed, |it| it.url("/secret-path"));
        let config = config(&place, &url);
        let sidecar = Sidecar::start(place.path(), &["--config", &config]);
        let told = || sidecar.log().matches("heartbeat to 127.0.0.1").count();
        until("the failure is told", || (told() > 0).then_some(()));
        insert(&connection, 3);
        sidecar.wait_until_stored();
        let log = sidecar.log();
        assert!(log.contains(word) && !log.contains("secret-path"), "{log}");
        assert_eq!(told(), 1);
        assert_eq!(sidecar.terminate().0, Some(0));
    }
}

#[test]
fn another_monitor_may_be_named_while_running() {
    let place = Place::new();
    let _connection = create(&place.database(), 3);
    let monitors = [(); 2].map(|()| Monitor::start("204 No Content", || ()));
    let file = config(&place, &monitors[0].url("/first"));
    let sidecar = Sidecar::start(place.path(), &["--config", &file]);
    assert!(monitors[0].hear().starts_with("GET /first"));
    let epoch = sidecar.wait_until_stored().targets[0].epoch;
    config(&place, &monitors[1].url("/second"));
    assert!(monitors[1].hear().starts_with("GET /second"));
    // Replication of the database is not interrupted.
    assert_eq!(sidecar.wait_until_stored().targets[0].epoch, epoch);
}
