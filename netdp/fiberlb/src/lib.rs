//! FiberLB's layer 4: TCP and UDP to VIPs, forwarded by a program in the kernel (XDP).
//!
//! This crate owns the program's tables. [`program`] loads it, [`attach`] attaches it, [`desired`] says what the
//! tables should hold, [`apply`] brings them there in bounded parts, [`kernel`] writes and reads them.
//! [`maglev`] and [`ring`] decide which backend stands in which slot; how the program chooses a slot is
//! in `fiberlb-abi`, which both sides share.
//!
//! The program's object is a file that is found at run time ([`object`]): building this crate needs no
//! compiler for BPF. `cargo xtask bpf` builds it, and `cargo xtask test` gives it to the tests here,
//! which fail without it.
//!
//! Invariants:
//! - One owner feeds the tables; nothing here is shared between threads.
//! - A packet never meets a VIP whose ring or backends are not there (see [`apply`]).
//! - A flow that is in the table stays with its backend until the backend is down or gone.
//! - Nothing here runs longer than its budget, except taking over the tables at start.
//!
//! It resolves no neighbours, checks no health and opens no sockets.

pub mod apply;
pub mod attach;
pub mod desired;
mod error;
mod flows;
mod gate;
pub mod kernel;
pub mod maglev;
mod mapping;
pub mod object;
pub mod program;
pub mod ring;
pub mod tables;

pub use error::{Error, ErrorKind, Result, with_causes};
