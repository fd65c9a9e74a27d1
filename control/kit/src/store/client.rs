//! The store over etcd's API: ChainFire's members, asked one after the other until one answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use etcd_wire::etcdserverpb::kv_client::KvClient;
use etcd_wire::etcdserverpb::lease_client::LeaseClient;
use etcd_wire::etcdserverpb::watch_client::WatchClient;
use etcd_wire::etcdserverpb::watch_request::RequestUnion;
use etcd_wire::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest, WatchCreateRequest, WatchRequest,
};
use futures_util::{Stream, StreamExt as _, stream};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::wire::{COMMIT, LEASE, READ, WATCH, Wire};
use super::{LeaseId, Outcome, Page, Range, Store, StoreError, StoreErrorKind, Txn, Watch};
use crate::Error;
use crate::client::{self, Options};
use crate::tls::ClientTls;

/// How long one call may take.
const CALL_LIMIT: Duration = Duration::from_secs(5);

/// Where the store is.
#[derive(Clone)]
pub struct ClientConfig {
    /// Members' client URLs.
    pub endpoints: Vec<String>,
    /// Every key lies below this, as `ultracloud/`.
    pub namespace: String,
    /// Certificates, for `https` URLs.
    pub tls: Option<ClientTls>,
}

/// A connection to ChainFire's members.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    members: Vec<Channel>,
    /// The member that is asked.
    current: AtomicUsize,
    wire: Wire,
}

impl Client {
    /// Connects when it is first used.
    ///
    /// # Errors
    /// When there is no URL, or one that cannot be used.
    pub fn new(config: ClientConfig) -> Result<Client, Error> {
        if config.endpoints.is_empty() {
            let what = "no member of the store is named".to_owned();
            return Err(Error::address(what, "expected one URL at least"));
        }
        let tls = config.tls.as_ref();
        let urls = config.endpoints.iter();
        let channels = urls.map(|url| client::channel(url, tls, Options::default()));
        Ok(Client(Arc::new(Inner {
            members: channels.collect::<Result<_, _>>()?,
            current: AtomicUsize::new(0),
            wire: Wire::new(config.namespace),
        })))
    }

    fn current(&self) -> (usize, Channel) {
        let at = self.0.current.load(Ordering::Relaxed) % self.0.members.len();
        (at, self.0.members[at].clone())
    }

    /// Another member is asked from now on, unless that has been decided already.
    fn turn_from(&self, at: usize) {
        let next = (at + 1) % self.0.members.len();
        let current = &self.0.current;
        // Somebody else turned first when it fails.
        let _ = current.compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// One call to the current member; a failure that is the member's own turns to the next one.
    async fn call<T>(
        &self,
        what: &'static str,
        run: impl AsyncFnOnce(Channel) -> Result<T, Status>,
    ) -> Result<T, StoreError> {
        let (at, channel) = self.current();
        let answer = match tokio::time::timeout(CALL_LIMIT, run(channel)).await {
            Ok(answer) => answer,
            Err(_) => Err(Status::deadline_exceeded("no answer in time")),
        };
        answer.map_err(|status| {
            let error = of_status(what, &status);
            if error.is_passing() {
                self.turn_from(at);
            }
            error
        })
    }
}

fn of_status(what: &'static str, status: &Status) -> StoreError {
    let kind = match status.code() {
        // Refusals come before anything happens.
        Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::Unimplemented
        | Code::ResourceExhausted => StoreErrorKind::Refused,
        Code::NotFound | Code::OutOfRange => StoreErrorKind::Gone,
        // What was sent may have arrived, whatever the transport says.
        _ if what == COMMIT => StoreErrorKind::Unknown,
        _ => StoreErrorKind::Unavailable,
    };
    let mut why = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        why = format!("{why}: {error}");
        cause = error.source();
    }
    StoreError::new(kind, what, why)
}

/// The requests of one watch: the one that makes it, and none more until it is dropped.
fn watch_requests(create: WatchCreateRequest) -> impl Stream<Item = WatchRequest> {
    let request = WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(create)),
    };
    stream::iter([request]).chain(stream::pending())
}

#[async_trait]
impl Store for Client {
    async fn range(&self, range: Range) -> Result<Page, StoreError> {
        let request = self.0.wire.range_request(&range);
        let answer = self
            .call(READ, async move |channel| {
                let mut kv = KvClient::new(channel).max_decoding_message_size(usize::MAX);
                kv.range(request).await.map(tonic::Response::into_inner)
            })
            .await?;
        self.0.wire.page(answer)
    }

    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        let request = self.0.wire.txn_request(&txn);
        let answer = self
            .call(COMMIT, async move |channel| {
                let mut kv = KvClient::new(channel).max_decoding_message_size(usize::MAX);
                kv.txn(request).await.map(tonic::Response::into_inner)
            })
            .await?;
        self.0.wire.outcome(answer)
    }

    async fn watch(&self, prefix: &str, since: i64) -> Result<Watch, StoreError> {
        let create = self.0.wire.watch_request(prefix, since);
        let answers = self
            .call(WATCH, async move |channel| {
                let mut watch = WatchClient::new(channel).max_decoding_message_size(usize::MAX);
                let mut request = Request::new(watch_requests(create));
                // A member that has lost its leader ends the watch, so that another one is asked.
                request
                    .metadata_mut()
                    .insert("hasleader", "true".parse().expect("a plain word"));
                watch.watch(request).await.map(tonic::Response::into_inner)
            })
            .await?;
        let client = self.clone();
        let changes = answers.map(move |answer| match answer {
            Ok(answer) => client.0.wire.changes(answer),
            Err(status) => Err(of_status(WATCH, &status)),
        });
        let ended = || StoreError::new(StoreErrorKind::Unavailable, WATCH, "the member ended it");
        let ended = stream::once(async move { Err(ended()) });
        Ok(Box::pin(changes.chain(ended)))
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let request = LeaseGrantRequest {
            id: 0,
            ttl: i64::try_from(ttl.as_secs().max(1)).unwrap_or(i64::MAX),
        };
        let answer = self
            .call(LEASE, async move |channel| {
                let mut lease = LeaseClient::new(channel);
                lease.lease_grant(request).await
            })
            .await?;
        Ok(LeaseId(answer.into_inner().id))
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        let request = LeaseKeepAliveRequest { id: lease.0 };
        let answer = self
            .call(LEASE, async move |channel| {
                let mut client = LeaseClient::new(channel);
                let asked = stream::iter([request]);
                let mut answers = client.lease_keep_alive(asked).await?.into_inner();
                answers.message().await
            })
            .await?;
        match answer {
            Some(answer) if answer.ttl > 0 => Ok(()),
            Some(_) => Err(StoreError::new(StoreErrorKind::Gone, LEASE, "it has ended")),
            None => Err(StoreError::new(
                StoreErrorKind::Unavailable,
                LEASE,
                "the member gave no answer",
            )),
        }
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        let request = LeaseRevokeRequest { id: lease.0 };
        let revoked = self
            .call(LEASE, async move |channel| {
                let mut client = LeaseClient::new(channel);
                client.lease_revoke(request).await
            })
            .await;
        match revoked {
            Err(error) if error.kind() != StoreErrorKind::Gone => Err(error),
            _ => Ok(()),
        }
    }
}
