//! A configuration that changes at run time.

use std::time::{Duration, Instant};

use protocol::status::DatabaseStatus;

use crate::support::database::{assert_same, create, insert, rows};
use crate::support::place::{Place, text};
use crate::support::process::{run, signal};
use crate::support::sidecar::Sidecar;
use crate::support::until;
use crate::support::writer::Writer;

#[test]
fn databases_come_and_go_without_losing_a_commit() {
    let place = Place::new();
    let paths: Vec<_> = ["a", "b", "c"]
        .map(|name| place.path().join(name).with_extension("db"))
        .to_vec();
    let config = |names: &[usize], interval: &str| {
        let mut content = "dbs:\n".to_owned();
        for n in names {
            let url = place.url(&format!("backup/{n}"));
            content.push_str(&format!(
                "- path: {}\n  replica: {{url: '{url}', sync-interval: {interval}}}\n",
                paths[*n].display()
            ));
        }
        place.write("config.yml", &content)
    };
    let file = config(&[0, 1], "1s");
    let sidecar = Sidecar::start(place.path(), &["--config", &file]);
    let writers: Vec<_> = paths.iter().map(|path| Writer::start(path)).collect();
    let in_force = |names: &[usize]| {
        let expected: Vec<_> = names.iter().map(|n| text(&paths[*n]).to_owned()).collect();
        until("the new configuration is in force and stored", || {
            let databases = sidecar.status().databases;
            let found: Vec<_> = databases.iter().map(|one| one.path.clone()).collect();
            let stored = databases
                .iter()
                .all(|one| one.state.is_healthy() && one.targets[0].position.is_some());
            (found == expected && stored).then_some(databases)
        })
    };
    let before = in_force(&[0, 1]);
    // The second one is removed, the third one is added; the first one is not disturbed.
    config(&[0, 2], "1s");
    let after = in_force(&[0, 2]);
    assert_eq!(before[0].targets[0].epoch, after[0].targets[0].epoch);
    // An invalid file changes nothing.
    let hash = sidecar.status().config_hash;
    place.write("config.yml", "dbs: [{pth: x}]");
    until("the error is told", || {
        sidecar
            .log()
            .contains("the new configuration is not used")
            .then_some(())
    });
    assert_eq!(sidecar.status().config_hash, hash);
    for writer in &writers {
        writer.write_more(10);
    }
    // Other settings for both, and the second one is added again.
    config(&[0, 1, 2], "200ms");
    in_force(&[0, 1, 2]);
    for writer in writers {
        writer.write_more(10);
        writer.stop();
    }
    assert_eq!(sidecar.terminate().0, Some(0));
    for (n, path) in paths.iter().enumerate() {
        let output = place.fresh("out.db");
        let url = place.url(&format!("backup/{n}"));
        run(["restore", &url, "-o", text(&output)]).succeeds();
        assert_same(&rows(&output), &rows(path));
    }
}

#[test]
fn a_database_that_is_configured_no_more_stores_its_last_commits() {
    let place = Place::new();
    let kept = place.path().join("kept.db");
    drop(create(&kept, 1));
    let connection = create(&place.database(), 1);
    let entry = |path: &std::path::Path, name: &str| {
        format!(
            "- path: {}\n  replica: {{url: '{}', sync-interval: 1h}}\n",
            path.display(),
            place.url(name)
        )
    };
    let both = format!(
        "dbs:\n{}{}",
        entry(&place.database(), "gone"),
        entry(&kept, "kept")
    );
    let file = place.write("config.yml", &both);
    let sidecar = Sidecar::start(place.path(), &["--config", &file]);
    sidecar.wait_until_stored();
    // Within the hour between two uploads, only its end stores these rows.
    insert(&connection, 3);
    insert(&connection, 3);
    place.write("config.yml", &format!("dbs:\n{}", entry(&kept, "kept")));
    let output = place.fresh("out.db");
    until("the last commits are stored", || {
        std::fs::remove_file(&output).ok();
        let done = run(["restore", &place.url("gone"), "-o", text(&output)]);
        (done.code == Some(0) && rows(&output).len() == 7).then_some(())
    });
    assert_eq!(sidecar.terminate().0, Some(0));
}

