//! What traffic control goes without: tunnels, SYN cookies, errors about size.

/// No tunnels: a VIP that needs one drops its packets here.
pub mod encap {
    use crate::Verdict;
    use crate::tc::flows::Target;
    use crate::tc::frame::Frame;
    use crate::tc::packet::Packet;

    /// As for tunnels; nobody looks at it.
    #[allow(dead_code)]
    pub struct Inner {
        pub len: u32,
        pub v4: bool,
        pub hash: u32,
    }

    #[inline(always)]
    pub fn wrap(_: &Frame, _: &Packet, _: &Target) -> Option<Verdict> {
        None
    }

    #[inline(always)]
    pub fn wrap_all(_: &Frame, _: &Target, _: &Inner) -> Option<Verdict> {
        None
    }
}

/// No cookies: the limit on new flows is all there is.
pub mod gate {
    use crate::Verdict;
    use crate::tc::frame::Frame;
    use crate::tc::packet::Packet;

    #[inline(always)]
    pub fn answer(_: &Frame, _: &Packet, _: u32, _: u16) -> Option<Verdict> {
        None
    }

    #[inline(always)]
    pub fn within_share(_: &Packet) -> bool {
        false
    }
}

/// No tunnels that anything could be too big for.
pub mod too_big {
    use crate::Verdict;
    use crate::tc::flows::Target;
    use crate::tc::frame::Frame;
    use crate::tc::packet::Packet;

    #[inline(always)]
    pub fn told(_: &Frame, _: &Packet, _: &Target) -> Option<Verdict> {
        None
    }
}
