//! A real S3 server for the tests, and direct access to its objects.

use std::fs;
use std::path::{Path, PathBuf};
use std::slice;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use ureq::Agent;
use xtask::process::output_with_input;
use xtask::tools::Tools;

use crate::cluster::Cluster;
use crate::daemon::{Daemon, wait_for_programs};
use crate::machine::Site;
use crate::wait::wait_for;

/// Time limit for the server to be ready; 10 s is usual.
const READY_DEADLINE: Duration = Duration::from_secs(120);

/// Time limit for the server to accept or reject a changed identity; 2 s is usual.
const IDENTITY_DEADLINE: Duration = Duration::from_secs(30);

/// Time limit of one request to the test's own port.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Ports of the first server. Each further server adds [`PORT_STEP`] to all of them.
const PORTS: Ports = Ports {
    s3: 8333,
    filer: 8888,
    master: 9333,
    volume: 8080,
};
const PORT_STEP: u16 = 10;

/// The region that clients must name; SeaweedFS accepts any.
pub const REGION: &str = "us-east-1";

/// Identities and their rights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Name.
    pub user: String,
    /// Access key.
    pub access_key: String,
    /// Secret key.
    pub secret_key: String,
    /// `Read`, `Write`, `List`, `Tagging` or `Admin`, each for all buckets, or for one as in
    /// `Read:bucket`.
    pub actions: Vec<String>,
}

impl Identity {
    /// Creates an identity with these rights, and keys derived from its name.
    pub fn new(user: &str, actions: &[&str]) -> Identity {
        Identity {
            user: user.to_owned(),
            access_key: format!("{user}-access"),
            secret_key: format!("{user}-secret"),
            actions: actions.iter().map(|&action| action.to_owned()).collect(),
        }
    }
}

/// An object, as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Key, without the bucket.
    pub key: String,
    /// Size in bytes.
    pub bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct Ports {
    s3: u16,
    filer: u16,
    master: u16,
    volume: u16,
}

/// A running S3 server that Pods and tests reach at the same address.
///
/// Requests need an identity; the administrator is [`S3Server::admin`]. The methods on objects
/// bypass S3, so they work with any identities, and while the rights of the system under test are
/// revoked.
#[derive(Debug)]
pub struct S3Server {
    site: Site,
    weed: PathBuf,
    address: String,
    ports: Ports,
    folder: PathBuf,
    admin: Identity,
    http: Agent,
    /// Also locked while `weed shell` runs, because only one may run at a time.
    daemon: Mutex<Daemon>,
}

impl S3Server {
    /// Starts the server number `number` (0 to 99) of this cluster. A test that stops or freezes
    /// its server starts its own.
    pub fn start(cluster: &Cluster, tools: &Tools, number: u16) -> Result<S3Server> {
        let (site, weed, address) = (cluster.site(), tools.weed()?, cluster.address()?);
        let ports = PORTS.plus(number * PORT_STEP);
        let folder = cluster.scratch().to_owned();
        let daemon = Mutex::new(spawn(site, &weed, &address, ports, &folder)?);
        let http = Agent::config_builder()
            .timeout_global(Some(REQUEST_TIMEOUT))
            .http_status_as_error(false)
            .build()
            .into();
        let admin = Identity::new("admin", &["Admin", "Read", "Write", "List", "Tagging"]);
        let server = S3Server {
            site,
            weed,
            address,
            ports,
            folder,
            admin,
            http,
            daemon,
        };
        server.wait_until_ready()?;
        server.add_identity(&server.admin)?;
        Ok(server)
    }

    /// URL for S3 clients in Pods and tests.
    pub fn endpoint(&self) -> String {
        format!("http://{}:{}", self.address, self.ports.s3)
    }

    /// Returns an identity with all rights.
    pub fn admin(&self) -> &Identity {
        &self.admin
    }

    /// Creates a bucket. Names have three or more characters.
    pub fn create_bucket(&self, bucket: &str) -> Result<()> {
        self.shell(&format!("s3.bucket.create -name {bucket}"))?;
        Ok(())
    }

