//! Transactions.

use chainfire_store::{
    Command, Op, RpcError, TXN_OPS_MAX, check_txn, is_read_only, is_serializable,
};
use etcd_wire::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use etcd_wire::etcdserverpb::{
    Compare, PutRequest, RangeRequest, RequestOp, TxnRequest, response_op::Response,
};

use prost::Message as _;

use crate::support::{
    Machine, command, delete, op_delete, op_put, op_range, op_txn, put, range, shown,
};

fn txn(success: Vec<RequestOp>) -> TxnRequest {
    TxnRequest {
        success,
        ..TxnRequest::default()
    }
}

fn compare(key: &str, end: &str, result: CompareResult, wanted: TargetUnion) -> Compare {
    let target = match wanted {
        TargetUnion::Version(_) => CompareTarget::Version,
        TargetUnion::CreateRevision(_) => CompareTarget::Create,
        TargetUnion::ModRevision(_) => CompareTarget::Mod,
        TargetUnion::Value(_) => CompareTarget::Value,
        TargetUnion::Lease(_) => CompareTarget::Lease,
    };
    Compare {
        result: result.into(),
        target: target.into(),
        key: key.to_owned().into(),
        range_end: end.to_owned().into(),
        target_union: Some(wanted),
    }
}

#[test]
fn the_operations_share_a_revision_and_see_each_other() {
    let mut machine = Machine::new();
    machine.put("old", "x");
    let answer = machine
        .txn(txn(vec![
            op_range(range("new", "")),
            op_put(put("new", "1")),
            op_range(range("new", "")),
            op_delete(delete("old", "")),
            op_delete(delete("none", "")),
        ]))
        .unwrap();
    assert!(answer.succeeded);
    assert_eq!(answer.header.unwrap().revision, 3);
    let revisions: Vec<_> = answer
        .responses
        .iter()
        .map(|response| match response.response.as_ref().unwrap() {
            Response::ResponseRange(range) => {
                (range.header.unwrap().revision, range.kvs.len() as i64)
            }
            Response::ResponsePut(put) => (put.header.unwrap().revision, -1),
            Response::ResponseDeleteRange(gone) => (gone.header.unwrap().revision, gone.deleted),
            Response::ResponseTxn(_) => unreachable!(),
        })
        .collect();
    assert_eq!(revisions, [(2, 0), (3, -1), (3, 1), (3, 1), (3, 0)]);
    assert_eq!(machine.view().revision(), 3);
    assert_eq!(machine.events.last().unwrap().events.len(), 2);
    let kv = machine.range(&range("new", "")).kvs.remove(0);
    assert_eq!((kv.create_revision, kv.mod_revision), (3, 3));
}

#[test]
fn a_transaction_without_a_change_has_no_revision() {
    let mut machine = Machine::new();
    machine.put("k", "1");
    let request = txn(vec![op_range(range("k", "")), op_delete(delete("x", ""))]);
    assert!(!is_read_only(&request));
    let answer = machine.txn(request).unwrap();
    assert_eq!(answer.header.unwrap().revision, 2);
    assert_eq!(machine.view().revision(), 2);
}

#[test]
fn comparisons_hold_for_every_key_of_their_range() {
    use CompareResult::{Equal, Greater, Less, NotEqual};
    let mut machine = Machine::new();
    machine.grant(9, 60).unwrap();
    machine.put("a", "x");
    machine.put("b", "y");
    let leased = PutRequest {
        lease: 9,
        ..put("b", "x")
    };
    machine.put_with(leased).unwrap();
    let view = machine.view();
    let holds = |key, end, result, wanted| {
        let request = TxnRequest {
            compare: vec![compare(key, end, result, wanted)],
            ..TxnRequest::default()
        };
        view.txn(&request).unwrap().succeeded
    };
    let value = |text: &str| TargetUnion::Value(text.to_owned().into());
    assert!(holds("a", "", Equal, value("x")));
    assert!(holds("a", "\0", Equal, value("x")));
    assert!(holds("a", "c", Greater, value("w")));
    assert!(!holds("a", "c", NotEqual, value("x")));
    assert!(holds("a", "", Equal, TargetUnion::Version(1)));
    assert!(holds("a", "c", Less, TargetUnion::Version(3)));
    assert!(!holds("a", "c", Equal, TargetUnion::Version(1)));
    assert!(holds("b", "", Equal, TargetUnion::CreateRevision(3)));
    assert!(holds("b", "", Equal, TargetUnion::ModRevision(4)));
    assert!(holds("b", "", Equal, TargetUnion::Lease(9)));
    assert!(holds("a", "", Equal, TargetUnion::Lease(0)));
    // A key that is not there: zero, and no value at all.
    assert!(holds("z", "", Equal, TargetUnion::Version(0)));
    assert!(holds("z", "", Equal, TargetUnion::ModRevision(0)));
    assert!(!holds("z", "", Equal, value("")));
    assert!(!holds("z", "", NotEqual, value("x")));
}

