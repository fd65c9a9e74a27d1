//! The simulated world that the tests run in: disks, network, cluster, clients.

pub(crate) mod disk;
