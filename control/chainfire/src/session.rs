//! What locks and elections share: an owner's key in a queue by creation, and waiting for one's turn.
//!
//! The owner of a name is the client whose key below `<name>/` was created first. A key hangs on the
//! client's lease: whoever dies leaves the queue when the lease ends.

use std::sync::Arc;

use bytes::Bytes;
use etcd_wire::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use etcd_wire::etcdserverpb::range_request::{SortOrder, SortTarget};
use etcd_wire::etcdserverpb::request_op::Request;
use etcd_wire::etcdserverpb::response_op::Response;
use etcd_wire::etcdserverpb::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest, RequestOp,
    ResponseHeader, TxnRequest, TxnResponse,
};
use etcd_wire::mvccpb::KeyValue;
use tonic::Status;

use crate::api::{Api, Caller};
use crate::watch::KeyRange;
use crate::watch::hub::Spec;

/// etcd's time for the lease of a client that brings none.
const LEASE_TTL_S: i64 = 60;

/// A client that queues.
#[derive(Clone)]
pub struct Session {
    pub(crate) api: Arc<Api>,
    pub(crate) caller: Caller,
}

/// A client's place in a queue.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its key.
    pub key: Bytes,
    /// When the key was created.
    pub revision: i64,
    /// The key's lease.
    pub lease: i64,
    /// The key's value when it was there already.
    pub found: Option<KeyValue>,
}

/// The range of all keys of a name.
pub fn prefix(name: &[u8]) -> KeyRange {
    let mut start = name.to_vec();
    start.push(b'/');
    let mut end = name.to_vec();
    // The byte after the slash.
    end.push(b'0');
    KeyRange::new(start.into(), end.into())
}

fn operation(request: Request) -> RequestOp {
    RequestOp {
        request: Some(request),
    }
}

/// Compares a key's creation with a revision, 0 for a key that is not there.
pub fn created_at(key: &Bytes, revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Create.into(),
        key: key.clone(),
        target_union: Some(TargetUnion::CreateRevision(revision)),
        ..Compare::default()
    }
}

/// Puts a key on a lease.
pub fn put(key: &Bytes, value: &Bytes, lease: i64) -> RequestOp {
    operation(Request::RequestPut(PutRequest {
        key: key.clone(),
        value: value.clone(),
        lease,
        ..PutRequest::default()
    }))
}

/// Reads a key.
pub fn get(key: &Bytes) -> RequestOp {
    operation(Request::RequestRange(RangeRequest {
        key: key.clone(),
        ..RangeRequest::default()
    }))
}

/// Deletes a key.
pub fn delete(key: &Bytes) -> RequestOp {
    operation(Request::RequestDeleteRange(DeleteRangeRequest {
        key: key.clone(),
        ..DeleteRangeRequest::default()
    }))
}

/// The first key that the answers to a transaction hold.
pub fn read_key(response: &TxnResponse) -> Option<&KeyValue> {
    response
        .responses
        .iter()
        .find_map(|one| match &one.response {
            Some(Response::ResponseRange(range)) => range.kvs.first(),
            _ => None,
        })
}

impl Session {
    /// Takes a place in a queue, or finds the one that the lease has already.
    pub async fn queue(&self, name: &[u8], value: Bytes, lease: i64) -> Result<Place, Status> {
        let lease = match lease {
            0 => self.own_lease().await?,
            lease => lease,
        };
        let mut key = name.to_vec();
        key.extend_from_slice(format!("/{lease:x}").as_bytes());
        let key = Bytes::from(key);
        let request = TxnRequest {
            compare: vec![created_at(&key, 0)],
            success: vec![put(&key, &value, lease)],
            failure: vec![get(&key)],
        };
        let response = self.api.txn(&self.caller, request).await?;
        let found = read_key(&response).cloned();
        let now = response.header.as_ref().map_or(0, |header| header.revision);
        Ok(Place {
            key,
            revision: found.as_ref().map_or(now, |kv| kv.create_revision),
            lease,
            found,
        })
    }

