//! Checks that a request makes sense before it is proposed, as etcd does at its API: the errors a
//! client sees for what no state could make right.

use std::collections::BTreeSet;

use etcd_wire::RpcError;
use etcd_wire::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, range_request, request_op,
};

/// The most operations of a transaction, as etcd has it by default.
pub const TXN_OPS_MAX: usize = 128;
/// How deep transactions may be nested. A command that holds one is decoded again by every member,
/// and decoders take at most 100 messages in each other: two for each transaction, and three more.
const TXN_DEPTH_MAX: usize = 32;

type Check = Result<(), RpcError>;

/// # Errors
/// `EmptyKey`, `InvalidSortOption`.
pub fn check_range(request: &RangeRequest) -> Check {
    if request.key.is_empty() {
        return Err(RpcError::EmptyKey);
    }
    let order = range_request::SortOrder::try_from(request.sort_order);
    let target = range_request::SortTarget::try_from(request.sort_target);
    if order.is_err() || target.is_err() {
        return Err(RpcError::InvalidSortOption);
    }
    Ok(())
}

/// # Errors
/// `EmptyKey`, `ValueProvided`, `LeaseProvided`.
pub fn check_put(request: &PutRequest) -> Check {
    if request.key.is_empty() {
        return Err(RpcError::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(RpcError::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(RpcError::LeaseProvided);
    }
    Ok(())
}

/// # Errors
/// `EmptyKey`.
pub fn check_delete(request: &DeleteRangeRequest) -> Check {
    if request.key.is_empty() {
        return Err(RpcError::EmptyKey);
    }
    Ok(())
}

/// Checks a transaction with all that is nested in it; `ops_max` bounds the operations of the
/// widest path.
///
/// # Errors
/// `TooManyOps` (also where it is nested more than 32 deep), `DuplicateKey` (a key put twice, or put and deleted, by one path), `KeyNotFound`
/// for an empty operation (so etcd answers), and those of the single operations.
pub fn check_txn(request: &TxnRequest, ops_max: usize) -> Check {
    check_shape(request, ops_max, TXN_DEPTH_MAX)?;
    touched(&request.success)?;
    touched(&request.failure)?;
    Ok(())
}

fn check_shape(request: &TxnRequest, ops_max: usize, depth_max: usize) -> Check {
    let ops = request
        .compare
        .len()
        .max(request.success.len())
        .max(request.failure.len());
    let left = ops_max.checked_sub(ops).ok_or(RpcError::TooManyOps)?;
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(RpcError::EmptyKey);
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(request_op::Request::RequestRange(range)) => check_range(range)?,
            Some(request_op::Request::RequestPut(put)) => check_put(put)?,
            Some(request_op::Request::RequestDeleteRange(delete)) => check_delete(delete)?,
            Some(request_op::Request::RequestTxn(txn)) => {
                let deeper = depth_max.checked_sub(1).ok_or(RpcError::TooManyOps)?;
                check_shape(txn, left, deeper)?;
            }
            None => return Err(RpcError::KeyNotFound),
        }
    }
    Ok(())
}

/// What a list of operations writes.
#[derive(Default)]
struct Touched<'a> {
    puts: BTreeSet<&'a [u8]>,
    /// Deleted keys: a start and an end that is not included; without an end, the start alone.
    deletes: Vec<(&'a [u8], Option<&'a [u8]>)>,
}

impl<'a> Touched<'a> {
    fn is_deleted(&self, key: &[u8]) -> bool {
        self.deletes.iter().any(|(start, end)| match end {
            None => key == *start,
            Some(end) => key >= *start && key < *end,
        })
    }

    fn put(&mut self, key: &'a [u8]) -> Check {
        if self.is_deleted(key) || !self.puts.insert(key) {
            return Err(RpcError::DuplicateKey);
        }
        Ok(())
    }
}

/// Collects what the operations write; a key that one path puts twice, or puts and deletes, is an
/// error. Deletes may overlap.
fn touched(ops: &[RequestOp]) -> Result<Touched<'_>, RpcError> {
    let mut all = Touched::default();
    for op in ops {
        if let Some(request_op::Request::RequestDeleteRange(delete)) = &op.request {
            // etcd compares an end of "\0" as bytes here: such a delete overlaps with nothing.
            let end = Some(&delete.range_end[..]).filter(|end| !end.is_empty());
            all.deletes.push((&delete.key, end));
        }
    }
    for op in ops {
        let Some(request_op::Request::RequestTxn(txn)) = &op.request else {
            continue;
        };
        let then = touched(&txn.success)?;
        let otherwise = touched(&txn.failure)?;
        for key in &then.puts {
            all.put(key)?;
        }
        for key in &otherwise.puts {
            // Put on both branches, of which one runs.
            if then.puts.contains(key) && !all.is_deleted(key) {
                continue;
            }
            all.put(key)?;
        }
        all.deletes.extend(then.deletes);
        all.deletes.extend(otherwise.deletes);
    }
    for op in ops {
        if let Some(request_op::Request::RequestPut(put)) = &op.request {
            all.put(&put.key)?;
        }
    }
    Ok(all)
}
