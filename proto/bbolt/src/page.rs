//! Pages as bytes; the crate's head has their layout.

use crate::error::Error;

pub(crate) const HEAD: usize = 16;
pub(crate) const ELEMENT: usize = 16;
/// Bytes of a bucket's value: the root's page and a sequence.
pub(crate) const BUCKET: usize = 16;

pub(crate) const BRANCH: u16 = 0x01;
pub(crate) const LEAF: u16 = 0x02;
pub(crate) const META: u16 = 0x04;
pub(crate) const FREE_LIST: u16 = 0x10;

const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
const META_BYTES: usize = 64;
const META_SUMMED: usize = 56;

/// Page sizes that a file may have.
const PAGE_BYTES_MIN: u32 = 1 << 10;
const PAGE_BYTES_MAX: u32 = 1 << 24;

/// A page's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) number: u64,
    pub(crate) flags: u16,
    pub(crate) count: u16,
    pub(crate) overflow: u32,
}

impl Head {
    pub(crate) fn to_bytes(self) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        bytes[..8].copy_from_slice(&self.number.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.flags.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.count.to_le_bytes());
        bytes[12..].copy_from_slice(&self.overflow.to_le_bytes());
        bytes
    }

    /// The head of a page; `None` for less than one.
    pub(crate) fn read(page: &[u8]) -> Option<Head> {
        Some(Head {
            number: u64_at(page, 0)?,
            flags: u16_at(page, 8)?,
            count: u16_at(page, 10)?,
            overflow: u32_at(page, 12)?,
        })
    }
}

/// What a meta page says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) page_bytes: u32,
    pub(crate) root: u64,
    pub(crate) free_list: u64,
    pub(crate) pages: u64,
    pub(crate) transaction: u64,
}

impl Meta {
    /// What follows the page's head.
    pub(crate) fn to_bytes(self) -> [u8; META_BYTES] {
        let mut bytes = [0; META_BYTES];
        bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&VERSION.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.page_bytes.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.root.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.free_list.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.pages.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.transaction.to_le_bytes());
        let sum = fnv_1a(&bytes[..META_SUMMED]);
        bytes[META_SUMMED..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// The meta page that a page is.
    ///
    /// # Errors
    /// It is none, or a damaged one.
    pub(crate) fn read(page: &[u8]) -> Result<Meta, Error> {
        let body = page.get(HEAD..HEAD + META_BYTES);
        let body = body.ok_or_else(|| Error::damaged("a file of less than a page"))?;
        let word = |at| u32_at(body, at).expect("a body of 64 bytes was cut out");
        let long = |at| u64_at(body, at).expect("a body of 64 bytes was cut out");
        if word(0) != MAGIC {
            return Err(Error::damaged(
                "no bbolt file: its first page has another mark",
            ));
        }
        if word(4) != VERSION {
            let found = format!("bbolt's format {VERSION} is expected, {} found", word(4));
            return Err(Error::damaged(found));
        }
        if long(META_SUMMED) != fnv_1a(&body[..META_SUMMED]) {
            return Err(Error::damaged("a meta page's checksum differs"));
        }
        let page_bytes = word(8);
        if !page_bytes.is_power_of_two() || !(PAGE_BYTES_MIN..=PAGE_BYTES_MAX).contains(&page_bytes)
        {
            return Err(Error::damaged(format!("pages of {page_bytes} bytes")));
        }
        Ok(Meta {
            page_bytes,
            root: long(16),
            free_list: long(32),
            pages: long(40),
            transaction: long(48),
        })
    }
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// FNV-1a of 64 bits.
fn fnv_1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_fnv_1a() {
        // From the algorithm's authors.
        assert_eq!(fnv_1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv_1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn a_meta_page_with_any_bit_changed_is_refused() {
        let meta = Meta {
            page_bytes: 4096,
            root: 7,
            free_list: 2,
            pages: 8,
            transaction: 1,
        };
        let page = [&[0; HEAD][..], &meta.to_bytes()].concat();
        assert_eq!(Meta::read(&page), Ok(meta));
        for bit in HEAD * 8..page.len() * 8 {
            let mut changed = page.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(Meta::read(&changed).is_err(), "bit {bit}");
        }
    }
}
