//! Each mistake has its own exit code and a message with the subject and the remedy.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::support::bucket::{Bucket, url};
use crate::support::database::{create, files, insert, rows};
use crate::support::process::{Finished, clean, finish, program, run};

/// User and group ID of `nobody`.
const NOBODY: u32 = 65_534;

fn place() -> TempDir {
    tempfile::tempdir().expect("make a directory")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

/// Replicates once to a directory beside the database.
fn replicate(database: &Path) -> Finished {
    let target = format!("file://{}-backup", database.display());
    run(["replicate", text(database), &target, "--once"])
}

#[test]
fn a_missing_database_is_named() {
    let place = place();
    let path = place.path().join("nope.db");
    replicate(&path).fails_with(17, &[text(&path), "does not exist", "check the path"]);
}

#[test]
fn a_directory_is_not_a_database() {
    let place = place();
    replicate(place.path()).fails_with(17, &[text(place.path()), "not a file", "give the path"]);
}

#[test]
fn a_file_that_is_not_sqlite_is_named() {
    let place = place();
    let path = place.path().join("notes.txt");
    std::fs::write(&path, "not a database at all").unwrap();
    replicate(&path).fails_with(17, &[text(&path), "not a SQLite database", "give the path"]);
}

#[test]
fn an_encrypted_database_is_named() {
    // The output of SQLCipher: whole pages that cannot be distinguished from noise.
    let place = place();
    let path = place.path().join("app.db");
    let noise = rusqlite::Connection::open_in_memory().unwrap();
    let noise: Vec<u8> = noise
        .query_row("SELECT randomblob(8 * 4096)", [], |row| row.get(0))
        .unwrap();
    std::fs::write(&path, &noise).unwrap();
    replicate(&path).fails_with(
        17,
        &[text(&path), "not a SQLite database, or an encrypted one"],
    );
    assert_eq!(std::fs::read(&path).unwrap(), noise);
    let backup = place.path().join("app.db-backup");
    assert!(!backup.exists() || files(&backup, &|name| name.ends_with(".ltx")).is_empty());
}

#[test]
fn a_rollback_journal_database_is_told_the_pragma() {
    let place = place();
    let path = place.path().join("app.db");
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.execute_batch("CREATE TABLE t(x)").unwrap();
    replicate(&path).fails_with(17, &[text(&path), "PRAGMA journal_mode=WAL"]);
}

/// Runs the program as a user who owns no files. A copy of it is run, because that user may not be
/// able to reach the program itself.
fn as_nobody(directory: &Path, arguments: &[&str]) -> Finished {
    let copy = directory.join("sqlite-backup");
    if !copy.exists() {
        std::fs::copy(env!("CARGO_BIN_EXE_sqlite-backup"), &copy).unwrap();
    }
    std::fs::set_permissions(directory, PermissionsExt::from_mode(0o777)).unwrap();
    let mut command = clean(Command::new(copy));
    command.args(arguments).uid(NOBODY).gid(NOBODY);
    finish(command)
}

#[test]
fn a_database_of_somebody_else_is_not_touched() {
    let place = place();
    let path = place.path().join("app.db");
    drop(create(&path, 1));
    let target = format!("file://{}/backup", place.path().display());
    let done = as_nobody(place.path(), &["replicate", text(&path), &target, "--once"]);
    done.fails_with(17, &[text(&path), "belongs to user 0", "run as the owner"]);
}

#[test]
fn a_database_that_its_owner_cannot_read_is_named() {
    let place = place();
    let path = place.path().join("app.db");
    drop(create(&path, 1));
    std::os::unix::fs::chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o000)).unwrap();
    let target = format!("file://{}/backup", place.path().display());
    let done = as_nobody(place.path(), &["replicate", text(&path), &target, "--once"]);
    done.fails_with(24, &[text(&path), "no permission"]);
}

