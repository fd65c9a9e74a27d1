//! Listing as a pure fold over ordered keys: contents, common prefixes, and where to go on.
//!
//! The caller feeds keys in byte order and obeys the [`Step`] that comes back. [`Fold::seek`] is
//! always the smallest key that can still matter, as an inclusive bound in byte order; it covers the
//! start of a page (prefix, marker, token) and the jump past a common prefix alike, so that a page
//! reads at most `max_keys + 1` entries from an index that can seek. Keys below the bound are
//! skipped without effect: a caller that cannot seek is slow, not wrong.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use crate::error::{Result, S3Error};
use crate::names::KEY_BYTES_MAX;

/// Most entries of a page.
pub const KEYS_PER_PAGE_MAX: u16 = 1000;

const TOKEN_AFTER_KEY: u8 = b'k';
const TOKEN_AFTER_PREFIX: u8 = b'p';

/// Where a page starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start<'a> {
    /// At the first key.
    First,
    /// After this key (`marker`, `start-after`). A marker that is itself a common prefix of this
    /// listing passes over everything below it: V1 clients page with the last prefix they saw.
    After(&'a str),
    /// Where a [`Page::next_token`] says.
    Token(&'a str),
}

/// What a page is to hold.
#[derive(Debug, Clone, Copy)]
pub struct FoldParams<'a> {
    /// Only keys that start so.
    pub prefix: &'a str,
    /// Rolls keys up; empty is none.
    pub delimiter: &'a str,
    /// Most entries; values past [`KEYS_PER_PAGE_MAX`] count as that.
    pub max_keys: u16,
    /// Where the page starts.
    pub start: Start<'a>,
}

/// What the caller does after a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Go on with the next key.
    Next,
    /// Go on with the first key at or after [`Fold::seek`].
    Seek,
    /// No later key matters.
    Done,
}

/// A page in the making; `T` is what the caller wants to keep of a listed key.
#[derive(Debug)]
pub struct Fold<T> {
    prefix: Box<str>,
    delimiter: Box<str>,
    left: u16,
    seek: Vec<u8>,
    contents: Vec<T>,
    common_prefixes: Vec<Box<str>>,
    /// The last entry: its text, and whether it is a common prefix.
    last: (String, bool),
    truncated: bool,
    done: bool,
}

/// A finished page.
#[derive(Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// The listed keys.
    pub contents: Vec<T>,
    /// The common prefixes.
    pub common_prefixes: Vec<Box<str>>,
    /// Whether there is more.
    pub truncated: bool,
    /// V2's continuation token, when there is more.
    pub next_token: Option<Box<str>>,
    /// V1's next marker, when there is more: the last entry.
    pub next_marker: Option<Box<str>>,
}

impl<T> Fold<T> {
    /// Starts a page.
    ///
    /// # Errors
    /// InvalidArgument for a token that this server has not issued.
    pub fn new(params: &FoldParams<'_>) -> Result<Self> {
        let max_keys = params.max_keys.min(KEYS_PER_PAGE_MAX);
        let mut fold = Self {
            prefix: params.prefix.into(),
            delimiter: params.delimiter.into(),
            left: max_keys,
            seek: params.prefix.as_bytes().to_vec(),
            contents: Vec::new(),
            common_prefixes: Vec::new(),
            last: (String::new(), false),
            truncated: false,
            done: max_keys == 0,
        };
        let bound = match params.start {
            Start::First => return Ok(fold),
            Start::After(marker) if fold.roll_up(marker) == Some(marker.len()) => {
                past_prefix(marker)
            }
            Start::After(marker) => past_key(marker),
            Start::Token(token) => match decode_token(token)? {
                (key, false) => past_key(&key),
                (prefix, true) => past_prefix(&prefix),
            },
        };
        if bound > fold.seek {
            fold.seek = bound;
        }
        Ok(fold)
    }

    /// The smallest key, in byte order, that can still matter. Not always UTF-8.
    pub fn seek(&self) -> &[u8] {
        &self.seek
    }

    /// Whether no later key matters; true from the start for a page of no keys.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Takes the next key. `keep` is called only when the key itself is listed.
    pub fn offer(&mut self, key: &str, keep: impl FnOnce() -> T) -> Step {
        if self.done {
            return Step::Done;
        }
        if key.as_bytes() < &*self.seek {
            return Step::Seek;
        }
        if !key.starts_with(&*self.prefix) {
            // At or after the prefix in order, but not below it: past it.
            self.done = true;
            return Step::Done;
        }
        if self.left == 0 {
            self.truncated = true;
            self.done = true;
            return Step::Done;
        }
        self.left -= 1;
        let rolled = self.roll_up(key);
        let entry = &key[..rolled.unwrap_or(key.len())];
        self.last.0.clear();
        self.last.0.push_str(entry);
        self.last.1 = rolled.is_some();
        if rolled.is_some() {
            self.common_prefixes.push(entry.into());
            self.seek = past_prefix(entry);
            return Step::Seek;
        }
        self.contents.push(keep());
        Step::Next
    }

    /// Ends the page.
    pub fn finish(self) -> Page<T> {
        let (last, is_prefix) = self.last;
        Page {
            contents: self.contents,
            common_prefixes: self.common_prefixes,
            truncated: self.truncated,
            next_token: self.truncated.then(|| encode_token(&last, is_prefix)),
            next_marker: self.truncated.then(|| last.into()),
        }
    }

    /// The length of the common prefix that the key belongs to.
    fn roll_up(&self, key: &str) -> Option<usize> {
        if self.delimiter.is_empty() {
            return None;
        }
        let rest = key.strip_prefix(&*self.prefix)?;
        let at = memchr::memmem::find(rest.as_bytes(), self.delimiter.as_bytes())?;
        Some(self.prefix.len() + at + self.delimiter.len())
    }
}

/// The smallest byte string after this key.
fn past_key(key: &str) -> Vec<u8> {
    let mut bound = Vec::with_capacity(key.len() + 1);
    bound.extend_from_slice(key.as_bytes());
    bound.push(0);
    bound
}

/// The smallest byte string after every key below this prefix. No byte of UTF-8 is 0xff, so that
/// the last one can always grow.
fn past_prefix(prefix: &str) -> Vec<u8> {
    let mut bound = prefix.as_bytes().to_vec();
    if let Some(last) = bound.last_mut() {
        *last += 1;
    }
    bound
}

fn encode_token(text: &str, is_prefix: bool) -> Box<str> {
    let mut raw = Vec::with_capacity(text.len() + 1);
    raw.push(if is_prefix {
        TOKEN_AFTER_PREFIX
    } else {
        TOKEN_AFTER_KEY
    });
    raw.extend_from_slice(text.as_bytes());
    BASE64_URL_SAFE_NO_PAD.encode(raw).into()
}

fn decode_token(token: &str) -> Result<(String, bool)> {
    let wrong = || S3Error::argument("The continuation token was not issued by this server.");
    if token.len() > (KEY_BYTES_MAX + 1) * 4 / 3 + 4 {
        return Err(wrong());
    }
    let raw = BASE64_URL_SAFE_NO_PAD.decode(token).map_err(|_| wrong())?;
    let (kind, text) = raw.split_first().ok_or_else(wrong)?;
    let text = std::str::from_utf8(text).map_err(|_| wrong())?.to_owned();
    match *kind {
        TOKEN_AFTER_KEY => Ok((text, false)),
        TOKEN_AFTER_PREFIX => Ok((text, true)),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests;
