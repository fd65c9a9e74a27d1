//! One B+tree, built from its leaves up: entries come in order, pages leave in order.
//!
//! A leaf is written when it is full. A branch is written when it is full and at least two children
//! wait behind it: bbolt takes no branch with fewer than two, and so none is ever left over. Memory is
//! one leaf, and two branches of each level.

use crate::error::Error;
use crate::page::{BRANCH, ELEMENT, HEAD, Head, LEAF};
use crate::{KEY_BYTES_MAX, PAGE_BYTES, VALUE_BYTES_MAX};

/// Children of a branch, at least.
const CHILDREN_MIN: usize = 2;

/// Takes pages, in order.
pub(crate) trait Pages<E> {
    /// The number that the next page gets.
    fn next(&self) -> u64;

    /// Takes a page with all that belongs to it.
    fn put(&mut self, page: &[u8]) -> Result<(), E>;
}

struct Child {
    first_key: Vec<u8>,
    page: u64,
}

/// The children that wait for their branches, at one height.
#[derive(Default)]
struct Level {
    children: Vec<Child>,
}

/// A page under way.
struct Leaf {
    elements: Vec<[u32; 3]>,
    data: Vec<u8>,
}

/// A tree under way.
pub(crate) struct Tree {
    leaf: Leaf,
    last_key: Option<Vec<u8>>,
    levels: Vec<Level>,
}

impl Tree {
    pub(crate) fn new() -> Tree {
        Tree {
            leaf: Leaf {
                elements: Vec::new(),
                data: Vec::new(),
            },
            last_key: None,
            levels: Vec::new(),
        }
    }

    /// Adds an entry behind all others. `flags` is 1 for a bucket.
    pub(crate) fn put<E: From<Error>>(
        &mut self,
        pages: &mut impl Pages<E>,
        flags: u32,
        key: &[u8],
        value: &[u8],
    ) -> Result<(), E> {
        check(self.last_key.as_deref(), key, value)?;
        let more = ELEMENT + key.len() + value.len();
        if !self.leaf.elements.is_empty() && self.leaf.bytes() + more > PAGE_BYTES {
            self.end_leaf(pages)?;
        }
        let lengths = [flags, key.len() as u32, value.len() as u32];
        self.leaf.elements.push(lengths);
        self.leaf.data.extend_from_slice(key);
        self.leaf.data.extend_from_slice(value);
        let last = self.last_key.get_or_insert_default();
        last.clear();
        last.extend_from_slice(key);
        Ok(())
    }

    /// Ends the tree: the page of its root. A tree without entries is one empty leaf.
    pub(crate) fn finish<E>(mut self, pages: &mut impl Pages<E>) -> Result<u64, E> {
        if !self.leaf.elements.is_empty() || self.levels.is_empty() {
            self.end_leaf(pages)?;
        }
        let mut height = 0;
        loop {
            let last = height + 1 == self.levels.len();
            let waiting = self.levels[height].children.len();
            if last && waiting == 1 {
                return Ok(self.levels[height].children[0].page);
            }
            assert!(waiting >= CHILDREN_MIN, "a branch never waits alone");
            let fitting = fitting(&self.levels[height].children);
            if fitting < waiting && waiting >= 2 * CHILDREN_MIN {
                self.end_branch(pages, height, waiting - CHILDREN_MIN)?;
            }
            let rest = self.levels[height].children.len();
            self.end_branch(pages, height, rest)?;
            height += 1;
        }
    }

    fn end_leaf<E>(&mut self, pages: &mut impl Pages<E>) -> Result<(), E> {
        let leaf = &mut self.leaf;
        let number = pages.next();
        let first_key = leaf.first_key().to_vec();
        pages.put(&leaf.page(number))?;
        leaf.elements.clear();
        leaf.data.clear();
        self.add_child(
            pages,
            0,
            Child {
                first_key,
                page: number,
            },
        )
    }

    fn add_child<E>(
        &mut self,
        pages: &mut impl Pages<E>,
        height: usize,
        child: Child,
    ) -> Result<(), E> {
        if height == self.levels.len() {
            self.levels.push(Level::default());
        }
        let children = &mut self.levels[height].children;
        children.push(child);
        let fitting = fitting(children);
        if children.len() < fitting + CHILDREN_MIN {
            return Ok(());
        }
        self.end_branch(pages, height, fitting)
    }

