//! Little-endian primitives of the store's formats. The reader never panics and never allocates
//! more than the bytes that it was given.

/// The bytes are not what the format says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed {what} at byte {at}")]
pub struct Malformed {
    /// The field.
    pub what: &'static str,
    /// Where in the bytes.
    pub at: usize,
}

pub(crate) type Decode<T> = Result<T, Malformed>;

/// Appends fields.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    pub(crate) bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    pub(crate) fn u16(&mut self, value: u16) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn u128(&mut self, value: u128) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// A length (u32), then the bytes.
    pub(crate) fn text(&mut self, text: &str) {
        self.u32(text.len() as u32);
        self.raw(text.as_bytes());
    }

    /// 0, or 1 and the text.
    pub(crate) fn text_or_none(&mut self, text: Option<&str>) {
        self.u8(u8::from(text.is_some()));
        if let Some(text) = text {
            self.text(text);
        }
    }
}

/// Takes fields off the front.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    all: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(all: &'a [u8]) -> Reader<'a> {
        Reader { all, at: 0 }
    }

    pub(crate) fn at(&self) -> usize {
        self.at
    }

    pub(crate) fn left(&self) -> usize {
        self.all.len() - self.at
    }

    pub(crate) fn bad(&self, what: &'static str) -> Malformed {
        Malformed { what, at: self.at }
    }

    pub(crate) fn raw(&mut self, len: usize, what: &'static str) -> Decode<&'a [u8]> {
        if len > self.left() {
            return Err(self.bad(what));
        }
        let bytes = &self.all[self.at..self.at + len];
        self.at += len;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Decode<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.raw(N, what)?);
        Ok(out)
    }

    pub(crate) fn u8(&mut self, what: &'static str) -> Decode<u8> {
        Ok(self.array::<1>(what)?[0])
    }

    pub(crate) fn u16(&mut self, what: &'static str) -> Decode<u16> {
        self.array(what).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self, what: &'static str) -> Decode<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, what: &'static str) -> Decode<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    pub(crate) fn u128(&mut self, what: &'static str) -> Decode<u128> {
        self.array(what).map(u128::from_le_bytes)
    }

    pub(crate) fn bytes16(&mut self, what: &'static str) -> Decode<[u8; 16]> {
        self.array(what)
    }

    pub(crate) fn flag(&mut self, what: &'static str) -> Decode<bool> {
        let before = self.bad(what);
        match self.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(before),
        }
    }

    pub(crate) fn utf8(&mut self, len: usize, what: &'static str) -> Decode<&'a str> {
        let before = self.bad(what);
        std::str::from_utf8(self.raw(len, what)?).map_err(|_| before)
    }

    pub(crate) fn text(&mut self, what: &'static str) -> Decode<&'a str> {
        let len = self.u32(what)? as usize;
        self.utf8(len, what)
    }

    pub(crate) fn text_or_none(&mut self, what: &'static str) -> Decode<Option<&'a str>> {
        if self.flag(what)? {
            self.text(what).map(Some)
        } else {
            Ok(None)
        }
    }

    /// A count (u32) of items of at least `item_bytes_min` each: what does not fit the bytes that
    /// are left is refused before anything is allocated.
    pub(crate) fn count(&mut self, item_bytes_min: usize, what: &'static str) -> Decode<usize> {
        let before = self.bad(what);
        let count = self.u32(what)? as usize;
        if count > self.left() / item_bytes_min {
            return Err(before);
        }
        Ok(count)
    }

    pub(crate) fn end(&self, what: &'static str) -> Decode<()> {
        if self.left() == 0 {
            Ok(())
        } else {
            Err(self.bad(what))
        }
    }
}
