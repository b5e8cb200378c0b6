//! Runs stories concurrently, each in its own namespace, and reports as `cargo test` does.

use std::any::Any;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Result, anyhow};
use serde_json::Value;
use xtask::images::{Image, Images};
use xtask::tools::Tools;

use crate::cluster::Cluster;
use crate::kubectl::Kubectl;
use crate::s3::S3Server;

/// Number of log lines of each container that a failure shows.
const LOG_LINES: &str = "--tail=80";

/// Environment that all stories share.
#[derive(Debug)]
pub struct Environment {
    /// The cluster.
    pub cluster: Cluster,
    /// The S3 server that no story stops.
    pub s3: S3Server,
    /// Operator, sidecar and demo application, which are loaded into the cluster.
    pub images: Images,
    /// A shell with the usual small programs, which is also loaded into the cluster.
    pub busybox: Image,
    /// Programs outside the cluster, such as the peer.
    pub tools: Tools,
    servers: AtomicU16,
}

impl Environment {
    /// Creates an environment from its running parts.
    pub fn new(
        cluster: Cluster,
        s3: S3Server,
        images: Images,
        busybox: Image,
        tools: Tools,
    ) -> Environment {
        // Number 0 is the shared server.
        Environment {
            cluster,
            s3,
            images,
            busybox,
            tools,
            servers: AtomicU16::new(1),
        }
    }

    /// Starts an S3 server for one story, which may stop and freeze it.
    pub fn start_s3(&self) -> Result<S3Server> {
        S3Server::start(
            &self.cluster,
            &self.tools,
            self.servers.fetch_add(1, Ordering::Relaxed),
        )
    }
}

/// Context of one story. It dereferences to the shared environment.
#[derive(Debug)]
pub struct Context<'a> {
    /// A namespace for this story alone.
    pub namespace: String,
    environment: &'a Environment,
}

impl Context<'_> {
    /// kubectl and helm.
    pub fn kubectl(&self) -> &Kubectl {
        self.environment.cluster.kubectl()
    }

    /// Environment that all stories share.
    pub fn environment(&self) -> &Environment {
        self.environment
    }

    /// Returns a name for a bucket that no other story uses.
    pub fn bucket(&self) -> &str {
        &self.namespace
    }
}

impl std::ops::Deref for Context<'_> {
    type Target = Environment;

    fn deref(&self) -> &Environment {
        self.environment
    }
}

/// A story and its name.
#[derive(Debug, Clone, Copy)]
pub struct Story {
    /// The name of its function.
    pub name: &'static str,
    /// The function.
    pub run: fn(&Context<'_>) -> Result<()>,
    /// Whether it stops parts that other stories need, such as the operator. It then runs after
    /// them, alone.
    pub alone: bool,
}

/// Options of a run.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Number of stories at the same time.
    pub jobs: usize,
    /// Whether the namespaces of failed stories are kept for inspection.
    pub keep_failed: bool,
}

/// Runs stories and prints one line for each, then the failures, then the totals. `filtered_out` is
/// the number of stories that were left out. Returns whether all passed.
pub fn run(environment: &Environment, stories: &[Story], filtered_out: usize, plan: Plan) -> bool {
    let start = Instant::now();
    println!("\nrunning {} tests", stories.len());
    let (alone, beside): (Vec<Story>, Vec<Story>) = stories.iter().partition(|story| story.alone);
    let mut failures = run_beside(environment, &beside, plan);
    failures.extend(run_beside(environment, &alone, Plan { jobs: 1, ..plan }));
    print_failures(&failures);
    println!(
        "\ntest result: {}. {} passed; {} failed; 0 ignored; 0 measured; {filtered_out} filtered \
         out; finished in {:.2}s\n",
        if failures.is_empty() { "ok" } else { "FAILED" },
        stories.len() - failures.len(),
        failures.len(),
        start.elapsed().as_secs_f64(),
    );
    failures.is_empty()
}

/// Runs stories, several at a time, and returns the reports of failed ones.
fn run_beside(
    environment: &Environment,
    stories: &[Story],
    plan: Plan,
) -> Vec<(&'static str, String)> {
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..plan.jobs.clamp(1, stories.len().max(1)) {
            scope.spawn(|| {
                while let Some(story) = stories.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(report) = run_one(environment, story, plan.keep_failed) {
                        let mut failures = failures.lock().expect("no thread panics in here");
                        failures.push((story.name, report));
                    }
                }
            });
        }
    });
    failures.into_inner().expect("no thread panics in there")
}

fn print_failures(failures: &[(&str, String)]) {
    if failures.is_empty() {
        return;
    }
    println!("\nfailures:");
    for (name, report) in failures {
        println!("\n---- {name} ----\n{report}");
    }
    println!("\nfailures:");
    for (name, _) in failures {
        println!("    {name}");
    }
}