    async fn own_lease(&self) -> Result<i64, Status> {
        let request = LeaseGrantRequest {
            ttl: LEASE_TTL_S,
            id: 0,
        };
        let granted = self.api.lease_grant(&self.caller, request).await?;
        Ok(granted.id)
    }

    /// Returns once every key of the name that was created before the place is gone. Cancel-safe.
    pub async fn wait_turn(&self, name: &[u8], place: &Place) -> Result<ResponseHeader, Status> {
        let range = prefix(name);
        loop {
            let (key, end) = range.bounds();
            let request = RangeRequest {
                key: Bytes::copy_from_slice(key),
                range_end: Bytes::copy_from_slice(end),
                max_create_revision: place.revision - 1,
                sort_order: SortOrder::Descend.into(),
                sort_target: SortTarget::Create.into(),
                limit: 1,
                ..RangeRequest::default()
            };
            let response = self.api.range(&self.caller, request).await?;
            let header = response.header.unwrap_or_default();
            let Some(before) = response.kvs.into_iter().next() else {
                return Ok(header);
            };
            self.wait_deleted(before.key, header.revision).await?;
        }
    }

    /// Returns once a key that was there at a revision has been deleted. Cancel-safe.
    async fn wait_deleted(&self, key: Bytes, revision: i64) -> Result<(), Status> {
        let spec = Spec {
            range: KeyRange::One(key.clone()),
            no_put: true,
            no_delete: false,
            prev_kv: false,
            fragment: false,
            progress_notify: false,
        };
        let handle = self.api.hub.open();
        handle.hub().watch(handle.id(), None, spec, 0);
        // The watcher was there before this look: a deletion is seen by one or the other.
        let here = RangeRequest {
            key,
            count_only: true,
            ..RangeRequest::default()
        };
        let view = self.api.consensus.view();
        let here = view.range(&here).map_err(crate::api::read_error)?.count > 0;
        if view.revision() < revision || here {
            tokio::select! {
                () = handle.rung() => {}
                () = self.api.stop.requested() => {
                    return Err(etcd_wire::RpcError::Stopped.into());
                }
            }
        }
        Ok(())
    }

    /// Reads a key as it is now.
    pub async fn read(&self, key: &Bytes) -> Result<Option<KeyValue>, Status> {
        let request = RangeRequest {
            key: key.clone(),
            ..RangeRequest::default()
        };
        let response = self.api.range(&self.caller, request).await?;
        Ok(response.kvs.into_iter().next())
    }

    /// Deletes a key.
    pub async fn leave(&self, key: Bytes) -> Result<Option<ResponseHeader>, Status> {
        let request = DeleteRangeRequest {
            key,
            ..DeleteRangeRequest::default()
        };
        Ok(self.api.delete_range(&self.caller, request).await?.header)
    }

    /// Leaves the queue when dropped, unless it was kept: a client that went away waits no more.
    pub fn leaving(&self, key: Bytes) -> Leaving {
        Leaving {
            session: self.clone(),
            key: Some(key),
        }
    }
}

/// Deletes a key when dropped.
pub struct Leaving {
    session: Session,
    key: Option<Bytes>,
}

impl Leaving {
    /// The key stays.
    pub fn keep(mut self) {
        self.key = None;
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        let Some(key) = self.key.take() else { return };
        let session = self.session.clone();
        tokio::spawn(async move {
            // When this fails, the lease's end removes the key.
            if let Err(status) = session.leave(key).await {
                tracing::debug!(%status, "a client's place in a queue is left to its lease");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_names_range_holds_its_own_keys_only() {
        let range = prefix(b"a");
        assert!(range.contains(b"a/1f"));
        for other in [&b"a"[..], b"a0", b"ab/1", b"a.", b"b/1"] {
            assert!(!range.contains(other), "{other:?}");
        }
    }
}
