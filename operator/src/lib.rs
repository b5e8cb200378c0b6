//! The operator's library: everything but the process around it.
//!
//! [`observe`] watches the cluster and takes one consistent look, a [`cluster_state::ClusterState`]; [`plan`] decides
//! from it, without a client or a clock; [`apply`] writes. [`reconcile`] is the loop around them, run
//! by the replica that [`lease`] makes the leader. Every replica serves the [`webhook`], which lets
//! [`inject`] change Pods, with certificates from [`certs`].

pub mod answer;
pub mod apply;
pub mod args;
pub mod cache;
pub mod certs;
pub mod cluster_state;
pub mod event_writer;
pub mod http;
pub mod inject;
pub mod lease;
pub mod metrics;
pub mod observe;
pub mod plan;
pub mod poll;
pub mod poll_queue;
pub mod reconcile;
pub mod schedule;
pub mod webhook;
