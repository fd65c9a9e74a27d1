//! Alarms and what they refuse.

use chainfire_store::{Op, Reply, RpcError, cost};
use etcd_wire::etcdserverpb::alarm_request::AlarmAction;
use etcd_wire::etcdserverpb::{AlarmRequest, AlarmType, LeaseGrantRequest, TxnRequest};

use crate::support::{Machine, delete, op_put, op_range, put, range};

fn alarm(
    machine: &mut Machine,
    action: AlarmAction,
    member: u64,
    kind: AlarmType,
) -> Vec<(u64, i32)> {
    let request = AlarmRequest {
        action: action.into(),
        member_id: member,
        alarm: kind.into(),
    };
    match machine.op(Op::Alarm(request)) {
        Ok(Reply::Alarm(answer)) => answer
            .alarms
            .iter()
            .map(|alarm| (alarm.member_id, alarm.alarm))
            .collect(),
        other => panic!("{other:?}"),
    }
}

fn txn(op: etcd_wire::etcdserverpb::RequestOp) -> TxnRequest {
    TxnRequest {
        success: vec![op],
        ..TxnRequest::default()
    }
}

#[test]
fn a_full_store_refuses_growth_alone() {
    use AlarmAction::{Activate, Deactivate, Get};
    let mut machine = Machine::new();
    machine.put("k", "1");
    machine.grant(1, 60).unwrap();
    assert_eq!(
        alarm(&mut machine, Activate, 5, AlarmType::Nospace),
        [(5, 1)]
    );
    assert_eq!(
        alarm(&mut machine, Activate, 5, AlarmType::Nospace),
        [(5, 1)]
    );
    assert_eq!(
        alarm(&mut machine, Activate, 6, AlarmType::Nospace),
        [(6, 1)]
    );
    assert!(alarm(&mut machine, Activate, 6, AlarmType::None).is_empty());
    assert_eq!(
        alarm(&mut machine, Get, 0, AlarmType::None),
        [(5, 1), (6, 1)]
    );
    assert!(alarm(&mut machine, Get, 0, AlarmType::Corrupt).is_empty());

    let full = RpcError::NoSpace;
    assert_eq!(machine.put_with(put("k", "2")).unwrap_err(), full);
    assert_eq!(machine.txn(txn(op_put(put("k", "2")))).unwrap_err(), full);
    assert_eq!(machine.grant(2, 60), Err(full));
    assert!(machine.txn(txn(op_range(range("k", "")))).is_ok());
    assert_eq!(machine.all(), ["k=1"]);
    assert_eq!(machine.delete(delete("k", "")).deleted, 1);
    assert_eq!(machine.compact(3), Ok(()));
    assert_eq!(machine.revoke(1), Ok(()));

    assert_eq!(
        alarm(&mut machine, Deactivate, 5, AlarmType::Nospace),
        [(5, 1)]
    );
    assert!(alarm(&mut machine, Deactivate, 5, AlarmType::Nospace).is_empty());
    assert_eq!(
        machine.put_with(put("k", "2")).unwrap_err(),
        full,
        "member 6 is still full"
    );
    alarm(&mut machine, Deactivate, 6, AlarmType::Nospace);
    assert!(machine.put_with(put("k", "2")).is_ok());
}

#[test]
fn a_damaged_cluster_refuses_keys_and_leases() {
    let mut machine = Machine::new();
    machine.put("k", "1");
    alarm(&mut machine, AlarmAction::Activate, 5, AlarmType::Corrupt);
    let damaged = RpcError::Corrupt;
    assert_eq!(machine.put_with(put("k", "2")).unwrap_err(), damaged);
    assert_eq!(
        machine.op(Op::DeleteRange(delete("k", ""))).unwrap_err(),
        damaged
    );
    assert_eq!(
        machine.txn(txn(op_range(range("k", "")))).unwrap_err(),
        damaged
    );
    assert_eq!(machine.compact(2), Err(damaged));
    assert_eq!(machine.grant(1, 60), Err(damaged));
    assert_eq!(machine.revoke(1), Err(damaged));
    assert_eq!(machine.refusal(&range("k", "")), damaged.text());
    alarm(&mut machine, AlarmAction::Deactivate, 5, AlarmType::Corrupt);
    assert_eq!(machine.all(), ["k=1"]);
}

#[test]
fn costs_count_what_grows() {
    assert_eq!(cost(&Op::Put(put("key", "value"))), 256 + 8);
    assert_eq!(cost(&Op::DeleteRange(delete("key", ""))), 0);
    let lopsided = TxnRequest {
        failure: vec![op_put(put("key", "value")), op_put(put("k", ""))],
        ..txn(op_put(put("k", "")))
    };
    assert_eq!(cost(&Op::Txn(lopsided)), 264 + 257);
    assert_eq!(
        cost(&Op::LeaseGrant(LeaseGrantRequest { ttl: 1, id: 1 })),
        64
    );
}
