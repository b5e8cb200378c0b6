//! End-to-end tests: a real Kubernetes, a real S3 server, real images, no substitutes.
//!
//! `cargo xtask e2e` runs all stories of [`stories`]; `cargo xtask e2e NAME` those whose names
//! contain NAME. `cargo xtask cluster up` starts the same cluster for a developer's experiments.
//!
//! # Writing a story
//!
//! A story is a function in a file of `src/stories`, named as a sentence. It gets its own
//! [`Context`]: a namespace that is empty at its start and removed at its end, and the cluster, S3
//! server and images that all stories share. It fails by an error or by a panic; then Pods, Events
//! and logs of its namespace are printed. Stories run concurrently, so one that stops or freezes a
//! server starts its own ([`S3Server::start`]). Add it to the list in [`stories::all`].
//!
//! ```no_run
//! use std::time::Duration;
//! use e2e::runner::Context;
//!
//! pub fn a_pod_becomes_ready(context: &Context<'_>) -> anyhow::Result<()> {
//!     let manifest = format!(
//!         "{{apiVersion: v1, kind: Pod, metadata: {{name: app}}, spec: {{containers: [{{\
//!          name: app, image: {}, args: [write, /tmp/app.db]}}]}}}}",
//!         context.images.app.name
//!     );
//!     context.kubectl().apply(&context.namespace, &manifest)?;
//!     context.kubectl().wait_for_ready_pod(&context.namespace, "app", Duration::from_secs(60))
//! }
//! ```
//!
//! Stories wait for later effects with [`wait::wait_for`] or one of the `wait_for_*` methods of
//! [`Kubectl`]. These poll every 200 ms, up to a deadline that is ten times the usual time.

pub mod cluster;
mod config;
pub mod daemon;
pub mod demo;
pub mod kubectl;
pub mod machine;
mod network;
pub mod operator;
mod record;
pub mod runner;
pub mod s3;
pub mod shop;
pub mod stories;
pub mod wait;

pub use cluster::Cluster;
pub use kubectl::Kubectl;
pub use runner::Context;
pub use s3::S3Server;