    /// Adds an identity, or replaces its rights and keys. It is in effect when this returns.
    pub fn add_identity(&self, identity: &Identity) -> Result<()> {
        let Identity {
            user,
            access_key,
            secret_key,
            actions,
        } = identity;
        self.shell(&format!(
            "s3.configure -user={user} -access_key={access_key} -secret_key={secret_key} \
             -actions={} -apply",
            actions.join(",")
        ))?;
        self.wait_for_identity(user, true)
    }

    /// Removes an identity: requests with its keys are refused soon after this returns.
    pub fn remove_identity(&self, user: &str) -> Result<()> {
        self.shell(&format!("s3.configure -user={user} -delete -apply"))?;
        self.wait_for_identity(user, false)
    }

    /// Writes an object, replacing an existing one.
    pub fn put(&self, bucket: &str, key: &str, bytes: &[u8]) -> Result<()> {
        let response = self.http.put(self.url(bucket, key)).send(bytes)?;
        expect_success(response.status().as_u16(), key)
    }

    /// Reads an object; `None` if it does not exist.
    pub fn get(&self, bucket: &str, key: &str) -> Result<Option<Vec<u8>>> {
        let mut response = self.http.get(self.url(bucket, key)).call()?;
        if response.status() == 404 {
            return Ok(None);
        }
        expect_success(response.status().as_u16(), key)?;
        Ok(Some(
            response
                .body_mut()
                .with_config()
                .limit(u64::MAX)
                .read_to_vec()?,
        ))
    }

    /// Deletes an object, or all objects below a key.
    pub fn delete(&self, bucket: &str, key: &str) -> Result<()> {
        let url = format!("{}?recursive=true", self.url(bucket, key));
        let response = self.http.delete(url).call()?;
        expect_success(response.status().as_u16(), key)
    }

    /// Flips one bit in the middle of an object.
    pub fn damage(&self, bucket: &str, key: &str) -> Result<()> {
        let mut bytes = self
            .get(bucket, key)?
            .with_context(|| format!("no object {key}"))?;
        let middle = bytes.len() / 2;
        *bytes
            .get_mut(middle)
            .context("an empty object can't be damaged")? ^= 1;
        self.put(bucket, key, &bytes)
    }

    /// Lists the objects whose keys start with the folder `prefix` (empty for all), by key.
    pub fn list(&self, bucket: &str, prefix: &str) -> Result<Vec<Object>> {
        let mut objects = Vec::new();
        let mut folders = vec![prefix.trim_end_matches('/').to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in self.entries(bucket, &folder)? {
                let path = entry["FullPath"]
                    .as_str()
                    .context("an entry without a path")?;
                let root = format!("/buckets/{bucket}/");
                let key = path
                    .strip_prefix(&root)
                    .context("an entry of another bucket")?;
                if is_folder(&entry) {
                    // Internal files of SeaweedFS, such as unfinished uploads.
                    if !key.starts_with('.') {
                        folders.push(key.to_owned());
                    }
                } else {
                    let bytes = entry["FileSize"].as_u64().unwrap_or_default();
                    objects.push(Object {
                        key: key.to_owned(),
                        bytes,
                    });
                }
            }
        }
        objects.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(objects)
    }

    /// Kills the server at once: connections are refused. Its objects stay.
    pub fn stop(&self) -> Result<()> {
        self.lock().kill()
    }

    /// Starts the server again after [`S3Server::stop`], at the same address.
    pub fn restart(&self) -> Result<()> {
        *self.lock() = spawn(
            self.site,
            &self.weed,
            &self.address,
            self.ports,
            &self.folder,
        )?;
        self.wait_until_ready()
    }

    /// Makes the server hang: it accepts connections and never answers.
    pub fn freeze(&self) -> Result<()> {
        self.lock().freeze()
    }

    /// Ends [`S3Server::freeze`].
    pub fn thaw(&self) -> Result<()> {
        self.lock().thaw()
    }

    fn wait_until_ready(&self) -> Result<()> {
        let mut daemon = self.lock();
        let daemon = slice::from_mut(&mut *daemon);
        wait_for_programs(daemon, "the S3 server to be ready", READY_DEADLINE, || {
            // Any answer is enough: without an identity it may be a refusal.
            self.http.get(self.endpoint()).call()?;
            self.http.get(self.url("", "")).call()?;
            Ok(Some(()))
        })
    }

