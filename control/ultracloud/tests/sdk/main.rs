//! LightningStor under the S3 clients of Rust's ecosystem: Amazon's SDK and `object_store`, which
//! databases and query engines build on. Contracts LS-1, BY-9.
//!
//! Each test starts a node of its own and speaks to it with the client's defaults wherever they allow
//! plain HTTP: checksums in trailers, retries, typed errors.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod aws;
mod digests;
mod http;
mod store;
#[path = "../node/support.rs"]
#[allow(dead_code, reason = "each binary of tests uses its part")]
mod support;

/// Runs a test's futures on this thread.
fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}
