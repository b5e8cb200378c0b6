//! Container images without a Docker daemon and without a registry.
//!
//! Static binaries are built with cargo, put into images with buildah, and exported as Docker
//! archives that a container runtime imports. A tag is a hash of the image's content. So an image
//! is built once for each state of its content, and a cluster that has a tag need not load it
//! again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use crate::process::{announce, cargo, output, run};
use crate::workspace;

/// One image, by the name that a Pod uses for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Name with tag.
    pub name: String,
    /// The Docker archive to import; `None` if the cluster can pull the name.
    pub archive: Option<PathBuf>,
}

impl Image {
    /// An image that the cluster has or can pull.
    pub fn published(name: impl Into<String>) -> Image {
        Image {
            name: name.into(),
            archive: None,
        }
    }
}

/// The images that the end-to-end tests run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Images {
    /// `Dockerfile.operator`: the operator.
    pub operator: Image,
    /// `Dockerfile.sidecar`: restore init container, sidecar and restore test.
    pub sidecar: Image,
    /// `e2e/app`: an application that knows nothing about backups.
    pub app: Image,
}

/// The names of images that need not be built, because the cluster has them or can pull them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Published {
    /// The operator's.
    pub operator: Option<String>,
    /// The sidecar's.
    pub sidecar: Option<String>,
    /// The demo application's.
    pub app: Option<String>,
}

/// Content of one of our images.
struct Recipe {
    package: &'static str,
    binary: &'static str,
    dockerfile: &'static str,
    /// Whether the program connects to others over TLS.
    certificates: bool,
}

const OPERATOR: Recipe = Recipe {
    package: "operator",
    binary: "sqlite-backup-operator",
    dockerfile: "Dockerfile.operator",
    certificates: true,
};

const SIDECAR: Recipe = Recipe {
    package: "sidecar",
    binary: "sqlite-backup",
    dockerfile: "Dockerfile.sidecar",
    certificates: true,
};

const APP: Recipe = Recipe {
    package: "demo-app",
    binary: "demo-app",
    dockerfile: "e2e/app/Dockerfile",
    certificates: false,
};

/// Path of the public certificate authorities on the build machine.
const CA_CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Builds the images that are not published, for the machine's own architecture. Needs buildah.
///
/// The binaries are built with the `dev` profile, because they are for tests, where build time
/// matters.
pub fn build(published: &Published) -> Result<Images> {
    let wanted = [
        (OPERATOR, &published.operator),
        (SIDECAR, &published.sidecar),
        (APP, &published.app),
    ];
    let missing = wanted.iter().filter(|(_, name)| name.is_none());
    let packages: Vec<&str> = missing.map(|(recipe, _)| recipe.package).collect();
    let binaries = build_binaries(&packages)?;
    let image = |(recipe, name): (Recipe, &Option<String>)| match name {
        Some(name) => Ok(Image::published(name)),
        None => recipe.build(&binaries),
    };
    let [operator, sidecar, app] = wanted.map(image);
    Ok(Images {
        operator: operator?,
        sidecar: sidecar?,
        app: app?,
    })
}

impl Recipe {
    fn build(&self, binaries: &Path) -> Result<Image> {
        let mut files = vec![binaries.join(self.binary)];
        if self.certificates {
            files.push(PathBuf::from(CA_CERTIFICATES));
        }
        build_image(
            self.package,
            &workspace::root().join(self.dockerfile),
            &files,
        )
    }
}

/// Builds an image with a shell and the usual small programs, for commands of tests in Pods.
///
/// In Debian's static build `wget -T` crashes; put `timeout SECONDS` in front instead.
pub fn build_busybox() -> Result<Image> {
    let folder = workspace::root().join("e2e/busybox");
    build_image(
        "busybox",
        &folder.join("Dockerfile"),
        &[PathBuf::from("/bin/busybox")],
    )
}

/// Builds the image that holds a Pod's namespaces, which no registry provides here.
pub fn build_pause() -> Result<Image> {
    let folder = workspace::root().join("e2e/pause");
    let program = workspace::cache().join("pause/pause");
    fs::create_dir_all(program.parent().expect("the path has a folder"))?;
    run(Command::new("gcc")
        .args(["-static", "-Os", "-s", "-Wall", "-Werror", "-o"])
        .arg(&program)
        .arg(folder.join("pause.c")))?;
    build_image("pause", &folder.join("Dockerfile"), &[program])
}

