//! Histories of calls, made of seeds, on both sides: every field of every answer, and code and text of
//! every refusal.

use etcd_wire::etcdserverpb::kv_client::KvClient;
use etcd_wire::etcdserverpb::lease_client::LeaseClient;
use etcd_wire::etcdserverpb::maintenance_client::MaintenanceClient;
use etcd_wire::etcdserverpb::response_op::Response as Answered;
use etcd_wire::etcdserverpb::watch_client::WatchClient;
use etcd_wire::etcdserverpb::watch_request::RequestUnion;
use etcd_wire::etcdserverpb::{
    PutRequest, ResponseHeader, TxnResponse, WatchCreateRequest, WatchRequest, WatchResponse,
};
use tokio_stream::StreamExt as _;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use crate::judged::{self, Difference};
use crate::peer::Etcd;
use crate::random::{Call, Random};
use crate::support::{DEADLINE, Member};

/// Histories of the default run, and the calls of each.
const SEEDS: std::ops::Range<u64> = 1..4;
const CALLS: u64 = 400;
/// Differences that are told, at most.
const TOLD_MAX: usize = 8;

/// The clients of one side.
#[derive(Clone)]
struct Clients {
    kv: KvClient<Channel>,
    lease: LeaseClient<Channel>,
    maintenance: MaintenanceClient<Channel>,
    watch: WatchClient<Channel>,
}

impl Clients {
    async fn at(address: std::net::SocketAddr) -> Clients {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        let channel = endpoint.connect().await.unwrap();
        Clients {
            kv: KvClient::new(channel.clone()),
            lease: LeaseClient::new(channel.clone()),
            maintenance: MaintenanceClient::new(channel.clone()),
            watch: WatchClient::new(channel),
        }
    }
}

/// Of a head, what must be equal.
fn head(header: &mut Option<ResponseHeader>) {
    if let Some(header) = header {
        *header = ResponseHeader {
            revision: header.revision,
            ..ResponseHeader::default()
        };
    }
}

/// Heads within a transaction's answers, too.
fn heads(response: &mut TxnResponse) {
    head(&mut response.header);
    for response in response
        .responses
        .iter_mut()
        .filter_map(|one| one.response.as_mut())
    {
        match response {
            Answered::ResponseRange(one) => head(&mut one.header),
            Answered::ResponsePut(one) => head(&mut one.header),
            Answered::ResponseDeleteRange(one) => head(&mut one.header),
            Answered::ResponseTxn(one) => heads(one),
        }
    }
}

fn told<T: std::fmt::Debug>(
    answer: Result<Response<T>, Status>,
    mask: impl FnOnce(&mut T),
) -> String {
    match answer {
        Ok(answer) => {
            let mut answer = answer.into_inner();
            mask(&mut answer);
            format!("{answer:#?}")
        }
        Err(status) => format!("{:?}: {}", status.code(), status.message()),
    }
}

/// Sends a call; its answer in words.
async fn send(mut to: Clients, call: Call) -> String {
    match call {
        Call::Range(request) => told(to.kv.range(request).await, |a| head(&mut a.header)),
        Call::Put(request) => told(to.kv.put(request).await, |a| head(&mut a.header)),
        Call::Delete(request) => told(to.kv.delete_range(request).await, |a| head(&mut a.header)),
        Call::Txn(request) => told(to.kv.txn(request).await, heads),
        Call::Compact(request) => told(to.kv.compact(request).await, |a| head(&mut a.header)),
        Call::Grant(request) => told(to.lease.lease_grant(request).await, |a| head(&mut a.header)),
        Call::Revoke(request) => told(to.lease.lease_revoke(request).await, |a| {
            head(&mut a.header);
        }),
        Call::TimeToLive(request) => told(to.lease.lease_time_to_live(request).await, |a| {
            head(&mut a.header);
            // Time goes on; and the keys have no order.
            a.ttl = a.ttl.min(1);
            a.keys.sort();
        }),
        Call::Leases(request) => told(to.lease.lease_leases(request).await, |a| {
            head(&mut a.header);
            a.leases.sort_by_key(|lease| lease.id);
        }),
        Call::HashKv(request) => told(to.maintenance.hash_kv(request).await, |a| {
            head(&mut a.header);
            // Of etcd 3.6.
            a.hash_revision = 0;
        }),
    }
}

