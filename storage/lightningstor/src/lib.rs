//! LightningStor: an S3 object store on pinned shards.
//!
//! [`store`] keeps objects: one partition is one log, one data file and one ordered index, owned by
//! one shard. [`http`] speaks S3 to clients, [`buckets`] lets the control layer administer what they
//! use, [`access`] says who may do what, [`node`] puts all on the shards of an engine.
//!
//! It reaches disk, network and clock through [`engine`] alone, so that all of it runs under the
//! simulator. The fuzz targets are about what [`store`] reads from disk, and are built without the rest.

#![forbid(unsafe_code)]

#[cfg(not(fuzzing))]
pub mod access;
#[cfg(not(fuzzing))]
pub mod buckets;
#[cfg(not(fuzzing))]
pub mod http;
#[cfg(not(fuzzing))]
mod md5_lanes;
#[cfg(not(fuzzing))]
pub mod node;
pub mod store;
