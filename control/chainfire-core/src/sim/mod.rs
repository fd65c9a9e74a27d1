//! The simulated world that the tests run in: disks, network, clusters, clients, and what is
//! checked of them. One thread, virtual time, one seed that decides everything.

mod check;
mod client;
mod cluster;
mod conformance;
pub(crate) mod disk;
mod machine;
mod network;
mod production;
mod runtime;
mod scenario;
mod stories;
mod tests;
