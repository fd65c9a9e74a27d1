//! A whole file as a stream: planned by a first walk over its entries, written by a second.

use crate::PAGE_BYTES;
use crate::error::Error;
use crate::page::{BUCKET, FREE_LIST, HEAD, Head, META, Meta};
use crate::tree::{Pages, Tree};

/// The page of the free list; it is empty, as no page is free.
const FREE_LIST_PAGE: u64 = 2;
/// The first page of the trees.
const TREES: u64 = 3;
/// Marks an entry of the root as a bucket.
const IS_BUCKET: u32 = 1;

/// Numbers pages, and hands them on.
struct Sink<'s, E> {
    next: u64,
    take: &'s mut dyn FnMut(&[u8]) -> Result<(), E>,
}

impl<E> Pages<E> for Sink<'_, E> {
    fn next(&self) -> u64 {
        self.next
    }

    fn put(&mut self, page: &[u8]) -> Result<(), E> {
        self.next += (page.len() / PAGE_BYTES) as u64;
        (self.take)(page)
    }
}

/// Takes what a file is to hold: buckets by name, and in each its keys, both in order.
pub struct Contents<'s, E> {
    sink: Sink<'s, E>,
    buckets: Tree,
    open: Option<(Vec<u8>, Tree)>,
}

impl<'s, E: From<Error>> Contents<'s, E> {
    fn new(take: &'s mut dyn FnMut(&[u8]) -> Result<(), E>) -> Self {
        let sink = Sink { next: TREES, take };
        Contents {
            sink,
            buckets: Tree::new(),
            open: None,
        }
    }

    /// Begins a bucket, which the entries that follow belong to.
    ///
    /// # Errors
    /// The name is not behind the one before; or the sink's own.
    pub fn bucket(&mut self, name: &str) -> Result<(), E> {
        self.end_bucket()?;
        self.open = Some((name.as_bytes().to_vec(), Tree::new()));
        Ok(())
    }

    /// Adds an entry to the bucket that was begun last.
    ///
    /// # Errors
    /// The key is not behind the one before, or too long; or the sink's own.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), E> {
        let Some((_, tree)) = &mut self.open else {
            return Err(Error::entry("an entry without a bucket").into());
        };
        tree.put(&mut self.sink, 0, key, value)
    }

    fn end_bucket(&mut self) -> Result<(), E> {
        let Some((name, tree)) = self.open.take() else {
            return Ok(());
        };
        let root = tree.finish(&mut self.sink)?;
        let mut value = [0; BUCKET];
        value[..8].copy_from_slice(&root.to_le_bytes());
        self.buckets.put(&mut self.sink, IS_BUCKET, &name, &value)
    }

    fn finish(mut self) -> Result<Plan, E> {
        self.end_bucket()?;
        let root = self.buckets.finish(&mut self.sink)?;
        Ok(Plan {
            root,
            pages: self.sink.next,
        })
    }
}

/// Where a file's root will be, and how long the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    root: u64,
    pages: u64,
}

impl Plan {
    /// Plans a file with these contents; nothing is written.
    ///
    /// # Errors
    /// Those of `fill`, and of what it puts in.
    pub fn of<E: From<Error>>(
        fill: impl FnOnce(&mut Contents<'_, E>) -> Result<(), E>,
    ) -> Result<Plan, E> {
        run(fill, &mut |_| Ok(()))
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> u64 {
        self.pages * PAGE_BYTES as u64
    }

    /// Writes the file: `take` gets it in pieces of whole pages.
    ///
    /// # Errors
    /// Those of `fill` and of `take`; the contents are not those that were planned.
    pub fn write<E: From<Error>>(
        &self,
        fill: impl FnOnce(&mut Contents<'_, E>) -> Result<(), E>,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        for transaction in [0, 1] {
            take(&self.meta(transaction))?;
        }
        take(&head_page(FREE_LIST_PAGE, FREE_LIST))?;
        let written = run(fill, &mut take)?;
        if written != *self {
            return Err(Error::entry("the contents changed while they were written").into());
        }
        Ok(())
    }

    fn meta(&self, transaction: u64) -> Vec<u8> {
        let mut page = head_page(transaction, META);
        let meta = Meta {
            page_bytes: PAGE_BYTES as u32,
            root: self.root,
            free_list: FREE_LIST_PAGE,
            pages: self.pages,
            transaction,
        };
        let bytes = meta.to_bytes();
        page[HEAD..HEAD + bytes.len()].copy_from_slice(&bytes);
        page
    }
}

fn run<E: From<Error>>(
    fill: impl FnOnce(&mut Contents<'_, E>) -> Result<(), E>,
    take: &mut dyn FnMut(&[u8]) -> Result<(), E>,
) -> Result<Plan, E> {
    let mut contents = Contents::new(take);
    fill(&mut contents)?;
    contents.finish()
}

/// A page with a head and nothing else.
fn head_page(number: u64, flags: u16) -> Vec<u8> {
    let head = Head {
        number,
        flags,
        count: 0,
        overflow: 0,
    };
    let mut page = head.to_bytes().to_vec();
    page.resize(PAGE_BYTES, 0);
    page
}
