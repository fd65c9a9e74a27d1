//! `ultractl bucket` before a real node, beside an S3 client that signs its requests.

use std::process::Command;

use serde_json::Value;

use crate::node::Node;

#[test]
fn buckets_of_the_command_line_and_of_s3_are_the_same() {
    let node = Node::start();
    let made = node.ann("bucket", &["create", "photos"]).unwrap();
    assert!(
        made.starts_with("made bucket photos of ann-id, made 2"),
        "{made}"
    );
    assert_eq!(node.s3("PUT", "/films").0, "200");
    let (status, listed) = node.s3("GET", "/");
    assert_eq!(status, "200");
    assert!(listed.contains("<Name>photos</Name>"), "{listed}");

    let listed = node.ann("bucket", &["list"]).unwrap();
    let rows: Vec<&str> = listed.lines().collect();
    assert!(rows[0].starts_with("NAME    OWNER   CREATED"), "{listed}");
    assert!(rows[1].starts_with("films   ann-id  2"), "{listed}");
    assert!(rows[2].starts_with("photos  ann-id  2"), "{listed}");
    let json = |args: &[&str]| -> Value {
        let said = node
            .ann("bucket", &[args, &["-o", "json"]].concat())
            .unwrap();
        serde_json::from_str(&said).unwrap()
    };
    assert_eq!(json(&["list"])[0]["name"], "films");
    let found = json(&["get", "films"]);
    assert_eq!(
        (&found["name"], &found["owner"]),
        (&"films".into(), &"ann-id".into())
    );
    assert!(found["created_unix_ms"].is_i64());
    // Root owns none of them, and sees them when it asks for all.
    assert_eq!(
        node.root("bucket", &["list"]).unwrap(),
        "NAME  OWNER  CREATED\n"
    );
    assert_eq!(node.root("bucket", &["list", "--all"]).unwrap(), listed);
    assert_eq!(
        node.root("bucket", &["list", "--owner", "ann-id"]).unwrap(),
        listed
    );

    assert_eq!(node.s3("PUT", "/films/one").0, "200");
    let refused = node.ann("bucket", &["delete", "films"]).unwrap_err();
    for part in [
        "holds objects",
        "bucket films",
        "help: delete its objects",
        "note: the request was ",
    ] {
        assert!(refused.contains(part), "{part} in {refused}");
    }
    assert_eq!(node.s3("DELETE", "/films/one").0, "204");
    assert_eq!(json(&["delete", "films"])["removed"], "films");
    assert_eq!(node.s3("HEAD", "/films").0, "404");
}

#[test]
fn what_is_wrong_is_said_with_what_to_do() {
    let node = Node::start();
    let wrong = node.ann("bucket", &["create", "My Photos"]).unwrap_err();
    for part in [
        "bucket \"My Photos\"",
        "3 to 63",
        "help: choose another name",
    ] {
        assert!(wrong.contains(part), "{part} in {wrong}");
    }
    let none = node.ann("bucket", &["get", "nothing"]).unwrap_err();
    assert!(none.contains("does not exist; bucket nothing"), "{none}");
    let stranger = node
        .run("bucket", &["--token", "a-token-of-nobody"], &["list"])
        .unwrap_err();
    for part in ["the token is not known", "help: send"] {
        assert!(stranger.contains(part), "{part} in {stranger}");
    }
    let without = node.run("bucket", &[], &["list"]).unwrap_err();
    assert!(without.contains("root-token"), "{without}");
    let nowhere = Command::new(env!("CARGO_BIN_EXE_ultractl"))
        .args([
            "bucket",
            "--endpoint",
            "http://127.0.0.1:1",
            "--token",
            "t",
            "list",
        ])
        .output()
        .unwrap();
    let said = String::from_utf8(nowhere.stderr).unwrap();
    assert!(
        said.contains("cannot connect to http://127.0.0.1:1"),
        "{said}"
    );
    let denied = node.ann("bucket", &["list", "--all"]).unwrap_err();
    for part in ["everybody's buckets", "help: list your own"] {
        assert!(denied.contains(part), "{part} in {denied}");
    }
}
