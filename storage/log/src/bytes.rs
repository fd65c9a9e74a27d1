//! Little-endian primitives of the stores' formats, in records and beside the log. The reader never
//! panics and never allocates more than the bytes that it was given.

/// The bytes are not what the format says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed {what} at byte {at}")]
pub struct Malformed {
    /// The field.
    pub what: &'static str,
    /// Where in the bytes.
    pub at: usize,
}

/// What a decoder answers.
pub type Decode<T> = Result<T, Malformed>;

/// Appends fields.
#[derive(Debug, Default)]
pub struct Writer {
    /// What was appended so far.
    pub bytes: Vec<u8>,
}

impl Writer {
    /// Appends a byte.
    pub fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    /// Appends two bytes.
    pub fn u16(&mut self, value: u16) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Appends four bytes.
    pub fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Appends eight bytes.
    pub fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Appends sixteen bytes.
    pub fn u128(&mut self, value: u128) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Appends bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// A length (u32), then the bytes.
    pub fn text(&mut self, text: &str) {
        self.u32(text.len() as u32);
        self.raw(text.as_bytes());
    }

    /// 0, or 1 and the text.
    pub fn text_or_none(&mut self, text: Option<&str>) {
        self.u8(u8::from(text.is_some()));
        if let Some(text) = text {
            self.text(text);
        }
    }
}

/// Takes fields off the front.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    all: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Begins at the front.
    pub fn new(all: &'a [u8]) -> Reader<'a> {
        Reader { all, at: 0 }
    }

    /// Bytes taken.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Bytes not taken yet.
    pub fn left(&self) -> usize {
        self.all.len() - self.at
    }

    /// That the named field is malformed here.
    pub fn bad(&self, what: &'static str) -> Malformed {
        Malformed { what, at: self.at }
    }

    /// Takes `len` bytes.
    pub fn raw(&mut self, len: usize, what: &'static str) -> Decode<&'a [u8]> {
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

    /// Takes one byte.
    pub fn u8(&mut self, what: &'static str) -> Decode<u8> {
        Ok(self.array::<1>(what)?[0])
    }

    /// Takes two bytes.
    pub fn u16(&mut self, what: &'static str) -> Decode<u16> {
        self.array(what).map(u16::from_le_bytes)
    }

    /// Takes four bytes.
    pub fn u32(&mut self, what: &'static str) -> Decode<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    /// Takes eight bytes.
    pub fn u64(&mut self, what: &'static str) -> Decode<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// Takes sixteen bytes.
    pub fn u128(&mut self, what: &'static str) -> Decode<u128> {
        self.array(what).map(u128::from_le_bytes)
    }

    /// Takes sixteen bytes as they are.
    pub fn bytes16(&mut self, what: &'static str) -> Decode<[u8; 16]> {
        self.array(what)
    }

    /// Takes 0 or 1.
    pub fn flag(&mut self, what: &'static str) -> Decode<bool> {
        let before = self.bad(what);
        match self.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(before),
        }
    }

    /// Takes `len` bytes of text.
    pub fn utf8(&mut self, len: usize, what: &'static str) -> Decode<&'a str> {
        let before = self.bad(what);
        std::str::from_utf8(self.raw(len, what)?).map_err(|_| before)
    }

    /// Takes a length (u32) and the text.
    pub fn text(&mut self, what: &'static str) -> Decode<&'a str> {
        let len = self.u32(what)? as usize;
        self.utf8(len, what)
    }

    /// Takes 0, or 1 and the text.
    pub fn text_or_none(&mut self, what: &'static str) -> Decode<Option<&'a str>> {
        if self.flag(what)? {
            self.text(what).map(Some)
        } else {
            Ok(None)
        }
    }

    /// A count (u32) of items of at least `item_bytes_min` each: what does not fit the bytes that
    /// are left is refused before anything is allocated.
    pub fn count(&mut self, item_bytes_min: usize, what: &'static str) -> Decode<usize> {
        let before = self.bad(what);
        let count = self.u32(what)? as usize;
        if count > self.left() / item_bytes_min {
            return Err(before);
        }
        Ok(count)
    }

    /// Refuses bytes that are left.
    pub fn end(&self, what: &'static str) -> Decode<()> {
        if self.left() == 0 {
            Ok(())
        } else {
            Err(self.bad(what))
        }
    }
}
