//! Clients: they write and read at any member through its API, and record what they saw.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use chainfire_core::sim::disk::Random;
use chainfire_core::sim::runtime::{SimInstant, SimRuntime, on};
use chainfire_core::types::NodeId;
use chainfire_core::{AsyncRuntime as _, Instant as _};
use etcd_wire::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use etcd_wire::etcdserverpb::request_op::Request;
use etcd_wire::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseKeepAliveRequest,
    LeaseRevokeRequest, PutRequest, RangeRequest, RequestOp, ResponseHeader, TxnRequest,
};
use tonic::Status;

use super::history::{self, Step};
use super::lease::{self, Renewal};
use super::members::World;
use super::model::Answer;
use crate::api::{Api, Caller};
use crate::watch::KeyRange;

/// Keys that clients work on: "a" and on.
pub const KEYS: u8 = 6;
/// The longest time of a lease; the shortest is one second.
const TTL_S_MAX: u64 = 3;

/// The nth key.
pub fn key(number: u64) -> Bytes {
    Bytes::copy_from_slice(&[b'a' + (number % u64::from(KEYS)) as u8])
}

/// One key, some, or all of them.
pub fn some_range(random: &mut Random) -> KeyRange {
    let start = key(random.next());
    match random.below(4) {
        0 => KeyRange::new(b"a".to_vec().into(), vec![0].into()),
        1 => {
            let end = start[0] + 1 + random.below(3) as u8;
            KeyRange::new(start, vec![end].into())
        }
        _ => KeyRange::new(start, Bytes::new()),
    }
}

/// One client.
pub struct Client {
    world: Arc<World>,
    number: u32,
    unique: u32,
    /// The newest revision that it has seen.
    revision: i64,
    leases: Vec<i64>,
    /// What it last saw of each key.
    values: BTreeMap<Bytes, Bytes>,
}

/// A member to ask, in its present run.
struct At {
    id: NodeId,
    run: u64,
    api: Arc<Api>,
}

fn answer(header: Option<&ResponseHeader>, detail: i64) -> Answer {
    let revision = header.expect("an answer has a head").revision;
    Answer { revision, detail }
}

impl Client {
    pub fn new(world: Arc<World>, number: u32) -> Client {
        Client {
            world,
            number,
            unique: 0,
            revision: 1,
            leases: Vec::new(),
            values: BTreeMap::new(),
        }
    }