/// The revision that an answer tells, if any.
fn revision(answer: &str) -> Option<i64> {
    let (_, after) = answer.split_once("revision: ")?;
    after.split(',').next()?.parse().ok()
}

/// What a watch tells of a history, up to a revision or its own end.
async fn watched(mut to: Clients, request: WatchCreateRequest, until: i64) -> Vec<String> {
    let create = WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(request)),
    };
    let requests = tokio_stream::iter([create]).chain(tokio_stream::pending());
    let mut answers = to.watch.watch(requests).await.unwrap().into_inner();
    let mut told = Vec::new();
    loop {
        let answer: WatchResponse = answers.message().await.unwrap().unwrap();
        for event in &answer.events {
            told.push(format!("{event:?}"));
        }
        let last = answer.events.last().and_then(|event| event.kv.as_ref());
        if answer.canceled {
            told.push(format!(
                "{}: {}",
                answer.compact_revision, answer.cancel_reason
            ));
        }
        if answer.canceled || last.is_some_and(|kv| kv.mod_revision >= until) {
            return told;
        }
    }
}

/// Watches from several revisions on, all of whose events come before the history's end.
fn watches(until: i64) -> Vec<WatchCreateRequest> {
    let all = |from: i64| WatchCreateRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        start_revision: from,
        ..WatchCreateRequest::default()
    };
    vec![
        all(1),
        all((until - 9).max(1)),
        WatchCreateRequest {
            prev_kv: true,
            ..all((until - 5).max(1))
        },
        WatchCreateRequest {
            filters: vec![1],
            ..all((until - 9).max(1))
        },
    ]
}

/// Runs one history on both sides.
async fn compare(seed: u64) -> Vec<Difference> {
    let (member, etcd) = (Member::alone(), Etcd::start());
    let (ours, theirs) = (
        Clients::at(member.client).await,
        Clients::at(etcd.client).await,
    );
    let mut random = Random::new(seed);
    let mut found = Vec::new();
    let mut differs = |asked: String, ours: String, theirs: String| {
        if ours != theirs {
            found.push(Difference {
                asked,
                ours,
                theirs,
            });
        }
    };
    for number in 0..CALLS {
        let call = random.call();
        let (our, their) = tokio::join!(
            send(ours.clone(), call.clone()),
            send(theirs.clone(), call.clone())
        );
        if let Some(revision) = revision(&our) {
            random.revision = random.revision.max(revision);
        }
        differs(
            format!("UC_SEED={seed}, call {number}: {call:?}"),
            our,
            their,
        );
    }
    let end = Call::Put(PutRequest {
        key: "end".into(),
        ..PutRequest::default()
    });
    let (our, their) = tokio::join!(send(ours.clone(), end.clone()), send(theirs.clone(), end));
    let until = revision(&our).unwrap();
    differs(format!("UC_SEED={seed}, end"), our, their);
    for request in watches(until) {
        let both = async {
            tokio::join!(
                watched(ours.clone(), request.clone(), until),
                watched(theirs.clone(), request.clone(), until)
            )
        };
        let both = tokio::time::timeout(DEADLINE, both).await;
        let (our, their) = both.expect("a watch tells what was");
        let asked = format!("UC_SEED={seed}: {request:?}");
        differs(asked, our.join("\n"), their.join("\n"));
    }
    found
}

#[tokio::test]
async fn histories_of_calls_are_answered_as_by_etcd() {
    let seeds = match std::env::var("UC_SEED") {
        Ok(seed) => {
            let seed = seed.parse().expect("UC_SEED is a number");
            seed..seed + 1
        }
        Err(_) => SEEDS,
    };
    let mut found = Vec::new();
    for seed in seeds {
        found.extend(compare(seed).await);
    }
    let unjudged = judged::unjudged(&judged::CALLS.iter().collect::<Vec<_>>(), &found);
    let count = unjudged.len();
    let told: Vec<String> = unjudged.into_iter().take(TOLD_MAX).collect();
    assert!(count == 0, "{count} differences:\n{}", told.join("\n"));
}
