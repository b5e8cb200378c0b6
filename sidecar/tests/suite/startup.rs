//! Before an application starts: an unreachable store is never mistaken for an empty one.

use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use protocol::status::DatabaseState;

use crate::support::bucket::Bucket;
use crate::support::database::{create, rows};
use crate::support::place::Place;
use crate::support::process::{finish, program, run, signal, wait_for_end};
use crate::support::sidecar::Sidecar;
use crate::support::until;

/// A waiting restore, as run by the init container.
pub struct Waiting {
    child: Child,
    log: std::path::PathBuf,
}

impl Waiting {
    /// Starts one.
    pub fn start(place: &Place, config: &str, mut command: Command, more: &[&str]) -> Waiting {
        let log = place.fresh("wait.log");
        let child = command
            .args(["restore", "--wait", "--config", config])
            .args(more)
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Waiting { child, log }
    }

    /// Waits until its log contains a word.
    pub fn says(&self, word: &str) {
        until(&format!("the log says {word:?}"), || {
            let log = std::fs::read_to_string(&self.log).unwrap();
            log.contains(word).then_some(())
        });
    }

    /// Waits for its end.
    pub fn ends_with(mut self, code: i32) {
        assert_eq!(wait_for_end(&mut self.child).0, Some(code));
    }

    /// Ends it while it waits.
    pub fn terminates(mut self) {
        signal(self.child.id(), "TERM");
        let (code, took) = wait_for_end(&mut self.child);
        assert_eq!(code, Some(23));
        assert!(took < Duration::from_secs(2), "{took:?}");
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // It may have ended already.
        let _killed = self.child.kill();
        let _waited = self.child.wait();
    }
}

/// A configuration with one database in a bucket and keys in a directory.
fn config(place: &Place, url: &str, startup: &str) -> String {
    place.write(
        "config.yml",
        &format!(
            "startup: {{{startup}}}\ndbs:\n- path: {}\n  restore-if-db-not-exists: true\n  replica: {{url: '{url}', credentials-dir: '{}'}}\n",
            place.database_text(),
            place.path().join("keys").display()
        ),
    )
}

/// Writes keys to the directory that the configuration names.
pub fn write_keys(directory: &Path, id: &str, secret: &str) {
    std::fs::create_dir_all(directory).unwrap();
    // As the kubelet does: a new directory, then one rename that replaces all files at once.
    let version = directory.join(format!("..{id}"));
    std::fs::create_dir(&version).unwrap();
    std::fs::write(version.join("AWS_ACCESS_KEY_ID"), id).unwrap();
    std::fs::write(version.join("AWS_SECRET_ACCESS_KEY"), secret).unwrap();
    let link = directory.join("..data_tmp");
    std::os::unix::fs::symlink(format!("..{id}"), &link).unwrap();
    std::fs::rename(link, directory.join("..data")).unwrap();
}

/// Stores a database in a bucket, then removes it locally.
fn stored_and_gone(place: &Place, bucket: &Bucket, prefix: &str) -> String {
    let url = bucket.url(prefix);
    drop(create(&place.database(), 5));
    let mut command = bucket.program();
    command.args(["replicate", place.database_text(), &url, "--once"]);
    finish(command).succeeds();
    for file in crate::support::database::files(place.path(), &|name| name.contains("app.db")) {
        std::fs::remove_file(file).unwrap();
    }
    url
}

#[test]
fn a_waiting_restore_waits_for_its_credentials_and_its_configuration() {
    let place = Place::new();
    let bucket = Bucket::create("startup-keys");
    let url = stored_and_gone(&place, &bucket, "app");
    let file = place.path().join("config.yml");
    let waiting = Waiting::start(&place, file.to_str().unwrap(), program(), &[]);
    waiting.says("config.yml: No such file");
    config(&place, &url, "");
    waiting.says("credentials missing");
    assert!(!place.database().exists());
    write_keys(&place.path().join("keys"), "admin-access-key", "wrong");
    waiting.says("access denied");
    let admin = bucket.weed.admin();
    std::fs::remove_dir_all(place.path().join("keys")).unwrap();
    write_keys(
        &place.path().join("keys"),
        &admin.access_key_id,
        &admin.secret_access_key,
    );
    waiting.ends_with(0);
    assert_eq!(rows(&place.database()).len(), 5);
}

#[test]
fn a_waiting_restore_outlasts_a_store_that_is_down() {
    let place = Place::new();
    let bucket = Bucket::create("startup-down");
    stored_and_gone(&place, &bucket, "app");
    // A port on which no process listens yet.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = port.local_addr().unwrap();
    drop(port);
    let admin = bucket.weed.admin();
    write_keys(
        &place.path().join("keys"),
        &admin.access_key_id,
        &admin.secret_access_key,
    );
    let url = format!("s3://startup-down/app?endpoint=http://{address}&region=us-east-1");
    let file = config(&place, &url, "");
    let waiting = Waiting::start(&place, &file, program(), &[]);
    waiting.says("unreachable");
    assert!(!place.database().exists());
    let _proxy = forward(address, bucket.weed.address());
    waiting.ends_with(0);
    assert_eq!(rows(&place.database()).len(), 5);
}

