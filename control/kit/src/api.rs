//! A service's verbs, each described once and served as gRPC and as REST, with OpenAPI and reflection.
//!
//! A verb is a gRPC method of the service's `.proto` and an HTTP method with a path; its messages are those
//! of the `.proto`, which are JSON too. Path parameters, and a query, are fields of the request by name.
//! Both fronts do the same: name the request, ask who calls, hold the deadline, count, log, and answer
//! errors in one shape.

mod grpc;
mod openapi;
mod rest;
mod verb;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use tonic::Code;
use tonic::service::Routes;
use tonic_reflection::server as reflection;
use tracing::Span;
use utoipa::ToSchema;

use crate::api_error::ApiError;
use crate::auth::{Authenticate, Principal};
use crate::health::Health;
use crate::metrics::{Counter, Histogram, Registry};
use crate::request_id::{self, RequestId};
use crate::server::Peer;

pub use verb::Verb;

/// Carries the idempotency key of a request that changes something.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
const KEY_LENGTH_MAX: usize = 128;

/// On whose behalf a call comes, and how long it may take.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who.
    pub principal: Arc<Principal>,
    /// The request's name.
    pub request_id: RequestId,
    /// Nobody waits for an answer any more.
    pub deadline: Instant,
    /// The same for every try of what the client wants once.
    pub idempotency_key: Option<Box<str>>,
}

/// A call of a verb.
#[derive(Clone, Debug)]
pub struct Call<T> {
    /// What is asked.
    pub message: T,
    /// By whom.
    pub caller: Caller,
}

/// What a message of an API is.
pub trait ApiMessage:
    Message + Default + Serialize + DeserializeOwned + ToSchema + Send + Sync + 'static
{
}

impl<T> ApiMessage for T where
    T: Message + Default + Serialize + DeserializeOwned + ToSchema + Send + Sync + 'static
{
}

/// What runs a verb: a function of the service's state and a call.
pub trait Run<S, Req>: Send + Sync + 'static {
    /// What it answers.
    type Answer: ApiMessage;

    /// Runs it.
    fn run(
        &self,
        state: Arc<S>,
        call: Call<Req>,
    ) -> impl Future<Output = Result<Self::Answer, ApiError>> + Send;
}

impl<S, Req, Resp, F, Fut> Run<S, Req> for F
where
    Resp: ApiMessage,
    F: Fn(Arc<S>, Call<Req>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Resp, ApiError>> + Send,
{
    type Answer = Resp;

    fn run(
        &self,
        state: Arc<S>,
        call: Call<Req>,
    ) -> impl Future<Output = Result<Resp, ApiError>> + Send {
        self(state, call)
    }
}

/// How an API is served.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long a call may take that names no deadline of its own, and at most.
    pub deadline: Duration,
    /// Bytes of a request.
    pub request_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            deadline: Duration::from_secs(30),
            request_bytes_max: 1 << 20,
        }
    }
}

/// What all verbs of a port share: who may call, how long, and what is counted. Clones are the same.
#[derive(Clone)]
pub struct Front(Arc<FrontInner>);

struct FrontInner {
    authenticate: Arc<dyn Authenticate>,
    limits: Limits,
    calls: Counter,
    refused: Counter,
    failed: Counter,
    took: Histogram,
}

impl Front {
    /// Counts in a registry, once.
    pub fn new(authenticate: Arc<dyn Authenticate>, limits: Limits, registry: &Registry) -> Front {
        let counter = |name, help| registry.counter(name, help);
        Front(Arc::new(FrontInner {
            authenticate,
            limits,
            calls: counter("uc_api_calls_total", "Calls that were let in."),
            refused: counter(
                "uc_api_refused_calls_total",
                "Calls refused to their caller.",
            ),
            failed: counter(
                "uc_api_failed_calls_total",
                "Calls that the service failed.",
            ),
            took: registry.histogram("uc_api_call_seconds", "How long calls took."),
        }))
    }
}

