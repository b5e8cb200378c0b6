//! The S3 server has the features that the other stories need.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use xtask::process::output;

use crate::runner::Context;
use crate::s3::{Identity, Object, REGION};
use crate::wait::wait_for;

const DEADLINE: Duration = Duration::from_secs(120);

/// Pods reach the S3 server. It accepts known identities only. Tests can read its objects.
pub(super) fn s3_server_is_reachable_from_a_pod(context: &Context<'_>) -> Result<()> {
    let (s3, bucket) = (&context.s3, context.bucket());
    s3.create_bucket(bucket)?;
    s3.put(bucket, "folder/object", b"content")?;

    refuses_a_stranger_in_a_pod(context)?;

    let reader = Identity::new("e2e-reader", &[&format!("Read:{bucket}")]);
    s3.add_identity(&reader)?;
    let url = format!("{}/{bucket}/folder/object", s3.endpoint());
    wait_for("the reader to be let in", DEADLINE, || {
        Ok((fetch(&url, &reader)? == "content 200").then_some(()))
    })?;
    s3.remove_identity(&reader.user)?;
    wait_for("the reader to be shut out", DEADLINE, || {
        Ok(fetch(&url, &reader)?.ends_with(" 403").then_some(()))
    })?;

    s3.damage(bucket, "folder/object")?;
    let damaged = s3
        .get(bucket, "folder/object")?
        .context("the object has gone")?;
    ensure!(damaged.len() == 7 && damaged != b"content", "{damaged:?}");
    let object = Object {
        key: "folder/object".to_owned(),
        bytes: 7,
    };
    ensure!(
        s3.list(bucket, "")? == [object],
        "{:?}",
        s3.list(bucket, "")?
    );
    s3.delete(bucket, "folder/object")?;
    ensure!(
        s3.get(bucket, "folder/object")?.is_none(),
        "the object is still there"
    );
    Ok(())
}

fn refuses_a_stranger_in_a_pod(context: &Context<'_>) -> Result<()> {
    let url = format!(
        "{}/{}/folder/object",
        context.s3.endpoint(),
        context.bucket()
    );
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "stranger"},
        "spec": {
            "restartPolicy": "Never",
            "containers": [{
                "name": "wget",
                "image": context.busybox.name,
                "args": ["-c", format!("wget -O - {url} 2>&1")],
            }],
        },
    });
    let (kubectl, namespace) = (context.kubectl(), context.namespace.as_str());
    kubectl.apply(namespace, &pod.to_string())?;
    let pod = (namespace, "pod", "stranger");
    kubectl.wait_for_object(pod, "to end", DEADLINE, |pod| {
        matches!(
            pod["status"]["phase"].as_str(),
            Some("Succeeded" | "Failed")
        )
        .then_some(())
    })?;
    let log = kubectl.logs(namespace, "stranger", "wget")?;
    ensure!(log.contains("403 Forbidden"), "{log}");
    Ok(())
}

/// Answer to an S3 client: the body, a space and the status.
fn fetch(url: &str, identity: &Identity) -> Result<String> {
    output(
        Command::new("curl")
            .args([
                "--silent",
                "--max-time",
                "10",
                "--write-out",
                " %{http_code}",
            ])
            .args(["--aws-sigv4", &format!("aws:amz:{REGION}:s3")])
            .args([
                "--user",
                &format!("{}:{}", identity.access_key, identity.secret_key),
            ])
            .arg(url),
    )
}
