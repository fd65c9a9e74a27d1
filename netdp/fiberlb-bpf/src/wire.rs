//! Headers as they lie in a frame, and checked access to them.
//!
//! Fields are words in network order. They are read with their natural width although an IP header
//! starts two bytes off: the kernel has unaligned access, and bytewise loads would double the cost.

use core::mem::size_of;

use super::frame::Frame;

/// Length of an Ethernet header.
pub const ETHERNET: usize = 14;
pub const IPV4: usize = 20;
pub const IPV6: usize = 40;
pub const UDP: usize = 8;

pub const ETHERTYPE_V4: u16 = 0x0800_u16.to_be();
pub const ETHERTYPE_V6: u16 = 0x86dd_u16.to_be();

pub const PROTO_ICMP: u8 = 1;
pub const PROTO_IPIP: u8 = 4;
pub const PROTO_TCP: u8 = 6;
pub const PROTO_UDP: u8 = 17;
pub const PROTO_IPV6: u8 = 41;
pub const PROTO_FRAGMENT: u8 = 44;
pub const PROTO_ICMPV6: u8 = 58;

/// More fragments, or an offset: the packet is a piece of one.
pub const FRAGMENT_V4: u16 = 0x3fff_u16.to_be();
/// The offset alone.
pub const OFFSET_V4: u16 = 0x1fff_u16.to_be();
pub const DONT_FRAGMENT: u16 = 0x4000_u16.to_be();
/// The offset in IPv6's fragment header.
pub const OFFSET_V6: u16 = 0xfff8_u16.to_be();

#[repr(C)]
pub struct Ethernet {
    pub macs: [u16; 6],
    pub ethertype: u16,
}

#[repr(C)]
pub struct Ipv4 {
    pub version_ihl: u8,
    pub tos: u8,
    pub total_len: u16,
    pub id: u16,
    pub fragment: u16,
    pub ttl: u8,
    pub proto: u8,
    pub check: u16,
    pub src: u32,
    pub dst: u32,
}

#[repr(C)]
pub struct Ipv6 {
    /// Version, traffic class, flow label.
    pub head: u32,
    pub payload_len: u16,
    pub next: u8,
    pub hops: u8,
    pub src: [u32; 4],
    pub dst: [u32; 4],
}

/// IPv6's fragment header.
#[repr(C)]
pub struct Fragment {
    pub next: u8,
    pub reserved: u8,
    pub offset: u16,
    pub id: u32,
}

/// What TCP and UDP begin with.
#[repr(C)]
pub struct Ports {
    pub src: u16,
    pub dst: u16,
}

#[repr(C)]
pub struct Udp {
    pub src: u16,
    pub dst: u16,
    pub len: u16,
    pub check: u16,
}

#[repr(C)]
pub struct Tcp {
    pub src: u16,
    pub dst: u16,
    pub seq: u32,
    pub ack: u32,
    pub offset: u8,
    pub flags: u8,
    pub window: u16,
    pub check: u16,
    pub urgent: u16,
}

#[repr(C)]
pub struct Icmp {
    pub kind: u8,
    pub code: u8,
    pub check: u16,
    pub rest: u32,
}

const _: () = assert!(size_of::<Ethernet>() == ETHERNET);
const _: () = assert!(size_of::<Ipv4>() == IPV4);
const _: () = assert!(size_of::<Ipv6>() == IPV6);
const _: () = assert!(size_of::<Udp>() == UDP);
const _: () = assert!(size_of::<Tcp>() == 20);

/// A header at an offset, when the frame holds all of it.
#[inline(always)]
pub fn at<'a, T>(ctx: &'a Frame, offset: usize) -> Option<&'a mut T> {
    let start = ctx.data() + offset;
    if start + size_of::<T>() > ctx.data_end() {
        return None;
    }
    // SAFETY: the frame holds these bytes, as the verifier checks again; the types above are plain
    // integers. No two references into one frame are used across each other.
    Some(unsafe { &mut *(start as *mut T) })
}
