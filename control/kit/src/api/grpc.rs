//! Verbs as gRPC methods.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::HeaderValue;
use axum::response::Response;
use axum::routing::{MethodRouter, post};
use tonic::server::{Grpc, UnaryService};
use tonic::{Code, Status};
use tonic_prost::ProstCodec;
use tracing::Instrument as _;

use super::{ApiMessage, Caller, Run, Served, named};
use crate::api_error::ApiError;
use crate::server::Peer;

/// How long the client waits.
pub const TIMEOUT: &str = "grpc-timeout";

/// gRPC's form: up to eight digits and a unit.
pub fn timeout(value: &HeaderValue) -> Result<Duration, ApiError> {
    let parsed = value.to_str().ok().and_then(|text| {
        let unit = text.chars().next_back()?;
        let digits = text.strip_suffix(unit)?;
        if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let count: u64 = digits.parse().ok()?;
        Some(match unit {
            'H' => Duration::from_secs(count * 3600),
            'M' => Duration::from_secs(count * 60),
            'S' => Duration::from_secs(count),
            'm' => Duration::from_millis(count),
            'u' => Duration::from_micros(count),
            'n' => Duration::from_nanos(count),
            _ => return None,
        })
    });
    let refused = || {
        let what = "grpc-timeout is up to eight digits and one of H, M, S, m, u, n";
        ApiError::new(Code::InvalidArgument, "invalid-timeout", what).object(TIMEOUT)
    };
    parsed.ok_or_else(refused)
}

/// A verb's gRPC method.
pub fn route<S, Req, R>(served: Arc<Served<S, R>>) -> MethodRouter
where
    S: Send + Sync + 'static,
    Req: ApiMessage,
    R: Run<S, Req>,
{
    post(move |request: Request| answer(Arc::clone(&served), request))
}

async fn answer<S, Req, R>(served: Arc<Served<S, R>>, request: Request) -> Response
where
    S: Send + Sync + 'static,
    Req: ApiMessage,
    R: Run<S, Req>,
{
    let peer = request.extensions().get::<Peer>();
    let (request_id, caller) = served.front.admit(request.headers(), peer);
    let caller = match caller {
        Ok(caller) => caller,
        Err(error) => {
            let refused = Status::from(error).into_http::<tonic::body::Body>();
            return named(refused.map(Body::new), &request_id);
        }
    };
    let span = served.span(&request_id, Some(&caller));
    let limit = served.front.limits.request_bytes_max;
    let codec = ProstCodec::<R::Answer, Req>::default();
    let mut grpc = Grpc::new(codec).max_decoding_message_size(limit);
    let method = Method {
        served,
        caller: Some(caller),
    };
    let response = grpc.unary(method, request).instrument(span).await;
    named(response.map(Body::new), &request_id)
}

/// One call's method.
struct Method<S, R> {
    served: Arc<Served<S, R>>,
    caller: Option<Caller>,
}

type Answer<Resp> = Pin<Box<dyn Future<Output = Result<tonic::Response<Resp>, Status>> + Send>>;

impl<S, Req, R> UnaryService<Req> for Method<S, R>
where
    S: Send + Sync + 'static,
    Req: ApiMessage,
    R: Run<S, Req>,
{
    type Response = R::Answer;
    type Future = Answer<R::Answer>;

    fn call(&mut self, request: tonic::Request<Req>) -> Answer<R::Answer> {
        let served = Arc::clone(&self.served);
        let caller = self.caller.take();
        Box::pin(async move {
            let caller = caller.ok_or_else(|| Status::internal("a call is answered once"))?;
            let answer = served.call(caller, request.into_inner()).await?;
            Ok(tonic::Response::new(answer))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_grpcs_form_or_refused() {
        let of = |text: &'static str| timeout(&HeaderValue::from_static(text));
        assert_eq!(of("250m").unwrap(), Duration::from_millis(250));
        assert_eq!(of("99999999H").unwrap().as_secs(), 99_999_999 * 3600);
        for wrong in ["", "5", "S", "123456789S", "-1S", "1s", "1 S"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
