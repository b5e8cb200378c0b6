//! The quickstart of the documentation in one namespace of a test: a Secret, a SqliteBackup and an
//! application that knows nothing about backups.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use xtask::workspace;

use crate::kubectl::{Kubectl, condition};
use crate::runner::Context;
use crate::s3::{Identity, S3Server};
use crate::wait::wait_for;

/// Name of the SqliteBackup, of the StatefulSet, and of most related objects.
pub const NAME: &str = "orders";
/// The application's Pod.
pub const POD: &str = "orders-0";
/// Path of its replica below the bucket.
pub const DATABASE: &str = "/data/app.db";

const DEADLINE: Duration = Duration::from_secs(180);

/// Report of the application about its database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Number of the newest row.
    pub newest: u64,
    /// Time at which it was written, in Unix milliseconds.
    pub written_at_ms: i64,
}

/// The quickstart, applied.
pub struct Shop<'a> {
    context: &'a Context<'a>,
    s3: &'a S3Server,
    /// Identity that may read and write the bucket.
    pub identity: Identity,
}

impl<'a> Shop<'a> {
    /// Creates the bucket and an identity for it, and applies examples/quickstart.yaml.
    pub fn open(context: &'a Context<'a>) -> Result<Shop<'a>> {
        Shop::open_with(context, &context.environment().s3, |_| {})
    }

    /// The same with a server of the caller, and with changes to the objects.
    pub fn open_with(
        context: &'a Context<'a>,
        s3: &'a S3Server,
        change: impl Fn(&mut Value),
    ) -> Result<Shop<'a>> {
        s3.create_bucket(context.bucket())?;
        let shop = Shop {
            context,
            s3,
            identity: identity(context, "first"),
        };
        s3.add_identity(&shop.identity)?;
        shop.apply(change)?;
        Ok(shop)
    }

    /// Applies the quickstart for this namespace, with changes.
    pub fn apply(&self, change: impl Fn(&mut Value)) -> Result<()> {
        for mut object in self.manifests()? {
            change(&mut object);
            self.kubectl()
                .apply(self.namespace(), &object.to_string())?;
        }
        Ok(())
    }

    /// Returns the objects of the quickstart with this test's bucket, endpoint, keys and image.
    pub fn manifests(&self) -> Result<Vec<Value>> {
        let text = std::fs::read_to_string(workspace::root().join("examples/quickstart.yaml"))?;
        let text = text
            .replace("\"ACCESS_KEY_ID\"", &self.identity.access_key)
            .replace("\"SECRET_ACCESS_KEY\"", &self.identity.secret_key)
            .replace("http://s3.example.com:8333", &self.s3.endpoint())
            .replace("orders-backups", self.context.bucket())
            .replace(
                "image: demo-app",
                &format!("image: {}", self.context.images.app.name),
            );
        let printed = self.kubectl().run_with_input(
            &[
                "create",
                "--dry-run=client",
                "--validate=false",
                "--namespace",
                self.namespace(),
                "--output=json",
                "--filename=-",
            ],
            &text,
        )?;
        let objects: Vec<Value> = serde_json::Deserializer::from_str(&printed)
            .into_iter::<Value>()
            .collect::<Result<_, _>>()?;
        ensure!(
            objects.len() == 3,
            "the quickstart has {} objects",
            objects.len()
        );
        Ok(objects)
    }

    /// kubectl for the cluster.
    pub fn kubectl(&self) -> &'a Kubectl {
        self.context.kubectl()
    }

    /// The namespace.
    pub fn namespace(&self) -> &'a str {
        &self.context.namespace
    }

    /// The server with the backups.
    pub fn s3(&self) -> &'a S3Server {
        self.s3
    }

    /// The keys of the objects of the application's replica, by key.
    pub fn objects(&self) -> Result<Vec<String>> {
        let objects = self.s3.list(self.context.bucket(), "")?;
        Ok(objects.into_iter().map(|object| object.key).collect())
    }

    /// URL of the replica, for command lines.
    pub fn replica_url(&self) -> String {
        let prefix = format!("{}/{NAME}/{POD}/data/app.db", self.namespace());
        format!(
            "s3://{}/{prefix}?endpoint={}",
            self.context.bucket(),
            self.s3.endpoint()
        )
    }

    /// Report of the application about its database.
    pub fn stats(&self) -> Result<Stats> {
        self.stats_of("app", DATABASE)
    }

    /// The same of another container and its database.
    pub fn stats_of(&self, container: &str, database: &str) -> Result<Stats> {
        let stats = self.stats_of_all(container, &[database.to_owned()])?;
        stats.first().copied().context("no statistics")
    }

    /// The same of several databases, in their order.
    pub fn stats_of_all(&self, container: &str, databases: &[String]) -> Result<Vec<Stats>> {
        let databases = databases.iter().map(String::as_str);
        let command: Vec<&str> = ["/demo-app", "stats"]
            .into_iter()
            .chain(databases)
            .collect();
        let text = (self.kubectl()).exec(self.namespace(), POD, container, &command)?;
        text.lines().map(Self::healthy).collect()
    }

    /// The statistics in a line of JSON, of a whole database without holes.
    fn healthy(line: &str) -> Result<Stats> {
        let stats: Value = serde_json::from_str(line)?;
        ensure!(
            stats["contiguous"] == true,
            "a row is missing in the middle: {stats}"
        );
        ensure!(
            stats["integrity"] == "ok",
            "the database is damaged: {stats}"
        );
        Ok(Stats {
            newest: stats["max_id"].as_u64().context("max_id")?,
            written_at_ms: stats["max_written_at_ms"]
                .as_i64()
                .context("max_written_at_ms")?,
        })
    }

    /// Waits until the application has written rows beyond this one.
    pub fn wait_for_rows_beyond(&self, row: u64) -> Result<Stats> {
        wait_for(format!("rows beyond {row}"), DEADLINE, || {
            Ok(Some(self.stats()?).filter(|stats| stats.newest > row))
        })
    }

    /// Waits until the Pod runs with everything ready.
    pub fn wait_until_running(&self) -> Result<()> {
        self.kubectl()
            .wait_for_ready_pod(self.namespace(), POD, DEADLINE)
    }

    /// Waits until a condition of the SqliteBackup has this status, and returns its reason.
    pub fn wait_for_condition(&self, kind: &str, status: &str) -> Result<Value> {
        let backup = (self.namespace(), "sqlitebackup", NAME);
        let what = format!("to have {kind}={status}");
        self.kubectl()
            .wait_for_object(backup, &what, DEADLINE, |backup| {
                condition(backup, kind)
                    .filter(|found| found["status"] == status)
                    .cloned()
            })
    }

    /// Waits until the SqliteBackup reports that everything is backed up.
    pub fn wait_until_replicating(&self) -> Result<()> {
        self.wait_until_running()?;
        self.wait_for_condition("Ready", "True")?;
        self.wait_for_condition("Injected", "True")?;
        self.wait_for_condition("Replicating", "True")?;
        Ok(())
    }

    /// Returns the row that `kubectl get sqlitebackups` prints, with its header.
    pub fn row(&self) -> Result<String> {
        self.kubectl()
            .run(&["get", "sqlitebackups", "--namespace", self.namespace()])
    }

    /// Creates a RestoreTest and returns it when it has ended.
    pub fn run_restore_test(&self, name: &str) -> Result<Value> {
        let test = json!({
            "apiVersion": "sqlite-backup.dev/v1alpha1",
            "kind": "RestoreTest",
            "metadata": {"name": name},
            "spec": {"backupRef": {"name": NAME}, "at": {"latest": true}},
        });
        self.kubectl().apply(self.namespace(), &test.to_string())?;
        let test = (self.namespace(), "restoretest", name);
        self.kubectl()
            .wait_for_object(test, "to end", DEADLINE, |test| {
                let phase = test["status"]["phase"].as_str()?;
                (!matches!(phase, "Pending" | "Running")).then(|| test.clone())
            })
    }

    /// Number of restarts of each container of the Pod, init containers included.
    pub fn restarts(&self) -> Result<u64> {
        let pod = self.pod()?;
        let count = |kind: &str| -> u64 {
            let statuses = pod["status"][kind].as_array().into_iter().flatten();
            statuses
                .filter_map(|status| status["restartCount"].as_u64())
                .sum()
        };
        Ok(count("containerStatuses") + count("initContainerStatuses"))
    }

    /// The application's Pod.
    pub fn pod(&self) -> Result<Value> {
        let pod = self.kubectl().object(self.namespace(), "pod", POD)?;
        pod.context("the application has no Pod")
    }

    /// Deletes the Pod, and waits until its replacement runs.
    pub fn replace_pod(&self, options: &[&str]) -> Result<()> {
        let old = self.pod()?["metadata"]["uid"].clone();
        let delete = [
            "delete",
            "pod",
            POD,
            "--namespace",
            self.namespace(),
            "--wait=false",
        ];
        self.kubectl().run(&[&delete, options].concat())?;
        let pod = (self.namespace(), "pod", POD);
        self.kubectl()
            .wait_for_object(pod, "to be another", DEADLINE, |pod| {
                (pod["metadata"]["uid"] != old).then_some(())
            })?;
        self.wait_until_running()
    }

    /// Returns the newest row that the running application found at its start, from its first line.
    pub fn rows_at_start(&self) -> Result<u64> {
        self.rows_at_start_of("app")
    }

    /// The same of another container.
    pub fn rows_at_start_of(&self, container: &str) -> Result<u64> {
        let log = wait_for("the application's first line", DEADLINE, || {
            let log = self.kubectl().logs(self.namespace(), POD, container)?;
            Ok(Some(log).filter(|log| log.contains('\n')))
        })?;
        let first = log.lines().next().unwrap_or_default();
        let row = first.rsplit(' ').next().unwrap_or_default();
        row.parse()
            .with_context(|| format!("the application's first line is {first:?}"))
    }

    /// The fingerprint of the keys that the sidecar uses.
    pub fn fingerprint(&self) -> Result<String> {
        let status = self.sidecar_status()?;
        let fingerprint = status.pointer("/databases/0/targets/0/credentials/fingerprint");
        fingerprint
            .and_then(Value::as_str)
            .map(str::to_owned)
            .context("no fingerprint")
    }

    /// Waits until the sidecar uses other keys. The kubelet takes up to 90 s to deliver them.
    pub fn wait_for_other_fingerprint(&self, old: &str) -> Result<()> {
        wait_for("the sidecar to use the new keys", 2 * DEADLINE, || {
            Ok((self.fingerprint()? != old).then_some(()))
        })
    }

    /// Follows the rows that the application prints.
    pub fn follow(&self) -> Result<Follower> {
        Follower::start(self.kubectl(), self.namespace())
    }

    /// Replaces the keys in the Secret.
    pub fn change_credentials(&self, identity: &Identity) -> Result<()> {
        let patch = json!({"stringData": {
            "AWS_ACCESS_KEY_ID": identity.access_key,
            "AWS_SECRET_ACCESS_KEY": identity.secret_key,
        }});
        self.kubectl().run(&[
            "patch",
            "secret",
            "orders-s3",
            "--namespace",
            self.namespace(),
            "--patch",
            &patch.to_string(),
        ])?;
        Ok(())
    }

    /// Waits until the status shows that the store has a row written at this time or later.
    pub fn wait_for_sync_after(&self, ms: i64) -> Result<()> {
        wait_for("the store to have newer rows", DEADLINE, || {
            let status = self.sidecar_status()?;
            let time = status.pointer("/databases/0/targets/0/position/time");
            let time = time.and_then(Value::as_str).context("no position yet")?;
            Ok((parse_ms(time)? >= ms).then_some(()))
        })
    }

    /// Answer of the sidecar to `sqlite-backup status`.
    pub fn sidecar_status(&self) -> Result<Value> {
        let text = self.kubectl().exec(
            self.namespace(),
            POD,
            "sqlite-backup",
            &["/sqlite-backup", "status", "--json"],
        )?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Waits for an Event with this reason, and returns its message.
    pub fn wait_for_event(&self, reason: &str) -> Result<String> {
        wait_for(format!("an Event {reason}"), DEADLINE, || {
            let events = self.kubectl().events(self.namespace())?;
            let event = events.iter().find(|event| event["reason"] == reason);
            Ok(event
                .and_then(|event| event["message"].as_str())
                .map(str::to_owned))
        })
    }
}

