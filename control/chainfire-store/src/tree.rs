//! An ordered map whose copies cost nothing: a B-tree of shared nodes that copies what it
//! changes and what others still hold.
//!
//! Readers keep a copy as long as they like; the writer never waits for them. Invariants: every
//! leaf has the same depth; keys ascend across the whole tree; no node besides the root is empty,
//! and none holds more than `WIDTH` elements. Nodes may be less than half full after removals
//! (as in most databases): the depth is bounded by the most elements that the tree ever had.

use std::cmp::Ordering;
use std::ops::Bound;
use std::sync::Arc;

/// Elements of a leaf and children of a branch at most. A changed element copies its path, that
/// is `WIDTH` pointers a level: small is cheap to change, large is cheap to search.
const WIDTH: usize = 32;

/// What the tree holds: shared, and ordered by a key inside of it.
pub(crate) trait Element {
    fn key(&self) -> &[u8];
}

/// An element whose key bounds those below from below, and the node.
type Child<E> = (Arc<E>, Arc<Node<E>>);

#[derive(Debug)]
enum Node<E> {
    Leaf(Vec<Arc<E>>),
    /// Children, each with an element whose key bounds it from below. That element may have been
    /// replaced or removed since; only its key counts. The first child's counts for nothing: it
    /// takes every smaller key too.
    Branch(Vec<Child<E>>),
}

impl<E> Clone for Node<E> {
    fn clone(&self) -> Self {
        match self {
            Self::Leaf(elements) => Self::Leaf(elements.clone()),
            Self::Branch(children) => Self::Branch(children.clone()),
        }
    }
}

/// The map. `clone` shares everything.
#[derive(Debug)]
pub(crate) struct Tree<E> {
    root: Arc<Node<E>>,
    len: usize,
}

impl<E> Clone for Tree<E> {
    fn clone(&self) -> Self {
        Self {
            root: Arc::clone(&self.root),
            len: self.len,
        }
    }
}

impl<E> Default for Tree<E> {
    fn default() -> Self {
        Self {
            root: Arc::new(Node::Leaf(Vec::new())),
            len: 0,
        }
    }
}

/// Which child of a branch holds `key`.
fn child_of<E: Element>(children: &[Child<E>], key: &[u8]) -> usize {
    children[1..].partition_point(|(first, _)| first.key() <= key)
}

impl<E: Element> Tree<E> {
    /// How many elements there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&Arc<E>> {
        let mut node = &self.root;
        loop {
            match &**node {
                Node::Branch(children) => node = &children[child_of(children, key)].1,
                Node::Leaf(elements) => {
                    let found = elements.binary_search_by(|element| element.key().cmp(key));
                    return found.ok().map(|at| &elements[at]);
                }
            }
        }
    }

    /// Puts `element` in place of the one with its key, which is returned.
    pub(crate) fn insert(&mut self, element: Arc<E>) -> Option<Arc<E>> {
        let key = Arc::clone(&element);
        self.update(key.key(), |_| element)
    }

    /// Puts what `next` makes of the element with `key`, if there is one, in its place. The new
    /// one has the same key. Gives the old one.
    pub(crate) fn update(
        &mut self,
        key: &[u8],
        next: impl FnOnce(Option<&Arc<E>>) -> Arc<E>,
    ) -> Option<Arc<E>> {
        let (replaced, split) = update(&mut self.root, key, next);
        if let Some(right) = split {
            let left = Arc::clone(&self.root);
            let first = first_of(&left);
            self.root = Arc::new(Node::Branch(vec![(first, left), right]));
        }
        self.len += usize::from(replaced.is_none());
        replaced
    }

    pub(crate) fn remove(&mut self, key: &[u8]) -> Option<Arc<E>> {
        self.get(key)?;
        let removed = remove(&mut self.root, key);
        self.len -= usize::from(removed.is_some());
        loop {
            let only = match &*self.root {
                Node::Branch(children) if children.len() == 1 => Arc::clone(&children[0].1),
                Node::Branch(children) if children.is_empty() => Arc::new(Node::Leaf(Vec::new())),
                _ => return removed,
            };
            self.root = only;
        }
    }

    /// The elements from `start` on, up to `end` (not included); without an end, all.
    pub(crate) fn range<'a>(&'a self, start: &[u8], end: Bound<&'a [u8]>) -> Range<'a, E> {
        let mut path = Vec::new();
        let mut node = &*self.root;
        loop {
            match node {
                Node::Branch(children) => {
                    let at = child_of(children, start);
                    path.push((children.as_slice(), at + 1));
                    node = &children[at].1;
                }
                Node::Leaf(elements) => {
                    let at = elements.partition_point(|element| element.key() < start);
                    return Range {
                        path,
                        leaf: elements[at..].iter(),
                        end,
                    };
                }
            }
        }
    }

    /// Every element in order.
    pub(crate) fn iter(&self) -> Range<'_, E> {
        self.range(&[], Bound::Unbounded)
    }
}

