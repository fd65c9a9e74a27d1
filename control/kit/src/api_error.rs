//! The one shape of errors that a control service answers with, over REST and over gRPC.
//!
//! As JSON: `{"error": {"code", "message", "object", "next", "request_id"}}`. `message` says what
//! happened, `object` to what, `next` what to do about it.

use std::fmt;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tonic::{Code, Status};
use utoipa::ToSchema;

use crate::request_id::RequestId;

/// An error for a user.
#[derive(Clone, Debug, Serialize)]
pub struct ApiError {
    #[serde(skip)]
    grpc: Code,
    /// Where HTTP says it more closely than gRPC.
    #[serde(skip)]
    status: Option<StatusCode>,
    code: &'static str,
    message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    object: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    next: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
}

impl ApiError {
    /// `code` is for programs and stays for ever, as `member-exists`; `message` is for people.
    pub fn new(grpc: Code, code: &'static str, message: impl Into<String>) -> ApiError {
        ApiError {
            grpc,
            status: None,
            code,
            message: message.into(),
            object: String::new(),
            next: String::new(),
            request_id: None,
        }
    }

    /// What it happened to.
    pub fn object(mut self, object: impl Into<String>) -> ApiError {
        self.object = object.into();
        self
    }

    /// What to do about it.
    pub fn next(mut self, next: impl Into<String>) -> ApiError {
        self.next = next.into();
        self
    }

    /// The request that it answers.
    pub fn request(mut self, id: &RequestId) -> ApiError {
        self.request_id = Some(id.as_str().to_owned());
        self
    }

    /// Another HTTP status than that of the gRPC code.
    pub fn status(mut self, status: StatusCode) -> ApiError {
        self.status = Some(status);
        self
    }

    /// Whether the service failed, not its caller.
    pub fn is_of_server(&self) -> bool {
        ApiError::http_status(self.grpc).is_server_error() && self.grpc != Code::Unimplemented
    }

    /// The gRPC code.
    pub fn grpc_code(&self) -> Code {
        self.grpc
    }

    /// For programs.
    pub fn code(&self) -> &'static str {
        self.code
    }

    fn text(&self) -> String {
        let mut text = self.message.clone();
        for (what, part) in [("", &self.object), ("next: ", &self.next)] {
            if !part.is_empty() {
                text = format!("{text}; {what}{part}");
            }
        }
        text
    }

    /// The HTTP status of a gRPC code, as gRPC gateways map them.
    pub fn http_status(code: Code) -> StatusCode {
        match code {
            Code::Ok => StatusCode::OK,
            Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => {
                StatusCode::BAD_REQUEST
            }
            Code::Unauthenticated => StatusCode::UNAUTHORIZED,
            Code::PermissionDenied => StatusCode::FORBIDDEN,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
            Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Code::Cancelled => StatusCode::REQUEST_TIMEOUT,
            Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
            Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

impl std::error::Error for ApiError {}

/// An error's JSON, as OpenAPI describes it.
#[derive(ToSchema)]
#[expect(dead_code, reason = "read for its schema alone")]
pub struct ErrorBody {
    error: ErrorDetail,
}

/// What an error says.
#[derive(ToSchema)]
#[expect(dead_code, reason = "read for its schema alone")]
struct ErrorDetail {
    /// For programs; stays for ever.
    code: String,
    /// What happened.
    message: String,
    /// To what.
    object: Option<String>,
    /// What to do about it.
    next: Option<String>,
    /// The request, as it stands in the log.
    request_id: Option<String>,
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Status {
        let mut status = Status::new(error.grpc, error.text());
        if let Ok(code) = error.code.parse() {
            status.metadata_mut().insert("uc-error-code", code);
        }
        status
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status.unwrap_or(ApiError::http_status(self.grpc));
        (status, Json(serde_json::json!({ "error": self }))).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_fronts_say_what_happened_to_what_and_what_next() {
        let error = ApiError::new(Code::FailedPrecondition, "change-under-way", "refused")
            .object("member 7")
            .next("wait for member 6");
        let status = Status::from(error.clone());
        assert_eq!(
            status.message(),
            "refused; member 7; next: wait for member 6"
        );
        assert_eq!(
            status.metadata().get("uc-error-code").unwrap(),
            "change-under-way"
        );
        assert_eq!(error.into_response().status(), StatusCode::BAD_REQUEST);
    }
}
