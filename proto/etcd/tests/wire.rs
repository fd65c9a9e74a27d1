//! What etcd's clients see of the types: paths, JSON, field numbers, error texts.
#![allow(clippy::unwrap_used)]

use etcd_wire::chainfire::{Command, command};
use etcd_wire::etcdserverpb::{
    self, CompactionRequest, LeaseTimeToLiveResponse, PutRequest, RangeRequest, RangeResponse,
    RequestOp, ResponseHeader, ResponseOp, TxnRequest, TxnResponse, range_request, request_op,
    response_op,
};
use etcd_wire::mvccpb::KeyValue;
use etcd_wire::{Code, RpcError};
use prost::Message;

#[test]
fn services_have_etcds_names() {
    assert_eq!(etcdserverpb::kv_server::SERVICE_NAME, "etcdserverpb.KV");
    assert_eq!(
        etcdserverpb::watch_server::SERVICE_NAME,
        "etcdserverpb.Watch"
    );
    assert_eq!(
        etcdserverpb::lease_server::SERVICE_NAME,
        "etcdserverpb.Lease"
    );
    assert_eq!(
        etcdserverpb::cluster_server::SERVICE_NAME,
        "etcdserverpb.Cluster"
    );
    assert_eq!(
        etcdserverpb::maintenance_server::SERVICE_NAME,
        "etcdserverpb.Maintenance"
    );
    assert_eq!(etcdserverpb::auth_server::SERVICE_NAME, "etcdserverpb.Auth");
    assert_eq!(
        etcd_wire::v3lockpb::lock_server::SERVICE_NAME,
        "v3lockpb.Lock"
    );
    assert_eq!(
        etcd_wire::v3electionpb::election_server::SERVICE_NAME,
        "v3electionpb.Election"
    );
}

#[test]
fn answers_in_json_look_like_etcds() {
    let answer = RangeResponse {
        header: Some(ResponseHeader {
            cluster_id: 14_841_639_068_965_178_418,
            member_id: 10_276_657_743_932_975_437,
            revision: 2,
            raft_term: 2,
        }),
        kvs: vec![KeyValue {
            key: "foo".into(),
            create_revision: 2,
            mod_revision: 2,
            version: 1,
            value: "bar".into(),
            lease: 0,
        }],
        more: false,
        count: 1,
    };
    assert_eq!(
        serde_json::to_string(&answer).unwrap(),
        concat!(
            r#"{"header":{"cluster_id":"14841639068965178418","member_id":"10276657743932975437","#,
            r#""revision":"2","raft_term":"2"},"kvs":[{"key":"Zm9v","create_revision":"2","#,
            r#""mod_revision":"2","version":"1","value":"YmFy"}],"count":"1"}"#
        )
    );
    let left = LeaseTimeToLiveResponse {
        id: 7,
        ttl: -1,
        granted_ttl: 10,
        keys: vec!["k".into()],
        ..Default::default()
    };
    assert_eq!(
        serde_json::to_string(&left).unwrap(),
        r#"{"ID":"7","TTL":"-1","grantedTTL":"10","keys":["aw=="]}"#
    );
    let nested = TxnResponse {
        responses: vec![ResponseOp {
            response: Some(response_op::Response::ResponsePut(
                etcdserverpb::PutResponse {
                    header: Some(ResponseHeader {
                        revision: 5,
                        ..Default::default()
                    }),
                    prev_kv: None,
                },
            )),
        }],
        succeeded: true,
        header: None,
    };
    assert_eq!(
        serde_json::to_string(&nested).unwrap(),
        r#"{"succeeded":true,"responses":[{"response_put":{"header":{"revision":"5"}}}]}"#
    );
}

#[test]
fn requests_in_json_are_taken_in_both_cases() {
    let wanted = RangeRequest {
        key: "a".into(),
        range_end: "b".into(),
        limit: 3,
        sort_order: range_request::SortOrder::Descend.into(),
        keys_only: true,
        ..Default::default()
    };
    for text in [
        r#"{"key":"YQ==","range_end":"Yg==","limit":"3","sort_order":"DESCEND","keys_only":true}"#,
        r#"{"key":"YQ==","rangeEnd":"Yg==","limit":3,"sortOrder":2,"keysOnly":true,"unknown":[]}"#,
    ] {
        assert_eq!(
            serde_json::from_str::<RangeRequest>(text).unwrap(),
            wanted,
            "{text}"
        );
    }
    for text in [
        r#"{"key":"#,
        r#"{"key":1}"#,
        r#"{"limit":"x"}"#,
        r#"{"key":"*"}"#,
    ] {
        assert!(
            serde_json::from_str::<RangeRequest>(text).is_err(),
            "{text}"
        );
    }
}

#[test]
fn a_txn_survives_both_encodings() {
    let txn = TxnRequest {
        success: vec![RequestOp {
            request: Some(request_op::Request::RequestPut(PutRequest {
                key: "k".into(),
                value: vec![0, 255].into(),
                lease: -3,
                ..Default::default()
            })),
        }],
        ..Default::default()
    };
    let json = serde_json::to_string(&txn).unwrap();
    assert_eq!(serde_json::from_str::<TxnRequest>(&json).unwrap(), txn);
    let command = Command {
        user: "root".into(),
        auth_revision: 3,
        op: Some(command::Op::Txn(txn)),
    };
    assert_eq!(
        Command::decode(command.encode_to_vec().as_slice()).unwrap(),
        command
    );
}

#[test]
fn a_command_in_a_log_keeps_its_bytes() {
    let compaction = Command {
        op: Some(command::Op::Compaction(CompactionRequest {
            revision: 9,
            physical: true,
        })),
        ..Default::default()
    };
    assert_eq!(compaction.encode_to_vec(), [0x6a, 4, 8, 9, 16, 1]);
}

#[test]
fn errors_carry_etcds_code_and_text() {
    let compacted = tonic::Status::from(RpcError::Compacted);
    assert_eq!(compacted.code(), Code::OutOfRange);
    assert_eq!(
        compacted.message(),
        "etcdserver: mvcc: required revision has been compacted"
    );
    for error in RpcError::ALL {
        assert_eq!(RpcError::from_text(error.text()), Some(*error));
        assert_eq!(error.to_string(), error.text());
    }
    assert_eq!(RpcError::from_text("etcdserver: other"), None);
}
