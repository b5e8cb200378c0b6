//! A real Kubernetes: one that we start on this machine, or an existing one.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use xtask::images::{self, Image};
use xtask::process::{announce, output};
use xtask::tools::Tools;
use xtask::workspace;

use crate::config::{CONTAINERD_SOCKET, Config, NODE};
use crate::daemon::{Daemon, wait_for_programs};
use crate::kubectl::{Kubectl, condition};
use crate::machine::{Lifetime, Machine, Site, Sweep, sweep};
use crate::wait::wait_for;

/// Time limit for each part of a cluster to be ready. A tenth of it is usual.
const READY_DEADLINE: Duration = Duration::from_secs(120);

/// Time limit of one connection to a port.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A Kubernetes cluster, usable from many threads.
///
/// A cluster from [`Cluster::start`] is removed with all its content when the value is dropped,
/// also after a panic. When the process is killed, the kernel removes it.
#[derive(Debug)]
pub struct Cluster {
    kubectl: Kubectl,
    place: Place,
    scratch: PathBuf,
}

#[derive(Debug)]
enum Place {
    Ours(Machine),
    /// With the address of this machine that its Pods can reach, if known.
    External {
        address: Option<String>,
    },
}

impl Cluster {
    /// Starts a cluster with one node. Needs root; takes half a minute.
    pub fn start(tools: &Tools, lifetime: Lifetime) -> Result<Cluster> {
        tools.debian()?;
        let program = tools.cluster()?;
        let pause = images::build_pause()?;
        sweep(&clusters(), Sweep::Ended)?;

        announce("starting a Kubernetes cluster");
        let start = Instant::now();
        let machine = Machine::start(&clusters(), &program, lifetime)?;
        let setup = Setup::prepare(&machine, &program, &pause, tools.cni_plugins()?)?;
        setup.start_programs(&machine)?;
        let Setup {
            kubectl, folder, ..
        } = setup;
        let cluster = Cluster {
            kubectl,
            place: Place::Ours(machine),
            scratch: folder,
        };
        cluster.load_image(&pause)?;
        announce(&format!(
            "the cluster is ready after {:.1?}",
            start.elapsed()
        ));
        Ok(cluster)
    }

    /// Uses an existing cluster; nothing in it is removed at the end.
    ///
    /// `address` is an address of this machine that Pods of the cluster can reach, for the tests'
    /// S3 server. Images must be available to the cluster.
    pub fn external(tools: &Tools, kubeconfig: &Path, address: Option<String>) -> Result<Cluster> {
        let scratch = workspace::cache().join("external");
        fs::create_dir_all(&scratch).with_context(|| format!("create {}", scratch.display()))?;
        let kubectl = Kubectl::new(&tools.cluster()?, kubeconfig, &scratch);
        kubectl.run(&["version"]).context("reach the cluster")?;
        Ok(Cluster {
            kubectl,
            place: Place::External { address },
            scratch,
        })
    }

