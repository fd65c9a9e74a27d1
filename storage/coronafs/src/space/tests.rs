//! Who gets which cluster, and when.

use super::*;

fn space(clusters: u32) -> Space {
    let mut space = Space::new();
    space.grow(clusters, true);
    space
}

fn take(space: &mut Space, near: Option<u32>, layer: Layer) -> Option<u32> {
    space.take(near, layer).map(|taken| taken.cluster)
}

#[test]
fn clusters_are_taken_in_order_near_others_and_round_the_end() {
    let mut space = space(130);
    let layer = space.new_layer();
    let taken: Vec<_> = (0..3)
        .filter_map(|_| take(&mut space, None, layer))
        .collect();
    assert_eq!(taken, [0, 1, 2]);
    assert_eq!(take(&mut space, Some(100), layer), Some(101));
    assert_eq!(take(&mut space, Some(101), layer), Some(102));
    assert_eq!(take(&mut space, Some(1), layer), Some(103));
    for wanted in (104..130).chain(3..101) {
        assert_eq!(take(&mut space, None, layer), Some(wanted));
    }
    assert_eq!(take(&mut space, None, layer), None);
    space.end([64]);
    assert_eq!(take(&mut space, None, layer), Some(64));
}

#[test]
fn a_cluster_is_not_given_out_while_an_operation_may_still_use_it() {
    let mut space = space(1);
    let layer = space.new_layer();
    let cluster = take(&mut space, None, layer).unwrap();
    let before = space.enter();
    space.end([cluster]);
    let behind = space.enter();
    assert_eq!(
        (take(&mut space, None, layer), space.limbo_count()),
        (None, 1)
    );
    // One that began when it was free cannot see it.
    assert!(space.leave(&before));
    assert_eq!(take(&mut space, None, layer), Some(cluster));
    assert!(!space.leave(&behind));
}

#[test]
fn operations_of_many_epochs_hold_back_what_ended_in_theirs() {
    let mut space = space(3);
    let layer = space.new_layer();
    let all: Vec<_> = (0..3)
        .filter_map(|_| take(&mut space, None, layer))
        .collect();
    let first = space.enter();
    space.end([all[0]]);
    let second = space.enter();
    space.end([all[1]]);
    assert!(!space.leave(&second));
    assert_eq!(space.free_count(), 0);
    assert!(space.leave(&first));
    assert_eq!((space.free_count(), space.limbo_count()), (2, 0));
    space.end([all[2]]);
    assert_eq!(space.free_count(), 3);
}

#[test]
fn a_layer_owns_what_it_took_until_nothing_refers_to_it() {
    let mut space = space(2);
    let (one, two) = (space.new_layer(), space.new_layer());
    let cluster = take(&mut space, None, one).unwrap();
    assert!(space.owns(one, cluster) && !space.owns(two, cluster));
    space.refer(cluster);
    space.end([cluster]);
    assert!(space.owns(one, cluster));
    space.adopt(cluster, two);
    assert!(space.owns(two, cluster));
    space.end([cluster]);
    assert!(!space.owns(two, cluster));
    assert!(!space.owns(NO_LAYER, cluster), "nobody owns what is free");
}

#[test]
fn a_reference_past_the_file_is_damage() {
    let error = space(2).claim(2).unwrap_err();
    assert!(matches!(error, VolumeError::Corrupt { offset, .. } if offset == 128 << 10));
}

#[test]
fn a_cluster_without_space_is_told_and_a_hole_is_given_back_once() {
    let mut space = Space::new();
    space.grow(40, false);
    space.claim(3).unwrap();
    let layer = space.new_layer();
    let taken = space.take(None, layer).unwrap();
    assert!(!taken.backed);
    assert_eq!(
        space.unbacked_run(taken.cluster, 64),
        3,
        "up to the one in use"
    );
    space.back(0..3);
    assert!(space.take(None, layer).unwrap().backed);
    assert_eq!(space.surplus(), 37);
    let run = space.begin_hole(0, 16, 20).unwrap();
    assert_eq!((run.clone(), space.free_count()), (4..24, 17));
    space.end_hole(run, true);
    assert_eq!((space.free_count(), space.surplus()), (37, 17));
    let run = space.begin_hole(0, 16, 64).unwrap();
    assert_eq!(run, 24..40);
    space.end_hole(run, true);
    assert_eq!(space.begin_hole(0, 1, 64), Some(2..3));
    space.end_hole(2..3, false);
    assert_eq!(space.surplus(), 1);
    let again = space.take(Some(9), layer).unwrap();
    assert_eq!((again.cluster, again.backed), (10, false));
    assert_eq!(space.surplus(), 1);
}

#[test]
fn a_cluster_that_has_space_is_found_behind_those_that_have_none() {
    let mut space = Space::new();
    space.grow(200, false);
    let layer = space.new_layer();
    assert_eq!(space.take_backed(layer), None);
    space.back(70..72);
    assert_eq!(space.take_backed(layer), Some(70));
    assert_eq!(space.take_backed(layer), Some(71));
    assert_eq!((space.take_backed(layer), space.free_count()), (None, 198));
    assert!(space.owns(layer, 71));
    space.end([70]);
    assert_eq!(space.take_backed(layer), Some(70));
}

#[test]
fn a_run_is_taken_behind_what_is_near_or_where_it_fits() {
    let mut space = space(200);
    let layer = space.new_layer();
    assert_eq!(space.take_run(Some(9), 4, layer), Some(10..14));
    assert!(space.owns(layer, 10) && space.owns(layer, 13));
    // The next word, as a run lies in one.
    assert_eq!(space.take_run(None, 64, layer), Some(64..128));
    assert_eq!(space.take_run(Some(11), 3, layer), Some(128..131));
    assert_eq!(space.free_count(), 200 - 4 - 64 - 3);
}

#[test]
fn a_run_is_as_long_as_there_is_room_and_never_one_cluster() {
    let mut space = Space::new();
    space.grow(64, false);
    let layer = space.new_layer();
    assert_eq!(space.take_run(None, 8, layer), None, "none has space");
    space.back(3..4);
    space.back(10..13);
    assert_eq!(space.take_run(None, 8, layer), Some(10..12));
    assert_eq!(space.take_run(None, 8, layer), None);
    assert_eq!(space.free_count(), 62);
}
