//! What a command would add to the store, for the quota. As in etcd an estimate, on the safe side.

use etcd_wire::chainfire::command::Op;
use etcd_wire::etcdserverpb::{PutRequest, RequestOp, TxnRequest, request_op};

/// etcd's allowance for a version's key, revisions and lease.
const VERSION_OVERHEAD_BYTES: u64 = 256;
const LEASE_BYTES: u64 = 64;

/// The bytes that a command may add; 0 for one that a full store still takes.
pub fn cost(op: &Op) -> u64 {
    match op {
        Op::Put(put) => cost_put(put),
        Op::Txn(txn) => cost_txn(txn),
        Op::LeaseGrant(_) => LEASE_BYTES,
        _ => 0,
    }
}

fn cost_put(put: &PutRequest) -> u64 {
    VERSION_OVERHEAD_BYTES + (put.key.len() + put.value.len()) as u64
}

fn cost_txn(txn: &TxnRequest) -> u64 {
    let branch = |ops: &[RequestOp]| ops.iter().map(cost_op).sum::<u64>();
    branch(&txn.success).max(branch(&txn.failure))
}

fn cost_op(op: &RequestOp) -> u64 {
    match &op.request {
        Some(request_op::Request::RequestPut(put)) => cost_put(put),
        Some(request_op::Request::RequestTxn(txn)) => cost_txn(txn),
        _ => 0,
    }
}
