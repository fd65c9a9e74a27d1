//! The JSON gateway, as Patroni and etcd3gw use it: base64 keys, integers as strings, lines of results.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::support::cluster::{leader, three};
use crate::support::{DEADLINE, Member, eventually, http};

fn post(member: &Member, path: &str, body: &Value) -> (u16, Value) {
    let (status, text) = http(member.client, "POST", path, &body.to_string());
    // A stream's body comes in chunks; the first line that is an object is the answer.
    let line = text
        .lines()
        .find(|line| line.starts_with('{'))
        .unwrap_or("null");
    (status, serde_json::from_str(line).unwrap())
}

#[test]
fn requests_are_json_in_and_out() {
    let member = Member::alone();
    // "a" and "1", "b"
    let (status, put) = post(
        &member,
        "/v3/kv/put",
        &json!({"key": "YQ==", "value": "MQ=="}),
    );
    assert_eq!((status, &put["header"]["revision"]), (200, &json!("2")));
    let (_, read) = post(
        &member,
        "/v3/kv/range",
        &json!({"key": "YQ==", "range_end": "Yg=="}),
    );
    assert_eq!(read["count"], "1");
    assert_eq!(read["kvs"][0]["value"], "MQ==");
    assert_eq!(read["kvs"][0]["mod_revision"], "2");
    let txn = json!({
        "compare": [{"key": "YQ==", "target": "VERSION", "result": "EQUAL", "version": "1"}],
        "success": [{"request_put": {"key": "YQ==", "value": "Mg=="}}],
    });
    assert_eq!(post(&member, "/v3/kv/txn", &txn).1["succeeded"], true);
    let (_, lease) = post(&member, "/v3/lease/grant", &json!({"TTL": "60"}));
    assert_eq!(lease["TTL"], "60");
    let id = lease["ID"].as_str().unwrap().to_owned();
    let (_, kept) = post(&member, "/v3/lease/keepalive", &json!({"ID": id}));
    assert_eq!(kept["result"]["TTL"], "60");
    let listed = eventually("the cluster knows where clients are served", || {
        let (_, members) = post(&member, "/v3/cluster/member/list", &json!({}));
        members["members"][0]["clientURLs"][0]
            .as_str()
            .map(str::to_owned)
    });
    assert_eq!(listed, format!("http://{}", member.client));
    let (status, refused) = post(&member, "/v3/kv/put", &json!({"value": "MQ=="}));
    assert_eq!(status, 400);
    assert_eq!(refused["error"], "etcdserver: key is not provided");
    assert_eq!(refused["code"], 3);
    let (status, version) = http(member.client, "GET", "/version", "");
    assert_eq!(status, 200);
    assert!(version.contains("\"etcdserver\":\"3."), "{version}");
}

#[test]
fn a_watch_is_a_line_for_each_answer() {
    let member = Member::alone();
    let mut stream = TcpStream::connect(member.client).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let body = r#"{"create_request":{"key":"YQ==","start_revision":"1"}}"#;
    let length = body.len();
    write!(
        stream,
        "POST /v3/watch HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    let mut result = || -> Value {
        let line = lines.find(|line| line.starts_with('{')).unwrap();
        serde_json::from_str::<Value>(&line).unwrap()["result"].take()
    };
    assert_eq!(result()["created"], true);
    member.ctl().run(&["put", "a", "1"]);
    let event = &result()["events"][0];
    assert_eq!(event["kv"]["value"], "MQ==");
    // A put is the default of its field, which the gateway leaves out.
    assert_eq!(event["type"], Value::Null);
}

#[test]
fn a_lease_is_kept_alive_across_the_loss_of_the_leader() {
    let mut members = three();
    let lost = leader(&members);
    let asked = (lost + 1) % members.len();
    let (_, lease) = post(&members[asked], "/v3/lease/grant", &json!({"TTL": "600"}));
    let renew = json!({ "ID": lease["ID"] });
    members[lost].kill();
    // One that says that there is no leader yet may be asked again; one that renews tells the time.
    let kept = eventually("the lease is renewed", || {
        let (status, kept) = post(&members[asked], "/v3/lease/keepalive", &renew);
        (status == 200).then_some(kept)
    });
    assert_eq!(kept["result"]["TTL"], "600", "{kept}");
}
