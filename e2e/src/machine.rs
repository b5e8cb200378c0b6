//! Linux namespaces for one cluster, so that a whole Kubernetes leaves no trace on the machine.
//!
//! All programs of a cluster, including its Pods, run in one process, one mount and one network
//! namespace. Process 1 in it is the `init` of `e2e/cluster`. When it ends, the kernel kills every
//! process in the namespace and removes mounts, bridges, network devices, nftables and iptables
//! rules. So no separate cleanup is needed and nothing is left behind, neither after a panic nor
//! after `kill -9`, because `init` ends when the pipe to us breaks.
//!
//! The cluster's folder and its control groups remain, because namespaces do not cover them.
//! [`sweep`] removes those of clusters that have ended.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, ErrorKind};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use xtask::{process, workspace};

use crate::daemon::{Daemon, Launch};
use crate::network::Network;
use crate::record::Record;
use crate::wait::wait_for;

/// Time limit for the kernel to end a cluster's processes.
const END_DEADLINE: Duration = Duration::from_secs(60);

/// Limit on concurrent clusters on one machine, each with its own network.
const MAX_CLUSTERS: u8 = 64;

/// Fate of the cluster when the program that started it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// The cluster also ends, however that program ended.
    WithCaller,
    /// The cluster stays until [`sweep`] removes it.
    UntilRemoved,
}

/// The namespaces of one cluster. They end when the value is dropped, unless the cluster must stay.
#[derive(Debug)]
pub(crate) struct Machine {
    folder: PathBuf,
    network: Network,
    record: Record,
    lifetime: Lifetime,
    /// `unshare`, the parent of `init`. `init` runs as long as its standard input is open.
    init: Child,
}

impl Machine {
    /// Creates namespaces with an unused network. `clusters` is the folder for the folders of all
    /// clusters, `program` the program of `e2e/cluster`.
    pub(crate) fn start(clusters: &Path, program: &Path, lifetime: Lifetime) -> Result<Machine> {
        fs::create_dir_all(clusters).with_context(|| format!("create {}", clusters.display()))?;
        for number in 0..MAX_CLUSTERS {
            let folder = clusters.join(number.to_string());
            match fs::create_dir(&folder) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                Err(error) => bail!("create {}: {error}", folder.display()),
            }
            let network = Network::numbered(number);
            let mut machine = Machine::start_in(folder, network, program, lifetime)?;
            // Other checkouts also number their clusters, but the device name is unique on the
            // machine.
            if machine.network.connect(machine.record.pid)? {
                return Ok(machine);
            }
            machine.end()?;
        }
        bail!("there are {MAX_CLUSTERS} clusters already; `cargo xtask cluster down` removes them")
    }

    fn start_in(
        folder: PathBuf,
        network: Network,
        program: &Path,
        lifetime: Lifetime,
    ) -> Result<Machine> {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--net", "--pid", "--ipc", "--fork", "--"])
            .arg(program);
        command
            .arg("init")
            .arg("-folder")
            .arg(&folder)
            .arg("-visible")
            .arg(workspace::cache());
        match lifetime {
            Lifetime::WithCaller => command.stdin(Stdio::piped()),
            Lifetime::UntilRemoved => command.arg("-stay").stdin(Stdio::null()),
        };
        // In its own process group, so that Ctrl-C in a terminal reaches only us.
        let log = folder.join("init.log");
        let mut init = command
            .stdout(Stdio::piped())
            .stderr(File::create(&log).with_context(|| format!("create {}", log.display()))?)
            .process_group(0)
            .spawn()
            .context("start `unshare`, which needs util-linux and root")?;
        let mut stdout = BufReader::new(init.stdout.take().expect("standard output is a pipe"));
        let mut line = String::new();
        stdout
            .read_line(&mut line)
            .context("read from the cluster's init")?;
        let Some(pid) = line.strip_prefix("ready ") else {
            let status = init.wait()?;
            let reason = fs::read_to_string(&log)?;
            fs::remove_dir_all(&folder)?;
            bail!("the cluster's namespaces were not made: {status}: {reason}");
        };
        let record = Record::of(pid.trim().parse()?, network.number())?;
        record.write(&folder)?;
        create_cgroups(&record.cgroup())?;
        Ok(Machine {
            folder,
            network,
            record,
            lifetime,
            init,
        })
    }

    /// Returns the folder for the cluster's files. It is removed when the machine ends.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn network(&self) -> &Network {
        &self.network
    }

    /// The control group that is the parent of all the cluster's containers.
    pub(crate) fn cgroup(&self) -> String {
        self.record.cgroup()
    }

    /// Returns the site for programs inside.
    pub(crate) fn site(&self) -> Site {
        Site::Inside {
            init: self.record.pid,
        }
    }

    /// Returns a command that runs inside.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.site().command(program)
    }

    /// Starts a server inside. It ends with the machine.
    pub(crate) fn spawn(&self, name: &str, command: &mut Command) -> Result<Daemon> {
        self.site().spawn(name, command, &self.folder)
    }

    /// Ends every process inside and removes the remaining files.
    pub(crate) fn end(&mut self) -> Result<()> {
        if self.folder.exists() {
            self.record.remove(&self.folder)?;
        }
        self.init.wait().context("wait for the cluster's init")?;
        Ok(())
    }
}