#[test]
fn a_target_that_may_not_be_written_is_named() {
    let place = place();
    let path = place.path().join("app.db");
    drop(create(&path, 1));
    for suffix in ["", "-wal", "-shm"] {
        let file = place.path().join(format!("app.db{suffix}"));
        if file.exists() {
            std::os::unix::fs::chown(&file, Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }
    let locked = place.path().join("locked");
    std::fs::create_dir(&locked).unwrap();
    std::fs::set_permissions(&locked, PermissionsExt::from_mode(0o700)).unwrap();
    let target = format!("file://{}/backup", locked.display());
    let done = as_nobody(place.path(), &["replicate", text(&path), &target, "--once"]);
    done.fails_with(20, &[text(&path), text(&locked), "permission denied"]);
}

/// Returns a configuration with local state at `state` and the backup below `directory`.
fn configured(directory: &Path, database: &Path, state: &Path) -> PathBuf {
    let file = directory.join("config.yml");
    let content = format!(
        "dbs:\n- path: {}\n  meta-path: {}\n  replica: {{url: 'file://{}/backup'}}\n",
        database.display(),
        state.display(),
        directory.display(),
    );
    std::fs::write(&file, content).unwrap();
    file
}

#[test]
fn a_place_that_our_state_may_not_be_written_to_is_named() {
    let place = place();
    let directory = place.path().join("data");
    std::fs::create_dir(&directory).unwrap();
    let path = directory.join("app.db");
    drop(create(&path, 3));
    for path in [&directory, &path] {
        std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o444)).unwrap();
    std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o555)).unwrap();
    let target = format!("file://{}/backup", place.path().display());
    let done = as_nobody(place.path(), &["replicate", text(&path), &target, "--once"]);
    let words = [text(&path), "Permission denied", "local state is in"];
    done.fails_with(24, &words);
    // With its state elsewhere it works, and the database is only read.
    let config = configured(place.path(), &path, &place.path().join("state"));
    let once = ["replicate", "--config", text(&config), "--once"];
    as_nobody(place.path(), &once).succeeds();
    assert_eq!(files(&directory, &|_| true), [path]);
}

#[test]
fn a_database_on_a_read_only_volume_is_backed_up_when_our_state_is_elsewhere() {
    let place = place();
    let directory = place.path().join("data");
    std::fs::create_dir(&directory).unwrap();
    let path = directory.join("app.db");
    // The application writes to the same directory through another mount, and stays.
    let connection = create(&path, 3);
    let state = place.path().join("state");
    let config = configured(place.path(), &path, &state);
    let read_only = |arguments: &str| {
        let mut command = clean(Command::new("unshare"));
        let script = format!("mount --bind -o ro \"$1\" \"$1\" && \"$2\" {arguments}");
        command
            .args(["--mount", "sh", "-ec", &script, "sh"])
            .arg(&directory)
            .arg(env!("CARGO_BIN_EXE_sqlite-backup"));
        finish(command)
    };
    let target = format!("file://{}/backup", place.path().display());
    let beside = format!("replicate {} {target} --once", path.display());
    let words = [text(&path), "Read-only file system", "local state is in"];
    read_only(&beside).fails_with(24, &words);
    for _ in 0..2 {
        insert(&connection, 2);
        read_only(&format!("replicate --config {} --once", config.display())).succeeds();
        let output = place.path().join("out.db");
        run(["restore", &target, "-o", text(&output), "--force"]).succeeds();
        assert_eq!(rows(&output), rows(&path));
    }
    // A restore to this path is refused, and the attempt loses nothing.
    let restore = format!("restore {target} -o {} --force", path.display());
    drop(connection);
    read_only(&restore).fails_with(24, &[text(&directory), "Read-only file system"]);
    assert_eq!(rows(&path).len(), 7);
}

#[test]
fn an_unknown_configuration_key_is_named_with_a_suggestion() {
    let place = place();
    let file = place.path().join("config.yml");
    std::fs::write(&file, "dbs:\n- path: /a.db\n  replcas: []\n").unwrap();
    for command in ["replicate", "restore", "verify"] {
        let done = run([command, "--config", text(&file)]);
        done.fails_with(2, &[text(&file), "\"replcas\"", "\"replicas\"", "line 3"]);
    }
}

