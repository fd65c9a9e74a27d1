//! Verbs as HTTP methods with JSON.

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::extract::{RawPathParams, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, on};
use serde_json::{Map, Value};
use tonic::Code;
use tracing::Instrument as _;

use super::verb::Kind;
use super::{ApiMessage, Run, Served, Verb, named};
use crate::api_error::ApiError;
use crate::server::Peer;

/// A verb's HTTP method.
pub fn route<S, Req, R>(served: Arc<Served<S, R>>) -> MethodRouter
where
    S: Send + Sync + 'static,
    Req: ApiMessage,
    R: Run<S, Req>,
{
    let filter = match served.verb.method {
        Kind::Get => MethodFilter::GET,
        Kind::Post => MethodFilter::POST,
        Kind::Put => MethodFilter::PUT,
        Kind::Delete => MethodFilter::DELETE,
    };
    on(filter, move |params: RawPathParams, request: Request| {
        answer(Arc::clone(&served), params, request)
    })
}

async fn answer<S, Req, R>(
    served: Arc<Served<S, R>>,
    params: RawPathParams,
    request: Request,
) -> Response
where
    S: Send + Sync + 'static,
    Req: ApiMessage,
    R: Run<S, Req>,
{
    let peer = request.extensions().get::<Peer>();
    let (request_id, caller) = served.front.admit(request.headers(), peer);
    let span = served.span(&request_id, caller.as_ref().ok());
    let answered = async {
        let caller = caller?;
        let limit = served.front.limits.request_bytes_max;
        let message = message(&served.verb, &params, request, limit).await;
        let message = message.map_err(|error| error.request(&request_id))?;
        served.call(caller, message).await
    };
    let response = match answered.instrument(span).await {
        Ok(answer) => json(&served.verb, &answer),
        Err(error) => error.into_response(),
    };
    named(response, &request_id)
}

fn json<Resp: ApiMessage>(verb: &Verb, answer: &Resp) -> Response {
    let body = serde_json::to_vec(answer).expect("messages have no keys that are not text");
    let mut response = (verb.success, body).into_response();
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

fn invalid(what: impl Into<String>) -> ApiError {
    ApiError::new(Code::InvalidArgument, "invalid-request", what)
        .next("GET /openapi.json says what the request is")
}

async fn message<Req: ApiMessage>(
    verb: &Verb,
    params: &RawPathParams,
    request: Request,
    limit: usize,
) -> Result<Req, ApiError> {
    if verb.method.has_body() {
        let (parts, body) = request.into_parts();
        if parts.uri.query().is_some_and(|query| !query.is_empty()) {
            return Err(invalid("this request takes a JSON body, and no query"));
        }
        let body = body_of(&parts.headers, body, limit).await?;
        return of_body(params, &body);
    }
    of_query(params, request.uri().query().unwrap_or_default())
}

async fn body_of(
    headers: &HeaderMap,
    body: Body,
    limit: usize,
) -> Result<axum::body::Bytes, ApiError> {
    let bytes = to_bytes(body, limit).await.map_err(|error| {
        invalid(format!(
            "the body cannot be read, or is longer than {limit} bytes: {error}"
        ))
    })?;
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::to_str);
    let is_json = match kind {
        None => bytes.is_empty(),
        Some(Ok(kind)) => {
            let essence = kind.split(';').next().unwrap_or_default().trim();
            essence.eq_ignore_ascii_case("application/json")
        }
        Some(Err(_)) => false,
    };
    if is_json {
        Ok(bytes)
    } else {
        let what = "the body is not `content-type: application/json`";
        Err(
            ApiError::new(Code::InvalidArgument, "unsupported-media-type", what)
                .status(axum::http::StatusCode::UNSUPPORTED_MEDIA_TYPE),
        )
    }
}

fn of_body<Req: ApiMessage>(params: &RawPathParams, body: &[u8]) -> Result<Req, ApiError> {
    let unreadable = |error: serde_json::Error| invalid(format!("the JSON is refused: {error}"));
    let body = if body.is_empty() { b"{}" } else { body };
    let mut named = params.iter().peekable();
    if named.peek().is_none() {
        return serde_json::from_slice(body).map_err(unreadable);
    }
    let mut fields: Map<String, Value> = serde_json::from_slice(body).map_err(unreadable)?;
    for (name, value) in named {
        if fields.insert(name.to_owned(), value.into()).is_some() {
            return Err(invalid(format!(
                "{name} stands in the path and in the body"
            )));
        }
    }
    serde_json::from_value(fields.into()).map_err(unreadable)
}

/// The path's parameters join the query, and the whole is read at once.
fn of_query<Req: ApiMessage>(params: &RawPathParams, query: &str) -> Result<Req, ApiError> {
    let mut all = form_urlencoded::Serializer::new(query.to_owned());
    for (name, value) in params {
        if form_urlencoded::parse(query.as_bytes()).any(|(given, _)| given == name) {
            return Err(invalid(format!(
                "{name} stands in the path and in the query"
            )));
        }
        all.append_pair(name, value);
    }
    serde_urlencoded::from_str(&all.finish())
        .map_err(|error| invalid(format!("the query is refused: {error}")))
}