impl FrontInner {
    /// Names a request and asks who sends it.
    fn admit(
        &self,
        headers: &HeaderMap,
        peer: Option<&Peer>,
    ) -> (RequestId, Result<Caller, ApiError>) {
        let request_id = RequestId::of(headers);
        let caller = self.caller(headers, peer, &request_id);
        if caller.is_err() {
            self.refused.increment();
        }
        let caller = caller.map_err(|error| error.request(&request_id));
        (request_id, caller)
    }

    fn caller(
        &self,
        headers: &HeaderMap,
        peer: Option<&Peer>,
        request_id: &RequestId,
    ) -> Result<Caller, ApiError> {
        let principal = self.authenticate.authenticate(headers, peer)?;
        let given = headers.get(grpc::TIMEOUT).map(grpc::timeout).transpose()?;
        let limit = given.map_or(self.limits.deadline, |given| {
            given.min(self.limits.deadline)
        });
        Ok(Caller {
            principal,
            request_id: request_id.clone(),
            deadline: Instant::now() + limit,
            idempotency_key: headers.get(IDEMPOTENCY_KEY).map(key).transpose()?,
        })
    }
}

fn key(value: &HeaderValue) -> Result<Box<str>, ApiError> {
    let text = value.to_str().ok();
    let text = text.filter(|text| (1..=KEY_LENGTH_MAX).contains(&text.len()));
    let refused = || {
        let what = "the idempotency key is not 1 to 128 printable ASCII characters";
        ApiError::new(Code::InvalidArgument, "invalid-idempotency-key", what)
            .object(IDEMPOTENCY_KEY)
    };
    Ok(text.ok_or_else(refused)?.into())
}

/// One verb, as both fronts serve it.
struct Served<S, R> {
    state: Arc<S>,
    run: R,
    verb: Verb,
    front: Arc<FrontInner>,
}

impl<S, R> Served<S, R> {
    fn span(&self, request_id: &RequestId, caller: Option<&Caller>) -> Span {
        let tenant = caller.map_or("", |caller| &*caller.principal.tenant);
        tracing::info_span!(
            "call",
            verb = self.verb.name,
            id = request_id.as_str(),
            tenant
        )
    }

    async fn call<Req>(&self, caller: Caller, message: Req) -> Result<R::Answer, ApiError>
    where
        R: Run<S, Req>,
    {
        let started = Instant::now();
        let (deadline, request_id) = (caller.deadline, caller.request_id.clone());
        let call = Call { message, caller };
        let running = self.run.run(Arc::clone(&self.state), call);
        let answer = match tokio::time::timeout_at(deadline, running).await {
            Ok(answer) => answer,
            Err(_) => Err(ApiError::new(
                Code::DeadlineExceeded,
                "deadline-exceeded",
                "there was no answer within the deadline; what was asked may have happened",
            )
            .next("read the object, or try again with the same idempotency key")),
        };
        self.front.calls.increment();
        self.front.took.record(started.elapsed());
        answer.map_err(|error| {
            if error.is_of_server() {
                self.front.failed.increment();
                tracing::warn!(code = error.code(), %error, "a call failed");
            } else {
                self.front.refused.increment();
                tracing::debug!(code = error.code(), %error, "a call was refused");
            }
            error.request(&request_id)
        })
    }
}

/// The answer carries its request's name.
fn named(mut response: Response, request_id: &RequestId) -> Response {
    if let Ok(value) = HeaderValue::from_str(request_id.as_str()) {
        response.headers_mut().insert(request_id::HEADER, value);
    }
    response
}

/// A service under construction: add its verbs, then make a router of it.
pub struct Api<S> {
    service: &'static str,
    state: Arc<S>,
    front: Front,
    router: Router,
    document: openapi::Document,
    descriptors: Vec<&'static [u8]>,
}

