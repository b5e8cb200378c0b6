//! One module for each command.

pub(crate) mod bench;
mod child;
pub(crate) mod cluster;
pub(crate) mod codegen;
pub(crate) mod demo;
pub(crate) mod e2e;
pub(crate) mod images;
mod scratch;
mod server;
pub(crate) mod sim;
pub(crate) mod soak;
pub(crate) mod test;
pub(crate) mod tidy;
pub(crate) mod tools;
