//! The operator under test, installed with helm as a user would install it.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;
use xtask::images::Image;
use xtask::workspace;

use crate::kubectl::Kubectl;
use crate::runner::Environment;
use crate::wait::wait_for;

/// Namespace and release of the operator.
pub const NAMESPACE: &str = "sqlite-backup-system";
/// Name of the release, and of most of its objects.
pub const RELEASE: &str = "sqlite-backup-operator";

const DEADLINE: Duration = Duration::from_secs(180);

/// Installs the chart of this checkout with the images under test, and waits until it is ready.
pub fn install(environment: &Environment) -> Result<()> {
    let kubectl = environment.cluster.kubectl();
    let chart = workspace::root().join("charts").join(RELEASE);
    let chart = chart.to_str().context("a checkout with a name in UTF-8")?;
    let mut arguments: Vec<String> = [
        "upgrade",
        "--install",
        RELEASE,
        chart,
        "--namespace",
        NAMESPACE,
        "--create-namespace",
    ]
    .map(str::to_owned)
    .to_vec();
    for (which, image) in [
        ("operator", &environment.images.operator),
        ("sidecar", &environment.images.sidecar),
    ] {
        let (repository, tag) = split(image)?;
        for (key, value) in [("repository", repository), ("tag", tag)] {
            arguments.extend([
                "--set-string".to_owned(),
                format!("image.{which}.{key}={value}"),
            ]);
        }
    }
    // The smallest volume for state, so that an outage of the store fills it.
    arguments.extend([
        "--set-json".to_owned(),
        r#"operator.extraArgs=["--state-size-limit=512Mi"]"#.to_owned(),
    ]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    kubectl.helm(&arguments)?;
    wait_until_available(kubectl)
}

/// Removes the release as a user would.
pub fn uninstall(kubectl: &Kubectl) -> Result<()> {
    kubectl.helm(&["uninstall", RELEASE, "--namespace", NAMESPACE, "--wait"])?;
    Ok(())
}

/// Stops every replica of the operator and waits until they are gone.
pub fn stop(kubectl: &Kubectl) -> Result<()> {
    scale(kubectl, 0)?;
    wait_for("the operator's Pods to be gone", DEADLINE, || {
        let selector = format!("app.kubernetes.io/name={RELEASE}");
        Ok(kubectl
            .objects(NAMESPACE, "pods", &selector)?
            .is_empty()
            .then_some(()))
    })
}

/// Starts the operator again after [`stop`].
pub fn start(kubectl: &Kubectl) -> Result<()> {
    scale(kubectl, 2)?;
    wait_until_available(kubectl)
}

fn scale(kubectl: &Kubectl, replicas: u32) -> Result<()> {
    let replicas = format!("--replicas={replicas}");
    kubectl.run(&[
        "scale",
        "deployment",
        RELEASE,
        "--namespace",
        NAMESPACE,
        &replicas,
    ])?;
    Ok(())
}

fn wait_until_available(kubectl: &Kubectl) -> Result<()> {
    let deployment = (NAMESPACE, "deployment", RELEASE);
    kubectl.wait_for_object(deployment, "to be available", DEADLINE, |deployment| {
        let number = |pointer: &str| deployment.pointer(pointer).and_then(Value::as_u64);
        let wanted = number("/spec/replicas")?;
        let ready = number("/status/availableReplicas")? == wanted
            && number("/status/updatedReplicas")? == wanted
            && number("/status/observedGeneration") == number("/metadata/generation");
        ready.then_some(())
    })
}

fn split(image: &Image) -> Result<(&str, &str)> {
    image
        .name
        .rsplit_once(':')
        .with_context(|| format!("{} has no tag", image.name))
}