    fn with<T>(&self, draw: impl FnOnce(&mut Random) -> T) -> T {
        draw(
            &mut self
                .world
                .random
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    /// Works until `until`.
    pub async fn run(mut self, until: SimInstant) {
        while SimInstant::now() < until {
            let pause = self.with(|random| random.below(60));
            SimRuntime::sleep(Duration::from_millis(pause)).await;
            let up = self.world.up();
            if up.is_empty() {
                continue;
            }
            let id = self.with(|random| *random.pick(&up));
            let api = self.world.members.api(id);
            let (Some(run), Some(api)) = (self.world.run(id), api) else {
                continue;
            };
            self.one(&At { id, run, api }).await;
        }
    }

    async fn one(&mut self, at: &At) {
        match self.with(|random| random.below(100)) {
            0..30 => self.read(at, false, false).await,
            30..38 => self.read(at, true, false).await,
            38..43 => self.read(at, false, true).await,
            43..65 => self.put(at).await,
            65..71 => self.delete(at).await,
            71..85 => self.swap(at).await,
            85..88 => self.compact(at).await,
            88..93 => self.grant(at).await,
            93..95 => self.revoke(at).await,
            _ => self.keep_alive(at).await,
        }
    }

    fn value(&mut self) -> Bytes {
        self.unique += 1;
        format!("{}.{}", self.number, self.unique).into()
    }

    fn call(&self) -> i64 {
        history::lock(&self.world.members.history).tick()
    }

    /// What a member that has crashed meanwhile answered is not heard.
    fn heard<T>(&self, at: &At, answered: Result<T, Status>) -> Result<T, Status> {
        if self.world.run(at.id) == Some(at.run) {
            return answered;
        }
        Err(Status::unknown("the connection broke"))
    }

    fn wrote(&mut self, call: i64, step: Step, answer: &Result<Answer, Status>) {
        if let Ok(answer) = answer {
            self.revision = self.revision.max(answer.revision);
        }
        let answer = answer.as_ref().copied();
        history::lock(&self.world.members.history).wrote(self.number, call, step, answer);
    }

    async fn read(&mut self, at: &At, serializable: bool, past: bool) {
        let (range, back) = self.with(|random| (some_range(random), random.below(12)));
        let revision = if past {
            (self.revision - back as i64).max(1)
        } else {
            0
        };
        self.read_range(at, range, serializable, revision).await;
    }

    /// Reads a range at a member, and records what it answers, if it does.
    async fn read_range(
        &mut self,
        at: &At,
        range: KeyRange,
        serializable: bool,
        revision: i64,
    ) -> bool {
        let call = self.call();
        let (key, end) = range.bounds();
        let request = RangeRequest {
            key: Bytes::copy_from_slice(key),
            range_end: Bytes::copy_from_slice(end),
            serializable,
            revision,
            ..RangeRequest::default()
        };
        let answered = on(at.id, at.api.range(&Caller::default(), request)).await;
        let Ok(answered) = self.heard(at, answered) else {
            return false;
        };
        let now = answer(answered.header.as_ref(), 0).revision;
        self.revision = self.revision.max(now);
        if revision == 0 {
            for kv in &answered.kvs {
                self.values.insert(kv.key.clone(), kv.value.clone());
            }
        }
        let step = Step::Read {
            range,
            serializable,
            revision,
            kvs: answered.kvs,
        };
        history::lock(&self.world.members.history).read(self.number, call, step, now);
        true
    }

    /// Reads all keys at a member that has to answer.
    pub async fn read_all(&mut self, id: NodeId) {
        let run = self.world.run(id).expect("the member is up");
        let api = self.world.members.api(id).expect("the member is up");
        let all = KeyRange::new(b"a".to_vec().into(), vec![0].into());
        let read = self.read_range(&At { id, run, api }, all, false, 0).await;
        assert!(read, "a healed cluster answers reads");
    }

    async fn put(&mut self, at: &At) {
        let (value, number) = (self.value(), self.with(Random::next));
        let hangs = !self.leases.is_empty() && self.with(|random| random.chance(40));
        let lease = if hangs {
            self.with(|random| *random.pick(&self.leases))
        } else {
            0
        };
        let request = PutRequest {
            key: key(number),
            value: value.clone(),
            lease,
            ..PutRequest::default()
        };
        let key = request.key.clone();
        let call = self.call();
        let answered = on(at.id, at.api.put(&Caller::default(), request)).await;
        let told = answered.map(|answered| answer(answered.header.as_ref(), 0));
        let told = self.heard(at, told);
        self.wrote(call, Step::Put { key, value, lease }, &told);
    }

    async fn delete(&mut self, at: &At) {
        let range = self.with(some_range);
        let (key, end) = range.bounds();
        let request = DeleteRangeRequest {
            key: Bytes::copy_from_slice(key),
            range_end: Bytes::copy_from_slice(end),
            ..DeleteRangeRequest::default()
        };
        let call = self.call();
        let answered = on(at.id, at.api.delete_range(&Caller::default(), request)).await;
        let told = answered.map(|answered| answer(answered.header.as_ref(), answered.deleted));
        let told = self.heard(at, told);
        self.wrote(call, Step::Delete(range), &told);
    }

    /// Puts two or three keys at once if the first is as it was last seen.
    async fn swap(&mut self, at: &At) {
        let (value, first) = (self.value(), self.with(Random::next));
        let count = 2 + self.with(|random| random.below(2));
        let keys: Vec<Bytes> = (0..count).map(|nth| key(first % 251 + nth)).collect();
        let expected = self.values.get(&keys[0]).cloned();
        let put = |key: &Bytes| {
            let put = PutRequest {
                key: key.clone(),
                value: value.clone(),
                ..PutRequest::default()
            };
            let request = Some(Request::RequestPut(put));
            RequestOp { request }
        };
        let (target, union) = match &expected {
            Some(value) => (CompareTarget::Value, TargetUnion::Value(value.clone())),
            None => (CompareTarget::Mod, TargetUnion::ModRevision(0)),
        };
        let compare = Compare {
            result: CompareResult::Equal.into(),
            target: target.into(),
            key: keys[0].clone(),
            target_union: Some(union),
            ..Compare::default()
        };
        let request = TxnRequest {
            compare: vec![compare],
            success: keys.iter().map(put).collect(),
            failure: Vec::new(),
        };
        let call = self.call();
        let answered = on(at.id, at.api.txn(&Caller::default(), request)).await;
        let told = answered
            .map(|answered| answer(answered.header.as_ref(), i64::from(answered.succeeded)));
        let told = self.heard(at, told);
        let step = Step::Swap {
            keys,
            expected,
            value,
        };
        self.wrote(call, step, &told);
    }

    async fn compact(&mut self, at: &At) {
        let back = self.with(|random| random.below(20)) as i64;
        let request = CompactionRequest {
            revision: (self.revision - back).max(1),
            physical: false,
        };
        let call = self.call();
        let answered = on(at.id, at.api.compact(&Caller::default(), request)).await;
        let told = answered.map(|answered| answer(answered.header.as_ref(), 0));
        let told = self.heard(at, told);
        self.wrote(call, Step::Other, &told);
    }

    async fn grant(&mut self, at: &At) {
        self.unique += 1;
        let id = i64::from(self.number * 10_000 + self.unique);
        let ttl = 1 + self.with(|random| random.below(TTL_S_MAX)) as i64;
        let renewal = Renewal::now(id, ttl);
        let request = LeaseGrantRequest { ttl, id };
        let call = self.call();
        let answered = on(at.id, at.api.lease_grant(&Caller::default(), request)).await;
        let told = answered.map(|answered| answer(answered.header.as_ref(), 0));
        let told = self.heard(at, told);
        // However it was answered: if the lease came to be, then not before it was asked for.
        lease::lock(&self.world.members.times).renewed(renewal);
        if told.is_ok() {
            self.leases.push(id);
        }
        self.wrote(call, Step::Other, &told);
    }

    async fn revoke(&mut self, at: &At) {
        let Some(id) = self.leases.pop() else { return };
        let request = LeaseRevokeRequest { id };
        let call = self.call();
        let answered = on(at.id, at.api.lease_revoke(&Caller::default(), request)).await;
        let told = answered.map(|answered| answer(answered.header.as_ref(), 0));
        let told = self.heard(at, told);
        self.wrote(call, Step::Revoke(id), &told);
    }

    async fn keep_alive(&mut self, at: &At) {
        if self.leases.is_empty() {
            return;
        }
        let id = self.with(|random| *random.pick(&self.leases));
        let asked = Renewal::now(id, 0);
        let request = LeaseKeepAliveRequest { id };
        let answered = on(at.id, at.api.lease_keep_alive(request)).await;
        match self.heard(at, answered) {
            Ok(answered) if answered.ttl > 0 => {
                let renewed = asked.lasting(answered.ttl);
                lease::lock(&self.world.members.times).renewed(renewed);
            }
            Ok(_) => self.leases.retain(|lease| *lease != id),
            Err(_) => {}
        }
    }
}