    /// kubectl and helm for this cluster.
    pub fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }

    /// Returns a folder for files of the tests. It is removed with the cluster.
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// Returns the address at which Pods and tests reach servers started with [`Cluster::spawn`].
    ///
    /// # Errors
    /// For an external cluster without an address.
    pub fn address(&self) -> Result<String> {
        match &self.place {
            Place::Ours(machine) => Ok(machine.network().node()),
            Place::External { address } => address.clone().context(
                "Pods of an external cluster reach this machine only at an address that you give",
            ),
        }
    }

    /// Returns the address at which Pods reach a server in the test process itself.
    ///
    /// # Errors
    /// For an external cluster without an address.
    pub fn machine_address(&self) -> Result<String> {
        match &self.place {
            Place::Ours(machine) => Ok(machine.network().machine()),
            Place::External { .. } => self.address(),
        }
    }

    /// Starts a server program that Pods can reach at [`Cluster::address`].
    ///
    /// In a cluster that we started it ends with the cluster; otherwise the caller ends it.
    pub fn spawn(&self, name: &str, program: &Path, arguments: &[String]) -> Result<Daemon> {
        let mut command = self.site().command(program);
        self.site()
            .spawn(name, command.args(arguments), &self.scratch)
    }

    /// Returns the site where [`Cluster::spawn`] starts servers.
    pub(crate) fn site(&self) -> Site {
        match &self.place {
            Place::Ours(machine) => machine.site(),
            Place::External { .. } => Site::Here,
        }
    }

    /// Loads an image into the node. An image without an archive is left to the cluster.
    pub fn load_image(&self, image: &Image) -> Result<()> {
        let Some(archive) = &image.archive else {
            return Ok(());
        };
        let Place::Ours(machine) = &self.place else {
            bail!(
                "an external cluster must pull {}, it can't be loaded",
                image.name
            )
        };
        wait_for(
            format!("image {} to be loaded", image.name),
            READY_DEADLINE,
            || {
                output(
                    machine
                        .command("ctr")
                        .args(["--address", CONTAINERD_SOCKET, "--namespace", "k8s.io"])
                        .args(["images", "import"])
                        .arg(archive),
                )
                .map(Some)
            },
        )?;
        Ok(())
    }

    /// Removes a cluster that we started, and reports a failure, which dropping only prints.
    pub fn stop(self) -> Result<()> {
        match self.place {
            Place::Ours(mut machine) => machine.end(),
            Place::External { .. } => Ok(()),
        }
    }
}

/// Removes clusters of this checkout and returns their number.
pub fn remove_clusters(which: Sweep) -> Result<usize> {
    sweep(&clusters(), which)
}

fn clusters() -> PathBuf {
    workspace::cache().join("clusters")
}

/// A cluster's files, and the arguments of its programs.
struct Setup {
    program: PathBuf,
    folder: PathBuf,
    node: String,
    pods: String,
    services: String,
    kubectl: Kubectl,
}

