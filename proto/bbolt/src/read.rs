//! Reading a file that anybody wrote. The caller brings the bytes; a file that is damaged is refused
//! where the damage is met, and walking one ends: keys must ascend, also from page to page.

use std::ops::Range;

use crate::error::Error;
use crate::page::{BRANCH, BUCKET, ELEMENT, HEAD, Head, LEAF, Meta, u32_at, u64_at};

/// A tree is no higher than this: a branch has two children at least.
const HEIGHT_MAX: usize = 64;
/// Where a second meta page may be, when the first is damaged.
const PAGE_BYTES_LOG2: Range<u32> = 10..25;
/// Bytes of a meta page that are looked at.
const META_READ: u64 = 128;

/// A key and its value.
pub type Entry = (Vec<u8>, Vec<u8>);

/// A database file.
pub struct Reader<R> {
    read: R,
    bytes: u64,
    meta: Meta,
}

impl<R, E> Reader<R>
where
    R: FnMut(u64, usize) -> Result<Vec<u8>, E>,
    E: From<Error>,
{
    /// Opens a file of `bytes` bytes, of which `read` gives `length` from an offset on. It is never
    /// asked for what is past the end.
    ///
    /// # Errors
    /// It is no bbolt file, or its meta pages are damaged; or those of `read`.
    pub fn open(bytes: u64, mut read: R) -> Result<Reader<R>, E> {
        let mut meta_at = |offset: u64| -> Result<Result<Meta, Error>, E> {
            if offset + META_READ > bytes {
                return Ok(Err(Error::damaged("a file of less than two pages")));
            }
            Ok(Meta::read(&read(offset, META_READ as usize)?))
        };
        let first = meta_at(0)?;
        let second = if let Ok(meta) = &first {
            meta_at(u64::from(meta.page_bytes))?.ok()
        } else {
            let mut found = None;
            for log2 in PAGE_BYTES_LOG2 {
                let meta = meta_at(1 << log2)?.ok();
                found = found.or(meta.filter(|meta| meta.page_bytes == 1 << log2));
            }
            found
        };
        let newest = match (&first, second) {
            (Ok(first), Some(second)) if second.transaction > first.transaction => second,
            (Ok(first), _) => *first,
            (Err(_), Some(second)) => second,
            (Err(error), None) => return Err(error.clone().into()),
        };
        let meta = newest;
        if meta.pages > bytes / u64::from(meta.page_bytes) {
            let (pages, held) = (meta.pages, bytes / u64::from(meta.page_bytes));
            let what = format!("the file is cut off: {pages} pages are expected, {held} there");
            return Err(Error::damaged(what).into());
        }
        Ok(Reader { read, bytes, meta })
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The entries of a bucket, in order; `None` without the bucket.
    ///
    /// # Errors
    /// The file is damaged; or those of `read`.
    pub fn bucket(&mut self, name: &str) -> Result<Option<Cursor<'_, R>>, E> {
        let root = self.meta.root;
        let mut buckets = self.tree(Root::Page(root));
        let mut found = None;
        while let Some(entry) = buckets.next_element()? {
            if entry.key == name.as_bytes() {
                found = Some(entry);
                break;
            }
        }
        let Some(found) = found else {
            return Ok(None);
        };
        let root = u64_at(&found.value, 0).filter(|_| found.is_bucket);
        let root = root.ok_or_else(|| Error::damaged(format!("{name:?} is no bucket")))?;
        let root = match root {
            // A small bucket lies where its root would be named.
            0 => Root::Inline(found.value.get(BUCKET..).unwrap_or_default().to_vec()),
            page => Root::Page(page),
        };
        Ok(Some(self.tree(root)))
    }

    fn tree(&mut self, root: Root) -> Cursor<'_, R> {
        Cursor {
            reader: self,
            root: Some(root),
            path: Vec::new(),
            last_key: None,
        }
    }

    /// A page with all that belongs to it.
    fn page(&mut self, number: u64) -> Result<Page, E> {
        let size = u64::from(self.meta.page_bytes);
        let none = || Error::damaged(format!("there is no page {number}"));
        if number < 2 || number >= self.meta.pages {
            return Err(none().into());
        }
        let head = (self.read)(number * size, HEAD)?;
        let head = Head::read(&head).ok_or_else(none)?;
        let pages = u64::from(head.overflow) + 1;
        if head.number != number || pages > self.meta.pages - number {
            return Err(Error::damaged(format!("page {number} has another one's head")).into());
        }
        let bytes = (self.read)(number * size, (pages * size) as usize)?;
        Ok(Page::new(number, head, bytes)?)
    }
}