#[test]
fn nested_transactions_compare_before_anything_runs() {
    let mut machine = Machine::new();
    let nested = TxnRequest {
        compare: vec![compare(
            "k",
            "",
            CompareResult::Equal,
            TargetUnion::Version(0),
        )],
        success: vec![op_range(range("k", "")), op_put(put("then", "1"))],
        failure: vec![op_put(put("else", "1"))],
    };
    let answer = machine
        .txn(txn(vec![op_put(put("k", "1")), op_txn(nested)]))
        .unwrap();
    assert_eq!(answer.header.unwrap().revision, 2);
    let Some(Response::ResponseTxn(inner)) = &answer.responses[1].response else {
        panic!("{answer:?}")
    };
    assert!(inner.succeeded);
    assert_eq!(inner.header.unwrap().revision, 0, "as etcd leaves it");
    let Some(Response::ResponseRange(seen)) = &inner.responses[0].response else {
        panic!("{inner:?}")
    };
    assert_eq!(shown(&seen.kvs), ["k=1"], "the put has run");
    assert_eq!(machine.all(), ["k=1", "then=1"]);
}

#[test]
fn what_could_not_run_leaves_nothing_behind() {
    let mut machine = Machine::new();
    machine.put("a", "1");
    machine.put("b", "1");
    let before = machine.view().hash().unwrap();
    let future = RangeRequest {
        revision: 9,
        ..range("a", "")
    };
    let leased = PutRequest {
        lease: 4,
        ..put("x", "")
    };
    let keeping = PutRequest {
        ignore_value: true,
        ..put("x", "")
    };
    for (op, refusal) in [
        (op_range(future), RpcError::FutureRev),
        (op_put(leased), RpcError::LeaseNotFound),
        (op_put(keeping), RpcError::KeyNotFound),
    ] {
        let request = txn(vec![op_put(put("a", "2")), op]);
        assert_eq!(machine.txn(request).unwrap_err(), refusal);
        assert_eq!(machine.view().hash().unwrap(), before);
    }
    // The check passes, since the key is there; then it is deleted. etcd's members die of this.
    let keeping = PutRequest {
        ignore_value: true,
        ..put("b", "")
    };
    let request = txn(vec![
        op_put(put("0", "2")),
        op_delete(delete("a", "\0")),
        op_put(keeping),
    ]);
    assert_eq!(check_txn(&request, TXN_OPS_MAX), Ok(()));
    assert_eq!(machine.txn(request).unwrap_err(), RpcError::KeyNotFound);
    assert_eq!(machine.view().hash().unwrap(), before);
    assert_eq!(machine.put("c", "1").header.unwrap().revision, 4);
    assert_eq!(machine.all(), ["a=1", "b=1", "c=1"]);
}

#[test]
fn a_key_deleted_and_put_by_one_transaction_has_both_changes() {
    let mut machine = Machine::new();
    machine.put("a", "1");
    let request = txn(vec![op_delete(delete("a", "\0")), op_put(put("a", "2"))]);
    assert_eq!(check_txn(&request, TXN_OPS_MAX), Ok(()), "as in etcd");
    machine.txn(request).unwrap();
    let kv = machine.range(&range("a", "")).kvs.remove(0);
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (3, 3, 1));
    assert_eq!(machine.events.last().unwrap().events.len(), 2);
    machine.compact(3).unwrap();
    assert_eq!(machine.all(), ["a=2"]);
}

