//! Where a volume's clusters lie: a tree whose nodes are shared between volumes and snapshots and
//! copied when one of them writes. Sans-IO.
//!
//! A logical cluster is a slot of up to 16 pieces, each a cluster of the data file with the 4 KiB
//! blocks of it that are valid; a block that no piece holds reads as zeros. So a small write after a
//! snapshot takes 4 KiB of a new cluster, and the rest of the slot stays where it is. A slot is found
//! in as many steps as the tree is high (64 ways, 4 MiB a leaf), however many snapshots there are;
//! taking one is a copy of the root's pointer.
//!
//! A piece of [`ZEROS`] has no data: its blocks are zeros, and are known to be, in a volume that is being
//! filled from an image ([`crate::image`]). Elsewhere it says no more than a block without a piece.
//!
//! Invariants: the masks of a slot's pieces share no bit and none is empty; one of `ZEROS` is the last; a
//! slot's first piece stands
//! in the leaf, so a look-up of a slot that was written whole touches nothing else. A node that two
//! trees share is never changed. References are counted by leaves: whoever makes or drops one must
//! tell (`copied`, [`Reaper`]).

use std::ops::Range;
use std::rc::Rc;

/// Bytes of a cluster.
pub(crate) const CLUSTER: u64 = 64 << 10;
/// Bytes of a block, the unit of what is valid.
pub(crate) const BLOCK: u64 = 4 << 10;
/// Blocks of a cluster.
pub(crate) const BLOCKS: u32 = (CLUSTER / BLOCK) as u32;
/// Children of a node, and slots of a leaf.
const WAYS: usize = 64;
/// Levels that suffice for every volume that is allowed.
pub(crate) const HEIGHT_MAX: u8 = 6;

/// The cluster of blocks that have no data and are zeros. No data file has as many clusters.
pub(crate) const ZEROS: u32 = u32::MAX;

/// Blocks of a cluster of the data file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Piece {
    /// The cluster's number in the data file.
    pub(crate) cluster: u32,
    /// The valid blocks, bit 0 the first.
    pub(crate) mask: u16,
}

impl Piece {
    /// Whether it has data in the data file.
    pub(crate) fn has_data(self) -> bool {
        self.mask != 0 && self.cluster != ZEROS
    }
}

/// 64 slots: 4 MiB of a volume.
#[derive(Clone, Debug)]
pub(crate) struct Leaf {
    first: [Piece; WAYS],
    /// The other pieces, with their slots.
    more: Vec<(u8, Piece)>,
}

impl Default for Leaf {
    fn default() -> Leaf {
        Leaf {
            first: [Piece::default(); WAYS],
            more: Vec::new(),
        }
    }
}

impl Leaf {
    /// The first piece of a slot; its mask is 0 when the slot is empty.
    pub(crate) fn first(&self, slot: usize) -> Piece {
        self.first[slot]
    }

    /// The pieces of a slot, the first one first.
    pub(crate) fn pieces(&self, slot: usize) -> impl Iterator<Item = Piece> + '_ {
        let first = Some(self.first[slot]).filter(|piece| piece.mask != 0);
        let more = self.more.iter();
        first.into_iter().chain(
            more.filter(move |(of, _)| usize::from(*of) == slot)
                .map(|(_, piece)| *piece),
        )
    }

    /// The piece that holds a block.
    pub(crate) fn piece_of(&self, slot: usize, block: u32) -> Option<Piece> {
        let first = self.first[slot];
        if first.mask >> block & 1 == 1 {
            return Some(first);
        }
        if self.more.is_empty() {
            return None;
        }
        self.pieces(slot).find(|piece| piece.mask >> block & 1 == 1)
    }

    /// Every cluster that the leaf refers to, as often as it does.
    pub(crate) fn clusters(&self) -> impl Iterator<Item = u32> + '_ {
        let more = self.more.iter().map(|(_, piece)| piece);
        let all = self.first.iter().chain(more);
        all.filter(|piece| piece.has_data())
            .map(|piece| piece.cluster)
    }

    /// The clusters of the slots' first pieces.
    pub(crate) fn first_clusters(&self) -> impl Iterator<Item = u32> + '_ {
        let first = self.first.iter().filter(|piece| piece.has_data());
        first.map(|piece| piece.cluster)
    }

    /// Blocks of all slots that have data.
    pub(crate) fn blocks(&self) -> u64 {
        let first = self.first.iter();
        let pieces = first.chain(self.more.iter().map(|(_, piece)| piece));
        let data = pieces.filter(|piece| piece.has_data());
        data.map(|piece| u64::from(piece.mask.count_ones())).sum()
    }

    pub(crate) fn put(&mut self, slot: usize, pieces: &[Piece]) {
        self.first[slot] = pieces.first().copied().unwrap_or_default();
        self.more.retain(|(of, _)| usize::from(*of) != slot);
        let rest = pieces.iter().skip(1);
        self.more.extend(rest.map(|piece| (slot as u8, *piece)));
    }

    fn mapped_from(&self, slot: usize) -> Option<usize> {
        (slot..WAYS).find(|slot| self.first[*slot].has_data())
    }

    fn last_mapped(&self) -> Option<usize> {
        (0..WAYS).rev().find(|slot| self.first[*slot].has_data())
    }
}

