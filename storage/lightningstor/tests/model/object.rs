//! One key of a bucket as a sequential machine: no object, or an object of which some things are
//! known.
//!
//! An object is known by three numbers: its body, its ETag and the tag that its writer put into its
//! metadata. A writer that did not hear back, or that copied, may not know all of them; what is
//! unknown agrees with everything, and is known once somebody has seen it.

use super::linear::Model;

/// An object, as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Object {
    pub body: Option<u32>,
    pub etag: Option<u32>,
    pub tag: Option<u64>,
}

/// What a write asks of the object before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    None,
    /// If-None-Match: *
    Absent,
    /// If-Match: *
    Present,
    /// If-Match with a tag.
    Etag(u32),
}

/// What was asked, with what was answered.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    /// The guard held and the key got this object.
    Write(Guard, Object),
    /// The guard held and the key has no object.
    Remove(Guard),
    /// The key had an object that agrees with this.
    Saw(Object),
    /// The key had no object.
    SawNone,
    /// The key had an object with another ETag.
    SawOther(u32),
}

/// A key.
pub struct Key;

impl Object {
    /// Both descriptions in one, when they can be of one object.
    fn agree(self, other: Object) -> Option<Object> {
        fn differ<T: Copy + PartialEq>(a: Option<T>, b: Option<T>) -> bool {
            a.is_some() && b.is_some() && a != b
        }
        let differ = differ(self.body, other.body)
            || differ(self.etag, other.etag)
            || differ(self.tag, other.tag);
        (!differ).then(|| Object {
            body: self.body.or(other.body),
            etag: self.etag.or(other.etag),
            tag: self.tag.or(other.tag),
        })
    }
}

impl Guard {
    fn holds(self, state: Option<Object>) -> bool {
        match (self, state) {
            (Guard::None, _) | (Guard::Absent, None) | (Guard::Present, Some(_)) => true,
            (Guard::Etag(etag), Some(object)) => object.etag.is_none_or(|is| is == etag),
            (Guard::Absent, Some(_)) | (Guard::Present | Guard::Etag(_), None) => false,
        }
    }
}

impl Model for Key {
    type State = Option<Object>;
    type Op = Op;

    fn step(state: &Option<Object>, op: &Op) -> Option<Option<Object>> {
        match *op {
            Op::Write(guard, object) => guard.holds(*state).then_some(Some(object)),
            Op::Remove(guard) => guard.holds(*state).then_some(None),
            Op::Saw(seen) => Some(Some((*state)?.agree(seen)?)),
            Op::SawNone => state.is_none().then_some(None),
            Op::SawOther(etag) => {
                let object = (*state)?;
                (object.etag != Some(etag)).then_some(*state)
            }
        }
    }

    fn only_looks(op: &Op) -> bool {
        matches!(op, Op::Saw(_) | Op::SawNone | Op::SawOther(_))
    }
}
