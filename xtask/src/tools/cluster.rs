//! The Go program that contains a whole Kubernetes, built once for each state of its sources.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use super::install;
use crate::process::{announce, output, run};

/// Files on which the build depends, in addition to the Go version.
const SOURCES: [&str; 4] = ["go.mod", "go.sum", "init.go", "main.go"];

/// Version for the program. Without it the node reports a version that clients cannot parse.
const KUBERNETES_VERSION: &str = "v1.36.3";

/// Returns the path of the program and builds it first if its sources have changed.
pub(super) fn ensure(cache: &Path, sources: &Path) -> Result<PathBuf> {
    let go = output(Command::new("go").arg("version").current_dir(sources))
        .context("Go is needed to build the test cluster")?;
    let folder = cache.join("cluster-program").join(key(sources, &go)?);
    let path = folder.join("cluster");
    if path.exists() {
        return Ok(path);
    }
    announce("building Kubernetes into one program (5 to 8 minutes the first time)");
    install(&folder, |partial| build(sources, &partial.join("cluster")))
        .context("build the test cluster")?;
    Ok(path)
}

fn key(sources: &Path, go: &str) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(go);
    hash.update(KUBERNETES_VERSION);
    for name in SOURCES {
        let path = sources.join(name);
        let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        hash.update(bytes.len().to_le_bytes());
        hash.update(bytes);
    }
    let digest = hash.finalize();
    Ok(digest[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

fn build(sources: &Path, program: &Path) -> Result<()> {
    let versions = ["k8s.io/component-base", "k8s.io/client-go/pkg"]
        .map(|package| format!("-X {package}/version.gitVersion={KUBERNETES_VERSION}"));
    run(Command::new("go")
        .args(["build", "-trimpath", "-mod=readonly", "-ldflags"])
        .arg(format!("-s -w {}", versions.join(" ")))
        .arg("-o")
        .arg(program)
        .arg(".")
        .env("CGO_ENABLED", "0")
        .env_remove("GOFLAGS")
        .current_dir(sources))
}