#[test]
fn a_key_is_written_once_on_each_path() {
    let duplicate = Err(RpcError::DuplicateKey);
    let check = |ops| check_txn(&txn(ops), TXN_OPS_MAX);
    let p = |key| op_put(put(key, ""));
    let d = |key, end| op_delete(delete(key, end));
    assert_eq!(check(vec![p("a"), p("b")]), Ok(()));
    assert_eq!(check(vec![p("a"), p("a")]), duplicate);
    assert_eq!(check(vec![p("b"), d("a", "c")]), duplicate);
    assert_eq!(check(vec![d("a", ""), p("a")]), duplicate);
    assert_eq!(check(vec![d("a", "c"), p("c")]), Ok(()));
    assert_eq!(check(vec![d("a", "c"), d("b", "d")]), Ok(()));
    let both = |then, otherwise| {
        op_txn(TxnRequest {
            success: then,
            failure: otherwise,
            ..TxnRequest::default()
        })
    };
    assert_eq!(check(vec![both(vec![p("a")], vec![p("a")])]), Ok(()));
    assert_eq!(check(vec![both(vec![p("a")], vec![]), p("a")]), duplicate);
    assert_eq!(check(vec![p("a"), both(vec![], vec![p("a")])]), duplicate);
    assert_eq!(
        check(vec![both(vec![d("a", "")], vec![]), p("a")]),
        duplicate
    );
    assert_eq!(
        check(vec![d("a", "b"), both(vec![p("a")], vec![])]),
        duplicate
    );
    let twice = vec![both(vec![p("a")], vec![]), both(vec![], vec![p("a")])];
    assert_eq!(check(twice), duplicate);
    let failing = TxnRequest {
        failure: vec![p("a"), p("a")],
        ..TxnRequest::default()
    };
    assert_eq!(check_txn(&failing, TXN_OPS_MAX), duplicate);
}

#[test]
fn operations_are_bounded_and_checked() {
    let puts = |n: usize| {
        (0..n)
            .map(|i| op_put(put(&i.to_string(), "")))
            .collect::<Vec<_>>()
    };
    assert_eq!(check_txn(&txn(puts(128)), TXN_OPS_MAX), Ok(()));
    assert_eq!(
        check_txn(&txn(puts(129)), TXN_OPS_MAX),
        Err(RpcError::TooManyOps)
    );
    let nested = |n: usize, m: usize| {
        let mut ops = puts(n - 1);
        let inner = (0..m).map(|i| op_put(put(&format!("n{i}"), ""))).collect();
        ops.push(op_txn(txn(inner)));
        check_txn(&txn(ops), TXN_OPS_MAX)
    };
    assert_eq!(nested(100, 28), Ok(()));
    assert_eq!(nested(100, 29), Err(RpcError::TooManyOps));
    let empty = RequestOp { request: None };
    assert_eq!(check_txn(&txn(vec![empty]), 9), Err(RpcError::KeyNotFound));
    assert_eq!(
        check_txn(&txn(vec![op_put(put("", ""))]), 9),
        Err(RpcError::EmptyKey)
    );
    let keyless = TxnRequest {
        compare: vec![Compare::default()],
        ..TxnRequest::default()
    };
    assert_eq!(check_txn(&keyless, 9), Err(RpcError::EmptyKey));
}

#[test]
fn reading_transactions_are_told_apart() {
    let local = RangeRequest {
        serializable: true,
        ..range("k", "")
    };
    let reading = txn(vec![
        op_range(range("k", "")),
        op_txn(txn(vec![op_range(local.clone())])),
    ]);
    assert!(is_read_only(&reading));
    assert!(!is_serializable(&reading));
    assert!(is_serializable(&txn(vec![op_range(local)])));
    assert!(!is_read_only(&txn(vec![op_txn(txn(vec![op_put(put(
        "k", ""
    ))]))])));
    let mut machine = Machine::new();
    machine.put("k", "1");
    let answer = machine.view().txn(&reading).unwrap();
    assert_eq!(answer.header.unwrap().revision, 2);
    assert_eq!(
        answer,
        machine.txn(reading).unwrap(),
        "a view answers as the log does"
    );
}

#[test]
fn a_transaction_that_is_nested_too_deep_to_be_read_by_members_is_refused() {
    let nested = |depth: usize| {
        (0..depth).fold(txn(vec![op_put(put("a", ""))]), |inner, _| {
            txn(vec![op_txn(inner)])
        })
    };
    assert_eq!(check_txn(&nested(32), TXN_OPS_MAX), Ok(()));
    let deepest = command(Op::Txn(nested(32)));
    let bytes = deepest.encode_to_vec();
    assert_eq!(Command::decode(&bytes[..]), Ok(deepest));
    // As deep as a client's decoder takes it, where a member's would not.
    let refused = Err(RpcError::TooManyOps);
    assert_eq!(check_txn(&nested(33), TXN_OPS_MAX), refused);
    assert_eq!(check_txn(&nested(49), TXN_OPS_MAX), refused);
    assert!(TxnRequest::decode(&nested(49).encode_to_vec()[..]).is_ok());
    let deeper = command(Op::Txn(nested(49)));
    assert!(Command::decode(&deeper.encode_to_vec()[..]).is_err());
}
