//! From the store's errors to S3's.

use s3_wire::{S3Error, S3ErrorCode};
use shards::RouteError;

use crate::store::StoreError;

/// What a routed call's failure means for the operation.
pub(crate) fn of_route(error: RouteError) -> StoreError {
    match error {
        RouteError::Busy | RouteError::Moved => StoreError::Busy,
        RouteError::Gone => StoreError::Gone,
        RouteError::Deadline => {
            StoreError::Internal("the owner of the key did not answer in time".into())
        }
    }
}

/// What the client is told.
pub(crate) fn of_store(error: &StoreError) -> S3Error {
    let code = match error {
        StoreError::NoSuchBucket => S3ErrorCode::NoSuchBucket,
        StoreError::NoSuchKey => S3ErrorCode::NoSuchKey,
        StoreError::NoSuchUpload => S3ErrorCode::NoSuchUpload,
        StoreError::BucketExists { .. } => S3ErrorCode::BucketAlreadyExists,
        StoreError::BucketNotEmpty => S3ErrorCode::BucketNotEmpty,
        StoreError::PreconditionFailed => S3ErrorCode::PreconditionFailed,
        StoreError::InvalidPartOrder => S3ErrorCode::InvalidPartOrder,
        StoreError::Full => S3ErrorCode::InsufficientStorage,
        StoreError::Busy => S3ErrorCode::SlowDown,
        StoreError::InvalidPart { number, .. } => {
            let what = format!("Part {number} was not uploaded, or its ETag does not match.");
            return S3Error::new(S3ErrorCode::InvalidPart, what);
        }
        StoreError::EntityTooSmall { .. } => {
            return S3Error::new(S3ErrorCode::EntityTooSmall, format!("The upload: {error}."));
        }
        StoreError::Poisoned(_) => {
            let what = "This part of the store takes no writes since a write to its disk failed.";
            return S3Error::new(S3ErrorCode::ServiceUnavailable, what);
        }
        StoreError::Gone => S3ErrorCode::ServiceUnavailable,
        StoreError::Corrupt { .. } => {
            let what = "The stored object is damaged; what is left of it was not sent.";
            return S3Error::new(S3ErrorCode::InternalError, what);
        }
        _ => S3ErrorCode::InternalError,
    };
    code.into()
}

/// Logs what only the operator can act on, then [`of_store`].
pub(crate) fn report(error: &StoreError, what: &str) -> S3Error {
    match error {
        StoreError::Corrupt { .. } => {
            tracing::error!(%error, what, "an object is damaged; restore it from elsewhere");
        }
        StoreError::Internal(_) | StoreError::Poisoned(_) => {
            tracing::error!(%error, what, "the store failed");
        }
        _ => {}
    }
    of_store(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_client_can_retry_is_503_and_what_is_damaged_is_500() {
        for (error, status) in [
            (StoreError::NoSuchKey, 404),
            (StoreError::PreconditionFailed, 412),
            (of_route(RouteError::Busy), 503),
            (of_route(RouteError::Moved), 503),
            (StoreError::Poisoned("EIO".into()), 503),
            (StoreError::Full, 507),
            (of_route(RouteError::Deadline), 500),
            (
                StoreError::Corrupt {
                    what: "body".into(),
                    segment: 1,
                    offset: 2,
                },
                500,
            ),
        ] {
            assert_eq!(of_store(&error).status(), status, "{error}");
        }
    }
}
