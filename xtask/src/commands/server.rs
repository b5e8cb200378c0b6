//! SeaweedFS, the S3 server of the benchmarks and of the soak test.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use xtask::process::output_with_input;
use xtask::tools::Tools;

use super::child::Running;

/// The only bucket; each user of it has its own prefixes.
pub(super) const BUCKET: &str = "bench";
/// Keys with all rights.
const ACCESS_KEY: &str = "bench-access-key";
const SECRET_KEY: &str = "bench-secret-key";

/// Time limit until the server stores objects.
const READY_TIMEOUT: Duration = Duration::from_secs(90);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// A server on free ports of 127.0.0.1, with its data below a folder.
pub(super) struct Server {
    s3: SocketAddr,
    running: Running,
}

impl Server {
    /// Starts a server with an empty bucket, and waits until the bucket stores objects.
    pub(super) fn start(tools: &Tools, folder: &Path) -> Result<Server> {
        let weed = tools.weed()?;
        let data = folder.join("weed");
        fs::create_dir(&data)?;
        let identities = folder.join("s3.json");
        fs::write(&identities, identities_json())?;
        let [master, volume, filer, s3] = free_ports()?;
        let mut command = Command::new(&weed);
        command
            .arg("server")
            .arg(format!("-dir={}", data.display()))
            .args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"])
            .args(["-master.volumeSizeLimitMB=512", "-volume.max=100"])
            .args(["-master.telemetry=false"])
            .args(["-s3.port.iceberg=0", "-s3.port.lance=0"])
            .arg(format!("-master.port={}", master.port()))
            .arg(format!("-volume.port={}", volume.port()))
            .arg(format!("-filer.port={}", filer.port()))
            .arg(format!("-s3.port={}", s3.port()))
            .arg(format!("-s3.config={}", identities.display()));
        let mut running = Running::start(&mut command, &folder.join("weed.log"))?;
        wait(&mut running, || {
            request(s3, "GET", "/status").is_some()
                && request(master, "GET", "/dir/assign").is_some_and(|text| text.contains("fid"))
        })?;
        let mut shell = Command::new(&weed);
        shell
            .arg("shell")
            .arg(format!("-master={master}"))
            .arg(format!("-filer={filer}"));
        let line = format!("s3.bucket.create -name {BUCKET}\n");
        output_with_input(&mut shell, line.as_bytes())?;
        // The server creates the bucket's volumes with its first object.
        wait(&mut running, || {
            let answer = request(filer, "PUT", &format!("/buckets/{BUCKET}/probe"));
            answer.is_some_and(|text| text.starts_with("HTTP/1.1 201"))
        })?;
        Ok(Server { s3, running })
    }

    /// Sends it a signal. A stopped server answers no requests.
    pub(super) fn signal(&self, name: &str) -> Result<()> {
        self.running.signal(name)
    }

    /// Returns the address of its S3 endpoint.
    pub(super) fn address(&self) -> SocketAddr {
        self.s3
    }
}

/// Gives a program the keys, and removes other cloud credentials of this machine.
pub(super) fn sign(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let known = ["AWS_", "LITESTREAM_", "SQLITE_BACKUP_"];
        if known.iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    command
        .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        .env("AWS_EC2_METADATA_DISABLED", "true");
}

fn wait(running: &mut Running, ready: impl Fn() -> bool) -> Result<()> {
    let start = Instant::now();
    while !ready() {
        running.must_run()?;
        if start.elapsed() > READY_TIMEOUT {
            bail!("the S3 server is not ready after {READY_TIMEOUT:?}");
        }
        thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}

/// Returns free ports whose companions, 10,000 higher, are also free for gRPC.
fn free_ports() -> Result<[SocketAddr; 4]> {
    let mut held = Vec::new();
    for _ in 0..100 {
        let first = TcpListener::bind("127.0.0.1:0")?;
        let address = first.local_addr()?;
        let Some(companion) = address.port().checked_add(10_000) else {
            continue;
        };
        let Ok(second) = TcpListener::bind(("127.0.0.1", companion)) else {
            continue;
        };
        held.push((address, first, second));
        if let [a, b, c, d] = held.as_slice() {
            return Ok([a.0, b.0, c.0, d.0]);
        }
    }
    bail!("no free ports")
}

/// Returns the answer with its head, if any.
fn request(server: SocketAddr, method: &str, path: &str) -> Option<String> {
    let mut connection = TcpStream::connect(server).ok()?;
    connection
        .set_read_timeout(Some(Duration::from_secs(5)))
        .ok()?;
    write!(
        connection,
        "{method} {path} HTTP/1.1\r\nHost: {server}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
    .ok()?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).ok()?;
    Some(answer).filter(|answer| !answer.is_empty())
}

fn identities_json() -> String {
    serde_json::json!({"identities": [{
        "name": "bench",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }]})
    .to_string()
}
