//! aws-sdk-s3.

mod checksums;
mod listings;
mod objects;
mod uploads;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use tempfile::TempDir;

use crate::block_on;
use crate::support::{ACCESS_KEY, Node, SECRET_KEY, fresh};

/// Keys that encodings treat in different ways; every one is legal.
const ODD_KEYS: [&str; 14] = [
    "plain",
    "dir/",
    "dir//double",
    "a b",
    "a+b",
    "100%",
    "%2F",
    "q?m=1#x",
    "<&>\"'",
    "(!*);:@$,[]",
    "ünïcode/ß",
    "日本/東京",
    "😀",
    "back\\slash",
];

/// A node with one bucket, and the SDK's client to it.
struct Stage {
    client: Client,
    node: Node,
    _dir: TempDir,
}

const BUCKET: &str = "sdk";

fn stage() -> Stage {
    let (dir, node) = fresh();
    node.client().put(&format!("/{BUCKET}"), b"").expect(200);
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .endpoint_url(format!("http://{}", node.s3))
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new(
            ACCESS_KEY, SECRET_KEY, None, None, "the test",
        ))
        .force_path_style(true)
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .build();
    Stage {
        client: Client::from_conf(config),
        node,
        _dir: dir,
    }
}

/// Runs an async test against a stage.
fn on_stage<F: Future<Output = ()>>(test: impl FnOnce(Client) -> F) {
    let stage = stage();
    block_on(test(stage.client.clone()));
}

/// The S3 code and HTTP status of a failed call.
#[track_caller]
fn refusal<T: std::fmt::Debug, E: ProvideErrorMetadata>(
    result: Result<T, SdkError<E>>,
) -> (String, u16) {
    let error = match result {
        Ok(done) => panic!("it was not refused: {done:?}"),
        Err(error) => error,
    };
    let answer = error.raw_response().expect("an answer came");
    let code = error
        .as_service_error()
        .and_then(ProvideErrorMetadata::code);
    (
        code.unwrap_or_default().to_owned(),
        answer.status().as_u16(),
    )
}
