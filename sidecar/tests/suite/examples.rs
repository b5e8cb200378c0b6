//! Published configurations and commands, used unchanged: `sidecar/tests/examples`.

use std::path::{Path, PathBuf};
use std::process::Command;

use store::testing::ExactServer;

use crate::support::database::{assert_same, create, insert, rows};
use crate::support::place::{Place, text};
use crate::support::process::{Finished, finish, program};
use crate::support::sidecar::Sidecar;

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/examples")
        .join(name)
}

/// Returns the program with the variables that the examples use.
fn command(place: &Place, server: &ExactServer) -> Command {
    let endpoint = server.endpoint();
    let without_scheme = endpoint.trim_start_matches("http://");
    let mut command = program();
    command
        .env("DATA", place.path())
        .env("ENDPOINT", &endpoint)
        .env("ENDPOINT_WITHOUT_SCHEME", without_scheme)
        .env("AWS_ACCESS_KEY_ID", "id")
        .env("AWS_SECRET_ACCESS_KEY", "secret");
    for name in ["R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY", "KEY", "SECRET"] {
        command.env(name, "0123");
    }
    command
}

fn run(place: &Place, server: &ExactServer, arguments: &[&str]) -> Finished {
    let mut command = command(place, server);
    command.args(arguments);
    finish(command)
}

/// Returns a command line with the configuration after the command.
fn with<'a>(config: &[&'a str], command: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [command, config, more].concat()
}

#[test]
fn published_configurations_back_up_and_restore_as_they_are() {
    for (name, databases, bucket, keys) in [
        ("course.yml", vec!["app.db"], "app-backups", "app/app.db/"),
        (
            "production.yml",
            vec!["database.db"],
            "backups",
            "database-backups/",
        ),
        ("many.yml", vec!["global.db", "slots/a.db"], "tenants", ""),
    ] {
        let (place, server) = (Place::new(), ExactServer::start());
        std::fs::create_dir(place.path().join("slots")).unwrap();
        let databases: Vec<_> = databases.iter().map(|it| place.path().join(it)).collect();
        for database in &databases {
            drop(create(database, 3));
        }
        let file = example(name);
        let config = ["--config", text(&file)];
        let told = run(
            &place,
            &server,
            &with(&config, &["replicate", "--dry-run"], &[]),
        )
        .succeeds();
        assert!(told.contains("no backup yet"), "{name}: {told}");
        run(
            &place,
            &server,
            &with(&config, &["replicate", "--once"], &[]),
        )
        .succeeds();
        let stored = server.keys(bucket);
        assert!(stored.iter().all(|key| key.starts_with(keys)), "{stored:?}");
        run(&place, &server, &with(&config, &["verify"], &[])).succeeds();
        for database in &databases {
            let output = place.fresh("out.db");
            let out = [text(database), "-o", text(&output), "--parallelism", "16"];
            run(&place, &server, &with(&config, &["restore"], &out)).succeeds();
            assert_same(&rows(&output), &rows(database));
        }
        // Existing databases stay, and missing ones are restored.
        let expected = rows(&databases[0]);
        std::fs::remove_file(&databases[0]).unwrap();
        let flags = ["--if-db-not-exists", "--if-replica-exists"];
        run(&place, &server, &with(&config, &["restore"], &flags)).succeeds();
        assert_same(&rows(&databases[0]), &expected);
    }
}

#[test]
fn published_commands_do_what_the_articles_say() {
    let (place, server) = (Place::new(), ExactServer::start());
    let database = place.path().join("app.db");
    let connection = create(&database, 3);
    let file = example("course.yml");
    let config = text(&file);
    let started = command(&place, &server);
    let sidecar = Sidecar::spawn(place.path(), &["--config", config], started);
    sidecar.wait_until_stored();
    insert(&connection, 2);
    sidecar.wait_until_stored();
    assert_eq!(sidecar.terminate().0, Some(0));
    let expected = rows(&database);
    let output = place.fresh("out.db");
    let far = [
        "restore",
        "--config",
        config,
        "--timestamp",
        "2099-04-18T09:15:00Z",
    ];
    let out = [text(&database), "-o", text(&output)];
    run(&place, &server, &[&far[..], &out].concat()).succeeds();
    assert_same(&rows(&output), &expected);
    let exec = ["replicate", "--config", config, "--exec", "sh -c 'exit 7'"];
    let ended = run(&place, &server, &exec);
    assert_eq!(ended.code, Some(7), "{ended:?}");
    let url = format!("s3://backups/app.db?endpoint={}", server.endpoint());
    run(
        &place,
        &server,
        &["replicate", text(&database), &url, "--once"],
    )
    .succeeds();
    let output = place.fresh("out.db");
    run(&place, &server, &["restore", &url, "-o", text(&output)]).succeeds();
    assert_same(&rows(&output), &expected);
}

#[test]
fn targets_that_are_not_served_yet_are_refused_by_name() {
    let (place, server) = (Place::new(), ExactServer::start());
    let file = example("regions.yml");
    let done = run(
        &place,
        &server,
        &["replicate", "--config", text(&file), "--dry-run"],
    );
    done.fails_with(
        2,
        &["dbs[0].replicas[2].url", "gs:// targets are not served yet"],
    );
}