#[test]
fn a_configuration_that_cannot_be_used_ends_at_a_terminal() {
    let place = place();
    let file = place.path().join("config.yml");
    run(["replicate", "--config", text(&file)]).fails_with(2, &[text(&file), "No such file"]);
    for (content, word) in [
        ("dbs: [", "line 2"),
        ("dbs: [{path: /a.db}]", "dbs[0].replicas"),
        ("logging: {level: loud}", "logging.level"),
        (
            "dbs: [{path: '${NOT_SET_ANYWHERE}', replica: {url: 'file:///b'}}]",
            "NOT_SET_ANYWHERE",
        ),
    ] {
        std::fs::write(&file, content).unwrap();
        run(["replicate", "--config", text(&file)]).fails_with(2, &[word]);
    }
}

#[test]
fn a_bad_url_says_what_a_good_one_looks_like() {
    let place = place();
    let path = place.path().join("app.db");
    drop(create(&path, 1));
    for (url, words) in [
        ("/backups/app", ["/backups/app", "file:///DIRECTORY"]),
        ("ftp://host/app", ["\"ftp\"", "s3:// and file://"]),
        ("gs://bucket/app", ["gs://", "not served yet"]),
        ("s3://b/app", ["\"b\"", "3 to 255 characters"]),
        (
            "s3://bucket/app?edpoint=x",
            ["\"edpoint\"", "endpoint, region"],
        ),
        ("s3://id:secret@bucket/app", ["credentials", "environment"]),
        ("file://host/app", ["file://host/app", "file:///DIRECTORY"]),
    ] {
        run(["replicate", text(&path), url, "--once"]).fails_with(2, &words);
        run(["restore", url, "-o", "/nowhere/app.db"]).fails_with(2, &words);
        run(["verify", url]).fails_with(2, &words);
        run(["inspect", url]).fails_with(2, &words);
    }
}

#[test]
fn a_bucket_that_does_not_exist_is_named() {
    let place = place();
    let path = place.path().join("app.db");
    drop(create(&path, 1));
    let bucket = Bucket::create("cli-exists");
    let url = url(&bucket.weed, "cli-no-such-bucket", "app");
    for arguments in [
        vec!["replicate", text(&path), &url, "--once"],
        vec!["restore", &url, "-o", "/nowhere/app.db"],
        vec!["inspect", &url],
    ] {
        let mut command = bucket.program();
        command.args(&arguments);
        finish(command).fails_with(21, &["cli-no-such-bucket", "does not exist", "create it"]);
    }
}

#[test]
fn wrong_keys_and_no_keys_are_told_apart() {
    let place = place();
    let path = place.path().join("app.db");
    drop(create(&path, 1));
    let bucket = Bucket::create("cli-keys");
    let url = bucket.url("app");
    for arguments in [
        vec!["replicate", text(&path), &url, "--once"],
        vec!["restore", &url, "-o", "/nowhere/app.db"],
        vec!["inspect", &url],
    ] {
        let mut command = bucket.program();
        command.args(&arguments);
        command.env("AWS_SECRET_ACCESS_KEY", "wrong-secret");
        let done = finish(command);
        done.fails_with(20, &["s3://cli-keys/app", "access denied"]);
        assert!(!done.err.contains("wrong-secret"), "{}", done.err);
        let mut command = program();
        command.args(&arguments);
        let done = finish(command);
        done.fails_with(
            20,
            &["s3://cli-keys/app", "AWS_ACCESS_KEY_ID", "credentials-dir"],
        );
    }
}

#[test]
fn a_store_that_does_not_listen_is_unreachable() {
    let place = place();
    let path = place.path().join("app.db");
    drop(create(&path, 1));
    let url = "s3://bucket/app?endpoint=http://127.0.0.1:1";
    for arguments in [
        vec!["replicate", text(&path), url, "--once"],
        vec!["restore", url, "-o", "/nowhere/app.db"],
        vec!["inspect", url],
    ] {
        let mut command = program();
        command.args(&arguments);
        command
            .env("AWS_ACCESS_KEY_ID", "id")
            .env("AWS_SECRET_ACCESS_KEY", "secret");
        finish(command).fails_with(21, &["s3://bucket/app", "unreachable", "refused"]);
    }
}