impl Setup {
    /// Writes all files.
    fn prepare(
        machine: &Machine,
        program: &Path,
        pause: &Image,
        cni_plugins: &Path,
    ) -> Result<Setup> {
        let folder = machine.folder().to_owned();
        let network = machine.network();
        let path = |name: &str| folder.join(name).display().to_string();
        let token = output(Command::new("openssl").args(["rand", "-hex", "16"]))?;
        let config = Config {
            pause_image: &pause.name,
            cni_plugins: &cni_plugins.display().to_string(),
            folder: &folder.display().to_string(),
            pods: &network.pods(),
            server: &format!("https://{}:6443", network.node()),
            server_certificate: &path("tls/apiserver.crt"),
            token: token.trim(),
            cgroup: &machine.cgroup(),
        };
        for (name, text) in [
            ("containerd.toml", config.containerd()),
            ("cni/10-pods.conflist", config.cni().to_string()),
            ("kubelet.json", config.kubelet().to_string()),
            ("kubeconfig", config.kubeconfig().to_string()),
            ("resolv.conf", config.resolv_conf().to_owned()),
            ("tokens.csv", config.tokens()),
        ] {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().expect("the path has a folder"))?;
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        }
        output(Command::new("openssl").args(["genrsa", "-out", &path("accounts.key"), "2048"]))?;
        Ok(Setup {
            program: program.to_owned(),
            node: network.node(),
            pods: network.pods(),
            services: network.services(),
            kubectl: Kubectl::new(program, &folder.join("kubeconfig"), &folder.join("cache")),
            folder,
        })
    }

    /// Starts the programs in the order of their dependencies, and waits for the node.
    fn start_programs(&self, machine: &Machine) -> Result<()> {
        let spawn = |name: &str, arguments: Vec<String>| {
            machine.spawn(
                name,
                machine.command(&self.program).arg(name).args(arguments),
            )
        };
        let config = self.path("containerd.toml");
        let containerd = machine.spawn(
            "containerd",
            machine.command("containerd").args(["--config", &config]),
        )?;
        let mut daemons = vec![containerd, spawn("etcd", self.etcd())?];
        let node = &self.node;
        wait_for_programs(&mut daemons, "etcd to listen", READY_DEADLINE, || {
            let address: SocketAddr = format!("{node}:2379").parse()?;
            Ok(Some(TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?))
        })?;
        daemons.push(spawn("kube-apiserver", self.api_server())?);
        wait_for_programs(
            &mut daemons,
            "the API server to be ready",
            READY_DEADLINE,
            || self.kubectl.run(&["get", "--raw", "/readyz"]).map(Some),
        )?;
        for (name, arguments) in [
            ("kube-controller-manager", self.controller_manager()),
            ("kube-scheduler", self.scheduler()),
            ("kubelet", self.kubelet()),
            ("kube-proxy", self.proxy()),
        ] {
            daemons.push(spawn(name, arguments)?);
        }
        wait_for_programs(&mut daemons, "the node to be ready", READY_DEADLINE, || {
            let node = self
                .kubectl
                .object("", "node", NODE)?
                .context("not registered yet")?;
            Ok(condition(&node, "Ready")
                .filter(|ready| ready["status"] == "True")
                .map(drop))
        })
    }

    fn etcd(&self) -> Vec<String> {
        let node = &self.node;
        flags([
            ("data-dir", "/var/lib/etcd".to_owned()),
            ("listen-client-urls", format!("http://{node}:2379")),
            ("advertise-client-urls", format!("http://{node}:2379")),
            ("listen-peer-urls", "http://127.0.0.1:2380".to_owned()),
            // Durability does not matter in a test cluster.
            ("unsafe-no-fsync", "true".to_owned()),
        ])
    }

    fn api_server(&self) -> Vec<String> {
        flags([
            ("etcd-servers", format!("http://{}:2379", self.node)),
            ("bind-address", "0.0.0.0".to_owned()),
            ("advertise-address", self.node.clone()),
            ("cert-dir", self.path("tls")),
            ("service-account-key-file", self.path("accounts.key")),
            (
                "service-account-signing-key-file",
                self.path("accounts.key"),
            ),
            (
                "service-account-issuer",
                "https://kubernetes.default.svc".to_owned(),
            ),
            ("token-auth-file", self.path("tokens.csv")),
            ("authorization-mode", "RBAC,Node".to_owned()),
            ("service-cluster-ip-range", self.services.clone()),
            ("endpoint-reconciler-type", "lease".to_owned()),
            ("allow-privileged", "true".to_owned()),
            // The node's name cannot be resolved, so `kubectl logs` must use its address.
            ("kubelet-preferred-address-types", "InternalIP".to_owned()),
        ])
    }

    fn controller_manager(&self) -> Vec<String> {
        flags([
            ("kubeconfig", self.path("kubeconfig")),
            ("controllers", "*".to_owned()),
            ("leader-elect", "false".to_owned()),
            ("use-service-account-credentials", "true".to_owned()),
            (
                "service-account-private-key-file",
                self.path("accounts.key"),
            ),
            ("root-ca-file", self.path("tls/apiserver.crt")),
        ])
    }

    fn scheduler(&self) -> Vec<String> {
        flags([
            ("kubeconfig", self.path("kubeconfig")),
            ("leader-elect", "false".to_owned()),
        ])
    }

    fn kubelet(&self) -> Vec<String> {
        flags([
            ("kubeconfig", self.path("kubeconfig")),
            ("config", self.path("kubelet.json")),
            ("hostname-override", NODE.to_owned()),
            ("node-ip", self.node.clone()),
        ])
    }

    fn proxy(&self) -> Vec<String> {
        flags([
            ("kubeconfig", self.path("kubeconfig")),
            ("proxy-mode", "nftables".to_owned()),
            ("cluster-cidr", self.pods.clone()),
            ("hostname-override", NODE.to_owned()),
            // These are settings of the whole machine; 0 leaves them unchanged.
            ("conntrack-max-per-core", "0".to_owned()),
            ("conntrack-tcp-timeout-established", "0s".to_owned()),
            ("conntrack-tcp-timeout-close-wait", "0s".to_owned()),
        ])
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }
}

fn flags<const N: usize>(flags: [(&str, String); N]) -> Vec<String> {
    flags
        .into_iter()
        .map(|(name, value)| format!("--{name}={value}"))
        .collect()
}