/// Creates a namespace and a context for a use other than a story, such as the demo.
pub fn context<'a>(environment: &'a Environment, name: &str) -> Result<Context<'a>> {
    let context = Context {
        namespace: namespace(name),
        environment,
    };
    context.kubectl().create_namespace(&context.namespace)?;
    Ok(context)
}

/// Runs one story and prints its line. The error is the report of its failure.
fn run_one(environment: &Environment, story: &Story, keep_failed: bool) -> Result<(), String> {
    let start = Instant::now();
    let context = Context {
        namespace: namespace(story.name),
        environment,
    };
    let told = context
        .kubectl()
        .create_namespace(&context.namespace)
        .and_then(|()| {
            catch_unwind(AssertUnwindSafe(|| (story.run)(&context)))
                .unwrap_or_else(|panic| Err(anyhow!("panicked: {}", panic_message(&*panic))))
        });
    let report = told.map_err(|error| {
        format!(
            "{error:#}\n\n{}",
            diagnostics(context.kubectl(), &context.namespace)
        )
    });
    let verdict = if report.is_ok() { "ok" } else { "FAILED" };
    println!(
        "test {} ... {verdict} <{:.1}s>",
        story.name,
        start.elapsed().as_secs_f64()
    );
    if (report.is_ok() || !keep_failed)
        && let Err(error) = context
            .kubectl()
            .delete("", "namespace", &context.namespace)
    {
        eprintln!("delete namespace {}: {error:#}", context.namespace);
    }
    report
}

/// The story's name as a namespace: at most 63 letters, digits and dashes.
fn namespace(story: &str) -> String {
    let dashed: String = story
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    dashed
        .to_lowercase()
        .chars()
        .take(63)
        .collect::<String>()
        .trim_matches('-')
        .to_owned()
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// Returns diagnostics of a failed story. Collecting them never fails: an unreadable part is
/// reported.
fn diagnostics(kubectl: &Kubectl, namespace: &str) -> String {
    let mut report = String::new();
    let mut section = |title: &str, text: Result<String>| {
        let text = text.unwrap_or_else(|error| format!("{error:#}"));
        writeln!(report, "== {title}\n{}", text.trim_end()).expect("a string takes any text");
    };
    let all = [
        "get",
        "all,sqlitebackups,restoretests,sqliterestores",
        "--output=wide",
    ];
    let all = kubectl.run(&[&all[..], &["--namespace", namespace]].concat());
    // Without our resource types, list only the others.
    let all = all.or_else(|_| kubectl.run(&["get", "all", "--output=wide", "-n", namespace]));
    section("objects", all);
    section(
        "Pods",
        kubectl.run(&["describe", "pods", "--namespace", namespace]),
    );
    section(
        "events",
        kubectl.events(namespace).map(|events| event_lines(&events)),
    );
    for pod in kubectl.objects(namespace, "pod", "").unwrap_or_default() {
        for container in containers(&pod) {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            let arguments = [
                "logs",
                "--namespace",
                namespace,
                name,
                "-c",
                container,
                LOG_LINES,
            ];
            section(
                &format!("log of {name}, container {container}"),
                kubectl.run(&arguments),
            );
        }
    }
    let operator = [
        "--selector=app.kubernetes.io/name=sqlite-backup-operator",
        "--prefix",
    ];
    let operator = [&["logs", "--all-namespaces", LOG_LINES][..], &operator].concat();
    section("log of the operator", kubectl.run(&operator));
    report
}

fn event_lines(events: &[Value]) -> String {
    let line = |event: &Value| {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let object = &event["involvedObject"];
        let words = [
            &event["metadata"]["creationTimestamp"],
            &event["type"],
            &object["kind"],
            &object["name"],
            &event["reason"],
            &event["message"],
        ];
        words.map(text).join(" ")
    };
    events.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// The names of a Pod's containers, init containers first.
fn containers(pod: &Value) -> Vec<&str> {
    ["initContainers", "containers"]
        .iter()
        .filter_map(|kind| pod["spec"][kind].as_array())
        .flatten()
        .filter_map(|container| container["name"].as_str())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_long_name_becomes_a_valid_namespace() {
        assert_eq!(namespace("a_pod_runs"), "a-pod-runs");
        let long = namespace(&"word_".repeat(20));
        assert!(long.len() <= 63 && !long.ends_with('-'), "{long}");
    }

    #[test]
    fn a_panic_with_a_formatted_message_is_told() {
        let panic = catch_unwind(|| assert_eq!(1, 2, "sums")).unwrap_err();
        assert!(panic_message(&*panic).contains("sums"));
    }

    #[test]
    fn logs_of_sidecars_are_looked_at_too() {
        let pod = json!({"spec": {
            "initContainers": [{"name": "sidecar"}],
            "containers": [{"name": "app"}],
        }});
        assert_eq!(containers(&pod), ["sidecar", "app"]);
    }
}
