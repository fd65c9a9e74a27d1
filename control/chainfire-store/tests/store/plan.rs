//! Random commands on few keys and leases, so that they meet.

use bytes::Bytes;
use chainfire_store::Op;
use etcd_wire::etcdserverpb::compare::{CompareTarget, TargetUnion};
use etcd_wire::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest,
    PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use proptest::prelude::*;

use crate::support::{op_delete, op_put, op_range, op_txn};

/// What happens after a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// The batch goes on.
    More,
    Commit,
    Flush,
    /// The batch is dropped, and applied again from the log.
    Abort,
    /// The store is closed and opened again.
    Reopen,
    /// The power goes; the seed says what was on the disk.
    PowerLoss(u64),
}

#[derive(Debug, Clone)]
pub enum Step {
    Do(Op),
    /// A compaction so many revisions behind the newest.
    Compact(i64),
}

fn key() -> impl Strategy<Value = Bytes> {
    prop::sample::select(&["a", "b", "c", "d", "e", "f"][..]).prop_map(Bytes::from)
}

fn end() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        3 => Just(Bytes::new()),
        2 => key(),
        1 => Just(Bytes::from_static(&[0])),
    ]
}

fn put() -> impl Strategy<Value = PutRequest> {
    let keeps = prop::sample::select(&[0_u8, 0, 0, 0, 0, 1, 2, 3][..]);
    (key(), "[xyz]{0,3}", 0_i64..6, any::<bool>(), keeps).prop_map(
        |(key, value, lease, prev_kv, keeps)| {
            let (ignore_value, ignore_lease) = (keeps & 1 != 0, keeps & 2 != 0);
            PutRequest {
                key,
                value: if ignore_value {
                    Bytes::new()
                } else {
                    value.into()
                },
                lease: if ignore_lease { 0 } else { (lease - 2).max(0) },
                prev_kv,
                ignore_value,
                ignore_lease,
            }
        },
    )
}

fn delete() -> impl Strategy<Value = DeleteRangeRequest> {
    (key(), end(), any::<bool>()).prop_map(|(key, range_end, prev_kv)| DeleteRangeRequest {
        key,
        range_end,
        prev_kv,
    })
}

fn range() -> impl Strategy<Value = RangeRequest> {
    let revision = prop_oneof![4 => Just(0_i64), 1 => 1_i64..40];
    (key(), end(), revision).prop_map(|(key, range_end, revision)| RangeRequest {
        key,
        range_end,
        revision,
        ..RangeRequest::default()
    })
}

fn compare() -> impl Strategy<Value = Compare> {
    let wanted = prop_oneof![
        (0_i64..4).prop_map(TargetUnion::Version),
        (0_i64..30).prop_map(TargetUnion::CreateRevision),
        (0_i64..30).prop_map(TargetUnion::ModRevision),
        (0_i64..4).prop_map(TargetUnion::Lease),
        "[xyz]{0,2}".prop_map(|value| TargetUnion::Value(value.into())),
    ];
    (key(), end(), 0_i32..4, wanted).prop_map(|(key, range_end, result, wanted)| {
        let target = match wanted {
            TargetUnion::Version(_) => CompareTarget::Version,
            TargetUnion::CreateRevision(_) => CompareTarget::Create,
            TargetUnion::ModRevision(_) => CompareTarget::Mod,
            TargetUnion::Value(_) => CompareTarget::Value,
            TargetUnion::Lease(_) => CompareTarget::Lease,
        };
        Compare {
            result,
            target: target.into(),
            key,
            range_end,
            target_union: Some(wanted),
        }
    })
}

fn txn() -> impl Strategy<Value = TxnRequest> {
    let leaf = prop_oneof![
        3 => put().prop_map(op_put),
        2 => delete().prop_map(op_delete),
        2 => range().prop_map(op_range),
    ];
    let op = leaf.prop_recursive(2, 12, 3, |op| txn_of(op).prop_map(op_txn));
    txn_of(op)
}

fn txn_of(op: impl Strategy<Value = RequestOp> + Clone) -> impl Strategy<Value = TxnRequest> {
    (
        prop::collection::vec(compare(), 0..3),
        prop::collection::vec(op.clone(), 0..4),
        prop::collection::vec(op, 0..4),
    )
        .prop_map(|(compare, success, failure)| TxnRequest {
            compare,
            success,
            failure,
        })
}

pub fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => put().prop_map(|put| Step::Do(Op::Put(put))),
        3 => delete().prop_map(|delete| Step::Do(Op::DeleteRange(delete))),
        6 => txn().prop_map(|txn| Step::Do(Op::Txn(txn))),
        3 => (-1_i64..6).prop_map(Step::Compact),
        2 => (1_i64..4, 0_i64..9)
            .prop_map(|(id, ttl)| Step::Do(Op::LeaseGrant(LeaseGrantRequest { ttl, id }))),
        1 => (1_i64..4).prop_map(|id| Step::Do(Op::LeaseRevoke(LeaseRevokeRequest { id }))),
    ]
}

pub fn then() -> impl Strategy<Value = Then> {
    prop_oneof![
        10 => Just(Then::More),
        10 => Just(Then::Commit),
        2 => Just(Then::Flush),
        1 => Just(Then::Abort),
        1 => Just(Then::Reopen),
        2 => any::<u64>().prop_map(Then::PowerLoss),
    ]
}

/// The command of a step when the newest revision is `revision`.
pub fn resolve(step: &Step, revision: i64) -> Op {
    match step {
        Step::Do(op) => op.clone(),
        Step::Compact(behind) => Op::Compaction(CompactionRequest {
            revision: revision - behind,
            physical: false,
        }),
    }
}
