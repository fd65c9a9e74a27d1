//! Devices that are no volumes: a file as it is, and nothing at all.

mod file;
mod null;

pub use file::FileDevice;
pub use null::NullDevice;

/// A serial number of at most 20 bytes, padded with zeros.
fn serial(name: &str) -> [u8; 20] {
    let mut serial = [0; 20];
    let taken = name.len().min(serial.len());
    serial[..taken].copy_from_slice(&name.as_bytes()[..taken]);
    serial
}
