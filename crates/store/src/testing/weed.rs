//! SeaweedFS, a real S3 server in one binary.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Config, Credentials as Signer, Region};
use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::types::{
    DefaultRetention, ObjectLockConfiguration, ObjectLockEnabled, ObjectLockRetentionMode,
    ObjectLockRule,
};
use tempfile::TempDir;

use crate::body::blocking;
use crate::target::S3Target;
use crate::{Credentials, Keys};

/// Time limit for the server to start, or to apply a change.
const READY_TIMEOUT: Duration = Duration::from_secs(90);
/// Pause between two checks.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// An identity with all permissions.
const ADMIN: [&str; 3] = ["admin", "admin-access-key", "admin-secret-key"];
/// Region of signatures; the server accepts any.
const REGION: &str = "us-east-1";

/// A server on free ports of 127.0.0.1, with a data directory that is removed together with it.
///
/// The binary comes from the variable `WEED_BIN`. Drop kills the server.
pub struct Weed {
    server: Child,
    ports: Ports,
    data: TempDir,
}

/// Each port, whose gRPC companion is the port plus 10,000.
struct Ports {
    master: u16,
    volume: u16,
    filer: u16,
    s3: u16,
}

impl Weed {
    /// Starts a server and waits until it stores objects. Blocks for some seconds.
    ///
    /// # Panics
    /// When `WEED_BIN` is not set, or the server does not start.
    pub fn start() -> Self {
        let data = TempDir::new().expect("temporary directory");
        let ports = Ports::free();
        let server = ports
            .command(&binary(), data.path())
            .spawn()
            .expect("start weed");
        let mut weed = Self {
            server,
            ports,
            data,
        };
        weed.wait_until("the server starts", |weed| {
            weed.answers() && weed.has_volume_server()
        });
        weed
    }

