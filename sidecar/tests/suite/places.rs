//! Keys of backups in a bucket for any form of their path, and temporary errors of a store.

use std::process::Command;

use store::testing::{ExactServer, Refusal};

use crate::compat::litestream_program;
use crate::support::database::{Rows, assert_same, create, insert, rows};
use crate::support::place::{Place, text};
use crate::support::process::{Finished, clean, finish, program};
use crate::support::sidecar::Sidecar;

/// Gives a command credentials, which the server does not check.
fn signed(mut command: Command) -> Command {
    command
        .env("AWS_ACCESS_KEY_ID", "id")
        .env("AWS_SECRET_ACCESS_KEY", "secret");
    command
}

fn ours(arguments: &[&str]) -> Finished {
    let mut command = signed(program());
    command.args(arguments);
    finish(command)
}

fn theirs(arguments: &[&str]) -> Finished {
    let mut command = signed(clean(Command::new(litestream_program("0.5.17"))));
    command.args(arguments);
    finish(command)
}

/// Returns a configuration with this replica, which both programs read.
fn config(place: &Place, server: &ExactServer, name: &str, replica: &str) -> String {
    let endpoint = server.endpoint();
    let content = format!(
        "dbs:\n- path: {}\n  replica: {{{replica}, endpoint: '{endpoint}', region: us-east-1}}\n",
        place.database_text()
    );
    place.write(name, &content)
}

#[test]
fn litestream_and_we_find_each_others_backup_whatever_the_path_looks_like() {
    for (index, (replica, stem)) in [
        ("type: s3, bucket: bkt, path: db", "db/"),
        ("type: s3, bucket: bkt, path: /db", "/db/"),
        ("type: s3, bucket: bkt, path: db/", "db//"),
        ("type: s3, bucket: bkt, path: //db//", "//db///"),
        ("type: s3, bucket: bkt, path: a//b", "a//b/"),
        ("type: s3, bucket: bkt, path: ./db", "./db/"),
        ("type: s3, bucket: bkt, path: a/../b", "a/../b/"),
        ("type: s3, bucket: bkt, path: 2026.10", "2026.10/"),
        ("type: s3, bucket: bkt, path: 0x1F", "0x1F/"),
        ("type: s3, bucket: bkt", "/"),
        ("url: 's3://bkt'", "./"),
        ("url: 's3://bkt/'", "/"),
        ("url: 's3://bkt//a//./b/'", "a/b/"),
        ("url: 's3://bkt/a%20b'", "a b/"),
    ]
    .into_iter()
    .enumerate()
    {
        let (place, server) = (Place::new(), ExactServer::start());
        drop(create(&place.database(), 3));
        let expected = rows(&place.database());
        let config = config(&place, &server, "litestream.yml", replica);
        let is_below = || server.keys("bkt").iter().all(|key| key.starts_with(stem));
        let restores = |by_us: bool| -> Rows {
            let output = place.fresh("out.db");
            let done = match by_us {
                true => {
                    let source = place.database_text();
                    ours(&["restore", "--config", &config, source, "-o", text(&output)])
                }
                false => {
                    let source = place.database_text();
                    theirs(&["restore", "-config", &config, "-o", text(&output), source])
                }
            };
            assert_eq!(done.code, Some(0), "{replica}: {done:?}");
            rows(&output)
        };
        // The two programs start in alternating order.
        if index % 2 == 0 {
            theirs(&["replicate", "-once", "-config", &config]).succeeds();
            assert!(!server.keys("bkt").is_empty() && is_below(), "{replica}");
            assert_same(&restores(true), &expected);
        } else {
            ours(&["replicate", "--once", "--config", &config]).succeeds();
            assert!(!server.keys("bkt").is_empty() && is_below(), "{replica}");
            assert_same(&restores(false), &expected);
        }
        let told = ours(&["replicate", "--dry-run", "--config", &config]).succeeds();
        assert!(told.contains("a backup up to TXID"), "{replica}: {told}");
    }
}

