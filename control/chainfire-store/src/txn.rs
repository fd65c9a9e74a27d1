//! Transactions: which branches run, whether they may, and what reading ones answer.
//!
//! As in etcd every comparison, also of nested transactions, sees the state before the first
//! operation; the operations of the chosen branches are checked before the first one runs.

use etcd_wire::RpcError;
use etcd_wire::etcdserverpb::{
    PutRequest, RangeRequest, RequestOp, ResponseOp, TxnRequest, TxnResponse, request_op,
    response_op,
};

use crate::reads::{ReadError, Reads};
use crate::state::header;

/// The chosen branches of a transaction and of those nested in it, in the order they come.
#[derive(Debug)]
pub(crate) struct Path {
    pub(crate) succeeded: bool,
    /// One for each nested transaction on the chosen branch.
    pub(crate) nested: Vec<Path>,
}

/// Whether a transaction changes nothing, whichever way it goes.
pub fn is_read_only(txn: &TxnRequest) -> bool {
    txn.success
        .iter()
        .chain(&txn.failure)
        .all(|op| match &op.request {
            Some(request_op::Request::RequestRange(_)) | None => true,
            Some(request_op::Request::RequestTxn(nested)) => is_read_only(nested),
            Some(_) => false,
        })
}

/// Whether a transaction that only reads asks for no more than local state: every range of both
/// branches is serializable.
pub fn is_serializable(txn: &TxnRequest) -> bool {
    txn.success
        .iter()
        .chain(&txn.failure)
        .all(|op| match &op.request {
            Some(request_op::Request::RequestRange(range)) => range.serializable,
            Some(request_op::Request::RequestTxn(nested)) => is_serializable(nested),
            _ => false,
        })
}

/// The operations of the chosen branch.
pub(crate) fn chosen<'a>(txn: &'a TxnRequest, path: &Path) -> &'a [RequestOp] {
    if path.succeeded {
        &txn.success
    } else {
        &txn.failure
    }
}

impl Path {
    /// Compares, then chooses.
    pub(crate) fn choose(reads: Reads<'_>, txn: &TxnRequest) -> Result<Self, ReadError> {
        let mut path = Self {
            succeeded: true,
            nested: Vec::new(),
        };
        for compare in &txn.compare {
            if !reads.holds(compare)? {
                path.succeeded = false;
                break;
            }
        }
        for op in chosen(txn, &path) {
            if let Some(request_op::Request::RequestTxn(nested)) = &op.request {
                path.nested.push(Self::choose(reads, nested)?);
            }
        }
        Ok(path)
    }

    /// Refuses what could not run, before anything does: puts before ranges, as etcd looks at them.
    pub(crate) fn check(&self, reads: Reads<'_>, txn: &TxnRequest) -> Result<(), ReadError> {
        self.check_each(txn, &|op| match op {
            request_op::Request::RequestPut(put) => check_put(reads, put),
            _ => Ok(()),
        })?;
        self.check_each(txn, &|op| match op {
            request_op::Request::RequestRange(range) => check_range(reads, range),
            _ => Ok(()),
        })
    }

    /// Looks at the operations of the chosen branches, in order.
    fn check_each(
        &self,
        txn: &TxnRequest,
        check: &dyn Fn(&request_op::Request) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        let mut nested = self.nested.iter();
        for op in chosen(txn, self) {
            match &op.request {
                Some(request_op::Request::RequestTxn(txn)) => {
                    let path = nested.next().expect("one path for each nested transaction");
                    path.check_each(txn, check)?;
                }
                Some(op) => check(op)?,
                None => {}
            }
        }
        Ok(())
    }
}

fn check_range(reads: Reads<'_>, range: &RangeRequest) -> Result<(), ReadError> {
    if range.revision > reads.now {
        return Err(RpcError::FutureRev.into());
    }
    if range.revision != 0 && range.revision < reads.state.compacted {
        return Err(RpcError::Compacted.into());
    }
    Ok(())
}

fn check_put(reads: Reads<'_>, put: &PutRequest) -> Result<(), ReadError> {
    let alive = |key| {
        let entry = reads.state.index.get(key);
        entry.is_some_and(|entry| entry.is_alive())
    };
    if (put.ignore_value || put.ignore_lease) && !alive(&put.key) {
        return Err(RpcError::KeyNotFound.into());
    }
    if put.lease != 0 && reads.state.lease(put.lease).is_none() {
        return Err(RpcError::LeaseNotFound.into());
    }
    Ok(())
}

/// Runs a transaction that only reads.
pub(crate) fn read(reads: Reads<'_>, txn: &TxnRequest) -> Result<TxnResponse, ReadError> {
    let path = Path::choose(reads, txn)?;
    path.check(reads, txn)?;
    let mut answer = read_branch(reads, txn, &path)?;
    answer.header = Some(header(reads.now));
    Ok(answer)
}

fn read_branch(reads: Reads<'_>, txn: &TxnRequest, path: &Path) -> Result<TxnResponse, ReadError> {
    let mut answer = empty_answer(path);
    let mut nested = path.nested.iter();
    for op in chosen(txn, path) {
        let response = match &op.request {
            Some(request_op::Request::RequestRange(range)) => {
                Some(response_op::Response::ResponseRange(reads.range(range)?))
            }
            Some(request_op::Request::RequestTxn(txn)) => {
                let path = nested.next().expect("one path for each nested transaction");
                let answer = read_branch(reads, txn, path)?;
                Some(response_op::Response::ResponseTxn(answer))
            }
            _ => None,
        };
        answer.responses.push(ResponseOp { response });
    }
    Ok(answer)
}

/// The answer before its operations; a nested one's header stays empty, as in etcd.
pub(crate) fn empty_answer(path: &Path) -> TxnResponse {
    TxnResponse {
        header: Some(header(0)),
        succeeded: path.succeeded,
        responses: Vec::new(),
    }
}