    fn wait_for_identity(&self, user: &str, there: bool) -> Result<()> {
        let what = if there { "let in" } else { "shut out" };
        wait_for(format!("{user} to be {what}"), IDENTITY_DEADLINE, || {
            let shown = self.shell("s3.configure")?;
            let found = shown.contains(&format!("\"{user}\""));
            Ok((found == there).then_some(()))
        })
    }

    /// One folder of a bucket.
    fn entries(&self, bucket: &str, folder: &str) -> Result<Vec<Value>> {
        let mut entries = Vec::new();
        let mut last = String::new();
        loop {
            let url = format!(
                "{}/?limit=1000&lastFileName={last}",
                self.url(bucket, folder)
            );
            let mut response = self
                .http
                .get(url)
                .header("Accept", "application/json")
                .call()?;
            if response.status() == 404 {
                return Ok(entries);
            }
            expect_success(response.status().as_u16(), folder)?;
            let page: Value = serde_json::from_str(&response.body_mut().read_to_string()?)?;
            entries.extend(page["Entries"].as_array().cloned().unwrap_or_default());
            if page["ShouldDisplayLoadMore"] != true {
                return Ok(entries);
            }
            last = page["LastFileName"].as_str().unwrap_or_default().to_owned();
        }
    }

    fn url(&self, bucket: &str, key: &str) -> String {
        format!(
            "http://{}:{}/buckets/{bucket}/{key}",
            self.address, self.ports.filer
        )
        .trim_end_matches('/')
        .to_owned()
    }

    fn shell(&self, line: &str) -> Result<String> {
        let _one_at_a_time = self.lock();
        let mut command = self.site.command(&self.weed);
        command
            .arg("shell")
            .arg(format!("-master={}:{}", self.address, self.ports.master))
            .arg(format!("-filer={}:{}", self.address, self.ports.filer));
        let printed = output_with_input(&mut command, format!("{line}\n").as_bytes())?;
        // The shell always exits with 0.
        if printed.contains("error:") {
            bail!("`{line}`: {printed}");
        }
        Ok(printed)
    }

    fn lock(&self) -> MutexGuard<'_, Daemon> {
        self.daemon
            .lock()
            .expect("no thread panics while it holds this")
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if self.site == Site::Here
            && let Err(error) = self.lock().kill()
        {
            eprintln!("end the S3 server: {error:#}");
        }
    }
}

impl Ports {
    fn plus(self, step: u16) -> Ports {
        Ports {
            s3: self.s3 + step,
            filer: self.filer + step,
            master: self.master + step,
            volume: self.volume + step,
        }
    }
}

/// Starts a server on the data in `folder`, which also holds its log.
fn spawn(site: Site, weed: &Path, address: &str, ports: Ports, folder: &Path) -> Result<Daemon> {
    let name = format!("s3-{}", ports.s3);
    let data = folder.join(&name);
    fs::create_dir_all(&data).with_context(|| format!("create {}", data.display()))?;
    let mut command = site.command(weed);
    command
        .args(["-logtostderr=true", "server", "-s3"])
        .arg(format!("-dir={}", data.display()))
        .args([format!("-ip={address}"), "-ip.bind=0.0.0.0".to_owned()])
        .arg(format!("-master.port={}", ports.master))
        .arg(format!("-volume.port={}", ports.volume))
        .arg(format!("-filer.port={}", ports.filer))
        .arg(format!("-s3.port={}", ports.s3))
        // These two have fixed default ports, with which a second server would fail.
        .args(["-s3.port.iceberg=0", "-s3.port.lance=0"])
        // Each bucket has its own volumes, so many small ones are needed.
        .args(["-master.volumeSizeLimitMB=64", "-volume.max=0"]);
    site.spawn(&name, &mut command, folder)
}

/// The type is in Go's mode bits, where the highest of 32 marks a folder.
fn is_folder(entry: &Value) -> bool {
    entry["Mode"]
        .as_u64()
        .is_some_and(|mode| mode & (1 << 31) != 0)
}

fn expect_success(status: u16, key: &str) -> Result<()> {
    if !(200..300).contains(&status) {
        bail!("the S3 server's back door answered {status} for {key:?}");
    }
    Ok(())
}
