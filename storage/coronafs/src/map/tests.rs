//! Laws of the shared trees, beside plain maps.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

type Plain = BTreeMap<u64, Vec<Piece>>;

/// References as a space counts them.
#[derive(Default)]
struct Counted(BTreeMap<u32, i64>);

impl Counted {
    fn add(&mut self, cluster: u32, by: i64) {
        let count = self.0.entry(cluster).or_default();
        *count += by;
        assert!(*count >= 0, "cluster {cluster} ended too often");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Set {
        tree: usize,
        index: u64,
        pieces: Vec<Piece>,
    },
    Share {
        tree: usize,
    },
    Drop {
        tree: usize,
    },
}

fn pieces() -> impl Strategy<Value = Vec<Piece>> {
    let masks = prop_oneof![
        Just(vec![]),
        Just(vec![0xffff_u16]),
        Just(vec![0x00f0, 0x0001]),
        Just(vec![0x8000, 0x0100, 0x00ff]),
    ];
    (masks, 0_u32..50).prop_map(|(masks, first)| {
        let piece = |(at, mask)| Piece {
            cluster: first + at,
            mask,
        };
        (0..).zip(masks).map(piece).collect()
    })
}

fn step() -> impl Strategy<Value = Step> {
    let index = prop_oneof![
        0_u64..200,
        4_000_u64..4_200,
        Just(1 << 20),
        Just((1 << 35) - 1)
    ];
    prop_oneof![
        6 => (any::<prop::sample::Index>(), index, pieces()).prop_map(|(tree, index, pieces)| {
            Step::Set { tree: tree.index(8), index, pieces }
        }),
        1 => (0_usize..8).prop_map(|tree| Step::Share { tree }),
        1 => (0_usize..8).prop_map(|tree| Step::Drop { tree }),
    ]
}

fn same(tree: &Tree, plain: &Plain) {
    for (index, pieces) in plain {
        assert_eq!(tree.slot(*index), *pieces, "slot {index}");
    }
    let mut mapped = Vec::new();
    let mut next = tree.next_mapped(0);
    while let Some(index) = next {
        mapped.push(index);
        next = tree.next_mapped(index + 1);
    }
    let wanted: Vec<u64> = plain
        .iter()
        .filter(|(_, p)| !p.is_empty())
        .map(|(i, _)| *i)
        .collect();
    assert_eq!(mapped, wanted);
    assert_eq!(tree.last_mapped(), wanted.last().copied());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn trees_that_share_nodes_are_maps_of_their_own(steps in prop::collection::vec(step(), 1..80)) {
        let mut trees: Vec<(Tree, Plain)> = vec![Default::default()];
        let mut counted = Counted::default();
        let mut reaper = Reaper::default();
        for step in steps {
            match step {
                Step::Set { tree, index, pieces } => {
                    let at = tree % trees.len();
                    let (tree, plain) = &mut trees[at];
                    let old = tree.slot(index);
                    for piece in &pieces {
                        counted.add(piece.cluster, 1);
                    }
                    tree.set(index, &pieces, |cluster| counted.add(cluster, 1));
                    for piece in old {
                        counted.add(piece.cluster, -1);
                    }
                    plain.insert(index, pieces);
                }
                Step::Share { tree } => {
                    let copy = trees[tree % trees.len()].clone();
                    trees.push(copy);
                }
                Step::Drop { tree } if trees.len() > 1 => {
                    let (tree, _) = trees.remove(tree % trees.len());
                    reaper.add(tree);
                    while reaper.step(3, |cluster| counted.add(cluster, -1)) {}
                }
                Step::Drop { .. } => {}
            }
        }
        for (tree, plain) in &trees {
            same(tree, plain);
        }
        let (old, new) = (trees.first().unwrap(), trees.last().unwrap());
        let mut differ = Vec::new();
        differing(&old.0, &new.0, 0, &mut |base, old, new| {
            for slot in 0..64 {
                let of = |leaf: Option<&Leaf>| {
                    leaf.map_or_else(Vec::new, |leaf| leaf.pieces(slot).collect())
                };
                if of(old) != of(new) {
                    differ.push(base + slot as u64);
                }
            }
            true
        });
        let keys = old.1.keys().chain(new.1.keys());
        let wanted: std::collections::BTreeSet<u64> = keys
            .filter(|key| old.0.slot(**key) != new.0.slot(**key))
            .copied()
            .collect();
        prop_assert_eq!(differ, wanted.into_iter().collect::<Vec<_>>());
        for (tree, _) in trees {
            reaper.add(tree);
        }
        while reaper.step(3, |cluster| counted.add(cluster, -1)) {}
        prop_assert!(counted.0.values().all(|count| *count == 0), "all references end");
    }
}
