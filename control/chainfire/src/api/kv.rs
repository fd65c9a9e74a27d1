//! Keys: reading, writing, transactions, compaction.

use chainfire_store::{
    Access, TXN_OPS_MAX, check_delete, check_put, check_range, check_txn, is_read_only,
    is_serializable,
};
use etcd_wire::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest,
    PutResponse, RangeRequest, RangeResponse, TxnRequest, TxnResponse,
};
use tonic::Status;

use super::{Api, Caller, propose, read_error};

impl Api {
    /// Reads keys; the newest committed ones unless `serializable`.
    pub async fn range(
        &self,
        caller: &Caller,
        request: RangeRequest,
    ) -> Result<RangeResponse, Status> {
        check_range(&request)?;
        if !request.serializable {
            self.consensus.barrier().await?;
        }
        let view = self.consensus.view();
        let (key, end) = (&request.key, &request.range_end);
        view.auth()
            .check(caller.identity(), Access::Read, key, end)?;
        let mut response = view.range(&request).map_err(read_error)?;
        self.fill(&mut response.header);
        Ok(response)
    }

    /// Writes a key.
    pub async fn put(&self, caller: &Caller, request: PutRequest) -> Result<PutResponse, Status> {
        check_put(&request)?;
        propose!(self, caller, Put, request)
    }

    /// Deletes keys.
    pub async fn delete_range(
        &self,
        caller: &Caller,
        request: DeleteRangeRequest,
    ) -> Result<DeleteRangeResponse, Status> {
        check_delete(&request)?;
        propose!(self, caller, DeleteRange, request)
    }

    /// Compares, then does one of two lists of operations, all at one revision. A transaction that
    /// only reads needs no place in the log.
    pub async fn txn(&self, caller: &Caller, request: TxnRequest) -> Result<TxnResponse, Status> {
        check_txn(&request, TXN_OPS_MAX)?;
        if !is_read_only(&request) {
            return propose!(self, caller, Txn, request);
        }
        if !is_serializable(&request) {
            self.consensus.barrier().await?;
        }
        let view = self.consensus.view();
        view.auth().check_txn(caller.identity(), &request)?;
        let mut response = view.txn(&request).map_err(read_error)?;
        self.fill(&mut response.header);
        Ok(response)
    }

    /// Forgets what was before a revision.
    pub async fn compact(
        &self,
        caller: &Caller,
        request: CompactionRequest,
    ) -> Result<CompactionResponse, Status> {
        propose!(self, caller, Compaction, request)
    }
}
