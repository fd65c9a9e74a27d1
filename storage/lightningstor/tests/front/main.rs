//! The S3 front under the simulator, as clients meet it that are strangers to each other or mean
//! harm. Contracts LS-1, BY-1.
//!
//! Fault model: clients send anything, stop sending, or send one byte a minute; one tenant does so
//! on many connections; bits flip on the disk. What must hold: nobody reads or changes what belongs
//! to another, nothing that was not whole and checked is visible, no damaged byte is served, and a
//! tenant's requests are answered whatever another one does. Deadlines run in virtual time.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod buckets;
mod damage;
mod fair;
mod hostile;
mod parts;
mod users;
mod world;
