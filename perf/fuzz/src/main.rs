//! Fuzz targets under libFuzzer: one program, whose target `UC_FUZZ_TARGET` names. `cargo xtask fuzz`
//! builds and runs it.
//!
//! Laws of every target: no input panics, hangs, or makes a decoder allocate more than a small
//! multiple of it; what decodes is encoded to something that decodes to the same again. Formats with
//! checksums are tried as they come and with the checksums put right, else nothing would get past
//! them. Decoders that are private to their crate are called by that crate's `fuzzing` module.

#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
mod bbolt;
#[cfg(fuzzing)]
mod body;
#[cfg(fuzzing)]
mod chainfire;
#[cfg(fuzzing)]
mod request;
#[cfg(fuzzing)]
mod xml;

/// Every target by name; `cargo xtask fuzz` and the directories of seeds use the same names.
#[cfg(fuzzing)]
const TARGETS: &[(&str, fn(&[u8]))] = &[
    ("http-head", request::head),
    ("sigv4-header", request::signed_header),
    ("sigv4-query", request::signed_query),
    ("aws-chunked", body::chunked),
    ("xml-delete", xml::delete),
    ("xml-complete", xml::complete),
    ("log-batch", segment_log::fuzzing::batch),
    ("store-record", lightningstor::store::fuzzing::record),
    (
        "store-checkpoint",
        lightningstor::store::fuzzing::checkpoint,
    ),
    ("run-block", lightningstor::store::fuzzing::run_block),
    ("run-frame", lightningstor::store::fuzzing::run_frame),
    ("volume-record", coronafs::fuzzing::record),
    ("volume-unflushed", coronafs::fuzzing::unflushed),
    ("volume-checkpoint", coronafs::fuzzing::checkpoint),
    ("volume-checksums", coronafs::fuzzing::checksums),
    ("bbolt-file", bbolt::file),
    ("chainfire-log", chainfire_core::fuzzing::log),
    ("chainfire-rpc", chainfire_core::fuzzing::rpc),
    ("chainfire-command", chainfire_store::fuzzing::commands),
    ("chainfire-snapshot", chainfire_store::fuzzing::snapshot),
    ("chainfire-backup", chainfire::backup),
    ("etcd-json", chainfire::json),
    ("nbd-options", nbd_export::fuzzing::options),
    ("nbd-connection", nbd_export::fuzzing::connection),
    ("nbd-answers", nbd_export::fuzzing::answers),
    ("nbd-remote", nbd_export::fuzzing::remote),
    ("vhost-ring", vhost_blk::fuzzing::ring),
    ("vhost-marks", vhost_blk::fuzzing::marks),
    ("vhost-messages", vhost_blk::fuzzing::messages),
];

#[cfg(fuzzing)]
fn chosen() -> fn(&[u8]) {
    let name = std::env::var("UC_FUZZ_TARGET").unwrap_or_default();
    let found = TARGETS.iter().find(|(known, _)| *known == name);
    let known = || TARGETS.iter().map(|(known, _)| *known).collect::<Vec<_>>();
    found
        .unwrap_or_else(|| panic!("UC_FUZZ_TARGET is none of {:?}", known()))
        .1
}

#[cfg(fuzzing)]
static CHOSEN: std::sync::LazyLock<fn(&[u8])> = std::sync::LazyLock::new(chosen);

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| CHOSEN(data));

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    eprintln!("fuzz targets run by `cargo xtask fuzz`");
    std::process::ExitCode::FAILURE
}
