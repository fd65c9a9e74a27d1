//! The tree against the standard library's.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Debug, PartialEq)]
struct Pair(Vec<u8>, u32);

impl Element for Pair {
    fn key(&self) -> &[u8] {
        &self.0
    }
}

fn check<E>(node: &Node<E>, root: bool) -> usize {
    match node {
        Node::Leaf(elements) => {
            assert!(elements.len() <= WIDTH && (root || !elements.is_empty()));
            1
        }
        Node::Branch(children) => {
            assert!(children.len() <= WIDTH && !children.is_empty());
            let depths: Vec<_> = children
                .iter()
                .map(|(_, below)| check(below, false))
                .collect();
            assert!(
                depths.iter().all(|depth| *depth == depths[0]),
                "leaves of one depth"
            );
            depths[0] + 1
        }
    }
}

fn same(tree: &Tree<Pair>, model: &BTreeMap<Vec<u8>, u32>) {
    check(&tree.root, true);
    assert_eq!(tree.len(), model.len());
    assert!(
        tree.iter()
            .map(|pair| (&pair.0, pair.1))
            .eq(model.iter().map(|(key, value)| (key, *value)))
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Random inserts and removals agree with `BTreeMap`; copies taken on the way never change.
    #[test]
    fn the_tree_is_a_map_and_copies_stay(
        ops in prop::collection::vec((0_u16..600, 0_u8..5), 1..3_000),
        from in 0_u16..600,
        to in 0_u16..600,
    ) {
        let mut tree: Tree<Pair> = Tree::default();
        let mut model = BTreeMap::new();
        let mut copies = Vec::new();
        for (at, (key, op)) in ops.into_iter().enumerate() {
            let bytes = key.to_be_bytes().to_vec();
            if op < 2 {
                let removed = tree.remove(&bytes).map(|pair| pair.1);
                prop_assert_eq!(removed, model.remove(&bytes));
            } else {
                let value = u32::try_from(at).unwrap();
                let before = tree.insert(Arc::new(Pair(bytes.clone(), value))).map(|pair| pair.1);
                prop_assert_eq!(before, model.insert(bytes.clone(), value));
            }
            prop_assert_eq!(tree.get(&bytes).map(|pair| pair.1), model.get(&bytes).copied());
            if at % 500 == 0 {
                copies.push((tree.clone(), model.clone()));
            }
        }
        same(&tree, &model);
        for (tree, model) in &copies {
            same(tree, model);
        }
        let (from, to) = (from.to_be_bytes(), to.to_be_bytes());
        let end = Bound::Excluded(to.as_slice());
        let found: Vec<_> = tree.range(&from, end).map(|pair| pair.1).collect();
        let wanted: Vec<_> = if from <= to {
            model.range(from.to_vec()..to.to_vec()).map(|(_, value)| *value).collect()
        } else {
            Vec::new()
        };
        prop_assert_eq!(found, wanted);
    }
}

#[test]
fn ascending_keys_fill_their_leaves() {
    let mut tree = Tree::default();
    for key in 0_u32..10_000 {
        tree.insert(Arc::new(Pair(key.to_be_bytes().to_vec(), key)));
    }
    let Node::Branch(children) = &*tree.root else {
        panic!("the root is a branch")
    };
    assert!(
        children.len() <= 10,
        "10,000 / 32 / 32 children, and one: {}",
        children.len()
    );
    check(&tree.root, true);
}
