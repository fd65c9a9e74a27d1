//! Puts, deletes and ranges.

use etcd_wire::RpcError;
use etcd_wire::etcdserverpb::range_request::{SortOrder, SortTarget};
use etcd_wire::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest};
use etcd_wire::mvccpb::event::EventType;

use chainfire_store::{check_delete, check_put, check_range};

use crate::support::{Machine, delete, put, range, shown};

/// Five keys: `a` to `e`, of which `b` was put twice and `d` before `c`.
fn five() -> Machine {
    let mut machine = Machine::new();
    for (key, value) in [
        ("b", "5"),
        ("a", "4"),
        ("d", "1"),
        ("b", "3"),
        ("c", "2"),
        ("e", "0"),
    ] {
        machine.put(key, value);
    }
    machine
}

#[test]
fn a_put_counts_revisions_and_versions() {
    let mut machine = Machine::new();
    assert_eq!(machine.view().revision(), 1);
    assert_eq!(machine.put("k", "1").header.unwrap().revision, 2);
    machine.put("other", "x");
    let request = PutRequest {
        prev_kv: true,
        ..put("k", "2")
    };
    let answer = machine.put_with(request).unwrap();
    assert_eq!(answer.header.unwrap().revision, 4);
    let before = answer.prev_kv.unwrap();
    assert_eq!(
        (before.mod_revision, before.version, &before.value[..]),
        (2, 1, &b"1"[..])
    );

    let kv = machine.range(&range("k", "")).kvs.remove(0);
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (2, 4, 2));

    machine.delete(delete("k", ""));
    machine.put("k", "3");
    let kv = machine.range(&range("k", "")).kvs.remove(0);
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (6, 6, 1));
}

#[test]
fn deleting_nothing_leaves_the_revision() {
    let mut machine = Machine::new();
    machine.put("k", "1");
    let answer = machine.delete(delete("x", ""));
    assert_eq!((answer.deleted, answer.header.unwrap().revision), (0, 2));
    assert_eq!(machine.view().revision(), 2);
    assert_eq!(machine.events.len(), 1);

    let answer = machine.delete(delete("k", ""));
    assert_eq!((answer.deleted, answer.header.unwrap().revision), (1, 3));
    let answer = machine.delete(delete("k", ""));
    assert_eq!((answer.deleted, answer.header.unwrap().revision), (0, 3));
}