enum Root {
    Page(u64),
    Inline(Vec<u8>),
}

/// A page on the way from the root to a leaf.
struct Page {
    number: u64,
    is_leaf: bool,
    count: usize,
    /// The element to look at next.
    next: usize,
    bytes: Vec<u8>,
}

struct Element {
    is_bucket: bool,
    key: Vec<u8>,
    value: Vec<u8>,
}

impl Page {
    fn new(number: u64, head: Head, bytes: Vec<u8>) -> Result<Page, Error> {
        let page = Page {
            number,
            is_leaf: head.flags == LEAF,
            count: usize::from(head.count),
            next: 0,
            bytes,
        };
        if head.flags != LEAF && head.flags != BRANCH {
            return Err(page.damaged("is no part of a tree"));
        }
        if !page.is_leaf && page.count == 0 {
            return Err(page.damaged("is a branch without children"));
        }
        Ok(page)
    }

    fn damaged(&self, what: &str) -> Error {
        Error::damaged(format!("page {} {what}", self.number))
    }

    /// The words of an element, and where it begins.
    fn element(&self, at: usize) -> Result<(usize, [u32; 4]), Error> {
        let start = HEAD + at * ELEMENT;
        let word = |of: usize| u32_at(&self.bytes, start + 4 * of);
        let words = || Some([word(0)?, word(1)?, word(2)?, word(3)?]);
        let words = words().ok_or_else(|| self.damaged("ends within its elements"))?;
        Ok((start, words))
    }

    fn slice(&self, from: usize, length: u32) -> Result<&[u8], Error> {
        let end = from.checked_add(length as usize);
        let slice = end.and_then(|end| self.bytes.get(from..end));
        slice.ok_or_else(|| self.damaged("has an element that leads out of it"))
    }

    fn leaf_element(&self, at: usize) -> Result<Element, Error> {
        let (start, [flags, from_here, key, value]) = self.element(at)?;
        let from = start + from_here as usize;
        Ok(Element {
            is_bucket: flags & 1 != 0,
            key: self.slice(from, key)?.to_vec(),
            value: self.slice(from + key as usize, value)?.to_vec(),
        })
    }

    fn child(&self, at: usize) -> Result<u64, Error> {
        let (_, [_, _, low, high]) = self.element(at)?;
        Ok(u64::from(low) | u64::from(high) << 32)
    }
}

/// Walks the entries of a bucket.
pub struct Cursor<'r, R> {
    reader: &'r mut Reader<R>,
    root: Option<Root>,
    path: Vec<Page>,
    last_key: Option<Vec<u8>>,
}

impl<R, E> Cursor<'_, R>
where
    R: FnMut(u64, usize) -> Result<Vec<u8>, E>,
    E: From<Error>,
{
    /// The next key and value; `None` behind the last.
    ///
    /// # Errors
    /// The file is damaged, or the bucket holds another bucket; or those of `read`.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, E> {
        let Some(element) = self.next_element()? else {
            return Ok(None);
        };
        if element.is_bucket {
            return Err(Error::damaged("a bucket within a bucket").into());
        }
        Ok(Some((element.key, element.value)))
    }

    fn next_element(&mut self) -> Result<Option<Element>, E> {
        match self.root.take() {
            Some(Root::Page(number)) => self.descend(number)?,
            Some(Root::Inline(bytes)) => {
                let head = Head::read(&bytes).filter(|head| head.flags == LEAF);
                let head = head.ok_or_else(|| Error::damaged("a bucket is cut off"))?;
                self.path.push(Page::new(0, head, bytes)?);
            }
            None => {}
        }
        while let Some(page) = self.path.last_mut() {
            if page.next == page.count {
                self.path.pop();
                continue;
            }
            let at = page.next;
            page.next += 1;
            if !page.is_leaf {
                let child = page.child(at)?;
                self.descend(child)?;
                continue;
            }
            let element = page.leaf_element(at)?;
            if self
                .last_key
                .as_ref()
                .is_some_and(|last| *last >= element.key)
            {
                return Err(page.damaged("has keys out of order").into());
            }
            self.last_key = Some(element.key.clone());
            return Ok(Some(element));
        }
        Ok(None)
    }

    fn descend(&mut self, number: u64) -> Result<(), E> {
        // A branch that is its own child would never end; keys that ascend bound all the rest.
        if self.path.len() == HEIGHT_MAX {
            return Err(Error::damaged(format!("page {number} is too deep in its tree")).into());
        }
        let page = self.reader.page(number)?;
        if page.count == 0 && !self.path.is_empty() {
            return Err(page.damaged("is a leaf without entries").into());
        }
        self.path.push(page);
        Ok(())
    }
}
