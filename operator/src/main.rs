//! `sqlite-backup-operator`: starts the loops and servers of the library.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use logging::{Format, chain};
use operator::args::{Args, LogFormat, LogLevel};
use operator::certs::manage::CaBundles;
use operator::certs::{self, Certs};
use operator::event_writer::event_queue;
use operator::observe::Observer;
use operator::plan::Settings;
use operator::plan::webhook::Endpoint;
use operator::reconcile::{Reconciler, WebhookKeeper};
use operator::{apply, http, inject, lease, metrics, poll, webhook};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::level_filters::LevelFilter;
use tracing::{Instrument, Span};

/// Time limit of the shutdown after a signal.
const SHUTDOWN: Duration = Duration::from_secs(20);

/// Interval at which the certificate manager gets the bundles of the webhook configuration.
const BUNDLE_LOOK: Duration = Duration::from_secs(2);

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let args = Args::parse();
    start_log(&args);
    match start(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %chain(error.as_ref()), "the operator failed");
            ExitCode::FAILURE
        }
    }
}

async fn start(args: Args) -> anyhow::Result<()> {
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another TLS provider is installed"))?;
    let client = Client::try_default()
        .await
        .context("configure the Kubernetes client")?;
    run(args, client).await
}

/// Runs until SIGTERM or SIGINT. Then finishes open reviews and releases the lease.
async fn run(args: Args, client: Client) -> anyhow::Result<()> {
    let (stop, stopped) = watch::channel(false);
    let (lead, leader) = watch::channel(false);
    let (publish, published) = watch::channel(None);
    let webhook_listener = listen(args.webhook_address).await?;
    let http_listener = listen(args.http_address).await?;

    let observer = Observer::new(client.clone());
    // Watches end with the process; every other task ends after `stopped`.
    let watching = tokio::spawn(Arc::clone(&observer).run(client.clone()));
    let mut tasks = JoinSet::new();
    tasks.spawn(feed_bundles(
        Arc::clone(&observer),
        publish,
        stopped.clone(),
    ));
    let inputs = certs::manage::Inputs {
        leader: leader.clone(),
        published,
    };
    let certs = start_certs(&args, &client, inputs, &stopped, &mut tasks)?;

    let inject = inject_settings(&args);
    let reviews = webhook::metrics::Metrics::default();
    let figures = metrics::Figures::default();
    let mut registry = Registry::default();
    reviews.register(&mut registry);
    figures.register(&mut registry);
    let (events, event_writer) = event_queue(client.clone(), args.replica.clone());
    events.register(&mut registry);
    registry.register_collector(Box::new(metrics::Live {
        observer: Arc::clone(&observer),
        leader: leader.clone(),
        serving: certs.serving.clone(),
    }));

    let backups = Arc::clone(&observer);
    let reviewer = webhook::server::Webhook {
        backups: Arc::new(move |namespace| backups.backups_in(namespace)),
        settings: Arc::new(inject.clone()),
        metrics: reviews,
    };
    let (serving, limits) = (certs.serving.clone(), webhook::server::Limits::default());
    tasks.spawn(webhook::server::serve(
        webhook_listener,
        serving,
        reviewer,
        limits,
        stopped.clone(),
    ));
    tasks.spawn(serve_http(
        http_listener,
        http::State {
            observer: Arc::clone(&observer),
            certs: certs.clone(),
            registry: Arc::new(registry),
        },
        stopped.clone(),
    ));
    tasks.spawn(poll::run(
        Arc::clone(&observer),
        protocol::names::STATUS_PORT,
        leader.clone(),
        stopped.clone(),
    ));
    let applier = apply::Applier::new(client.clone(), Arc::clone(&observer), events);
    let applier = Arc::new(applier);
    tasks.spawn(event_writer.run(stopped.clone()));
    let settings = settings(&args, inject);
    let keeper = WebhookKeeper {
        observer: Arc::clone(&observer),
        applier: Arc::clone(&applier),
        endpoint: endpoint(&args),
        bundle: certs.bundle,
        leader: leader.clone(),
    };
    tasks.spawn(keeper.run(stopped.clone()));
    let reconciler = Reconciler {
        observer,
        applier,
        settings,
        figures,
        leader,
    };
    tasks.spawn(reconciler.run(stopped.clone()));
    let leases = Api::<Lease>::namespaced(client, &args.namespace);
    let span = object_span("Lease", &args.namespace, &args.lease);
    let election = lease::run(leases, args.lease, args.replica.clone(), lead, stopped);
    tasks.spawn(election.instrument(span));

    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        replica = args.replica,
        "started"
    );
    tokio::select! {
        signalled = wait_for_signal() => signalled?,
        // A task that ends earlier is a defect: exit, so that Kubernetes restarts the container.
        ended = tasks.join_next() => anyhow::bail!("a task of the operator ended: {ended:?}"),
    }
    tracing::info!("stopping");
    stop.send_replace(true);
    let ended = tokio::time::timeout(SHUTDOWN, async {
        while tasks.join_next().await.is_some() {}
    });
    if ended.await.is_err() {
        tracing::warn!("shutdown timed out; some tasks were aborted");
    }
    watching.abort();
    Ok(())
}

