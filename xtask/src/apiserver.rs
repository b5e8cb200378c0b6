//! An API server with its store but without nodes, for tests that need real admission and no Pods.
//! It listens on 127.0.0.1 and can call webhooks there.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::process::{announce, output};
use crate::tools::Tools;
use crate::workspace;

/// Time limit for the server to be ready. Usual is 10 s.
const READY_DEADLINE: Duration = Duration::from_secs(180);
/// Time limit for the server to end.
const END_DEADLINE: Duration = Duration::from_secs(60);
const TOKEN: &str = "throw-away";

/// A running API server. Drop ends it and removes its folder.
#[derive(Debug)]
pub struct ApiServer {
    folder: PathBuf,
    programs: Vec<Child>,
}

impl ApiServer {
    /// Starts the server and waits until it answers.
    pub fn start(tools: &Tools) -> Result<ApiServer> {
        let program = tools.cluster()?;
        announce("starting an API server");
        let folder = workspace::cache().join(format!("apiserver-{}", std::process::id()));
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let mut server = ApiServer {
            folder,
            programs: Vec::new(),
        };
        let (client, peer, secure) = (free_port()?, free_port()?, free_port()?);
        server.start_etcd(&program, client, peer)?;
        server.start_apiserver(&program, client, secure)?;
        server.wait_until_ready(&program, secure)?;
        Ok(server)
    }

    /// Returns a kubeconfig with all rights.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    fn start_etcd(&mut self, program: &Path, client: u16, peer: u16) -> Result<()> {
        let (client, peer) = (
            format!("http://127.0.0.1:{client}"),
            format!("http://127.0.0.1:{peer}"),
        );
        let data = self.folder.join("etcd");
        let mut command = Command::new(program);
        command
            .arg("etcd")
            .arg(format!("--data-dir={}", data.display()))
            .arg(format!("--listen-client-urls={client}"))
            .arg(format!("--advertise-client-urls={client}"))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"))
            .arg(format!("--initial-cluster=default={peer}"));
        self.spawn("etcd", command)
    }

    fn start_apiserver(&mut self, program: &Path, etcd: u16, secure: u16) -> Result<()> {
        let key = self.folder.join("service-accounts.key");
        output(
            Command::new("openssl")
                .args(["genrsa", "-out"])
                .arg(&key)
                .arg("2048"),
        )?;
        let tokens = self.folder.join("tokens.csv");
        fs::write(&tokens, format!("{TOKEN},admin,admin,system:masters\n"))?;
        let mut command = Command::new(program);
        command
            .arg("kube-apiserver")
            .arg(format!("--etcd-servers=http://127.0.0.1:{etcd}"))
            .arg(format!("--service-account-key-file={}", key.display()))
            .arg(format!(
                "--service-account-signing-key-file={}",
                key.display()
            ))
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(format!("--token-auth-file={}", tokens.display()))
            .arg("--authorization-mode=RBAC")
            .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"])
            .arg(format!("--secure-port={secure}"))
            .arg("--service-cluster-ip-range=10.96.0.0/16")
            .arg("--endpoint-reconciler-type=none")
            .arg(format!(
                "--cert-dir={}",
                self.folder.join("certificates").display()
            ));
        // It would call webhooks through a proxy.
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"] {
            command.env_remove(name);
        }
        self.spawn("kube-apiserver", command)
    }

    fn spawn(&mut self, name: &str, mut command: Command) -> Result<()> {
        let log = fs::File::create(self.folder.join(format!("{name}.log")))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        self.programs.push(child);
        Ok(())
    }

    fn wait_until_ready(&mut self, program: &Path, secure: u16) -> Result<()> {
        let kubeconfig = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\nclusters:\n- name: test\n  \
             cluster: {{server: \"https://127.0.0.1:{secure}\", insecure-skip-tls-verify: true}}\n\
             users:\n- name: admin\n  user: {{token: {TOKEN}}}\ncontexts:\n- name: test\n  \
             context: {{cluster: test, user: admin}}\n"
        );
        fs::write(self.kubeconfig(), kubeconfig)?;
        let start = Instant::now();
        loop {
            let mut ready = Command::new(program);
            ready
                .args(["kubectl", "get", "--raw", "/readyz"])
                .env("KUBECONFIG", self.kubeconfig())
                .env("KUBECACHEDIR", self.folder.join("cache"));
            if output(&mut ready).is_ok() {
                return Ok(());
            }
            for program in &mut self.programs {
                if let Some(status) = program.try_wait()? {
                    bail!(
                        "a program ended with {status}; logs are in {}",
                        self.folder.display()
                    );
                }
            }
            if start.elapsed() > READY_DEADLINE {
                bail!(
                    "the API server is not ready; logs are in {}",
                    self.folder.display()
                );
            }
            thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        // End the server first. It has no data to keep, so it need not end in order.
        for program in self.programs.iter_mut().rev() {
            // A process that has ended cannot be killed, and need not be.
            let _killed = program.kill();
            let start = Instant::now();
            while matches!(program.try_wait(), Ok(None)) && start.elapsed() < END_DEADLINE {
                thread::sleep(Duration::from_millis(20));
            }
        }
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("remove {}: {error}", self.folder.display());
        }
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")
        .context("find a free port")?
        .local_addr()?
        .port())
}
