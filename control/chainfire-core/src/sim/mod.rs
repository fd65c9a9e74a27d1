//! The simulated world that the tests run in: disks, network, clusters, what goes wrong there, and what
//! is checked of it. One thread, virtual time, one seed that decides everything.
//!
//! The feature `sim` lends it to crates whose own state machines and services are to run in it.

pub mod check;
pub mod cluster;
pub mod disk;
pub mod network;
pub mod runtime;
pub mod seeds;
pub mod trouble;

#[cfg(test)]
mod broken;
#[cfg(test)]
mod client;
#[cfg(test)]
mod conformance;
#[cfg(test)]
mod machine;
#[cfg(test)]
mod production;
#[cfg(test)]
mod scenario;
#[cfg(test)]
mod stories;
#[cfg(test)]
mod tests;
