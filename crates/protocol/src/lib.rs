//! The messages between the operator and the sidecar, as types.
//!
//! The operator writes a [`config::Config`] into a ConfigMap and a [`verify::VerifyRequest`] into a
//! restore test Job. The sidecar answers with a [`status::SidecarStatus`] over HTTP, and the Job
//! with a [`verify::VerifyReport`] in its termination message. Both ends use these types, so that
//! they cannot drift apart. There is no I/O here, and neither end links the other.

pub mod config;
pub mod duration;
pub mod exit;
pub mod names;
pub mod size;
pub mod status;
pub mod verify;

pub use duration::Span;
pub use size::Size;
