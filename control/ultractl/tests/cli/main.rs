//! `ultractl` as a new user meets it, without a server: what is typed, and what comes back.
//!
//! Each test plays a session; its transcript is the file of its name in `golden`. What differs from machine
//! to machine is masked. `UPDATE_GOLDEN=1 cargo nextest run -p ultractl --test cli` writes the files anew:
//! read the difference before it is committed.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod completion;
mod session;
mod transcripts;