/// Forwards connections for the rest of the test.
fn forward(from: std::net::SocketAddr, to: String) -> std::thread::JoinHandle<()> {
    let listener = std::net::TcpListener::bind(from).unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let store = std::net::TcpStream::connect(&to).unwrap();
            let (mut a, mut b) = (client.try_clone().unwrap(), store.try_clone().unwrap());
            let (mut c, mut d) = (client, store);
            std::thread::spawn(move || std::io::copy(&mut a, &mut d));
            std::thread::spawn(move || std::io::copy(&mut b, &mut c));
        }
    })
}

#[test]
fn a_backup_that_will_not_heal_is_not_waited_for() {
    let place = Place::new();
    let backup = place.path().join("backup");
    let url = format!("file://{}", backup.display());
    drop(create(&place.database(), 5));
    run(["replicate", place.database_text(), &url, "--once"]).succeeds();
    for file in crate::support::database::files(place.path(), &|name| name.contains("app.db")) {
        std::fs::remove_file(file).unwrap();
    }
    std::fs::write(backup.join("lock.json"), "not ours").unwrap();
    let text = format!(
        "dbs:\n- path: {}\n  replica: {{url: '{url}'}}\n",
        place.database_text()
    );
    let file = place.write("config.yml", &text);
    run(["restore", "--wait", "--config", &file]).fails_with(10, &["lock.json"]);
    assert!(!place.database().exists());
}

#[test]
fn without_a_backup_the_policy_decides() {
    let place = Place::new();
    let bucket = Bucket::create("startup-policy");
    let admin = bucket.weed.admin();
    write_keys(
        &place.path().join("keys"),
        &admin.access_key_id,
        &admin.secret_access_key,
    );
    let nothing = bucket.url("nothing");
    let file = config(&place, &nothing, "");
    run(["restore", "--wait", "--config", &file]).succeeds();
    assert!(!place.database().exists());
    let file = config(&place, &nothing, "on-missing: require-backup");
    let waiting = Waiting::start(&place, &file, program(), &["--if-db-not-exists"]);
    waiting.says("RequireBackup");
    assert!(!place.database().exists());
    waiting.terminates();
    let file = config(&place, &nothing, "on-missing: start-empty");
    run(["restore", "--wait", "--config", &file]).succeeds();
}

#[test]
fn a_local_database_starts_without_the_store_unless_told_to_wait() {
    let place = Place::new();
    drop(create(&place.database(), 5));
    write_keys(&place.path().join("keys"), "id", "secret");
    let dead = "s3://bucket/app?endpoint=http://127.0.0.1:1";
    let file = config(&place, dead, "");
    run(["restore", "--wait", "--config", &file]).succeeds();
    let file = config(&place, dead, "when-unreachable: wait");
    let waiting = Waiting::start(&place, &file, program(), &[]);
    waiting.says("unreachable");
    waiting.terminates();
}

#[test]
fn the_first_process_of_a_container_ends_when_it_is_told_to() {
    let place = Place::new();
    write_keys(&place.path().join("keys"), "id", "secret");
    let dead = "s3://bucket/app?endpoint=http://127.0.0.1:1";
    let file = config(&place, dead, "");
    // In its own process namespace it is process 1, which signals do not end by default.
    let mut command = crate::support::process::clean(Command::new("unshare"));
    command.args(["--pid", "--fork", "--kill-child"]);
    command.arg(env!("CARGO_BIN_EXE_sqlite-backup"));
    let waiting = Waiting::start(&place, &file, command, &[]);
    waiting.says("unreachable");
    let path = format!("/proc/{0}/task/{0}/children", waiting.child.id());
    let inner: u32 = std::fs::read_to_string(path)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    signal(inner, "TERM");
    waiting.ends_with(23);
}

#[test]
fn replicate_does_not_begin_with_an_empty_database_while_the_store_cannot_be_asked() {
    let place = Place::new();
    let bucket = Bucket::create("startup-empty");
    let url = stored_and_gone(&place, &bucket, "app");
    let file = config(&place, &url, "");
    let sidecar = Sidecar::start(place.path(), &["--config", &file]);
    let status = sidecar.wait_until("the database is held", |status| {
        status.message.contains("credentials missing")
    });
    assert_eq!(status.state, DatabaseState::Missing);
    assert!(!place.database().exists());
    let admin = bucket.weed.admin();
    write_keys(
        &place.path().join("keys"),
        &admin.access_key_id,
        &admin.secret_access_key,
    );
    sidecar.wait_until_stored();
    assert_eq!(rows(&place.database()).len(), 5);
    assert_eq!(sidecar.terminate().0, Some(0));
}