#[test]
fn a_range_delete_is_one_revision() {
    let mut machine = five();
    let request = DeleteRangeRequest {
        prev_kv: true,
        ..delete("b", "d")
    };
    let answer = machine.delete(request);
    assert_eq!((answer.deleted, answer.header.unwrap().revision), (2, 8));
    assert_eq!(shown(&answer.prev_kvs), ["b=3", "c=2"]);
    assert_eq!(machine.all(), ["a=4", "d=1", "e=0"]);
    let events = &machine.events.last().unwrap().events;
    assert_eq!(events.len(), 2);
    for event in events {
        assert_eq!(event.r#type(), EventType::Delete);
        let kv = event.kv.as_ref().unwrap();
        assert_eq!((kv.mod_revision, kv.create_revision, kv.version), (8, 0, 0));
    }
    assert_eq!(machine.delete(delete("\0", "\0")).deleted, 3);
    assert!(machine.all().is_empty());
}

#[test]
fn ranges_name_one_key_a_span_or_all_from_one_on() {
    let machine = five();
    let keys = |key, end| shown(&machine.range(&range(key, end)).kvs);
    assert_eq!(keys("b", ""), ["b=3"]);
    assert_eq!(keys("b", "d"), ["b=3", "c=2"]);
    assert_eq!(keys("c", "\0"), ["c=2", "d=1", "e=0"]);
    assert_eq!(keys("\0", "\0").len(), 5);
    assert!(keys("d", "b").is_empty());
    assert!(keys("bb", "bz").is_empty());
}

#[test]
fn limits_count_everything_and_say_more() {
    let machine = five();
    let limited = |limit| {
        let answer = machine.range(&RangeRequest {
            limit,
            ..range("a", "\0")
        });
        (answer.kvs.len(), answer.more, answer.count)
    };
    assert_eq!(limited(2), (2, true, 5));
    assert_eq!(limited(5), (5, false, 5));
    assert_eq!(limited(0), (5, false, 5));
    assert_eq!(limited(-1), (5, false, 5));
    let answer = machine.range(&RangeRequest {
        count_only: true,
        limit: 1,
        ..range("a", "d")
    });
    assert_eq!((answer.kvs.len(), answer.more, answer.count), (0, false, 3));
    let answer = machine.range(&RangeRequest {
        keys_only: true,
        ..range("a", "b\0")
    });
    assert_eq!(shown(&answer.kvs), ["a=", "b="]);
}

#[test]
fn sorting_comes_before_the_limit() {
    let machine = five();
    let sorted = |order: SortOrder, target: SortTarget, limit| {
        let answer = machine.range(&RangeRequest {
            sort_order: order.into(),
            sort_target: target.into(),
            limit,
            ..range("a", "\0")
        });
        (shown(&answer.kvs).join(" "), answer.more)
    };
    let whole = |order, target| sorted(order, target, 0).0;
    assert_eq!(
        whole(SortOrder::Descend, SortTarget::Key),
        "e=0 d=1 c=2 b=3 a=4"
    );
    assert_eq!(
        whole(SortOrder::Ascend, SortTarget::Value),
        "e=0 d=1 c=2 b=3 a=4"
    );
    assert_eq!(
        whole(SortOrder::Ascend, SortTarget::Mod),
        "a=4 d=1 b=3 c=2 e=0"
    );
    assert_eq!(
        whole(SortOrder::Descend, SortTarget::Create),
        "e=0 c=2 d=1 a=4 b=3"
    );
    assert_eq!(
        whole(SortOrder::Descend, SortTarget::Version),
        "b=3 a=4 c=2 d=1 e=0"
    );
    assert_eq!(
        sorted(SortOrder::Descend, SortTarget::Mod, 2),
        ("e=0 c=2".into(), true)
    );
    // Without an order the limit cuts first, then the rest is sorted: so does etcd.
    assert_eq!(
        sorted(SortOrder::None, SortTarget::Mod, 2),
        ("a=4 b=3".into(), true)
    );
}

#[test]
fn revision_filters_prune_but_do_not_change_the_count() {
    let machine = five();
    let filtered = |request: RangeRequest| {
        let answer = machine.range(&RangeRequest {
            key: "a".into(),
            range_end: "\0".into(),
            ..request
        });
        (shown(&answer.kvs).join(" "), answer.more, answer.count)
    };
    let request = RangeRequest {
        min_mod_revision: 4,
        max_mod_revision: 5,
        ..RangeRequest::default()
    };
    assert_eq!(filtered(request), ("b=3 d=1".into(), false, 5));
    let request = RangeRequest {
        min_create_revision: 3,
        limit: 1,
        ..RangeRequest::default()
    };
    assert_eq!(filtered(request), ("a=4".into(), true, 5));
    let request = RangeRequest {
        max_create_revision: 2,
        ..RangeRequest::default()
    };
    assert_eq!(filtered(request), ("b=3".into(), false, 5));
}

#[test]
fn old_revisions_are_seen_as_they_were() {
    let mut machine = five();
    machine.delete(delete("a", "c"));
    let at = |revision| {
        let answer = machine.range(&RangeRequest {
            revision,
            ..range("a", "\0")
        });
        assert_eq!(
            answer.header.unwrap().revision,
            8,
            "the header has the newest"
        );
        shown(&answer.kvs).join(" ")
    };
    assert_eq!(at(1), "");
    assert_eq!(at(2), "b=5");
    assert_eq!(at(4), "a=4 b=5 d=1");
    assert_eq!(at(7), "a=4 b=3 c=2 d=1 e=0");
    assert_eq!(at(8), "c=2 d=1 e=0");
    assert_eq!(at(0), at(8));
    let future = RangeRequest {
        revision: 9,
        ..range("a", "")
    };
    assert_eq!(machine.refusal(&future), RpcError::FutureRev.text());
}

#[test]
fn a_put_may_keep_the_value_or_the_lease() {
    let mut machine = Machine::new();
    machine.grant(7, 60).unwrap();
    let keep_value = PutRequest {
        ignore_value: true,
        ..put("k", "")
    };
    let keep_lease = PutRequest {
        ignore_lease: true,
        ..put("k", "new")
    };
    assert_eq!(
        machine.put_with(keep_value.clone()).unwrap_err(),
        RpcError::KeyNotFound
    );
    assert_eq!(
        machine.put_with(keep_lease.clone()).unwrap_err(),
        RpcError::KeyNotFound
    );
    let leased = PutRequest {
        lease: 7,
        ..put("k", "old")
    };
    machine.put_with(leased).unwrap();
    let answer = machine.put_with(keep_lease).unwrap();
    assert_eq!(answer.prev_kv, None, "nobody asked for it");
    let kv = machine.range(&range("k", "")).kvs.remove(0);
    assert_eq!((&kv.value[..], kv.lease), (&b"new"[..], 7));
    machine.put_with(keep_value).unwrap();
    let kv = machine.range(&range("k", "")).kvs.remove(0);
    assert_eq!((&kv.value[..], kv.lease, kv.version), (&b"new"[..], 0, 3));
}

#[test]
fn requests_that_make_no_sense_are_refused_before() {
    assert_eq!(check_put(&put("", "x")), Err(RpcError::EmptyKey));
    let request = PutRequest {
        ignore_value: true,
        ..put("k", "x")
    };
    assert_eq!(check_put(&request), Err(RpcError::ValueProvided));
    let request = PutRequest {
        ignore_lease: true,
        lease: 1,
        ..put("k", "")
    };
    assert_eq!(check_put(&request), Err(RpcError::LeaseProvided));
    assert_eq!(check_put(&put("k", "")), Ok(()));
    assert_eq!(check_delete(&delete("", "\0")), Err(RpcError::EmptyKey));
    assert_eq!(check_range(&range("", "\0")), Err(RpcError::EmptyKey));
    let request = RangeRequest {
        sort_order: 3,
        ..range("k", "")
    };
    assert_eq!(check_range(&request), Err(RpcError::InvalidSortOption));
    let request = RangeRequest {
        sort_target: 5,
        ..range("k", "")
    };
    assert_eq!(check_range(&request), Err(RpcError::InvalidSortOption));
}
