//! A name for each request, so that a user's complaint finds its lines in the log.
//!
//! A client's own `x-request-id` is kept when it is short and plain; otherwise the server makes one.
//! It is in the span of the request's log lines, in the answer's head and in every error.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument as _;

/// The header of the id, in requests and answers.
pub const HEADER: &str = "x-request-id";
const LENGTH_MAX: usize = 64;

/// A request's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// The client's id if it brought a usable one, else a new one.
    pub fn of(headers: &HeaderMap) -> RequestId {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        let given = headers.get(HEADER).and_then(|value| value.to_str().ok());
        match given {
            Some(id) if (1..=LENGTH_MAX).contains(&id.len()) && id.bytes().all(plain) => {
                RequestId(id.into())
            }
            _ => RequestId::next(),
        }
    }

    /// A new id: the process's start, and a count.
    pub fn next() -> RequestId {
        static START: OnceLock<String> = OnceLock::new();
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let start = START.get_or_init(|| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            format!("{:x}-", now.map_or(0, |since| since.as_micros() as u64))
        });
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let mut digits = itoa::Buffer::new();
        RequestId([start, digits.format(count)].concat().into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Middleware for `axum::middleware::from_fn`: names the request, its span and its answer.
pub async fn name(mut request: Request, next: Next) -> Response {
    let id = RequestId::of(request.headers());
    let path = request.uri().path().to_owned();
    let span = tracing::info_span!("request", id = id.as_str(), method = %request.method(), path);
    request.extensions_mut().insert(id.clone());
    let mut response = next.run(request).instrument(span).await;
    if let Ok(value) = HeaderValue::from_str(id.as_str()) {
        response.headers_mut().insert(HEADER, value);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_id_is_kept_and_any_other_replaced() {
        let with = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(HEADER, HeaderValue::from_static(value));
            RequestId::of(&headers)
        };
        assert_eq!(with("call-7").as_str(), "call-7");
        assert_ne!(with("a b").as_str(), "a b");
        assert_ne!(RequestId::of(&HeaderMap::new()), RequestId::next());
    }
}
