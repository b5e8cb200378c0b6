//! kubectl and helm, with one cluster's credentials.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use xtask::process;

use crate::wait::wait_for;

/// Result of a command that was allowed to fail.
#[derive(Debug, Clone)]
pub struct Output {
    /// Whether it exited with 0.
    pub success: bool,
    /// Standard output.
    pub stdout: String,
    /// Standard error, which contains the reason of a refusal by the API server.
    pub stderr: String,
}

/// Runs kubectl and helm against one cluster. Cheap to clone; usable from many threads.
///
/// Methods take a namespace first; kinds are written as for kubectl (`pod`, `deployment.apps`).
#[derive(Debug, Clone)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    /// Cache for discovery and charts, instead of the user's home.
    cache: PathBuf,
}

impl Kubectl {
    pub(crate) fn new(program: &Path, kubeconfig: &Path, cache: &Path) -> Kubectl {
        Kubectl {
            program: program.to_owned(),
            kubeconfig: kubeconfig.to_owned(),
            cache: cache.to_owned(),
        }
    }

    /// The file with the credentials, for other clients.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Runs kubectl with these arguments and returns its standard output.
    ///
    /// # Errors
    /// When kubectl fails; its standard error is in the message.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        process::output(self.command("kubectl").args(arguments))
    }

    /// Like [`Kubectl::run`], with this standard input.
    pub fn run_with_input(&self, arguments: &[&str], input: &str) -> Result<String> {
        process::output_with_input(self.command("kubectl").args(arguments), input.as_bytes())
    }

    /// Runs kubectl when a failure is also a valid result, such as a refusal by admission.
    ///
    /// # Errors
    /// Only when kubectl cannot be started.
    pub fn attempt(&self, arguments: &[&str]) -> Result<Output> {
        let output = self
            .command("kubectl")
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .context("start kubectl")?;
        Ok(Output {
            success: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Applies YAML or JSON, with one or several documents. Objects without a namespace are created
    /// in `namespace`.
    pub fn apply(&self, namespace: &str, manifest: &str) -> Result<()> {
        self.run_with_input(
            &["apply", "--namespace", namespace, "--filename", "-"],
            manifest,
        )?;
        Ok(())
    }

    /// Deletes an object without waiting until it is gone. A missing object is not an error.
    pub fn delete(&self, namespace: &str, kind: &str, name: &str) -> Result<()> {
        self.run(&[
            "delete",
            kind,
            name,
            "--namespace",
            namespace,
            "--ignore-not-found",
            "--wait=false",
        ])?;
        Ok(())
    }

    /// Reads an object; `None` if it does not exist.
    pub fn object(&self, namespace: &str, kind: &str, name: &str) -> Result<Option<Value>> {
        let text = self.run(&[
            "get",
            kind,
            name,
            "--namespace",
            namespace,
            "--ignore-not-found",
            "--output=json",
        ])?;
        if text.trim().is_empty() {
            return Ok(None);
        }
        serde_json::from_str(&text)
            .context("parse what kubectl printed")
            .map(Some)
    }

    /// Reads all objects of a kind that match a label selector; an empty selector matches all.
    pub fn objects(&self, namespace: &str, kind: &str, selector: &str) -> Result<Vec<Value>> {
        let text = self.run(&[
            "get",
            kind,
            "--namespace",
            namespace,
            "--selector",
            selector,
            "--output=json",
        ])?;
        let mut list: Value = serde_json::from_str(&text).context("parse what kubectl printed")?;
        match list["items"].take() {
            Value::Array(items) => Ok(items),
            other => bail!("a list of {kind} without items: {other}"),
        }
    }

    /// Waits until an object exists and `probe` returns a value for it.
    pub fn wait_for_object<T>(
        &self,
        (namespace, kind, name): (&str, &str, &str),
        what: &str,
        deadline: Duration,
        mut probe: impl FnMut(&Value) -> Option<T>,
    ) -> Result<T> {
        wait_for(
            format!("{kind} {namespace}/{name} {what}"),
            deadline,
            || {
                Ok(self
                    .object(namespace, kind, name)?
                    .as_ref()
                    .and_then(&mut probe))
            },
        )
    }

    /// Waits until a Pod's condition `Ready` is true.
    pub fn wait_for_ready_pod(&self, namespace: &str, pod: &str, deadline: Duration) -> Result<()> {
        self.wait_for_object((namespace, "pod", pod), "to be ready", deadline, |pod| {
            condition(pod, "Ready")
                .filter(|ready| ready["status"] == "True")
                .map(drop)
        })
    }

    /// Runs a command in a container and returns its standard output.
    pub fn exec(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        command: &[&str],
    ) -> Result<String> {
        let mut arguments = vec![
            "exec",
            "--namespace",
            namespace,
            pod,
            "--container",
            container,
        ];
        arguments.push("--");
        arguments.extend(command);
        self.run(&arguments)
    }

    /// Returns the output of a container so far.
    pub fn logs(&self, namespace: &str, pod: &str, container: &str) -> Result<String> {
        self.run(&[
            "logs",
            "--namespace",
            namespace,
            pod,
            "--container",
            container,
        ])
    }

    /// The Events of a namespace, oldest first.
    pub fn events(&self, namespace: &str) -> Result<Vec<Value>> {
        let mut events = self.objects(namespace, "events", "")?;
        events.sort_by_key(|event| {
            event["metadata"]["creationTimestamp"]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        });
        Ok(events)
    }

    /// Runs helm with these arguments and returns its standard output.
    pub fn helm(&self, arguments: &[&str]) -> Result<String> {
        process::output(self.command("helm").args(arguments))
    }

    /// Creates a namespace and waits until Pods can be created in it.
    pub fn create_namespace(&self, namespace: &str) -> Result<()> {
        self.run(&["create", "namespace", namespace])?;
        // Until a controller has created it, every Pod is refused.
        let account = (namespace, "serviceaccount", "default");
        self.wait_for_object(account, "to be made", Duration::from_secs(60), |_| Some(()))
    }

    /// Returns kubectl or helm as a command, for calls that the other methods do not offer.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg(program)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("KUBECACHEDIR", self.cache.join("kubectl"))
            .env("HELM_CACHE_HOME", self.cache.join("helm/cache"))
            .env("HELM_CONFIG_HOME", self.cache.join("helm/config"))
            .env("HELM_DATA_HOME", self.cache.join("helm/data"));
        command
    }
}

/// Returns a condition from an object's status.
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"]
        .as_array()?
        .iter()
        .find(|condition| condition["type"] == kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_condition_is_found_by_its_type() {
        let object = json!({"status": {"conditions": [
            {"type": "Ready", "status": "False"}, {"type": "Injected", "status": "True"},
        ]}});
        assert_eq!(condition(&object, "Injected").unwrap()["status"], "True");
        assert_eq!(condition(&object, "Replicating"), None);
        assert_eq!(condition(&json!({}), "Ready"), None);
    }
}