/// A node of a tree.
#[derive(Clone, Debug)]
pub(crate) enum Node {
    Inner([Option<Rc<Node>>; WAYS]),
    Leaf(Leaf),
}

impl Node {
    pub(crate) fn inner() -> Node {
        Node::Inner([const { None }; WAYS])
    }
}

/// A volume's map. Clones share all nodes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tree {
    root: Option<Rc<Node>>,
    /// Levels, the leaves' included; 0 for the empty tree.
    height: u8,
}

/// The slot of a cluster's leaf.
pub(crate) fn slot_of(index: u64) -> usize {
    index as usize % WAYS
}

/// The first cluster behind the leaf of this one.
pub(crate) fn next_leaf(index: u64) -> u64 {
    (index / WAYS as u64 + 1) * WAYS as u64
}

/// Which child of a node at a level (1 is a leaf) a cluster lies below.
fn way(index: u64, level: u8) -> usize {
    (index >> (6 * u32::from(level - 1))) as usize % WAYS
}

/// Clusters below one node of a level.
fn span(level: u8) -> u64 {
    1 << (6 * u32::from(level))
}

impl Tree {
    pub(crate) fn new(root: Option<Rc<Node>>, height: u8) -> Tree {
        Tree { root, height }
    }

    pub(crate) fn root(&self) -> Option<&Rc<Node>> {
        self.root.as_ref()
    }

    pub(crate) fn height(&self) -> u8 {
        self.height
    }

    /// The leaf that holds a cluster's slot.
    pub(crate) fn leaf(&self, index: u64) -> Option<&Leaf> {
        if self.height == 0 || index >= span(self.height) {
            return None;
        }
        let mut node = self.root.as_deref()?;
        let mut level = self.height;
        loop {
            match node {
                Node::Leaf(leaf) => return Some(leaf),
                Node::Inner(children) => node = children[way(index, level)].as_deref()?,
            }
            level -= 1;
        }
    }

    /// The pieces of a cluster.
    pub(crate) fn slot(&self, index: u64) -> Vec<Piece> {
        let leaf = self.leaf(index);
        leaf.map_or_else(Vec::new, |leaf| leaf.pieces(slot_of(index)).collect())
    }

    /// Sets a cluster's pieces. Each cluster of the data file that a leaf refers to which had to be
    /// copied is shown to `copied`: there is one more reference to it.
    pub(crate) fn set(&mut self, index: u64, pieces: &[Piece], mut copied: impl FnMut(u32)) {
        while self.height == 0 || index >= span(self.height) {
            self.height += 1;
            if let Some(below) = self.root.take() {
                let mut root = Node::inner();
                if let Node::Inner(children) = &mut root {
                    children[0] = Some(below);
                }
                self.root = Some(Rc::new(root));
            }
        }
        let mut level = self.height;
        let mut at = &mut self.root;
        loop {
            let node = at.get_or_insert_with(|| {
                Rc::new(if level == 1 {
                    Node::Leaf(Leaf::default())
                } else {
                    Node::inner()
                })
            });
            match own(node, &mut copied) {
                Node::Leaf(leaf) => return leaf.put(slot_of(index), pieces),
                Node::Inner(children) => at = &mut children[way(index, level)],
            }
            level -= 1;
        }
    }

    /// The first cluster from `from` on that has data.
    pub(crate) fn next_mapped(&self, from: u64) -> Option<u64> {
        let root = self.root.as_deref()?;
        if self.height == 0 || from >= span(self.height) {
            return None;
        }
        next_below(root, self.height, from)
    }

    /// The last cluster that has data.
    pub(crate) fn last_mapped(&self) -> Option<u64> {
        last_below(self.root.as_deref()?, self.height)
    }
}

/// The node, with nobody else referring to it.
fn own<'a>(node: &'a mut Rc<Node>, copied: &mut impl FnMut(u32)) -> &'a mut Node {
    if Rc::strong_count(node) > 1 {
        if let Node::Leaf(leaf) = &**node {
            leaf.clusters().for_each(&mut *copied);
        }
        let copy = Node::clone(node);
        *node = Rc::new(copy);
    }
    Rc::get_mut(node).expect("a node that was just copied has one owner")
}

fn next_below(node: &Node, level: u8, from: u64) -> Option<u64> {
    let children = match node {
        Node::Leaf(leaf) => return leaf.mapped_from(from as usize).map(|slot| slot as u64),
        Node::Inner(children) => children,
    };
    let below = span(level - 1);
    let first = way(from, level);
    let rest = children.iter().enumerate().skip(first);
    rest.filter_map(|(at, child)| Some((at, child.as_deref()?)))
        .find_map(|(at, child)| {
            let inside = if at == first { from % below } else { 0 };
            let found = next_below(child, level - 1, inside)?;
            Some(at as u64 * below + found)
        })
}

