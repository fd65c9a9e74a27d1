//! Buckets over the node's own API, gRPC and REST, beside what S3 shows of them.

use control_kit::client::{Options, channel};
use futures_util::future::join_all;
use lightningstor_api::v1::buckets_client::BucketsClient;
use lightningstor_api::v1::{
    Bucket, CreateBucketRequest, DeleteBucketRequest, GetBucketRequest, ListBucketsRequest,
};
use serde_json::{Value, json};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::api::{ANN, BOB, body, error, rest, root_token, start};
use crate::support::{Client, Node, admin, command, data_of};

fn grpc(node: &Node) -> BucketsClient<Channel> {
    let url = format!("http://{}", node.admin);
    BucketsClient::new(channel(&url, None, Options::default()).unwrap())
}

fn with<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let token = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", token);
    request
}

fn named(name: &str) -> CreateBucketRequest {
    CreateBucketRequest { name: name.into() }
}

fn names(json: &Value) -> Vec<&str> {
    let buckets = json["buckets"].as_array().unwrap();
    buckets
        .iter()
        .map(|one| one["name"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn buckets_of_one_front_are_seen_and_removed_by_the_others() {
    let (dir, node) = start("");
    let mut s3 = Client::new(node.s3, "ANNKEY", "ann's secret");
    let mut grpc = grpc(&node);

    let made = rest(&node, ANN, "POST", "/v1/buckets", r#"{"name":"of-rest"}"#);
    assert_eq!(made.status, 201, "{}", made.text());
    let made = body(&made);
    assert_eq!(
        (&made["name"], &made["owner"]),
        (&json!("of-rest"), &json!("ann-id"))
    );
    assert!(made["created_unix_ms"].as_i64().unwrap() > 1_700_000_000_000);
    let request = with(ANN, named("of-grpc"));
    let made: Bucket = grpc.create_bucket(request).await.unwrap().into_inner();
    assert_eq!((made.name, made.owner), ("of-grpc".into(), "ann-id".into()));
    s3.put("/of-s3", b"").expect(200);

    let all = ["of-grpc", "of-rest", "of-s3"];
    assert_eq!(s3.get("/").expect(200).all("Name"), all);
    let listed = rest(&node, ANN, "GET", "/v1/buckets", "");
    assert_eq!(names(&body(&listed)), all);
    let found = rest(&node, ANN, "GET", "/v1/buckets/of-s3", "");
    assert_eq!(body(&found)["owner"], "ann-id");
    let first = ListBucketsRequest {
        limit: 2,
        ..ListBucketsRequest::default()
    };
    let page = grpc
        .list_buckets(with(ANN, first))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(page.buckets.len(), 2);
    let second = ListBucketsRequest {
        after: page.next,
        ..ListBucketsRequest::default()
    };
    let page = grpc
        .list_buckets(with(ANN, second))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (page.buckets[0].name.as_str(), page.next.as_str()),
        ("of-s3", "")
    );

    // S3 sees them and uses them; what holds an object stays.
    s3.put("/of-rest/key", b"x").expect(200);
    let refused = rest(&node, ANN, "DELETE", "/v1/buckets/of-rest", "");
    assert_eq!(
        error(&refused),
        (400, "bucket-not-empty".into(), "bucket of-rest".into())
    );
    s3.delete("/of-rest/key").expect(204);
    let removed = rest(&node, ANN, "DELETE", "/v1/buckets/of-rest", "");
    assert_eq!((removed.status, removed.text()), (200, "{}".into()));
    s3.delete("/of-grpc").expect(204);
    let gone = with(
        ANN,
        DeleteBucketRequest {
            name: "of-grpc".into(),
        },
    );
    let gone = grpc.delete_bucket(gone).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
    assert_eq!(s3.get("/").expect(200).all("Name"), ["of-s3"]);

    // It is durable, and the node ends well with a connection open.
    node.drain();
    let config = dir.path().join("node.toml");
    let node = Node::from_command(command(&data_of(&dir)).arg("--config").arg(config));
    let listed = rest(&node, ANN, "GET", "/v1/buckets", "");
    assert_eq!(names(&body(&listed)), ["of-s3"]);
}

#[tokio::test]
async fn what_belongs_to_another_is_neither_shown_nor_removed() {
    let (dir, node) = start("");
    let mut grpc = grpc(&node);
    grpc.create_bucket(with(ANN, named("anns"))).await.unwrap();
    grpc.create_bucket(with(BOB, named("bobs"))).await.unwrap();

    let listed = rest(&node, BOB, "GET", "/v1/buckets", "");
    assert_eq!(names(&body(&listed)), ["bobs"]);
    for path in ["/v1/buckets?owner=ann-id", "/v1/buckets?all_owners=true"] {
        let (status, code, _) = error(&rest(&node, BOB, "GET", path, ""));
        assert_eq!((status, code.as_str()), (403, "access-denied"), "{path}");
    }
    for method in ["GET", "DELETE"] {
        let refused = rest(&node, BOB, method, "/v1/buckets/anns", "");
        assert_eq!(
            error(&refused),
            (403, "access-denied".into(), "bucket anns".into())
        );
    }
    let get = with(
        BOB,
        GetBucketRequest {
            name: "anns".into(),
        },
    );
    assert_eq!(
        grpc.get_bucket(get).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    for (token, code) in [
        (ANN, "bucket-already-owned"),
        (BOB, "bucket-already-exists"),
    ] {
        let status = grpc
            .create_bucket(with(token, named("anns")))
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::AlreadyExists);
        assert_eq!(status.metadata().get("uc-error-code").unwrap(), code);
    }
    let mut ann = Client::new(node.s3, "ANNKEY", "ann's secret");
    ann.head("/anns").expect(200);

    // The node's own user sees and removes everything.
    let root = root_token(&data_of(&dir));
    let listed = rest(&node, &root, "GET", "/v1/buckets?all_owners=true", "");
    assert_eq!(names(&body(&listed)), ["anns", "bobs"]);
    let listed = rest(&node, &root, "GET", "/v1/buckets?owner=ann-id", "");
    assert_eq!(names(&body(&listed)), ["anns"]);
    let removed = rest(&node, &root, "DELETE", "/v1/buckets/anns", "");
    assert_eq!(removed.status, 200);
    ann.head("/anns").expect(404);
}

#[tokio::test]
async fn what_is_wrong_is_told_with_its_object_and_what_to_do() {
    let (_dir, node) = start("");
    for wrong in ["ab", "Photos", "a..b", "192.168.0.1", "xn--a", ""] {
        let request = json!({ "name": wrong }).to_string();
        let refused = rest(&node, ANN, "POST", "/v1/buckets", &request);
        let object = format!("bucket {wrong:?}");
        assert_eq!(error(&refused), (400, "invalid-bucket-name".into(), object));
    }
    let mut grpc = grpc(&node);
    let status = grpc
        .create_bucket(with(ANN, named("Photos")))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    for part in ["bucket \"Photos\"", "3 to 63", "next: choose another name"] {
        assert!(
            status.message().contains(part),
            "{part} in {}",
            status.message()
        );
    }
    let none = rest(&node, ANN, "GET", "/v1/buckets/nothing", "");
    assert_eq!(
        error(&none),
        (404, "no-such-bucket".into(), "bucket nothing".into())
    );
    for (path, code) in [
        ("/v1/buckets?limit=1001", "page-too-long"),
        ("/v1/buckets?after=nonsense", "invalid-page-token"),
        ("/v1/buckets?owner=a&all_owners=true", "invalid-request"),
        ("/v1/buckets?colour=red", "invalid-request"),
    ] {
        let (status, found, _) = error(&rest(&node, ANN, "GET", path, ""));
        assert_eq!((status, found.as_str()), (400, code), "{path}");
    }
    let stranger = rest(&node, "a-token-of-nobody", "GET", "/v1/buckets", "");
    assert_eq!(error(&stranger).0, 401);
    let (status, text) = admin(&node, "/openapi.json");
    assert_eq!(status, 200);
    let document: Value = serde_json::from_str(&text).unwrap();
    assert!(document["paths"]["/v1/buckets/{name}"]["delete"].is_object());
}

/// How a flood of one tenant's creations ended.
async fn flood(node: &Node, round: usize) -> Vec<Result<(), Status>> {
    let calls = (0..64).map(|number| {
        let mut grpc = grpc(node);
        let request = with(ANN, named(&format!("flood-{round}-{number}")));
        async move { grpc.create_bucket(request).await.map(drop) }
    });
    join_all(calls).await
}

#[tokio::test]
async fn one_users_flood_is_refused_with_429_for_that_user_alone() {
    let (_dir, node) = start("[admin]\ncalls_per_tenant_max = 1\n");
    let mut made = 0;
    let mut refused = Vec::new();
    for round in 0..20 {
        let calm = async {
            let mut grpc = grpc(&node);
            let request = with(BOB, named(&format!("calm-{round}")));
            grpc.create_bucket(request).await.map(drop)
        };
        let (flooded, calm) = tokio::join!(flood(&node, round), calm);
        calm.unwrap();
        for call in flooded {
            match call {
                Ok(()) => made += 1,
                Err(status) => refused.push(status),
            }
        }
        if !refused.is_empty() {
            break;
        }
    }
    let status = &refused[0];
    assert_eq!(status.code(), Code::ResourceExhausted);
    for part in ["tenant ann-id", "next: retry after 100 ms"] {
        assert!(status.message().contains(part), "{}", status.message());
    }
    // What was refused did not happen, and all else did.
    let mut ann = Client::new(node.s3, "ANNKEY", "ann's secret");
    assert_eq!(ann.get("/").expect(200).all("Name").len(), made);
    let (_, text) = admin(&node, "/metrics");
    let metric = |name: &str| {
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap().parse::<usize>().unwrap()
    };
    assert_eq!(metric("uc_bridge_refused_tenant_busy_total"), refused.len());
    assert_eq!(metric("uc_bridge_in_flight_count"), 0);
    assert!(metric("uc_bridge_calls_total") > made);
}