#[test]
fn a_backup_at_a_near_miss_of_the_path_is_told_of() {
    let (place, server) = (Place::new(), ExactServer::start());
    let connection = create(&place.database(), 3);
    let plain = config(
        &place,
        &server,
        "plain.yml",
        "type: s3, bucket: bkt, path: a/db",
    );
    let slash = config(
        &place,
        &server,
        "slash.yml",
        "type: s3, bucket: bkt, path: /a/db/",
    );
    let elsewhere = config(
        &place,
        &server,
        "new.yml",
        "type: s3, bucket: bkt, path: b/db",
    );
    ours(&["replicate", "--once", "--config", &plain]).succeeds();
    let (source, output) = (place.database_text(), place.fresh("out.db"));
    let restore = |config: &str, more: &[&str]| {
        let common = ["restore", "--config", config, source, "-o", text(&output)];
        ours(&[&common, more].concat())
    };
    let words = ["there is one at s3://bkt/a/db", "slashes"];
    restore(&slash, &[]).fails_with(30, &words);
    let started = restore(&slash, &["--if-replica-exists"]);
    assert!(started.err.contains(words[0]), "{started:?}");
    assert!(started.code == Some(0) && !output.exists());
    let told = ours(&["replicate", "--dry-run", "--config", &slash]).succeeds();
    assert!(
        told.contains("no backup yet; there is one at s3://bkt/a/db"),
        "{told}"
    );
    // No similar path exists.
    let done = restore(&elsewhere, &[]);
    done.fails_with(30, &[]);
    assert!(!done.err.contains("there is one"), "{done:?}");

    // A new backup is about to begin beside the other one.
    insert(&connection, 1);
    std::fs::remove_dir_all(place.path().join(".app.db-sqlite-backup")).unwrap();
    let arguments = ["--config", slash.as_str()];
    let sidecar = Sidecar::spawn(place.path(), &arguments, signed(program()));
    sidecar.wait_until_stored();
    let log = sidecar.log();
    assert!(log.contains("while there is one at s3://bkt/a/db"), "{log}");
    assert_eq!(sidecar.terminate().0, Some(0));
    restore(&slash, &[]).succeeds();
    assert_same(&rows(&output), &rows(&place.database()));
}

#[test]
fn an_answer_that_passes_ends_no_command_and_one_that_does_not_is_told() {
    let place = Place::new();
    drop(create(&place.database(), 3));
    for (status, code) in [
        (409, "ConditionalRequestConflict"),
        (409, "OperationAborted"),
        (429, "TooManyRequests"),
        (403, "RequestTimeTooSkewed"),
    ] {
        let server = ExactServer::start();
        let url = format!("s3://bkt/db?endpoint={}", server.endpoint());
        let state = place.path().join(".app.db-sqlite-backup");
        let _fresh = std::fs::remove_dir_all(state);
        let refuse = |method, part, times| {
            server.refuse(Refusal {
                method,
                part,
                status,
                code,
                times,
            });
        };
        refuse("PUT", "lock.json", 2);
        refuse("PUT", "0009", 2);
        refuse("GET", "0009", 2);
        let database = place.database();
        ours(&["replicate", text(&database), &url, "--once"]).succeeds();
        let output = place.fresh("out.db");
        ours(&["restore", &url, "-o", text(&output)]).succeeds();
        ours(&["inspect", &url]).succeeds();
        refuse("GET", "", usize::MAX);
        for command in [
            vec!["restore", &url, "-o", "/tmp/nowhere.db"],
            vec!["inspect", &url],
            vec!["verify", &url],
        ] {
            let done = ours(&command);
            assert_eq!(done.code, Some(21), "{done:?}");
            assert!(
                done.err.contains(code) || done.out.contains(code),
                "{done:?}"
            );
        }
        let server = ExactServer::start();
        server.refuse(Refusal {
            method: "PUT",
            part: "lock.json",
            status,
            code,
            times: usize::MAX,
        });
        let url = format!("s3://bkt/db?endpoint={}", server.endpoint());
        let done = ours(&["replicate", text(&database), &url, "--once"]);
        done.fails_with(21, &[code, "as the test wants it"]);
    }
}