    /// Writes the first children that wait as one branch.
    fn end_branch<E>(
        &mut self,
        pages: &mut impl Pages<E>,
        height: usize,
        count: usize,
    ) -> Result<(), E> {
        let children: Vec<Child> = self.levels[height].children.drain(..count).collect();
        let number = pages.next();
        pages.put(&branch(number, &children))?;
        let first = children.into_iter().next();
        let first_key = first.expect("a branch has children").first_key;
        let child = Child {
            first_key,
            page: number,
        };
        self.add_child(pages, height + 1, child)
    }
}

fn check(last: Option<&[u8]>, key: &[u8], value: &[u8]) -> Result<(), Error> {
    let start = || String::from_utf8_lossy(&key[..key.len().min(64)]).into_owned();
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return Err(Error::entry(format!(
            "a key of {} bytes, where bbolt takes 1 to {KEY_BYTES_MAX}: {:?}",
            key.len(),
            start()
        )));
    }
    if value.len() > VALUE_BYTES_MAX {
        return Err(Error::entry(format!(
            "a value of {} bytes under {:?}",
            value.len(),
            start()
        )));
    }
    if last.is_some_and(|last| last >= key) {
        return Err(Error::entry(format!(
            "key {:?} comes out of order",
            start()
        )));
    }
    Ok(())
}

/// How many children the first branch takes: as many as fit, and two in any case.
fn fitting(children: &[Child]) -> usize {
    let mut bytes = HEAD;
    let sizes = children.iter().map(|child| ELEMENT + child.first_key.len());
    let fit = sizes.take_while(|size| {
        bytes += size;
        bytes <= PAGE_BYTES
    });
    fit.count().max(CHILDREN_MIN)
}

impl Leaf {
    fn bytes(&self) -> usize {
        HEAD + self.elements.len() * ELEMENT + self.data.len()
    }

    fn first_key(&self) -> &[u8] {
        let length = self.elements.first().map_or(0, |[_, key, _]| *key);
        &self.data[..length as usize]
    }

    fn page(&self, number: u64) -> Vec<u8> {
        let mut page = page(number, LEAF, self.elements.len(), self.bytes());
        let mut data = HEAD + self.elements.len() * ELEMENT;
        for [flags, key, value] in &self.elements {
            let from_here = (data - page.len()) as u32;
            for word in [*flags, from_here, *key, *value] {
                page.extend_from_slice(&word.to_le_bytes());
            }
            data += (key + value) as usize;
        }
        page.extend_from_slice(&self.data);
        padded(page)
    }
}

fn branch(number: u64, children: &[Child]) -> Vec<u8> {
    let keys: usize = children.iter().map(|child| child.first_key.len()).sum();
    let elements = HEAD + children.len() * ELEMENT;
    let mut page = page(number, BRANCH, children.len(), elements + keys);
    let mut data = elements;
    for child in children {
        let from_here = (data - page.len()) as u32;
        let length = child.first_key.len();
        page.extend_from_slice(&from_here.to_le_bytes());
        page.extend_from_slice(&(length as u32).to_le_bytes());
        page.extend_from_slice(&child.page.to_le_bytes());
        data += length;
    }
    for child in children {
        page.extend_from_slice(&child.first_key);
    }
    padded(page)
}

/// A page with its head, for so many bytes in all.
fn page(number: u64, flags: u16, count: usize, bytes: usize) -> Vec<u8> {
    let pages = bytes.div_ceil(PAGE_BYTES);
    let mut page = Vec::with_capacity(pages * PAGE_BYTES);
    let head = Head {
        number,
        flags,
        count: u16::try_from(count).expect("an element takes 16 bytes of a page"),
        overflow: u32::try_from(pages - 1).expect("values are shorter than 2 GiB"),
    };
    page.extend_from_slice(&head.to_bytes());
    page
}

fn padded(mut page: Vec<u8>) -> Vec<u8> {
    page.resize(page.len().next_multiple_of(PAGE_BYTES), 0);
    page
}