/// Builds the static binaries of these packages and returns their folder.
fn build_binaries(packages: &[&str]) -> Result<PathBuf> {
    let target = host_target()?;
    let folder = workspace::target().join(&target).join("debug");
    if packages.is_empty() {
        return Ok(folder);
    }
    announce(&format!("building static binaries: {}", packages.join(" ")));
    run(cargo()
        .args(["build", "--quiet", "--locked", "--target", &target])
        .args(packages.iter().flat_map(|package| ["--package", package]))
        // Links glibc statically: the binaries run in an empty image.
        .env(
            "RUSTFLAGS",
            "-C target-feature=+crt-static -C strip=symbols",
        )
        .env("CARGO_TARGET_DIR", workspace::target()))?;
    Ok(folder)
}

fn host_target() -> Result<String> {
    let version = output(
        Command::new("rustc")
            .arg("-vV")
            .current_dir(workspace::root()),
    )?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not name its host")?.to_owned())
}

/// Builds the stage `prebuilt` of a Dockerfile from these files, unless the archive exists.
fn build_image(name: &str, dockerfile: &Path, files: &[PathBuf]) -> Result<Image> {
    let tag = content_hash(dockerfile, files)?;
    let image = format!("localhost/sqlite-backup-e2e/{name}:{tag}");
    let folder = workspace::cache().join("images");
    let archive = folder.join(format!("{name}-{tag}.tar"));
    if !archive.exists() {
        announce(&format!("building image {image}"));
        remove_older(&folder, name)?;
        let context = Scratch::create(folder.join(format!("{name}-{}", std::process::id())))?;
        for file in files {
            let to = context
                .0
                .join(file.file_name().context("file without a name")?);
            fs::copy(file, &to).with_context(|| format!("copy {}", file.display()))?;
        }
        bud(&image, dockerfile, &context.0, &archive)?;
    }
    Ok(Image {
        name: image,
        archive: Some(archive),
    })
}

/// Runs buildah with its own storage, which is removed with the context folder.
fn bud(image: &str, dockerfile: &Path, context: &Path, archive: &Path) -> Result<()> {
    let buildah = || {
        let mut command = Command::new("buildah");
        command
            .arg("--root")
            .arg(context.join(".storage/root"))
            .arg("--runroot")
            .arg(context.join(".storage/run"))
            // Neither user namespaces nor overlay mounts: both fail on nested machines.
            .env("BUILDAH_ISOLATION", "chroot")
            .env("STORAGE_DRIVER", "vfs")
            .env("TMPDIR", context);
        command
    };
    fs::write(context.join(".dockerignore"), ".storage\n")?;
    output(
        buildah()
            .args([
                "bud", "--quiet", "--target", "prebuilt", "--tag", image, "--file",
            ])
            .arg(dockerfile)
            .arg(context),
    )?;
    let partial = archive.with_extension(format!("partial-{}", std::process::id()));
    output(
        buildah()
            .args(["push", "--quiet", image])
            .arg(format!("docker-archive:{}:{image}", partial.display())),
    )?;
    fs::rename(&partial, archive).with_context(|| format!("rename to {}", archive.display()))
}

fn content_hash(dockerfile: &Path, files: &[PathBuf]) -> Result<String> {
    let mut hash = Sha256::new();
    for path in std::iter::once(dockerfile).chain(files.iter().map(PathBuf::as_path)) {
        let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        hash.update(bytes.len().to_le_bytes());
        hash.update(bytes);
    }
    Ok(hash.finalize()[..6]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// Removes all archives of an image except the newest one, because each change of the source
/// creates one.
fn remove_older(folder: &Path, name: &str) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let stem = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .unwrap_or_default();
        let image = stem.rsplit_once('-').map_or(stem, |(image, _)| image);
        if image == name && path.extension().is_some_and(|extension| extension == "tar") {
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// A folder that is removed when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn create(path: PathBuf) -> Result<Scratch> {
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("remove {}: {error}", self.0.display());
        }
    }
}