/// The first element below a node that is not empty.
fn first_of<E>(node: &Node<E>) -> Arc<E> {
    let mut node = node;
    loop {
        match node {
            Node::Leaf(elements) => return Arc::clone(&elements[0]),
            Node::Branch(children) => node = &children[0].1,
        }
    }
}

/// The right part of a node that became too wide.
type Split<E> = Option<Child<E>>;

fn update<E: Element>(
    node: &mut Arc<Node<E>>,
    key: &[u8],
    next: impl FnOnce(Option<&Arc<E>>) -> Arc<E>,
) -> (Option<Arc<E>>, Split<E>) {
    match Arc::make_mut(node) {
        Node::Leaf(elements) => {
            let found = elements.binary_search_by(|element| element.key().cmp(key));
            match found {
                Ok(at) => {
                    let element = next(Some(&elements[at]));
                    (Some(std::mem::replace(&mut elements[at], element)), None)
                }
                Err(at) => {
                    elements.insert(at, next(None));
                    let ascending = at + 1 == elements.len();
                    let right = split_off(elements, ascending);
                    let split =
                        right.map(|right| (Arc::clone(&right[0]), Arc::new(Node::Leaf(right))));
                    (None, split)
                }
            }
        }
        Node::Branch(children) => {
            let at = child_of(children, key);
            let (replaced, split) = update(&mut children[at].1, key, next);
            let Some(right) = split else {
                return (replaced, None);
            };
            children.insert(at + 1, right);
            let ascending = at + 2 == children.len();
            let right = split_off(children, ascending);
            let split = right.map(|right| (Arc::clone(&right[0].0), Arc::new(Node::Branch(right))));
            (replaced, split)
        }
    }
}

/// The upper part of a node that is too wide. Keys that only ascend leave full nodes behind.
fn split_off<T>(elements: &mut Vec<T>, ascending: bool) -> Option<Vec<T>> {
    if elements.len() <= WIDTH {
        return None;
    }
    let keep = if ascending { WIDTH } else { WIDTH / 2 };
    Some(elements.split_off(keep))
}

/// Removes a key that is there.
fn remove<E: Element>(node: &mut Arc<Node<E>>, key: &[u8]) -> Option<Arc<E>> {
    match Arc::make_mut(node) {
        Node::Leaf(elements) => {
            let found = elements.binary_search_by(|element| element.key().cmp(key));
            found.ok().map(|at| elements.remove(at))
        }
        Node::Branch(children) => {
            let at = child_of(children, key);
            let removed = remove(&mut children[at].1, key);
            let empty = match &*children[at].1 {
                Node::Leaf(elements) => elements.is_empty(),
                Node::Branch(below) => below.is_empty(),
            };
            if empty {
                children.remove(at);
            }
            removed
        }
    }
}

/// An ordered walk over a part of the tree.
pub(crate) struct Range<'a, E> {
    /// From the root down: a branch's children, and which comes next.
    path: Vec<(&'a [Child<E>], usize)>,
    leaf: std::slice::Iter<'a, Arc<E>>,
    end: Bound<&'a [u8]>,
}

impl<E: Element> Range<'_, E> {
    /// Steps into the next leaf; false at the end of the tree.
    fn next_leaf(&mut self) -> bool {
        while let Some((children, next)) = self.path.last_mut() {
            let Some((_, child)) = children.get(*next) else {
                self.path.pop();
                continue;
            };
            *next += 1;
            let mut node = &**child;
            loop {
                match node {
                    Node::Branch(children) => {
                        self.path.push((children.as_slice(), 1));
                        node = &children[0].1;
                    }
                    Node::Leaf(elements) => {
                        self.leaf = elements.iter();
                        return true;
                    }
                }
            }
        }
        false
    }
}

impl<'a, E: Element> Iterator for Range<'a, E> {
    type Item = &'a Arc<E>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some(element) = self.leaf.next() else {
                if self.next_leaf() {
                    continue;
                }
                return None;
            };
            let inside = match self.end {
                Bound::Unbounded => true,
                Bound::Included(end) => element.key().cmp(end) != Ordering::Greater,
                Bound::Excluded(end) => element.key().cmp(end) == Ordering::Less,
            };
            if inside {
                return Some(element);
            }
            self.path.clear();
            self.leaf = [].iter();
            return None;
        }
    }
}

#[cfg(test)]
mod tests;
