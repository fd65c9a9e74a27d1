//! Calls made of a seed: the same seed, the same calls.

use etcd_wire::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use etcd_wire::etcdserverpb::request_op::Request;
use etcd_wire::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, HashKvRequest, LeaseGrantRequest,
    LeaseLeasesRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest, PutRequest, RangeRequest,
    RequestOp, TxnRequest,
};

/// Operations of a transaction's list, at most, and how deep transactions nest.
const OPS_MAX: u64 = 4;
const DEPTH_MAX: u32 = 2;

const KEYS: &[&str] = &["a", "b", "c", "d/1", "d/2", "d/3", "e", "f"];
const ENDS: &[&str] = &["\0", "b", "d/", "d0", "d/2", "f", "g"];
const LEASES: &[i64] = &[1, 2, 3, 77];

/// A call.
#[derive(Clone, Debug)]
pub enum Call {
    Range(RangeRequest),
    Put(PutRequest),
    Delete(DeleteRangeRequest),
    Txn(TxnRequest),
    Compact(CompactionRequest),
    Grant(LeaseGrantRequest),
    Revoke(LeaseRevokeRequest),
    TimeToLive(LeaseTimeToLiveRequest),
    Leases(LeaseLeasesRequest),
    HashKv(HashKvRequest),
}

/// A history of calls under way.
pub struct Random {
    state: u64,
    /// The newest revision, as the answers tell it.
    pub revision: i64,
}

impl Random {
    pub fn new(seed: u64) -> Random {
        Random {
            state: seed,
            revision: 1,
        }
    }

    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Once in `n` times.
    fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    pub fn call(&mut self) -> Call {
        match self.below(100) {
            0..30 => Call::Put(self.put()),
            30..50 => Call::Range(self.range()),
            50..60 => Call::Delete(self.delete()),
            60..80 => Call::Txn(self.txn(0)),
            80..84 => Call::Compact(self.compact()),
            84..89 => Call::Grant(self.grant()),
            89..91 => Call::Revoke(LeaseRevokeRequest {
                id: self.one(LEASES),
            }),
            91..94 => Call::TimeToLive(LeaseTimeToLiveRequest {
                id: self.one(LEASES),
                keys: self.once_in(2),
            }),
            94..96 => Call::Leases(LeaseLeasesRequest {}),
            _ => Call::HashKv(HashKvRequest {
                revision: self.revision_near(),
            }),
        }
    }

    fn key(&mut self) -> bytes::Bytes {
        if self.once_in(60) {
            bytes::Bytes::new()
        } else {
            self.one(KEYS).into()
        }
    }

    fn end(&mut self) -> bytes::Bytes {
        if self.once_in(2) {
            bytes::Bytes::new()
        } else {
            self.one(ENDS).into()
        }
    }

    /// Mostly one that is there; at times a compacted, a future or a senseless one.
    fn revision_near(&mut self) -> i64 {
        match self.below(8) {
            0..4 => 0,
            4..7 => self.revision - self.below(12) as i64,
            _ => self.one(&[-1, self.revision + 1, self.revision + 100, 1]),
        }
    }

    fn bound(&mut self) -> i64 {
        if self.once_in(6) {
            self.revision - self.below(8) as i64
        } else {
            0
        }
    }

    fn range(&mut self) -> RangeRequest {
        RangeRequest {
            key: self.key(),
            range_end: self.end(),
            limit: self.one(&[0, 0, 0, 1, 2, 3, 100, -1]),
            revision: self.revision_near(),
            sort_order: self.one(&[0, 0, 1, 2]),
            sort_target: self.one(&[0, 0, 1, 2, 3, 4]),
            serializable: self.once_in(3),
            keys_only: self.once_in(4),
            count_only: self.once_in(8),
            min_mod_revision: self.bound(),
            max_mod_revision: self.bound(),
            min_create_revision: self.bound(),
            max_create_revision: self.bound(),
        }
    }

    fn put(&mut self) -> PutRequest {
        let ignore_value = self.once_in(10);
        let ignore_lease = self.once_in(10);
        let text = format!("{}", self.below(5));
        let value = if ignore_value && !self.once_in(5) {
            bytes::Bytes::new()
        } else {
            text.into()
        };
        let lease = if ignore_lease && !self.once_in(5) {
            0
        } else {
            self.one(&[0, 0, 0, 0, 1, 2, 3, 77])
        };
        PutRequest {
            key: self.key(),
            value,
            lease,
            prev_kv: self.once_in(3),
            ignore_value,
            ignore_lease,
        }
    }

    fn delete(&mut self) -> DeleteRangeRequest {
        DeleteRangeRequest {
            key: self.key(),
            range_end: self.end(),
            prev_kv: self.once_in(2),
        }
    }

    fn compact(&mut self) -> CompactionRequest {
        let behind = self.below(10) as i64;
        CompactionRequest {
            revision: if self.once_in(6) {
                self.revision_near()
            } else {
                self.revision - behind
            },
            physical: self.once_in(2),
        }
    }

    fn grant(&mut self) -> LeaseGrantRequest {
        LeaseGrantRequest {
            ttl: self.one(&[600, 1_000, 900, 10_000_000_000]),
            id: self.one(LEASES),
        }
    }

    fn txn(&mut self, depth: u32) -> TxnRequest {
        let (compares, successes, failures) =
            (self.below(3), self.below(OPS_MAX), self.below(OPS_MAX));
        TxnRequest {
            compare: (0..compares).map(|_| self.compare()).collect(),
            success: (0..successes).map(|_| self.op(depth)).collect(),
            failure: (0..failures).map(|_| self.op(depth)).collect(),
        }
    }

    fn op(&mut self, depth: u32) -> RequestOp {
        let request = match self.below(10) {
            0..3 => Request::RequestRange(self.range()),
            3..7 => Request::RequestPut(self.put()),
            7..9 => Request::RequestDeleteRange(self.delete()),
            _ if depth < DEPTH_MAX => Request::RequestTxn(self.txn(depth + 1)),
            _ => Request::RequestPut(self.put()),
        };
        let none = self.once_in(100);
        RequestOp {
            request: (!none).then_some(request),
        }
    }

    fn compare(&mut self) -> Compare {
        let near = self.revision - self.below(10) as i64;
        let target = self.one(&[
            CompareTarget::Version,
            CompareTarget::Create,
            CompareTarget::Mod,
            CompareTarget::Value,
            CompareTarget::Lease,
        ]);
        let union = match target {
            CompareTarget::Version => TargetUnion::Version(self.below(4) as i64),
            CompareTarget::Create => TargetUnion::CreateRevision(self.one(&[0, near])),
            CompareTarget::Mod => TargetUnion::ModRevision(self.one(&[0, near])),
            CompareTarget::Value => TargetUnion::Value(format!("{}", self.below(5)).into()),
            CompareTarget::Lease => TargetUnion::Lease(self.one(&[0, 1, 2])),
        };
        let results = [
            CompareResult::Equal,
            CompareResult::Greater,
            CompareResult::Less,
            CompareResult::NotEqual,
        ];
        Compare {
            result: self.one(&results).into(),
            target: target.into(),
            key: self.key(),
            target_union: (!self.once_in(20)).then_some(union),
            range_end: if self.once_in(4) {
                self.end()
            } else {
                bytes::Bytes::new()
            },
        }
    }
}