fn start_log(args: &Args) {
    let level = match args.log_level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let format = match args.log_format {
        LogFormat::Json => Format::Json,
        LogFormat::Text => Format::Text,
    };
    logging::init(logging::Settings {
        level,
        format,
        source: false,
    });
}

/// The span of every event about one object.
fn object_span(kind: &str, namespace: &str, object: &str) -> Span {
    tracing::info_span!("object", kind, namespace, object)
}

async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("listen on {address}"))
}

/// Starts the configured source of certificates.
fn start_certs(
    args: &Args,
    client: &Client,
    inputs: certs::manage::Inputs,
    stopped: &watch::Receiver<bool>,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<Certs> {
    if let Some(directory) = &args.tls_directory {
        let paths = certs::files::Paths::in_directory(directory);
        let (files, certs) = certs::files::Files::new(paths);
        tasks.spawn(files.run(stopped.clone()));
        return Ok(certs);
    }
    let secret = args
        .tls_secret
        .clone()
        .context("no source of certificates")?;
    let span = object_span("Secret", &args.namespace, &secret);
    let settings = certs::manage::Settings {
        secret,
        names: webhook_names(args)?,
        clock: Timestamp::now,
    };
    let secrets = Api::<Secret>::namespaced(client.clone(), &args.namespace);
    let (manager, certs) = certs::manage::Manager::new(secrets, settings, inputs);
    tasks.spawn(manager.run(stopped.clone()).instrument(span));
    Ok(certs)
}

/// The names under which API servers call the webhook.
fn webhook_names(args: &Args) -> anyhow::Result<Vec<String>> {
    let Some(url) = &args.webhook_url else {
        return Ok(vec![format!(
            "{}.{}.svc",
            args.webhook_service, args.namespace
        )]);
    };
    let uri: hyper::Uri = url.parse().context("--webhook-url")?;
    let host = uri.host().context("--webhook-url names no host")?;
    Ok(vec![host.trim_matches(['[', ']']).to_owned()])
}

fn inject_settings(args: &Args) -> inject::Settings {
    let mut settings = inject::Settings::new(&args.sidecar_image);
    settings.image_pull_policy = args.sidecar_image_pull_policy.as_str().to_owned();
    if let Some(limit) = &args.state_size_limit {
        settings.state_size_limit.clone_from(limit);
    }
    settings
}

fn settings(args: &Args, inject: inject::Settings) -> Settings {
    Settings {
        inject,
        tests_at_once: usize::from(args.max_running_restore_tests),
    }
}

fn endpoint(args: &Args) -> Endpoint {
    match &args.webhook_url {
        Some(url) => Endpoint::Url(url.clone()),
        None => Endpoint::Service {
            namespace: args.namespace.clone(),
            name: args.webhook_service.clone(),
            port: i32::from(args.webhook_service_port),
        },
    }
}

/// Gives the certificate manager the bundles that API servers trust.
async fn feed_bundles(
    observer: Arc<Observer>,
    publish: watch::Sender<CaBundles>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut ticks = tokio::time::interval(BUNDLE_LOOK);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = stopped.wait_for(|stop| *stop) => return,
        }
        let now = observer.published_bundles();
        publish.send_if_modified(|held| {
            let changed = *held != now;
            *held = now;
            changed
        });
    }
}

async fn serve_http(listener: TcpListener, state: http::State, mut stopped: watch::Receiver<bool>) {
    let shutdown = async move {
        // The sender lives as long as the process.
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    let served = axum::serve(listener, http::router(state))
        .with_graceful_shutdown(shutdown)
        .await;
    if let Err(error) = served {
        tracing::error!(error = %chain(&error), "health and metrics are not served any more");
    }
}

async fn wait_for_signal() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
