//! LightningStor: an S3 object store on pinned shards.
//!
//! [`store`] keeps objects: one partition is one log, one data file and one ordered index, owned by
//! one shard. [`http`] speaks S3 to clients, [`node`] puts both on the shards of an engine.
//!
//! It reaches disk, network and clock through [`engine`] alone, so that all of it runs under the
//! simulator.

#![forbid(unsafe_code)]

pub mod http;
mod md5_lanes;
pub mod node;
pub mod store;
