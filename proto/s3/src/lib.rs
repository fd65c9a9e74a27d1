//! The S3 protocol without I/O: bytes in, typed requests out; answers in, bytes out.
//!
//! Every function here is pure: no sockets, no clock, no randomness, no global state. Whatever comes
//! from outside is parsed into a type that cannot be wrong or refused with an [`S3Error`]; nothing
//! panics on input and nothing allocates more than the input or a stated bound. Bodies are never
//! buffered: decoders and digests take slices as they arrive.
//!
//! The order in which a server uses the modules: [`head`] (frame the request), [`sigv4`] (who is it,
//! how is the body signed), [`request`] (what is wanted), [`chunked`] and [`checksum`] (the body),
//! [`list`] and [`xml`] (the answer), [`error`] (the refusal).

#![forbid(unsafe_code)]

pub mod checksum;
pub mod chunked;
pub mod conditional;
pub mod error;
pub mod etag;
pub mod head;
pub mod list;
pub mod metadata;
pub mod names;
pub mod range;
pub mod request;
mod sigv2;
pub mod sigv4;
pub mod timestamp;
pub mod uri;
pub mod xml;

pub use error::{Result, S3Error, S3ErrorCode};
pub use etag::Etag;
pub use head::{HeadError, HeadLimits, Parsed, RequestHead, ResponseHead, parse_head};
pub use names::{BucketName, ObjectKey};
pub use request::S3Op;
