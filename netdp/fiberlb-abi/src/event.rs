//! What the program tells one by one: a sample of new flows.

use crate::{FlowKey, layout};

/// Kinds of [`Event`].
pub mod event_kind {
    /// A flow began.
    pub const NEW_FLOW: u32 = 1;
    /// A flow began and is not remembered.
    pub const UNCACHED: u32 = 2;
}

/// One event.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Event {
    /// Whose.
    pub key: FlowKey,
    /// [`event_kind`].
    pub kind: u32,
    /// Slot of the VIP.
    pub vip: u16,
    /// Identifier of the backend.
    pub real: u16,
}
layout!(Event, 48);