/// The place where programs run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Site {
    /// In the namespaces of this process 1. Programs there end with it.
    Inside { init: i32 },
    /// Outside, on the machine itself.
    Here,
}

impl Site {
    /// Returns a command that runs at this site.
    pub(crate) fn command(self, program: impl AsRef<OsStr>) -> Command {
        let Site::Inside { init } = self else {
            return Command::new(program);
        };
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={init}"))
            .args(["--mount", "--net", "--pid", "--ipc", "--"])
            .arg(program)
            .process_group(0);
        command
    }

    /// Starts a server with a command made by [`Site::command`]; its log is in `logs`.
    pub(crate) fn spawn(self, name: &str, command: &mut Command, logs: &Path) -> Result<Daemon> {
        let launch = match self {
            Site::Inside { .. } => Launch::ThroughParent,
            Site::Here => Launch::Direct,
        };
        Daemon::spawn(name, command, launch, &logs.join(format!("{name}.log")))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.lifetime == Lifetime::WithCaller
            && let Err(error) = self.end()
        {
            eprintln!("remove the cluster in {}: {error:#}", self.folder.display());
        }
    }
}

/// The clusters that [`sweep`] removes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sweep {
    /// Only the remains of clusters that have ended.
    Ended,
    /// All clusters of this checkout, including running ones.
    All,
}

/// Removes clusters, each with its folder in `clusters`, and returns their number.
pub fn sweep(clusters: &Path, which: Sweep) -> Result<usize> {
    let entries = match fs::read_dir(clusters) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
        Err(error) => bail!("read {}: {error}", clusters.display()),
    };
    let mut removed = 0;
    for entry in entries {
        let folder = entry?.path();
        match Record::read(&folder)? {
            Some(record) if which == Sweep::All || !record.is_alive() => record.remove(&folder)?,
            // Without a record its start was interrupted, or is in progress.
            None if which == Sweep::All => fs::remove_dir_all(&folder)
                .with_context(|| format!("remove {}", folder.display()))?,
            _ => continue,
        }
        removed += 1;
    }
    Ok(removed)
}

impl Record {
    /// Ends the cluster if it is alive, then removes its control groups and its folder.
    fn remove(&self, folder: &Path) -> Result<()> {
        let pid = Pid::from_raw(self.pid).context("a record with a wrong process number")?;
        if self.is_alive() {
            kill_process(pid, Signal::KILL).context("end the cluster's init")?;
        }
        // It ends only after all other processes in its namespace.
        wait_for("the cluster's processes to end", END_DEADLINE, || {
            Ok((!self.is_alive()).then_some(()))
        })?;
        remove_cgroups(&self.cgroup())?;
        // The kernel removes network devices with a delay, and the next cluster may need the name.
        wait_for("the cluster's network to go", END_DEADLINE, || {
            Network::numbered(self.network).is_gone()
        })?;
        keep_logs(folder)?;
        fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))
    }
}

/// Moves a cluster's logs to the folder `logs` beside the cluster folders, replacing older ones.
fn keep_logs(folder: &Path) -> Result<()> {
    let parent = folder
        .parent()
        .and_then(Path::parent)
        .context("a cluster's folder has parents")?;
    let logs = parent.join("logs");
    fs::create_dir_all(&logs).with_context(|| format!("create {}", logs.display()))?;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if let Some(name) = path.file_name()
            && path.extension().is_some_and(|extension| extension == "log")
        {
            fs::rename(&path, logs.join(name))
                .with_context(|| format!("keep {}", path.display()))?;
        }
    }
    Ok(())
}

/// Creates a control group in every hierarchy: the kubelet requires that its root exists.
fn create_cgroups(name: &str) -> Result<()> {
    for group in cgroup_paths(name)? {
        fs::create_dir(&group)
            .with_context(|| format!("create control group {}", group.display()))?;
    }
    Ok(())
}

/// Removes a control group and those below it, from every hierarchy.
fn remove_cgroups(name: &str) -> Result<()> {
    for group in cgroup_paths(name)?.iter().filter(|group| group.is_dir()) {
        wait_for("control groups to go", END_DEADLINE, || {
            remove_cgroup(group).map(Some)
        })?;
    }
    Ok(())
}

/// Returns the paths of a control group: one with version 2, one in each hierarchy with version 1.
fn cgroup_paths(name: &str) -> Result<Vec<PathBuf>> {
    let root = Path::new("/sys/fs/cgroup");
    let name = name.trim_start_matches('/');
    if root.join("cgroup.controllers").exists() {
        return Ok(vec![root.join(name)]);
    }
    let mut paths = Vec::new();
    for entry in fs::read_dir(root).context("read the control groups")? {
        let entry = entry?;
        // Hierarchies with two names also have a link beside them.
        if entry.file_type()?.is_dir() {
            paths.push(entry.path().join(name));
        }
    }
    Ok(paths)
}

fn remove_cgroup(group: &Path) -> Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    fs::remove_dir(group).with_context(|| format!("remove control group {}", group.display()))
}

/// Runs `ip` with these words.
pub(crate) fn ip(words: &str) -> Result<String> {
    process::output(Command::new("ip").args(words.split_whitespace()))
}
