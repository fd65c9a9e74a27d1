//! Internet checksums, adjusted by what changed (RFC 1624, equation 3).
//!
//! A change is a sum of 32-bit words, each old one as its complement. One's complement sums do not care
//! for the order of bytes, so words stay as the packet has them.

/// One word became another.
#[inline(always)]
pub fn change(old: u32, new: u32) -> u64 {
    u64::from(!old) + u64::from(new)
}

/// One half word became another.
#[inline(always)]
pub fn change_half(old: u16, new: u16) -> u64 {
    u64::from(!old) + u64::from(new)
}

/// One IPv6 address became another.
#[inline(always)]
pub fn change_addr(old: &[u32; 4], new: &[u32; 4]) -> u64 {
    change(old[0], new[0])
        + change(old[1], new[1])
        + change(old[2], new[2])
        + change(old[3], new[3])
}

/// A sum of at most some thousand words as 16 bits: what is above 32 bits then is so small that the sum of
/// both halves carries once at most.
#[inline(always)]
pub fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The checksum after a change.
#[inline(always)]
pub fn adjusted(check: u16, change: u64) -> u16 {
    !fold(u64::from(!check) + change)
}