    /// Returns the server that the tests of this process share. It ends with the last of them. Give
    /// each test its own buckets.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Weed>> = Mutex::new(Weak::new());
        // If one test could not start the server, it reports why; the next one reports it again.
        let mut shared = SHARED
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        shared.upgrade().unwrap_or_else(|| {
            let weed = Arc::new(Self::start());
            *shared = Arc::downgrade(&weed);
            weed
        })
    }

    /// Returns the S3 endpoint: `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Returns host and port of the S3 endpoint.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.ports.s3)
    }

    /// Returns keys with all permissions.
    pub fn admin(&self) -> Keys {
        Keys {
            access_key_id: ADMIN[1].to_owned(),
            secret_access_key: ADMIN[2].to_owned(),
            session_token: None,
        }
    }

    /// Returns a target on this server.
    pub fn target(&self, bucket: &str, prefix: &str, credentials: Credentials) -> S3Target {
        S3Target {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
            region: Some(REGION.to_owned()),
            endpoint: Some(self.endpoint()),
            credentials,
            ..S3Target::default()
        }
    }

    /// Creates a bucket, whose name needs three characters or more, and waits until it stores
    /// objects: the server creates the volumes of a bucket with the first object.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn create_bucket(&self, name: &str) {
        let client = self.client(&self.admin());
        client
            .create_bucket()
            .bucket(name)
            .send()
            .await
            .expect("create bucket");
        self.wait_for_bucket(&client, name).await;
    }

    /// Denies deletes below this prefix to everyone except the administrator.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn refuse_deletes(&self, bucket: &str, prefix: &str) {
        let resource = format!("arn:aws:s3:::{bucket}/{prefix}*");
        let policy = format!(
            r#"{{"Version": "2012-10-17", "Statement": [{{"Effect": "Deny", "Principal": "*",
            "Action": "s3:DeleteObject", "Resource": "{resource}"}}]}}"#
        );
        let client = self.client(&self.admin());
        let put = client.put_bucket_policy().bucket(bucket).policy(policy);
        put.send().await.expect("put the policy of a bucket");
    }

    /// Creates a bucket that keeps every version of an object, and locks each for a day.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn create_locked_bucket(&self, name: &str) {
        let client = self.client(&self.admin());
        let create = client.create_bucket().bucket(name);
        let create = create.object_lock_enabled_for_bucket(true);
        create.send().await.expect("create bucket");
        self.wait_for_bucket(&client, name).await;
        let day = DefaultRetention::builder()
            .mode(ObjectLockRetentionMode::Compliance)
            .days(1);
        let rule = ObjectLockRule::builder().default_retention(day.build());
        let lock = ObjectLockConfiguration::builder()
            .object_lock_enabled(ObjectLockEnabled::Enabled)
            .rule(rule.build());
        let put = client.put_object_lock_configuration().bucket(name);
        let put = put.object_lock_configuration(lock.build());
        put.send().await.expect("lock what a bucket gets");
    }

    /// Adds an identity, or gives one another key, and waits until its key works. Actions:
    /// `Read`, `Write`, `List`, `Tagging`, `Admin`, each alone or as `Read:bucket`.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn add_identity(&self, user: &str, access: &str, secret: &str, actions: &[&str]) {
        self.shell(format!(
            "s3.configure -user={user} -access_key={access} -secret_key={secret} -actions={} -apply",
            actions.join(",")
        ))
        .await;
        self.poll("the identity is known", async || {
            self.knows(access, secret).await
        })
        .await;
    }

    /// Removes an identity with its keys, and waits until `access` is refused.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn remove_identity(&self, user: &str, access: &str) {
        self.shell(format!("s3.configure -user={user} -delete -apply"))
            .await;
        self.poll("the identity is gone", async || {
            !self.knows(access, "any").await
        })
        .await;
    }

    async fn wait_for_bucket(&self, client: &Client, name: &str) {
        self.poll("the bucket stores objects", async || {
            let put = client
                .put_object()
                .bucket(name)
                .key("probe")
                .body(Vec::new().into());
            let gone = client.delete_object().bucket(name).key("probe");
            put.send().await.is_ok() && gone.send().await.is_ok()
        })
        .await;
    }

    /// Returns whether the server knows an access key, even with a wrong secret.
    async fn knows(&self, access: &str, secret: &str) -> bool {
        let keys = Keys {
            access_key_id: access.to_owned(),
            secret_access_key: secret.to_owned(),
            session_token: None,
        };
        match self.client(&keys).list_buckets().send().await {
            Ok(_) => true,
            Err(error) => error.code() != Some("InvalidAccessKeyId"),
        }
    }

    fn client(&self, keys: &Keys) -> Client {
        let (id, secret) = (keys.access_key_id.clone(), keys.secret_access_key.clone());
        let config = Config::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .region(Region::from_static(REGION))
            .endpoint_url(self.endpoint())
            .force_path_style(true)
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .credentials_provider(Signer::new(id, secret, None, None, "test"));
        Client::from_conf(config.build())
    }

    /// Runs one command of the server's own shell.
    async fn shell(&self, command: String) {
        let mut shell = Command::new(binary());
        shell
            .arg("shell")
            .arg(format!("-master=127.0.0.1:{}", self.ports.master))
            .arg(format!("-filer=127.0.0.1:{}", self.ports.filer))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // The rest of the test continues meanwhile.
        blocking(move || {
            let mut shell = shell.spawn().expect("start weed shell");
            let mut input = shell.stdin.take().expect("it was piped");
            writeln!(input, "{command}").expect("write to weed shell");
            drop(input);
            let status = shell.wait().expect("wait for weed shell");
            assert!(status.success(), "weed shell: {command}");
        })
        .await;
    }

    fn wait_until(&mut self, what: &str, ready: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !ready(self) {
            if let Some(status) = self.server.try_wait().expect("look at the server") {
                panic!("weed ended with {status} before {what}:\n{}", self.log());
            }
            let log = || self.log();
            assert!(
                start.elapsed() < READY_TIMEOUT,
                "timeout before {what}:\n{}",
                log()
            );
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    async fn poll(&self, what: &str, ready: impl AsyncFn() -> bool) {
        let start = Instant::now();
        while !ready().await {
            assert!(
                start.elapsed() < READY_TIMEOUT,
                "timeout before {what}:\n{}",
                self.log()
            );
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    fn answers(&self) -> bool {
        http_get(self.ports.s3, "/status").is_some()
    }

    /// Objects cannot be stored before a volume server has found the master.
    fn has_volume_server(&self) -> bool {
        http_get(self.ports.master, "/dir/assign").is_some_and(|answer| answer.contains("\"fid\""))
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.data.path().join(LOG_NAME)).unwrap_or_default()
    }
}

impl Drop for Weed {
    fn drop(&mut self) {
        // Its state is not needed; an error means that it has already ended.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Log file of the server, in its directory.
const LOG_NAME: &str = "weed.log";

impl Ports {
    /// Returns free ports and their companions.
    fn free() -> Self {
        let held: Vec<(TcpListener, TcpListener)> =
            std::iter::repeat_with(pair).flatten().take(4).collect();
        let port = |n: usize| {
            held[n]
                .0
                .local_addr()
                .expect("a bound socket has one")
                .port()
        };
        Self {
            master: port(0),
            volume: port(1),
            filer: port(2),
            s3: port(3),
        }
    }

    fn command(&self, binary: &Path, directory: &Path) -> Command {
        let identities = directory.join("s3.json");
        std::fs::write(&identities, identities_json()).expect("write the identities");
        let log = std::fs::File::create(directory.join(LOG_NAME)).expect("create the log");
        let mut command = Command::new(binary);
        command
            .arg("server")
            .arg(format!("-dir={}", directory.display()))
            .args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"])
            .args([
                "-master.volumeSizeLimitMB=64",
                "-volume.max=200",
                "-master.telemetry=false",
            ])
            .args(["-s3.port.iceberg=0", "-s3.port.lance=0"])
            .arg(format!("-master.port={}", self.master))
            .arg(format!("-volume.port={}", self.volume))
            .arg(format!("-filer.port={}", self.filer))
            .arg(format!("-s3.port={}", self.s3))
            .arg(format!("-s3.config={}", identities.display()))
            .stdin(Stdio::null())
            .stderr(log.try_clone().expect("one more handle"))
            .stdout(log);
        command
    }
}

/// Returns a free port and its companion, both held.
fn pair() -> Option<(TcpListener, TcpListener)> {
    let first = TcpListener::bind("127.0.0.1:0").expect("bind a free port");
    let port = first.local_addr().expect("a bound socket has one").port();
    let companion = port.checked_add(10_000)?;
    Some((first, TcpListener::bind(("127.0.0.1", companion)).ok()?))
}

fn binary() -> PathBuf {
    let binary = std::env::var_os("WEED_BIN").expect(
        "WEED_BIN is not set: tests against a real S3 server need the `weed` binary; \
         run them through `cargo xtask test`, which fetches it",
    );
    binary.into()
}

fn identities_json() -> String {
    let [name, access, secret] = ADMIN;
    format!(
        r#"{{"identities": [{{"name": "{name}", "credentials": [{{"accessKey": "{access}",
        "secretKey": "{secret}"}}], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}}]}}"#
    )
}

/// Returns the answer with its head, if any.
fn http_get(port: u16, path: &str) -> Option<String> {
    let mut connection = TcpStream::connect(("127.0.0.1", port)).ok()?;
    connection
        .set_read_timeout(Some(Duration::from_secs(5)))
        .ok()?;
    write!(connection, "GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n").ok()?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).ok()?;
    Some(answer).filter(|answer| !answer.is_empty())
}
