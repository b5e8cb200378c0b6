//! The program behind `cargo xtask e2e` and `cargo xtask cluster`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use xtask::images::{self, Image, Published};
use xtask::tools::Tools;

use e2e::cluster::{Cluster, remove_clusters};
use e2e::machine::{Lifetime, Sweep};
use e2e::runner::{self, Environment, Plan};
use e2e::s3::S3Server;
use e2e::stories;
use e2e::{demo, operator};

/// The busybox image for an external cluster.
const PUBLISHED_BUSYBOX: &str = "docker.io/library/busybox:1.37";

/// End-to-end tests on a real cluster.
#[derive(Parser)]
#[command(bin_name = "cargo xtask e2e")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the stories.
    Run(Run),
    /// Run the main use case as a story.
    Demo(Run),
    /// Start a cluster that stays.
    Up,
    /// Remove every cluster of this checkout.
    Down,
}

#[derive(Args)]
struct Run {
    /// Run only stories whose names contain this.
    #[arg(default_value = "")]
    filter: String,
    /// List the stories and exit.
    #[arg(long)]
    list: bool,
    /// Number of stories at the same time.
    #[arg(long, default_value_t = 4)]
    jobs: usize,
    /// Leave the namespaces of failed stories in place.
    #[arg(long)]
    keep_failed: bool,
    /// Use this cluster instead of starting one. It must be able to pull the images.
    #[arg(long, requires_all = ["address", "image_operator", "image_sidecar", "image_app"])]
    kubeconfig: Option<PathBuf>,
    /// An address of this machine that Pods of that cluster reach.
    #[arg(long)]
    address: Option<String>,
    /// Use this image of the operator instead of building one.
    #[arg(long)]
    image_operator: Option<String>,
    /// Use this image of the sidecar instead of building one.
    #[arg(long)]
    image_sidecar: Option<String>,
    /// Use this image of the demo application instead of building one.
    #[arg(long)]
    image_app: Option<String>,
}

fn main() -> ExitCode {
    run(Cli::parse().command).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Run(run) => run.run(),
        Command::Demo(run) => run.demo(),
        Command::Up => up(),
        Command::Down => {
            println!("{} clusters removed", remove_clusters(Sweep::All)?);
            Ok(ExitCode::SUCCESS)
        }
    }
}

impl Run {
    fn run(&self) -> Result<ExitCode> {
        let mut stories = stories::all();
        let all = stories.len();
        stories.retain(|story| story.name.contains(&self.filter));
        if self.list {
            stories
                .iter()
                .for_each(|story| println!("{}: test", story.name));
            return Ok(ExitCode::SUCCESS);
        }
        let environment = self.environment()?;
        operator::install(&environment)?;
        let plan = Plan {
            jobs: self.jobs,
            keep_failed: self.keep_failed,
        };
        let passed = runner::run(&environment, &stories, all - stories.len(), plan);
        // The S3 server ends first, then the cluster. If its removal fails, the run fails.
        let Environment { cluster, s3, .. } = environment;
        drop(s3);
        cluster.stop()?;
        Ok(if passed {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    fn demo(&self) -> Result<ExitCode> {
        let environment = self.environment()?;
        let told = operator::install(&environment).and_then(|()| demo::tell(&environment));
        let Environment { cluster, s3, .. } = environment;
        drop(s3);
        cluster.stop()?;
        told.map(|()| ExitCode::SUCCESS)
    }

    fn environment(&self) -> Result<Environment> {
        let tools = Tools::new();
        let published = Published {
            operator: self.image_operator.clone(),
            sidecar: self.image_sidecar.clone(),
            app: self.image_app.clone(),
        };
        match &self.kubeconfig {
            None => start(tools, &published, Lifetime::WithCaller),
            Some(kubeconfig) => {
                let images = images::build(&published)?;
                let cluster = Cluster::external(&tools, kubeconfig, self.address.clone())?;
                let s3 = S3Server::start(&cluster, &tools, 0)?;
                let busybox = Image::published(PUBLISHED_BUSYBOX);
                Ok(Environment::new(cluster, s3, images, busybox, tools))
            }
        }
    }
}

/// Builds the images and starts a cluster with them.
fn start(tools: Tools, published: &Published, lifetime: Lifetime) -> Result<Environment> {
    tools.debian()?;
    let images = images::build(published)?;
    let busybox = images::build_busybox()?;
    let cluster = Cluster::start(&tools, lifetime)?;
    for image in [&images.operator, &images.sidecar, &images.app, &busybox] {
        cluster.load_image(image)?;
    }
    let s3 = S3Server::start(&cluster, &tools, 0)?;
    Ok(Environment::new(cluster, s3, images, busybox, tools))
}

fn up() -> Result<ExitCode> {
    let Environment {
        cluster,
        s3,
        images,
        tools,
        ..
    } = start(Tools::new(), &Published::default(), Lifetime::UntilRemoved)?;
    let kubeconfig = cluster.kubectl().kubeconfig().display().to_string();
    println!("export KUBECONFIG={kubeconfig}");
    println!("alias kubectl='{} kubectl'", tools.cluster()?.display());
    println!("alias helm='{} helm'", tools.cluster()?.display());
    println!("# S3: {} with access key and secret key", s3.endpoint());
    println!("#     {} {}", s3.admin().access_key, s3.admin().secret_key);
    for image in [&images.operator, &images.sidecar, &images.app] {
        println!("# image {}", image.name);
    }
    println!("# `cargo xtask cluster down` removes it");
    Ok(ExitCode::SUCCESS)
}