fn last_below(node: &Node, level: u8) -> Option<u64> {
    match node {
        Node::Leaf(leaf) => leaf.last_mapped().map(|slot| slot as u64),
        Node::Inner(children) => (0..WAYS).rev().find_map(|at| {
            let found = last_below(children[at].as_deref()?, level - 1)?;
            Some(at as u64 * span(level - 1) + found)
        }),
    }
}

/// Shows the leaves in which two trees may differ, in order, from the cluster `from` on, until
/// `visit` answers false: its first cluster, and what each tree has there. What both share is skipped
/// without a look, so this costs as much as differs.
pub(crate) fn differing(
    old: &Tree,
    new: &Tree,
    from: u64,
    visit: &mut impl FnMut(u64, Option<&Leaf>, Option<&Leaf>) -> bool,
) {
    let height = old.height.max(new.height);
    if height > 0 {
        let (old, new) = (raised(old, height), raised(new, height));
        differ_below(old.as_ref(), new.as_ref(), height, 0, from, visit);
    }
}

/// The root of the same map, as high as asked for.
fn raised(tree: &Tree, height: u8) -> Option<Rc<Node>> {
    let mut root = tree.root.clone()?;
    for _ in tree.height..height {
        let mut above = Node::inner();
        if let Node::Inner(children) = &mut above {
            children[0] = Some(root);
        }
        root = Rc::new(above);
    }
    Some(root)
}

fn differ_below(
    old: Option<&Rc<Node>>,
    new: Option<&Rc<Node>>,
    level: u8,
    base: u64,
    from: u64,
    visit: &mut impl FnMut(u64, Option<&Leaf>, Option<&Leaf>) -> bool,
) -> bool {
    let same = match (old, new) {
        (Some(old), Some(new)) => Rc::ptr_eq(old, new),
        (None, None) => true,
        _ => false,
    };
    if same || base + span(level) <= from {
        return true;
    }
    if level == 1 {
        return visit(base, leaf_in(old), leaf_in(new));
    }
    (0..WAYS).all(|at| {
        let base = base + at as u64 * span(level - 1);
        differ_below(child(old, at), child(new, at), level - 1, base, from, visit)
    })
}

fn leaf_in(node: Option<&Rc<Node>>) -> Option<&Leaf> {
    match node.map(Rc::as_ref) {
        Some(Node::Leaf(leaf)) => Some(leaf),
        _ => None,
    }
}

fn child(node: Option<&Rc<Node>>, at: usize) -> Option<&Rc<Node>> {
    match node.map(Rc::as_ref) {
        Some(Node::Inner(children)) => children[at].as_ref(),
        _ => None,
    }
}

/// Takes trees apart that nobody needs any more, some nodes at a time, and says which references end.
#[derive(Debug, Default)]
pub(crate) struct Reaper {
    nodes: Vec<Rc<Node>>,
}

impl Reaper {
    pub(crate) fn add(&mut self, tree: Tree) {
        self.nodes.extend(tree.root);
    }

    /// Looks at up to `nodes` nodes; false when none was left.
    pub(crate) fn step(&mut self, nodes: usize, mut ended: impl FnMut(u32)) -> bool {
        for _ in 0..nodes {
            let Some(node) = self.nodes.pop() else {
                return false;
            };
            // What others share stays, and its references with it.
            match Rc::into_inner(node) {
                Some(Node::Inner(children)) => self.nodes.extend(children.into_iter().flatten()),
                Some(Node::Leaf(leaf)) => leaf.clusters().for_each(&mut ended),
                None => {}
            }
        }
        true
    }
}

/// Runs of blocks of a mask.
pub(crate) fn runs(mut mask: u16) -> impl Iterator<Item = Range<u32>> {
    std::iter::from_fn(move || {
        if mask == 0 {
            return None;
        }
        let first = mask.trailing_zeros();
        let end = first + (mask >> first).trailing_ones();
        mask &= !(((1_u32 << end) - 1) as u16);
        Some(first..end)
    })
}

/// Blocks that no piece has are known to be zeros.
pub(crate) fn add_zeros(pieces: &mut Vec<Piece>, blocks: u16) {
    if blocks == 0 {
        return;
    }
    match pieces.last_mut().filter(|piece| piece.cluster == ZEROS) {
        Some(zeros) => zeros.mask |= blocks,
        None => pieces.push(Piece {
            cluster: ZEROS,
            mask: blocks,
        }),
    }
}

/// Blocks lie in a cluster from now on, and nowhere else.
pub(crate) fn lay(pieces: &mut Vec<Piece>, place: Piece) {
    for piece in pieces.iter_mut() {
        piece.mask &= !place.mask;
    }
    match pieces
        .iter_mut()
        .find(|piece| piece.cluster == place.cluster)
    {
        Some(own) => own.mask |= place.mask,
        None => pieces.insert(0, place),
    }
}

#[cfg(test)]
mod tests;