/// Returns an identity that may use this test's bucket and nothing else.
pub fn identity(context: &Context<'_>, name: &str) -> Identity {
    let bucket = context.bucket();
    let actions = ["Read", "Write", "List"].map(|action| format!("{action}:{bucket}"));
    let actions: Vec<&str> = actions.iter().map(String::as_str).collect();
    Identity::new(&format!("{bucket}-{name}"), &actions)
}

/// Parses a time in the sidecar's format into milliseconds since 1970.
fn parse_ms(time: &str) -> Result<i64> {
    let time: jiff::Timestamp = time.parse().with_context(|| format!("the time {time:?}"))?;
    Ok(time.as_millisecond())
}

/// The rows that the application has committed, read from its log while it runs.
pub struct Follower {
    child: Child,
    newest: Arc<Mutex<Option<Stats>>>,
}

impl Follower {
    fn start(kubectl: &Kubectl, namespace: &str) -> Result<Follower> {
        let arguments = [
            "logs",
            "--follow",
            "--tail=1",
            "--namespace",
            namespace,
            POD,
            "--container",
            "app",
        ];
        let mut child = kubectl
            .command("kubectl")
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("follow the application's log")?;
        let newest = Arc::new(Mutex::new(None));
        let lines = BufReader::new(child.stdout.take().expect("standard output is a pipe")).lines();
        let shared = Arc::clone(&newest);
        std::thread::spawn(move || {
            for stats in lines
                .map_while(Result::ok)
                .filter_map(|line| parse_row(&line))
            {
                *shared.lock().unwrap_or_else(PoisonError::into_inner) = Some(stats);
            }
        });
        let follower = Follower { child, newest };
        wait_for("the application to print rows", DEADLINE, || {
            Ok(follower.newest())
        })?;
        Ok(follower)
    }

    fn newest(&self) -> Option<Stats> {
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the log has ended, and returns the newest row in it.
    pub fn end(mut self) -> Result<Stats> {
        wait_for("the application's log to end", DEADLINE, || {
            Ok(self.child.try_wait()?)
        })?;
        match self.newest() {
            Some(stats) => Ok(stats),
            None => bail!("the application printed no row"),
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // A process that has ended cannot be killed, and need not be.
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn parse_row(line: &str) -> Option<Stats> {
    let mut words = line.strip_prefix("row ")?.split(' ');
    let newest = words.next()?.parse().ok()?;
    let written_at_ms = words.next()?.parse().ok()?;
    Some(Stats {
        newest,
        written_at_ms,
    })
}