#[test]
fn a_hangup_reads_the_configuration_at_once() {
    for supervise in [&[][..], &["--supervise"]] {
        let place = Place::new();
        drop(create(&place.database(), 1));
        let config = |name: &str| {
            let (database, url) = (place.database(), place.url("backup"));
            let content = format!(
                "identity: {{backup: shop/orders, member: {name}}}\n\
                 dbs: [{{path: {}, replica: {{url: '{url}'}}}}]\n",
                database.display()
            );
            place.write("config.yml", &content)
        };
        let file = config("first");
        let arguments = [supervise, &["--config", &file]].concat();
        let sidecar = Sidecar::start(place.path(), &arguments);
        let before = sidecar.wait_until_stored();
        let start = Instant::now();
        for name in ["second", "third", "fourth", "fifth"] {
            config(name);
            signal(sidecar.id(), "HUP");
            until("the new configuration is in force", || {
                (sidecar.status().member == name).then_some(())
            });
        }
        // Polls alone would have taken 5 s for each change.
        assert!(start.elapsed() < Duration::from_secs(10));
        // An invalid file is reported at each SIGHUP.
        place.write("config.yml", "dbs: [{pth: x}]");
        for times in 1..=2 {
            signal(sidecar.id(), "HUP");
            until("the error is told", || {
                let log = sidecar.log();
                let told = log.matches("the new configuration is not used").count();
                (told >= times).then_some(())
            });
        }
        let after = sidecar.wait_until_stored();
        assert_eq!(before.targets[0].epoch, after.targets[0].epoch);
        assert_eq!(sidecar.terminate().0, Some(0));
    }
}

#[test]
fn a_stop_right_after_a_change_takes_no_longer_than_any_other() {
    let place = Place::new();
    let _connection = create(&place.database(), 5);
    // It accepts requests, and never answers.
    let store = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = store.local_addr().unwrap();
    let config = |interval: &str| {
        let text = format!(
            "shutdown-sync-timeout: 10s\ndbs:\n- path: {}\n  replicas:\n  - {{name: near, url: '{}', sync-interval: {interval}}}\n  \
             - {{name: far, url: 's3://bucket/far?endpoint=http://{silent}', access-key-id: a, secret-access-key: b}}\n",
            place.database_text(),
            place.url("near"),
        );
        place.write("config.yml", &text)
    };
    let file = config("1s");
    let sidecar = Sidecar::start(place.path(), &["--config", &file]);
    sidecar.wait_until("the near target does not wait for the far one", |status| {
        status.position.is_some() && status.targets[0].position == status.position
    });
    config("2s");
    signal(sidecar.id(), "HUP");
    until("the database is to begin again", || {
        sidecar
            .log()
            .contains("the databases changed")
            .then_some(())
    });
    // Its predecessor retries the upload to the unreachable target until its time limit.
    let (code, took) = sidecar.terminate();
    assert_eq!(code, Some(23));
    assert!(took < Duration::from_secs(16), "{took:?}");
}

#[test]
fn a_stop_waits_for_a_database_that_was_just_removed_and_tells_what_it_could_not_store() {
    let place = Place::new();
    let kept = place.path().join("kept.db");
    let _connections = [create(&place.database(), 5), create(&kept, 1)];
    // It accepts requests, and never answers.
    let store = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = store.local_addr().unwrap();
    let near = |name: &str| format!("{{name: near, url: '{}'}}", place.url(name));
    let far = format!(
        "{{name: far, url: 's3://bucket/far?endpoint=http://{silent}', access-key-id: a, \
         secret-access-key: b}}"
    );
    let text = format!(
        "shutdown-sync-timeout: 5s\ndbs:\n- {{path: {}, replicas: [{}]}}\n",
        kept.display(),
        near("kept"),
    );
    let gone = format!(
        "- {{path: {}, replicas: [{}, {far}]}}\n",
        place.database_text(),
        near("gone"),
    );
    let file = place.write("config.yml", &format!("{text}{gone}"));
    let sidecar = Sidecar::start(place.path(), &["--config", &file]);
    until("both are stored nearby", || {
        let databases = sidecar.status().databases;
        let is_stored =
            |it: &DatabaseStatus| it.position.is_some() && it.targets[0].position == it.position;
        databases.iter().all(is_stored).then_some(())
    });
    place.write("config.yml", &text);
    signal(sidecar.id(), "HUP");
    until("one is configured no more", || {
        (sidecar.status().databases.len() == 1).then_some(())
    });
    assert_eq!(sidecar.terminate().0, Some(23));
}
