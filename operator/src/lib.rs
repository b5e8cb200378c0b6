//! The operator's library, without the process around it.
//!
//! [`observe`] watches the cluster and returns a consistent [`cluster_state::ClusterState`].
//! [`plan`] decides from it, without a client or a clock, and [`apply`] writes. [`reconcile`] is
//! the loop around them; only the leader, elected by [`lease`], runs it. Every replica serves the
//! [`webhook`], where [`inject`] patches Pods, with certificates from [`certs`].

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