/// Runs a shell command in its own mount namespace, where `directory` is a file system of that
/// size.
fn with_small_disk(directory: &Path, size: &str, script: &str) -> Finished {
    let mut command = clean(Command::new("unshare"));
    let mount = format!("mount -t tmpfs -o size={size} tmpfs \"$1\" && ");
    command
        .args(["--mount", "sh", "-ec", &format!("{mount}{script}"), "sh"])
        .arg(directory)
        .arg(env!("CARGO_BIN_EXE_sqlite-backup"));
    finish(command)
}

#[test]
fn a_full_disk_is_told_wherever_it_is() {
    let place = place();
    let path = place.path().join("app.db");
    let connection = create(&path, 0);
    connection
        .execute("INSERT INTO log(body) VALUES(randomblob(4000000))", [])
        .unwrap();
    drop(connection);
    let disk = place.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let full = [text(&disk), "No space left"];
    // The disk of the target is full.
    let script = format!(
        "\"$2\" replicate {} file://$1/backup --once",
        path.display()
    );
    with_small_disk(&disk, "1m", &script).fails_with(22, &["no space left", text(&disk)]);
    // The disk of our local state is full.
    let config = place.path().join("config.yml");
    let content = format!(
        "dbs:\n- path: {}\n  meta-path: {}/state\n  replica: {{url: 'file://{}/backup'}}\n",
        path.display(),
        disk.display(),
        place.path().display(),
    );
    std::fs::write(&config, content).unwrap();
    let script = format!("\"$2\" replicate --config {} --once", config.display());
    with_small_disk(&disk, "8k", &script).fails_with(22, &full);
    // The disk of a restore is full: no file stays behind.
    replicate(&path).succeeds();
    let script = format!(
        "\"$2\" restore file://{}-backup -o $1/app.db || {{ code=$?; ls -A $1; exit $code; }}",
        path.display()
    );
    let done = with_small_disk(&disk, "1m", &script);
    done.fails_with(22, &full);
    assert_eq!(done.out, "", "left behind");
}

#[test]
fn a_restore_says_what_is_missing() {
    let place = place();
    let nothing = format!("file://{}/nothing", place.path().display());
    let output = place.path().join("out.db");
    run(["restore", &nothing]).fails_with(2, &["-o PATH"]);
    let done = run(["restore", &nothing, "-o", text(&output)]);
    done.fails_with(30, &[&nothing, "there is no backup"]);
    run([
        "restore",
        &nothing,
        "-o",
        text(&output),
        "--if-replica-exists",
    ])
    .succeeds();
    assert!(!output.exists());
    run(["inspect", &nothing]).fails_with(30, &[&nothing, "there is no backup"]);
    let missing = place.path().join("config.yml");
    run(["restore", "--config", text(&missing)]).fails_with(2, &[text(&missing)]);
    run(["restore", "-o", text(&output)]).fails_with(2, &["--config"]);
    std::fs::write(
        &missing,
        "dbs: [{path: /a.db, replica: {url: 'file:///b'}}]",
    )
    .unwrap();
    let done = run(["restore", "--config", text(&missing), "/other.db"]);
    done.fails_with(2, &["/other.db", text(&missing)]);
}