impl<S: Send + Sync + 'static> Api<S> {
    /// `service` is the `.proto`'s full name of it, `descriptors` its encoded descriptor set.
    pub fn new(
        service: &'static str,
        descriptors: &'static [u8],
        state: Arc<S>,
        front: &Front,
    ) -> Api<S> {
        Api {
            service,
            state,
            front: front.clone(),
            router: Router::new(),
            document: openapi::Document::new(service),
            descriptors: vec![descriptors],
        }
    }

    /// Another service on the same port, with verbs and a state of its own; it shares what is counted.
    pub fn and<T: Send + Sync + 'static>(
        self,
        service: &'static str,
        descriptors: &'static [u8],
        state: Arc<T>,
    ) -> Api<T> {
        let mut all = self.descriptors;
        all.push(descriptors);
        Api {
            service,
            state,
            front: self.front,
            router: self.router,
            document: self.document,
            descriptors: all,
        }
    }

    /// Serves a verb.
    ///
    /// # Panics
    /// If its path, or its name, is served already, or a path parameter is no field of the request.
    pub fn verb<Req: ApiMessage, R: Run<S, Req>>(mut self, verb: Verb, run: R) -> Api<S> {
        self.document.add::<Req, R::Answer>(self.service, &verb);
        let served = Arc::new(Served {
            state: Arc::clone(&self.state),
            run,
            verb,
            front: Arc::clone(&self.front.0),
        });
        let method = format!("/{}/{}", self.service, verb.name);
        self.router = self
            .router
            .route(&method, grpc::route(Arc::clone(&served)))
            .route(verb.path, rest::route(served));
        self
    }

    /// The OpenAPI document of all verbs so far, as JSON.
    pub fn openapi(&self) -> String {
        self.document.json()
    }

    /// All verbs, gRPC health and reflection, the OpenAPI document, `/healthz`, `/readyz` and `/metrics`.
    ///
    /// # Panics
    /// If a descriptor set is none.
    pub fn router(self, health: Health, registry: Registry) -> Router {
        let metrics = move || async move {
            let text = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
            (text, registry.text())
        };
        let all = self.routes(&health).route("/metrics", get(metrics));
        with_fallbacks(all.merge(health.router()))
    }

    /// As [`Api::router`], for a port that tells its health and metrics in its own way: all else, gRPC's health
    /// included, without the answers to what is not served ([`with_fallbacks`]).
    ///
    /// # Panics
    /// If a descriptor set is none.
    pub fn routes(self, health: &Health) -> Router {
        let openapi: Arc<str> = self.openapi().into();
        let document = move || async move {
            let json = [(header::CONTENT_TYPE, "application/json")];
            (json, openapi.to_string())
        };
        let reflection = || {
            let sets = self.descriptors.iter().copied();
            let sets = sets.chain([tonic_health::pb::FILE_DESCRIPTOR_SET]);
            sets.fold(reflection::Builder::configure(), |builder, set| {
                builder.register_encoded_file_descriptor_set(set)
            })
        };
        let made = "the build made the descriptors";
        // Clients ask for either version.
        let grpc = Routes::new(health.grpc())
            .add_service(reflection().build_v1().expect(made))
            .add_service(reflection().build_v1alpha().expect(made));
        self.router
            .route("/openapi.json", get(document))
            .merge(grpc.into_axum_router().reset_fallback())
    }
}

/// Answers in the one shape of errors where nothing is served, or not with this method.
pub fn with_fallbacks(router: Router) -> Router {
    router
        .fallback(nothing_here)
        .method_not_allowed_fallback(not_this_method)
}

async fn nothing_here(headers: HeaderMap) -> Response {
    let what = "nothing is served here";
    let error = ApiError::new(Code::Unimplemented, "no-such-path", what)
        .next("GET /openapi.json lists what is")
        .status(StatusCode::NOT_FOUND);
    unserved(&headers, error)
}

async fn not_this_method(headers: HeaderMap) -> Response {
    let what = "the path is served with another method";
    let error = ApiError::new(Code::Unimplemented, "method-not-allowed", what)
        .next("the `allow` header of this answer lists them")
        .status(StatusCode::METHOD_NOT_ALLOWED);
    unserved(&headers, error)
}

fn unserved(headers: &HeaderMap, error: ApiError) -> Response {
    let request_id = RequestId::of(headers);
    named(error.request(&request_id).into_response(), &request_id)
}
