//! Debian packages, installed with apt when one of their programs is missing.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::process::{announce, output};

/// Packages, each with programs or files. If one of these exists, the package need not be
/// installed.
const PACKAGES: &[(&str, &[&str])] = &[
    ("buildah", &["buildah"]),
    ("busybox-static", &["/bin/busybox"]),
    ("ca-certificates", &["/etc/ssl/certs/ca-certificates.crt"]),
    ("conntrack", &["conntrack"]),
    ("containerd", &["containerd"]),
    (
        "containernetworking-plugins",
        &["/usr/lib/cni/bridge", "/opt/cni/bin/bridge"],
    ),
    ("curl", &["curl"]),
    ("gcc", &["gcc"]),
    ("iproute2", &["ip"]),
    ("iptables", &["iptables"]),
    ("nftables", &["nft"]),
    ("openssl", &["openssl"]),
    ("runc", &["runc"]),
    ("sqlite3", &["sqlite3"]),
    ("util-linux", &["nsenter"]),
];

/// Folders that are searched for programs, independent of the caller's `PATH`.
const PROGRAM_FOLDERS: [&str; 6] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
];

/// File that tells Debian's packages whether they may start their services; 101 means no.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Time for which apt waits for another apt, in seconds.
const LOCK_TIMEOUT_SECONDS: u32 = 300;

/// Installs the packages that are missing.
pub(super) fn ensure() -> Result<()> {
    let is_missing = |programs: &[&str]| !programs.iter().any(|program| has_program(program));
    let missing: Vec<&str> = PACKAGES
        .iter()
        .filter_map(|(name, programs)| is_missing(programs).then_some(*name))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if output(Command::new("id").arg("-u"))?.trim() != "0" {
        bail!("these Debian packages are missing and only root can install them: {names}");
    }
    if !has_program("apt-get") {
        bail!("there is no apt-get here; install what these Debian packages have: {names}");
    }
    announce(&format!("installing Debian packages: {names}"));
    let _policy = NoServices::enforce()?;
    output(apt().arg("update"))?;
    output(
        apt()
            .args(["install", "--yes", "--no-install-recommends"])
            .args(missing),
    )?;
    Ok(())
}

fn has_program(program: &str) -> bool {
    // An absolute path replaces the folder to which it is joined.
    PROGRAM_FOLDERS
        .iter()
        .any(|folder| Path::new(folder).join(program).exists())
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command
        .args(["-qq", "-o", "Dpkg::Use-Pty=0", "-o"])
        .arg(format!("DPkg::Lock::Timeout={LOCK_TIMEOUT_SECONDS}"))
        .env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// While this value exists, packages do not start their services: our containerd is not the
/// system's.
struct NoServices {
    ours: bool,
}

impl NoServices {
    fn enforce() -> Result<NoServices> {
        // Keep an existing policy of the machine.
        if Path::new(POLICY).exists() {
            return Ok(NoServices { ours: false });
        }
        fs::write(POLICY, "#!/bin/sh\nexit 101\n").with_context(|| format!("write {POLICY}"))?;
        let policy = NoServices { ours: true };
        fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("make {POLICY} executable"))?;
        Ok(policy)
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(POLICY)
        {
            eprintln!("remove {POLICY}: {error}");
        }
    }
}