#[test]
fn a_dry_run_says_what_would_be_done_and_changes_nothing() {
    let place = place();
    let [stored, fresh, missing] =
        ["stored", "fresh", "missing"].map(|name| place.path().join(name));
    drop(create(&stored, 1));
    drop(create(&fresh, 1));
    let target = |path: &Path| format!("file://{}-backup", path.display());
    let entry = |path: &Path| {
        format!(
            "- {{path: {}, replica: {{url: '{}'}}}}\n",
            path.display(),
            target(path)
        )
    };
    replicate(&stored).succeeds();
    let file = place.path().join("config.yml");
    let both = format!("dbs:\n{}{}", entry(&stored), entry(&fresh));
    std::fs::write(&file, &both).unwrap();
    let before = files(place.path(), &|_| true);
    let dry_run = ["replicate", "--config", text(&file), "--dry-run"];
    let words = run(dry_run).succeeds();
    for line in [
        format!("{}: would be replicated", stored.display()),
        format!("  to file, {}: a backup up to TXID 0", target(&stored)),
        format!("{}: would be replicated", fresh.display()),
        format!("  to file, {}: no backup yet", target(&fresh)),
    ] {
        assert!(words.contains(&line), "{line}: {words}");
    }
    assert_eq!(files(place.path(), &|_| true), before);
    // A database that cannot work does not hide the others, and determines the exit code.
    std::fs::write(&file, format!("{both}{}", entry(&missing))).unwrap();
    let done = run(dry_run);
    done.fails_with(17, &[text(&missing), "does not exist", "check the path"]);
    assert!(done.out.contains(text(&fresh)) && done.out.contains("cannot be replicated"));
    let dead = "s3://bucket/app?endpoint=http://127.0.0.1:1";
    let mut command = program();
    command
        .args(["replicate", text(&fresh), dead, "--dry-run"])
        .env("AWS_ACCESS_KEY_ID", "id")
        .env("AWS_SECRET_ACCESS_KEY", "secret");
    let words = [text(&fresh), "s3://bucket/app", "unreachable"];
    finish(command).fails_with(21, &words);
    // An invalid file under the name of the lease.
    let lock = format!("{}-backup/lock.json", stored.display());
    std::fs::write(&lock, "not a lease").unwrap();
    run(["replicate", text(&stored), &target(&stored), "--dry-run"])
        .fails_with(10, &["lock.json cannot be understood"]);
    // A replica written by Litestream has no lease.
    std::fs::remove_file(&lock).unwrap();
    let words = run(["replicate", text(&stored), &target(&stored), "--dry-run"]).succeeds();
    assert!(words.contains("written by Litestream"), "{words}");
    let done = run([
        "replicate",
        text(&stored),
        &target(&stored),
        "--dry-run",
        "--once",
    ]);
    done.fails_with(2, &["--dry-run", "--once"]);
}

#[test]
fn status_of_nobody_is_unreachable() {
    let done = run(["status", "--addr", "127.0.0.1:1"]);
    done.fails_with(21, &["127.0.0.1:1", "no replicate process answers"]);
}

#[test]
fn an_address_in_use_is_named() {
    let place = place();
    let path = place.path().join("app.db");
    drop(create(&path, 1));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let target = format!("file://{}/backup", place.path().display());
    let done = run(["replicate", text(&path), &target, "--addr", &address]);
    done.fails_with(2, &[&address, "in use", "--addr"]);
}

#[test]
fn a_wrong_command_line_is_told_with_code_2() {
    for arguments in [
        vec!["replicate"],
        vec!["replicate", "/a.db"],
        vec!["bogus"],
        vec!["restore"],
        vec!["restore", "file:///b", "-o", "/a", "--txid", "7"],
        vec![
            "restore",
            "file:///b",
            "-o",
            "/a",
            "--timestamp",
            "yesterday",
        ],
        vec!["restore", "file:///b", "-o", "/a", "--parallelism", "0"],
        vec!["restore", "--config", "/c", "file:///b", "-o", "/a"],
        vec!["restore", "--wait", "--config", "/c", "--dry-run"],
        vec!["restore", "--wait", "--config", "/c", "/a.db"],
        vec![
            "restore",
            "--wait",
            "--config",
            "/c",
            "--txid",
            "0000000000000001",
        ],
        vec!["restore", "--wait", "--config", "/c", "--parallelism", "2"],
        vec!["verify", "file:///b", "--max-lag", "soon"],
        vec!["verify", "file:///b", "--request", "{"],
    ] {
        let done = run(&arguments);
        assert_eq!(done.code, Some(2), "{arguments:?}: {done:?}");
        assert!(!done.err.is_empty(), "{arguments:?}");
    }
}

#[test]
fn help_names_every_command_and_hides_what_is_internal() {
    let help = run(["--help"]).succeeds();
    for command in [
        "replicate",
        "restore",
        "verify",
        "inspect",
        "status",
        "decrypt",
    ] {
        assert!(help.contains(command), "{help}");
    }
    assert!(!run(["replicate", "--help"]).succeeds().contains("--worker"));
}
