//! The rules, one by one.

use super::*;
use crate::wal::position;

fn member(name: &str) -> Member {
    let url = format!("http://{name}:2380");
    Member {
        name: name.to_owned(),
        peer_urls: vec![url],
        ..Member::default()
    }
}

fn three() -> Known {
    let members = BTreeMap::from([1, 2, 3, 4].map(|id| (id, member(&format!("m{id}")))));
    let membership = Membership::new(vec![BTreeSet::from([1, 2, 3])], members).unwrap();
    Known {
        leader: 1,
        membership: StoredMembership::new(Some(position(1, 5)), membership),
        committed: true,
        last_index: 1000,
        matched: BTreeMap::from([(2, 1000), (3, 900), (4, 1000)]),
        reachable: BTreeSet::from([1, 2, 3, 4]),
    }
}

fn voters(plan: Plan) -> Vec<NodeId> {
    let Plan::Append(membership) = plan else {
        panic!("{plan:?}")
    };
    membership.get_joint_config()[0].iter().copied().collect()
}

fn kind(known: &Known, change: &Change) -> ErrorKind {
    plan(known, change).unwrap_err().kind()
}

#[test]
fn one_voter_changes_at_a_time() {
    let known = three();
    assert_eq!(
        voters(plan(&known, &Change::Promote { id: 4 }).unwrap()),
        [1, 2, 3, 4]
    );
    assert_eq!(
        voters(plan(&known, &Change::Remove { id: 1 }).unwrap()),
        [2, 3]
    );
    assert_eq!(
        voters(plan(&known, &Change::Remove { id: 4 }).unwrap()),
        [1, 2, 3]
    );
    let add = Change::Add {
        id: 5,
        member: member("m5"),
    };
    assert_eq!(voters(plan(&known, &add).unwrap()), [1, 2, 3]);
}

#[test]
fn a_change_under_way_refuses_all_others_but_a_transfer() {
    let mut known = three();
    known.committed = false;
    assert_eq!(kind(&known, &Change::Promote { id: 4 }), ErrorKind::Refused);
    let error = plan(&known, &Change::Remove { id: 3 }).unwrap_err();
    assert!(error.to_string().contains("entry 5"), "{error}");
    let to_most_advanced = plan(&known, &Change::Transfer { to: None }).unwrap();
    assert_eq!(to_most_advanced, Plan::Transfer(2));
}

#[test]
fn a_learner_that_lags_or_does_not_exist_is_not_promoted() {
    let mut known = three();
    known.matched.insert(4, 1000 - CAUGHT_UP_ENTRIES - 1);
    assert_eq!(kind(&known, &Change::Promote { id: 4 }), ErrorKind::Refused);
    assert_eq!(kind(&known, &Change::Promote { id: 3 }), ErrorKind::Refused);
    assert_eq!(
        kind(&known, &Change::Promote { id: 9 }),
        ErrorKind::NotFound
    );
}

#[test]
fn a_change_that_would_lose_the_quorum_is_refused() {
    let mut known = three();
    known.reachable = BTreeSet::from([1, 2]);
    assert_eq!(kind(&known, &Change::Remove { id: 2 }), ErrorKind::Refused);
    assert_eq!(
        voters(plan(&known, &Change::Remove { id: 3 }).unwrap()),
        [1, 2]
    );
    assert_eq!(kind(&known, &Change::Promote { id: 4 }), ErrorKind::Refused);
}

#[test]
fn identities_and_urls_are_not_used_twice() {
    let known = three();
    let again = Change::Add {
        id: 2,
        member: member("m9"),
    };
    assert_eq!(kind(&known, &again), ErrorKind::Exists);
    let same_url = Change::Add {
        id: 9,
        member: member("m2"),
    };
    assert_eq!(kind(&known, &same_url), ErrorKind::Exists);
    let moved = Change::Update {
        id: 2,
        member: member("m3"),
    };
    assert_eq!(kind(&known, &moved), ErrorKind::Exists);
    assert!(
        plan(
            &known,
            &Change::Update {
                id: 2,
                member: member("m2")
            }
        )
        .is_ok()
    );
}

#[test]
fn what_an_update_leaves_empty_stays_as_the_leader_knows_it() {
    let known = three();
    let update = |member| {
        let made = plan(&known, &Change::Update { id: 2, member }).unwrap();
        let Plan::Set(members) = made else {
            panic!("{made:?}")
        };
        members[&2].clone()
    };
    let before = known.membership.get_node(&2).unwrap().clone();
    let client_urls = vec!["http://new:2379".to_owned()];
    let moved = update(Member {
        client_urls: client_urls.clone(),
        ..Member::default()
    });
    assert_eq!(
        moved,
        Member {
            client_urls,
            ..before.clone()
        }
    );
    assert_eq!(update(Member::default()), before);
}

#[test]
fn a_joint_change_needs_members_that_have_the_log() {
    let known = three();
    let change = |voters: &[u64]| Change::Joint {
        voters: voters.iter().copied().collect(),
        members: voters
            .iter()
            .filter(|&&id| id > 4)
            .map(|&id| (id, member(&format!("m{id}"))))
            .collect(),
        retain: false,
    };
    assert!(plan(&known, &change(&[2, 4, 5])).is_ok());
    assert_eq!(kind(&known, &change(&[5, 6, 7])), ErrorKind::Refused);
    assert_eq!(kind(&known, &change(&[])), ErrorKind::Invalid);
}

#[test]
fn a_change_is_read_as_it_was_written() {
    let joint = Change::Joint {
        voters: BTreeSet::from([1, 9]),
        members: BTreeMap::from([(9, member("m9"))]),
        retain: true,
    };
    let changes = [
        Change::Add {
            id: 3,
            member: Member {
                becomes_voter: true,
                ..member("m3")
            },
        },
        Change::Promote { id: 3 },
        Change::Remove { id: 3 },
        Change::Update {
            id: 3,
            member: member("x"),
        },
        joint,
        Change::Transfer { to: None },
        Change::Transfer { to: Some(2) },
    ];
    for change in changes {
        assert_eq!(decode_change(encode_change(&change)).unwrap(), change);
    }
}
