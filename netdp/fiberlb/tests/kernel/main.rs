//! The program in the kernel. These tests run as root, with the object that `cargo xtask bpf` builds;
//! `cargo xtask test` names it. Without either they fail.
//!
//! Most are tables of packets, in and out by `BPF_PROG_TEST_RUN`; [`network`] has real interfaces.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod direct;
mod dnat;
mod flood;
mod flows;
mod frame;
mod gate;
mod icmp;
mod lab;
mod net;
mod network;
mod policy;
mod table;
mod tc;
mod too_big;
